"""what a user names -> a model ready to read: a run, a checkpoint, a model directory, an adapter."""

from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.runs import resolve_model_directory
from llmt.errors import ModelFileError
from llmt.models.adapter_files import read_adapter_config
from llmt.models.base import BaseLanguageModel
from llmt.models.identity import check_base
from llmt.models.load import load_model
from llmt.models.lora import load_adapter


def open_model(path: Path, adapter: Path | None, device: str) -> tuple[BaseLanguageModel, Path]:
    """Load a model in fp32, with an adapter on it where one is named or `path` is one.

    Args:
        path: A run, checkpoint or model directory; of an adapter, its base is the one that it names.
        adapter: Directory of an adapter to put on the model.
        device: Where the weights go.

    Returns:
        The model and the directory that holds its tokenizer.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe.
        MismatchError: Model and adapter do not belong together.
    """
    directory = resolve_model_directory(path)
    if is_adapter(directory):
        if adapter is not None:
            raise ModelFileError(f"{path}: is an adapter itself", f"llmt generate BASE --adapter {path}")
        base = resolve_model_directory(base_of(directory))
        check_base(directory, base)
        adapted = load_adapter(load_model(base, device=device), directory).to(device)
        return adapted, tokenizer_directory(directory, base)
    model = load_model(directory, device=device)
    if adapter is None:
        return model, directory
    adapter = resolve_model_directory(adapter)
    check_base(adapter, directory)
    return load_adapter(model, adapter).to(device), directory


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no whole model."""
    return (directory / layout.ADAPTER_CONFIG).is_file() and not (directory / layout.CONFIG_FILE).is_file()


def tokenizer_directory(adapter: Path, base: Path) -> Path:
    """The directory that holds the tokenizer of an adapter: its own, or the base's where peft wrote none."""
    return adapter if (adapter / layout.TOKENIZER_FILE).is_file() else base


def base_of(directory: Path) -> Path:
    """The base that an adapter names; always a local directory.

    Raises:
        ModelFileError: It names none, or one that is not here.
    """
    name = read_adapter_config(directory).get("base_model_name_or_path")
    if not isinstance(name, str) or not Path(name).is_dir():
        raise ModelFileError(f"{directory}: its base {name!r} is not here", f"llmt generate BASE --adapter {directory}")
    return Path(name)
