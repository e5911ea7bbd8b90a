"""What a user names -> a model and its tokenizer, on the device that was chosen."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmt.config.names import BASE
from llmt.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from llmt.models.adapters import AdapterSet
    from llmt.models.base import BaseLanguageModel
    from llmt.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model that is ready to read.

    Attributes:
        model: Its weights in fp32.
        tokenizer: The one it was trained with.
        directory: Holds the tokenizer; of an adapter its own, or its base's where it has none.
        device: Kind of the device that holds the weights.
    """

    model: "BaseLanguageModel"
    tokenizer: "Tokenizer"
    directory: Path
    device: str


def open_with_tokenizer(model: str, adapter: str | None, device: str) -> Opened:
    """Load a model with its tokenizer.

    Args:
        model: A run, a checkpoint, a model directory, an adapter, or `hf:NAME`.
        adapter: An adapter to put on it.
        device: `auto`, or the kind that was named.

    Raises:
        DeviceError: The named device is not here.
        HubError: The hub does not have it, or cannot be reached.
        ModelFileError: A file is missing, damaged or unsafe.
        MismatchError: The tokenizer has ids that the model has not.
    """
    from llmt.checkpoints.runs import resolve_model_directory
    from llmt.models.hub import local_path
    from llmt.models.open import open_model, tokenizer_directory
    from llmt.system.machine import inspect_machine
    from llmt.system.plan import choose_device
    from llmt.tokenizers.load import load_tokenizer

    chosen, _ = choose_device(device, inspect_machine())
    loaded, directory = open_model(local_path(model), None if adapter is None else Path(adapter), chosen.kind)
    if adapter is not None:
        directory = tokenizer_directory(resolve_model_directory(Path(adapter)), directory)
    tokenizer = load_tokenizer(directory)
    _require_ids(directory, tokenizer, loaded)
    return Opened(loaded, tokenizer, directory, chosen.kind)


@dataclass(frozen=True)
class OpenedSet:
    """A base with its adapters, ready to read.

    Attributes:
        adapters: The base and what can be put on it, in fp32; the first adapter is chosen.
        tokenizers: Name -> the tokenizer that it was trained with.
    """

    adapters: "AdapterSet"
    tokenizers: "Mapping[str, Tokenizer]"


def open_with_adapters(model: str, adapters: Mapping[str, Path], device: str) -> OpenedSet:
    """Load a model and its adapters with their tokenizers.

    Args:
        model: A run, a checkpoint, a model directory, an adapter, or `hf:NAME`.
        adapters: Name -> an adapter to put on it.
        device: `auto`, or the kind that was named.

    Raises:
        DeviceError: The named device is not here.
        HubError: The hub does not have it, or cannot be reached.
        ModelFileError: A file is missing, damaged or unsafe.
        MismatchError: A tokenizer has ids that the model has not, or an adapter belongs to another base.
    """
    from llmt.models.adapters import open_adapters
    from llmt.models.hub import local_path
    from llmt.system.machine import inspect_machine
    from llmt.system.plan import choose_device
    from llmt.tokenizers.load import load_tokenizer

    chosen, _ = choose_device(device, inspect_machine())
    opened = open_adapters(local_path(model), adapters, chosen.kind)
    first, tokenizers = opened.active, {}
    for name in opened.folders:
        folder = opened.tokenizer_folder(name)
        tokenizers[name] = load_tokenizer(folder)
        opened.choose(name)
        _require_ids(folder, tokenizers[name], opened.model)
    opened.choose(first)
    return OpenedSet(opened, tokenizers)


def adapters_by_name(asked: Sequence[str]) -> dict[str, Path]:
    """`DIR` or `NAME=DIR`, in order -> name and directory; without a name it is the last part of the directory.

    Raises:
        UsageError: Two have one name, or one is called `base`, which stands for none.
    """
    found: dict[str, Path] = {}
    for text in asked:
        before, separator, after = text.partition("=")
        named = bool(separator) and bool(before.strip()) and not {"/", os.sep} & set(before) and not Path(text).is_dir()
        folder = Path(after if named else text)
        name = before.strip() if named else folder.absolute().name
        if name == BASE or name in found:
            taken = "stands for the model without an adapter" if name == BASE else "stands for two adapters"
            raise UsageError(f"--adapter {text}: the name {name} {taken}", f"--adapter NAME={folder}")
        found[name] = folder
    return found


def _require_ids(directory: Path, tokenizer: "Tokenizer", model: "BaseLanguageModel") -> None:
    if tokenizer.vocab_size > model.vocab_size:
        raise MismatchError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size:,} ids, the model {model.vocab_size:,}",
            "use the tokenizer that the model was trained with",
        )
