"""defaults < template < file < LLMT_* environment < flags and --set  ->  one frozen configuration."""

import difflib
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from os.path import isfile  # false, not an error, for a name that is too long
from pathlib import Path
from typing import Any, TypeVar

from llmt.config import strictyaml
from llmt.config.aliases import find_alias
from llmt.config.base import Section
from llmt.config.fields import subsections, walk_fields
from llmt.config.layers import Given, Loaded, check, flatten, merge
from llmt.config.run import TrainConfig
from llmt.config.tasks import TASKS
from llmt.errors import ConfigError

PLUGINS = "LLMT_PLUGINS"
"""The variable that names modules with models of one's own: no setting, since no file may name code to run."""

ENVIRONMENT_PREFIX = "LLMT_"
SHARED = ("device", "seed")
"""Settings of a run whose variables every command reads."""

CADENCES = (("training", "eval"), ("training", "save"), ("logging", "sample"))
"""Section and beginning of `..._strategy` and `..._steps`."""

STOPS = ("max_steps", "num_train_epochs", "max_tokens")
"""Settings that end a run by its work; `max_time` bounds it besides."""

DEFAULT_TEMPLATE = "quickstart"
DATA_SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet", ".arrow", ".gz", ".zst")
"""Endings of files that are text or rows, which somebody may have taken for CONFIG."""

LORA_TEMPLATE = "lora"
DPO_TEMPLATE = "dpo"
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")

TaskType = TypeVar("TaskType", bound=Section)


@dataclass(frozen=True)
class ConfigSource:
    """A template or file that a run starts from.

    Attributes:
        name: Default name of the run.
        template: Template below the file, or alone.
        path: The file, if there is one.
    """

    name: str
    template: str | None = None
    path: Path | None = None


def template_names(folder: str = "") -> list[str]:
    """The templates that come with llmt, by name; `folder="tokenizer"` lists those of the tokenizers."""
    return sorted(Path(entry.name).stem for entry in _templates(folder).iterdir() if entry.name.endswith(".yaml"))


def template_text(name: str) -> str:
    """The text of a template.

    Raises:
        ConfigError: There is no template of that name.
    """
    folder, _, stem = name.rpartition("/")
    known = template_names() + [f"tokenizer/{n}" for n in template_names("tokenizer")]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        meant = f", did you mean {close[0]}?" if close else ""
        raise ConfigError([f"{name}: no such template or file{meant}"], f"templates: {', '.join(known)}")
    return (_templates(folder) / f"{stem}.yaml").read_text(encoding="utf-8")


def _templates(folder: str) -> Traversable:
    packaged = resources.files("llmt") / "templates"
    root = packaged if packaged.is_dir() else resources.files("llmt") / ".." / "templates"
    return root / folder if folder else root


def find_source(argument: str | None, *, lora: bool = False) -> ConfigSource:
    """What the CONFIG argument of `llmt train` names: a file, a run directory, a template, or nothing.

    Raises:
        ConfigError: Neither exists.
    """
    if argument is None:
        name = LORA_TEMPLATE if lora else DEFAULT_TEMPLATE
        return ConfigSource(name, template=name)
    path = Path(argument)
    if argument and isfile(path / "config.yaml"):
        return ConfigSource(path.resolve().name, path=path / "config.yaml")
    if path.suffix.lower() in DATA_SUFFIXES:
        raise ConfigError([f"{argument}: is data, and not a configuration"], f"--data {argument}")
    if path.suffix in CONFIG_SUFFIXES or isfile(path):
        if not isfile(path):
            raise ConfigError([f"{argument}: no such file"], f"templates: {', '.join(template_names())}")
        return ConfigSource(path.stem, path=path)
    template_text(argument)
    return ConfigSource(argument.rpartition("/")[2], template=argument)


def load_run(
    source: ConfigSource,
    *,
    flags: Sequence[Given] = (),
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Loaded[TrainConfig]:
    """The configuration of a training run.

    Args:
        source: Template and file.
        flags: Values of command-line flags, by dotted name.
        sets: `key=value` texts of `--set`.
        environ: Stands in for the environment of the process.

    Raises:
        ConfigError: Every problem at once.
    """
    problems: list[str] = []
    groups = [path for path, _ in subsections(TrainConfig)]
    layers: list[list[Given]] = []
    located = strictyaml.Located({}) if source.path is None else _read(source.path)
    file_values = dict(located.values)
    template = file_values.pop("template", source.template)
    file_layer = flatten(file_values, located.places, groups)
    try:
        layers += _template_layers(template, groups)
    except ConfigError as error:
        if source.path is None:
            raise
        problems.append(f"{located.places['template']}: template: {error.message}")
    layers.append(file_layer)
    layers.append([g for g in read_environment(environ, problems) if not _is_task(g.key)])
    layers.append([*flags, *parse_sets(sets, problems)])
    return _own_cadence(_own_stop(merge(TrainConfig, layers, problems)))


def _own_stop(loaded: Loaded[TrainConfig]) -> Loaded[TrainConfig]:
    """A stop that the user chose replaces the template's: 5 epochs are not cut short by a template's steps."""
    places = {name: loaded.origins.get(f"training.{name}", "") for name in STOPS}
    training = loaded.config.training.model_dump()
    from_template = [n for n, place in places.items() if training[n] is not None and place.startswith("template ")]
    chosen = [n for n, place in places.items() if training[n] is not None and not place.startswith("template ")]
    if not from_template or not chosen:
        return loaded
    cleared = loaded.config.training.model_copy(update=dict.fromkeys(from_template))
    notes = tuple(f"training.{name} of the template gives way to {places[chosen[0]]}" for name in from_template)
    config = loaded.config.model_copy(update={"training": cleared})
    return Loaded(config, loaded.origins, loaded.notes + notes)


def _own_cadence(loaded: Loaded[TrainConfig]) -> Loaded[TrainConfig]:
    """Numbers of steps are for strategies by steps: below another strategy they give way, beside it they are a problem.

    Raises:
        ConfigError: Such a number was written with, or after, another strategy.
    """
    config, problems = loaded.config, []
    for section, what in CADENCES:
        values = config.model_dump(include={section})[section]
        strategy, steps = values[f"{what}_strategy"], values[f"{what}_steps"]
        if strategy == "steps" or steps is None:
            continue
        place = loaded.origins.get(f"{section}.{what}_steps", "")
        above = loaded.origins.get(f"{section}.{what}_strategy", "").startswith("--")
        if place.startswith("--") or not (above or place.startswith("template ")):
            problems.append(f"{place}: {section}.{what}_steps is not read where {what}_strategy is {strategy}")
        update = {f"{what}_steps": None}
        config = config.model_copy(update={section: dict(config)[section].model_copy(update=update)})
    if problems:
        raise ConfigError(problems, "leave it out, or set the strategy to steps")
    return Loaded(config, loaded.origins, loaded.notes)


def _template_layers(template: Any, groups: list[str]) -> list[list[Given]]:
    """The values of a template, after those of the template that it builds on."""
    layers: list[list[Given]] = []
    while template is not None:
        located = strictyaml.load(template_text(str(template)), f"template {template}")
        values = dict(located.values)
        template = values.pop("template", None)
        layers.insert(0, flatten(values, located.places, groups))
    return layers


def load_task(
    task: str, section: type[TaskType], *, flags: Sequence[Given] = (), environ: Mapping[str, str] | None = None
) -> Loaded[TaskType]:
    """The settings of a command besides `train`.

    `LLMT_<TASK>__<FIELD>` reaches every field; `LLMT_DEVICE` and `LLMT_SEED` hold for every command.

    Args:
        task: Its key in `TASKS`.
        section: Its settings model.
        flags: Values of command-line flags, by field name.
        environ: Stands in for the environment of the process.

    Raises:
        ConfigError: Every problem at once.
    """
    problems: list[str] = []
    given = list(read_environment(environ, problems))
    shared = [g for g in given if (field := _canonical(g.key)) in SHARED and field in section.model_fields]
    own = [Given(g.key.removeprefix(f"{task}."), g.value, g.place) for g in given if g.key.startswith(f"{task}.")]
    problems += check(TrainConfig, [g for g in given if not _is_task(g.key) and g not in shared])
    return merge(section, [shared, own, flags], problems)


def read_environment(environ: Mapping[str, str] | None, problems: list[str]) -> Iterable[Given]:
    """Every `LLMT_*` variable as a dotted key; what cannot be read is added to `problems`."""
    given = []
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name == PLUGINS:
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        task, _, field = key.partition(".")
        if task in TASKS and (not field or field not in {f.path for f in walk_fields(TASKS[task])}):
            problems.append(f"{name}: unknown key; {task} has {', '.join(TASKS[task].model_fields)}")
            continue
        try:
            given.append(Given(key, strictyaml.parse_value(text), name))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return given


def parse_sets(sets: Sequence[str], problems: list[str]) -> list[Given]:
    """The `key=value` texts of `--set`; what cannot be read is added to `problems`."""
    given = []
    for text in sets:
        key, separator, value = text.partition("=")
        if not separator or not key:
            problems.append(f"--set {text}: write key=value, such as training.learning_rate=3e-4")
            continue
        try:
            given.append(Given(key.strip().replace("-", "_"), strictyaml.parse_value(value), f"--set {key}"))
        except ValueError as error:
            problems.append(f"--set {text}: {error}")
    return given


def _canonical(key: str) -> str:
    alias = find_alias(key)
    return key if alias is None else alias.path


def _is_task(key: str) -> bool:
    return key.partition(".")[0] in TASKS and "." in key


def _read(path: Path) -> strictyaml.Located:
    try:
        with path.open("rb") as file:
            raw = file.read(strictyaml.MAX_BYTES + 1).removeprefix(BOM_UTF8)
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        column = len(raw[raw.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")) + 1
        raise ConfigError([f"{path}:{line}:{column}: not UTF-8"], "save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"], "name a file that can be read") from None
    located = strictyaml.load(text, str(path))
    if located.values is None:
        return strictyaml.Located({})
    if not isinstance(located.values, dict):
        raise ConfigError([f"{path}:1:1: must be a mapping of settings"], "llmt config template quickstart   shows one")
    return located


def plugins() -> tuple[str, ...]:
    """The modules that `LLMT_PLUGINS` names, by import name or path, separated by commas."""
    return tuple(name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip())


def cache_directory(configured: str | None) -> Path:
    """Where tokenizers and token shards are kept: as configured, else llmt's folder in the user's cache."""
    if configured is not None:
        return Path(configured).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "llmt" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llmt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmt"


def dump_config(config: Section) -> str:
    """The configuration as YAML that `llmt train` reads back to the same configuration."""
    return strictyaml.dump(plain(config.model_dump()))


def plain(value: Any) -> Any:
    """Tuples to lists, so that the value can be written as YAML or JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
