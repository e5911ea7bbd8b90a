"""a model directory -> a hash of what it computes with, whatever files it lies in; an adapter knows its base by it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from llmt.checkpoints import layout
from llmt.checkpoints.reading import read_json
from llmt.checkpoints.weights import open_weights
from llmt.errors import MismatchError

NOT_COMPARED = {
    "dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id",
}  # fmt: skip
"""Keys of a `config.json` that change no logit."""


def weights_hash(directory: Path) -> str:
    """SHA-256 over the tensors of a model by name, and over what says how to compute with them.

    The same for one file and for shards, for safetensors and for files of PyTorch.

    Raises:
        ModelFileError: There are none, or one is damaged.
    """
    total = hashlib.sha256()
    if (directory / layout.CONFIG_FILE).is_file():
        values = read_json(directory, layout.CONFIG_FILE)
        kept = {key: value for key, value in values.items() if key not in NOT_COMPARED}
        total.update(json.dumps(kept, sort_keys=True).encode())
    with open_weights(directory) as reader:
        each = {}
        for name, tensor in reader.tensors(mapped=True):
            numbers = tensor.contiguous().flatten().view(torch.uint8).numpy()
            digest = hashlib.sha256(numbers.data).hexdigest()
            each[name] = f"{tensor.dtype} {tuple(tensor.shape)} {digest}"
    for name in sorted(each):
        total.update(f"{name} {each[name]}\n".encode())
    return total.hexdigest()


def check_base(adapter: Path, base: Path, hash_of: Callable[[Path], str] = weights_hash) -> None:
    """The base is the one that an adapter was trained on, where the adapter says which.

    Args:
        adapter: Its directory.
        base: That of the model it is to be put on.
        hash_of: Gives the hash of the base; asked only where the adapter has one to compare.

    Raises:
        MismatchError: It is another.
        ModelFileError: A file is missing or damaged.
    """
    with open_weights(adapter / layout.ADAPTER_MODEL) as reader:
        trained_on = reader.metadata.get(layout.BASE_HASH)
    if trained_on is not None and trained_on != hash_of(base):
        raise MismatchError(
            f"{adapter}: was trained on another base than {base}, whose weights differ",
            f"llmt generate BASE --adapter {adapter}   with the base that it was trained on, unchanged",
        )
