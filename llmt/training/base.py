"""What a run goes on from: the model that was named, or the newest one under an adapter."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from llmt.checkpoints.runs import newest_finished, read_finished, resolve_model_directory
from llmt.config.layers import Given, setting_of
from llmt.config.load import parse_sets
from llmt.config.run import TrainConfig
from llmt.errors import BusyOutputError, MissingPackageError, ModelFileError, UsageError
from llmt.models.hub import local_path
from llmt.models.open import is_adapter

_OTHER = ("model.huggingface", "model.custom")


def choose_base(asked: TrainConfig, named: str | None, *, resume: bool = False) -> Path | None:
    """The base that was named, the run that was named, or the newest finished run under an adapter.

    Args:
        asked: The run as asked.
        named: The CONFIG argument of a new run; a finished run that is named is the base of an adapter on it.
        resume: The run goes on: a whole model is in its checkpoints, so that its base may be gone.

    Raises:
        MissingPackageError: An adapter was asked for, and peft is not installed.
        ModelFileError: The named base is no model.
    """
    if asked.lora.enabled and find_spec("peft") is None:
        raise MissingPackageError("peft", "it is not installed")
    if asked.base is not None and not asked.takes_newest:
        return _named(asked, asked.base, resume=resume)
    if not asked.takes_newest:
        return None
    if named is not None and read_finished(Path(named)) is not None:
        return Path(named)
    newest = newest_finished()
    return newest.path if newest is not None else None


def _named(asked: TrainConfig, base: str, *, resume: bool) -> Path:
    if asked.model.huggingface or asked.model.custom:
        raise UsageError("base: it brings its own architecture", "leave model.huggingface and model.custom out")
    if resume and not asked.lora.enabled and not Path(base).expanduser().exists():
        return Path(base).expanduser()
    path = local_path(base)
    if resume and not path.exists():
        raise ModelFileError(f"{path}: the base of this run is not there any more", "--base ITS_NEW_PLACE")
    if is_adapter(path):
        raise ModelFileError(
            f"{path}: is an adapter, and a base is a whole model",
            f"llmt convert merge-lora {path}, and its result as --base",
        )
    return resolve_model_directory(path)


def refuse_unread(asked: TrainConfig, base: Path | None, given: list[Given], sets: Sequence[str]) -> None:
    """Where a base or another architecture brings its own shape, a flag that gives one would not be read.

    Args:
        asked: The run as asked.
        base: The model to go on from.
        given: The flags that were typed.
        sets: The texts of `--set`.

    Raises:
        UsageError: There is such a flag.
    """
    for value in [*given, *parse_sets(sets, [])]:
        path = setting_of(value.key)
        if path.startswith("lora.") and path != "lora.enabled" and not asked.lora.enabled:
            raise UsageError(f"{value.place}: is about an adapter, and none is trained", f"--lora {value.place} VALUE")
        if base is not None and _is_brought(path):
            raise UsageError(f"{value.place}: the base brings its own {path.partition('.')[0]}", "leave it out")
        if path.startswith("model.") and path not in _OTHER and (asked.model.huggingface or asked.model.custom):
            raise UsageError(f"{value.place}: another architecture has its own settings", "write it among those")


def _is_brought(path: str) -> bool:
    """Whether a base has this setting already: its tokenizer, but for new tokens, and its shape, but for dropout."""
    if path.startswith("tokenizer."):
        return path != "tokenizer.added_tokens"
    return path.startswith("model.") and path not in _OTHER and not path.endswith("dropout")


def with_base(asked: TrainConfig, base: Path | None) -> TrainConfig:
    """The configuration with its base written down, so that a resume finds the same one from any folder."""
    return asked if base is None else asked.model_copy(update={"base": str(base.resolve())})


def spare(directory: Path, base: Path | None, asked: TrainConfig) -> None:
    """A run is not replaced by one that needs it: its model, its tokenizer, or text that lies in it.

    Raises:
        BusyOutputError: It would be.
    """
    needed = [*asked.data.sources, *asked.data.validation_sources, asked.tokenizer.path]
    for name in filter(None, needed):
        if directory.resolve() in (Path(name).resolve(), *Path(name).resolve().parents):
            raise BusyOutputError(f"{directory}: holds {name}, which this run needs", "name another with --output-dir")
    if base is not None and directory.resolve() in (base.resolve(), *base.resolve().parents):
        raise BusyOutputError(f"{directory}: holds the base {base}", "name another directory with --output-dir")
