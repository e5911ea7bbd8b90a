"""Settings -> command-line options: name, help, type and default of a flag are read from its field."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any

import typer

from llmt.cli.output import Output
from llmt.config.aliases import ALIASES
from llmt.config.base import Section
from llmt.config.fields import Field, walk_fields
from llmt.config.layers import Given, Loaded
from llmt.config.load import DPO_TEMPLATE, ConfigSource, find_source, load_run
from llmt.config.run import TrainConfig

NAMES = {
    "data.sources": "data",
    "tokenizer.path": "tokenizer",
    "lora.enabled": "lora",
    "logging.steps": "logging-steps",
    "lora.dropout": "lora-dropout",
    "lora.r": "lora-r",
    "lora.alpha": "lora-alpha",
    "lora.method": "lora-method",
    "lora.bias": "lora-bias",
    "lora.target_modules": "lora-target-modules",
    "lora.init": "lora-init",
    "training.per_device_train_batch_size": "per-device-train-batch-size",
}
"""Flags whose name is not the last part of the field's."""

SHORT = {"output_dir": "-o", "output_file": "-o", "prompt": "-p", "max_new_tokens": "-n"}

_ON_OFF_ALIASES = {
    "use_amp", "fp16", "bf16", "torch_compile", "compile_model", "force_cpu", "use_cpu", "use_peft", "use_lora",
    "use_gradient_checkpointing", "activation_checkpointing", "tie_weights", "dataloader_pin_memory",
    "save_safetensors", "safe_serialization", "use_accelerate", "auto_find_batch_size",
}  # fmt: skip


def _switch(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)


_OUTPUT = (
    inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
    _switch("quiet", Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]),
    _switch("as_json", Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]),
    _switch("debug", Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]),
)


def load_asked(
    argument: str | None, given: Sequence[Given], sets: Sequence[str]
) -> tuple[ConfigSource, Loaded[TrainConfig]]:
    """The configuration that was typed; where none is named, that of preferences or of an adapter if asked for.

    Raises:
        ConfigError: Every problem at once.
    """
    source = find_source(argument)
    loaded = load_run(source, flags=given, sets=sets)
    if argument is None and loaded.config.training.objective == "dpo":
        source = ConfigSource(DPO_TEMPLATE, template=DPO_TEMPLATE)
        loaded = load_run(source, flags=given, sets=sets)
    elif argument is None and loaded.config.lora.enabled:
        source = find_source(None, lora=True)
        loaded = load_run(source, flags=given, sets=sets)
    return source, loaded


def flag_name(path: str) -> str:
    """The flag of a setting, without its dashes."""
    return NAMES.get(path, path.rpartition(".")[2].replace("_", "-"))


def with_settings(
    section: type[Section], only: tuple[str, ...] = ("",)
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for every setting, and `--quiet`, `--json`, `--debug`.

    The command takes `out: Output` and `given: list[Given]`: the options that were typed, with their places.

    Args:
        section: The settings.
        only: Those whose dotted names begin so.
    """
    parameters, paths = _parameters(section, only)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        fixed = [p for p in own.parameters.values() if p.name not in ("given", "out")]

        @wraps(command)
        def run(**values: Any) -> None:
            out = values["context"].find_object(Output)
            out.quiet, out.as_json, out.debug = values["quiet"], values["as_json"], out.debug or values["debug"]
            given = [
                Given(path, values[name], place)
                for name, (path, place) in paths.items()
                if values[name] not in (None, [], ())
            ]
            try:
                command(**{p.name: values[p.name] for p in fixed}, given=given, out=out)
            except BrokenPipeError:  # the parser would make it exit code 1
                raise typer.Exit(141) from None

        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*fixed, *parameters, *_OUTPUT)]
        run.__signature__ = own.replace(parameters=keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in keyword}
        return run

    return decorate


def _parameters(
    section: type[Section], only: tuple[str, ...]
) -> tuple[list[inspect.Parameter], Mapping[str, tuple[str, str]]]:
    """The parameters to add, and for each its dotted key and its flag."""
    parameters: list[inspect.Parameter] = []
    paths: dict[str, tuple[str, str]] = {}
    fields = {flag_name(field.path): field for field in walk_fields(section) if field.path.startswith(only)}
    for flag, field in fields.items():
        name = "setting_" + flag.replace("-", "_")
        paths[name] = (field.path, f"--{flag}")
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_typed(flag, field))
        )
    if section is TrainConfig:
        for alias, meant in ALIASES.items():
            flag = alias.replace("_", "-")
            if flag in fields or not meant.path.startswith(only):
                continue
            name = "alias_" + alias
            paths[name] = (alias, f"--{flag}")
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_alias(alias, flag))
            )
    return parameters, paths


def _typed(flag: str, field: Field) -> Any:
    names = [f"--{flag}"] + ([SHORT[field.path]] if field.path in SHORT else [])
    section = field.path.rpartition(".")[0]
    shared: dict[str, Any] = {
        "help": field.help.replace("`", ""),
        "show_default": field.default_text if field.default not in (None, (), "") else False,
        "rich_help_panel": f"{section} settings" if section else "Options",
    }
    if field.is_flag:
        return Annotated[bool | None, typer.Option(f"--{flag}/--no-{flag}", **shared)]
    if "list" in field.type_name:
        return Annotated[list[str] | None, typer.Option(*names, metavar="TEXT", **shared)]
    metavar = "|".join(field.choices) if field.choices else field.type_name.upper()
    return Annotated[str | None, typer.Option(*names, metavar=metavar, **shared)]


def _alias(alias: str, flag: str) -> Any:
    if alias in _ON_OFF_ALIASES:
        return Annotated[bool | None, typer.Option(f"--{flag}/--no-{flag}", hidden=True)]
    return Annotated[str | None, typer.Option(f"--{flag}", hidden=True)]
