"""Names that hands type."""

from pathlib import Path
from typing import Any

import pytest

from llmt.cli.app import command_line
from llmt.config.aliases import _CONVERTED, ALIASES
from llmt.config.fields import Field, walk_fields
from llmt.config.load import ConfigSource, load_run
from llmt.config.run import TrainConfig
from llmt.errors import ConfigError

FIELDS = {field.path: field for field in walk_fields(TrainConfig)}

# alias -> what is typed -> what the setting becomes
CONVERTED: dict[str, dict[str, Any]] = {
    "use_amp": {"true": "auto", "false": "fp32"},
    "fp16": {"true": "fp16", "false": "auto", "True": "fp16"},
    "bf16": {"true": "bf16", "false": "fp32", "True": "bf16"},
    "amp_dtype": {
        "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "half": "fp16", "float32": "fp32",
        "auto": "auto",
    },
    "mixed_precision": {"no": "fp32", "bf16": "bf16", "fp16": "fp16"},
    "accelerate_mixed_precision": {"no": "fp32", "bf16": "bf16", "fp16": "fp16"},
    "torch_compile": {"true": "always", "false": "never"},
    "compile_model": {"true": "always", "false": "never"},
    "force_cpu": {"true": "cpu", "false": "auto"},
    "use_cpu": {"true": "cpu", "false": "auto"},
    "save_safetensors": {"true": "safetensors", "false": "pytorch"},
    "safe_serialization": {"true": "safetensors", "false": "pytorch"},
    "peft_type": {"LORA": "lora", "lora": "lora", "DORA": "dora"},
    "logging_steps": {"7": 7},
    "log_interval": {"7": 7},
    "model_name_or_path": {"runs/a": "runs/a"},
    "run_name": {"a": "a"},
    "tokenizer_type": {"wordpiece": "wordpiece"},
    "tokenizer_path": {"tokenizers/bpe": "tokenizers/bpe"},
    "num_threads": {"3": 3},
}  # fmt: skip
REFUSED = {
    "fp16": ["yes", "1", "null"],
    "bf16": ["1", "yes", "null"],
    "use_amp": ["5", "no"],
    "force_cpu": ["cpu", "1"],
    "compile_model": ["always"],
    "amp_dtype": ["int8", "float8", "true"],
    "mixed_precision": ["fp8", "yes"],
    "evaluation_strategy": ["never", "true"],
    "patience": ["0", "-1", "true"],
    "use_accelerate": ["yes", "1"],
    "nproc_per_node": ["0", "gpu"],
    "ddp_timeout": ["soon", "true"],
    "auto_find_batch_size": ["auto", "2"],
    "peft_type": ["PREFIX_TUNING", "XLORA"],
}


def _sample(field: Field) -> tuple[str, Any]:
    """A text that is no default, and the value that it means."""
    if field.is_flag:
        return str(not field.default).lower(), not field.default
    if field.choices:
        choice = next(c for c in field.choices if c != field.default)
        return choice, choice
    count = {"model.hidden_size": 8, "model.max_position_embeddings": 4096}.get(field.path, 2)
    return {"count": (str(count), count), "number": ("0.125", 0.125), "text": ("x", "x"), "list": ("x,y", ("x", "y"))}[
        field.type_name
    ]


def cases() -> list[Any]:
    """Every alias with every value to try."""
    rows = []
    for alias, target in ALIASES.items():
        values = CONVERTED[alias] if alias in CONVERTED else dict([_sample(FIELDS[target.path])])
        rows += [pytest.param(alias, text, value, id=f"{alias}={text}") for text, value in values.items()]
    return rows


def read(config: TrainConfig, path: str) -> Any:
    """The value of a setting."""
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    return found


def load(path: Path, text: str, environ: dict[str, str] | None = None) -> Any:
    """A run from a file of this text."""
    path.write_text(text, encoding="utf-8")
    return load_run(ConfigSource("run", path=path), environ=environ or {})


def test_every_alias_names_a_setting() -> None:
    """No alias leads nowhere, and none hides a setting at the top level."""
    assert {alias.path for alias in ALIASES.values()} <= set(FIELDS)
    assert not set(ALIASES) & set(FIELDS)


def test_an_alias_of_a_switch_is_a_switch() -> None:
    """`--use-accelerate` takes no value, as its setting takes none; nor do those that take true and false."""
    import typer

    train: Any = typer.main.get_command(command_line()).commands["train"]  # type: ignore[attr-defined]
    found = {param.opts[0]: param.is_flag for param in train.params if param.hidden}
    switches = {
        alias for alias, target in ALIASES.items() if FIELDS[target.path].is_flag or "true" in CONVERTED.get(alias, {})
    }
    flags = {f"--{alias.replace('_', '-')}": alias in switches for alias in ALIASES}
    assert found == {flag: flags[flag] for flag in found}
    assert {"--use-accelerate", "--auto-find-batch-size", "--bf16"} <= set(found)


def test_every_conversion_has_its_table() -> None:
    """An alias that converts, or that lives elsewhere than its section, is tested value by value."""
    assert set(CONVERTED) == set(_CONVERTED)


@pytest.mark.parametrize(("alias", "text", "value"), cases())
def test_an_alias_reaches_its_setting_from_everywhere(tmp_path: Path, alias: str, text: str, value: Any) -> None:
    """At the top level, in its own section and as a variable, an alias sets its field and is told of once."""
    path, file = ALIASES[alias].path, tmp_path / "run.yaml"
    section = path.rpartition(".")[0]
    dotted = f"{section}.{alias}" if section else alias
    nested = f"{section}:\n  {alias}: '{text}'" if section else f"{alias}: '{text}'"
    variable = f"LLMT_{dotted.upper().replace('.', '__')}"
    loaded = [
        load(file, f"{alias}: {text}"),
        load(file, nested),
        load(file, "", {f"LLMT_{alias.upper()}": text}),
        load(file, "", {variable: text}),
        load_run(ConfigSource("q", template="quickstart"), environ={}, sets=[f"{dotted.replace('_', '-')}={text}"]),
    ]
    assert [read(run.config, path) for run in loaded] == [value] * len(loaded)
    told = [[note for note in run.notes if "is read as" in note] for run in loaded]
    assert all(len(notes) == 1 and f"is read as {path} (" in notes[0] for notes in told)
    assert loaded[0].origins == {path: f"{file}:1:1"}


@pytest.mark.parametrize("alias", CONVERTED)
def test_what_trainers_call_training_is_read_there(tmp_path: Path, alias: str) -> None:
    """Names of Hugging Face's TrainingArguments are read in `training` wherever they lead."""
    text, value = next(iter(CONVERTED[alias].items()))
    config = load(tmp_path / "run.yaml", f"training:\n  {alias}: {text}").config
    assert read(config, ALIASES[alias].path) == value


def test_a_device_section_is_read(tmp_path: Path) -> None:
    """`device: {force_cpu: true}` is the device."""
    assert load(tmp_path / "run.yaml", "device:\n  force_cpu: true").config.device == "cpu"


@pytest.mark.parametrize(("alias", "text"), [(alias, text) for alias, texts in REFUSED.items() for text in texts])
def test_a_value_without_meaning_is_refused(tmp_path: Path, alias: str, text: str) -> None:
    """A switch takes true and false alone, and a word that says nothing here is a problem with its place."""
    file = tmp_path / "run.yaml"
    with pytest.raises(ConfigError) as caught:
        load(file, f"{alias}: {text}")
    assert len(caught.value.problems) == 1
    assert caught.value.message.startswith(f"{file}:1:1: ")


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("evaluation_strategy: epoch", "training.eval_strategy", "epoch"),
        ("evaluation_strategy: no", "training.eval_strategy", "no"),
        ("patience: 3", "training.early_stopping_patience", 3),
        ("use_accelerate: true", "training.accelerate", True),
        ("nproc_per_node: 2", "training.num_processes", 2),
        ("ddp_timeout: 1800", "training.distributed_timeout", 1800.0),
        ("ddp_timeout: 30m", "training.distributed_timeout", 1800.0),
        ("auto_find_batch_size: true", "training.auto_micro_batch", True),
    ],
)
def test_what_other_trainers_take_is_read(tmp_path: Path, text: str, path: str, value: Any) -> None:
    """Values as people have them in their files mean the same here."""
    assert read(load(tmp_path / "run.yaml", text).config, path) == value


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("fp16: false\nbf16: true", "training.precision", "bf16"),
        ("bf16: true\nfp16: false", "training.precision", "bf16"),
        ("fp16: false\nbf16: false", "training.precision", "fp32"),
        ("use_amp: true\nfp16: true", "training.precision", "fp16"),
        ("use_amp: true\namp_dtype: float16", "training.precision", "fp16"),
        ("use_amp: true\nbf16: true", "training.precision", "bf16"),
        ("force_cpu: false\ndevice: cuda", "device", "cuda"),
        ("device: cuda\nforce_cpu: false", "device", "cuda"),
        ("device: auto\nforce_cpu: true", "device", "cpu"),
    ],
)
def test_auto_gives_way_within_a_layer(tmp_path: Path, text: str, path: str, value: str) -> None:
    """What leaves a choice open contradicts nothing: the pairs that people write together are read."""
    assert read(load(tmp_path / "run.yaml", text).config, path) == value


@pytest.mark.parametrize(
    "key", ["model.batch_size", "data.lr", "lora.fp16", "tokenizer.dropout", "training.rank", "logging.epochs"]
)
def test_an_alias_is_unknown_in_other_sections(tmp_path: Path, key: str) -> None:
    """An alias stands at the top level or at home."""
    with pytest.raises(ConfigError, match=f"{key}: unknown key"):
        load(tmp_path / "run.yaml", f"{key}: 1")
