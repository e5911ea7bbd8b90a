"""What a user names -> a model and its tokenizer, on the device that was chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmt.errors import MismatchError

if TYPE_CHECKING:
    from llmt.models.base import BaseLanguageModel
    from llmt.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model that is ready to read.

    Attributes:
        model: Its weights in fp32.
        tokenizer: The one it was trained with.
        directory: Holds the tokenizer; of an adapter that was named, its base's.
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
    from llmt.models.hub import local_path
    from llmt.models.open import open_model, tokenizer_directory
    from llmt.system.machine import inspect_machine
    from llmt.system.plan import choose_device
    from llmt.tokenizers.load import load_tokenizer

    chosen, _ = choose_device(device, inspect_machine())
    loaded, directory = open_model(local_path(model), None if adapter is None else Path(adapter), chosen.kind)
    of_adapter = directory if adapter is None else tokenizer_directory(Path(adapter), directory)
    tokenizer = load_tokenizer(of_adapter)
    if tokenizer.vocab_size > loaded.vocab_size:
        raise MismatchError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size:,} ids, the model {loaded.vocab_size:,}",
            "use the tokenizer that the model was trained with",
        )
    return Opened(loaded, tokenizer, directory, chosen.kind)
