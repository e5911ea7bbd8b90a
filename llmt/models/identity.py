"""a model directory -> a hash of what it computes with, whatever files it lies in."""

import hashlib
import json
from pathlib import Path

import torch

from llmt.checkpoints import layout
from llmt.checkpoints.reading import read_json
from llmt.checkpoints.weights import open_weights

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
            numbers = tensor.contiguous().flatten().view(torch.uint8)
            each[name] = f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(numbers.numpy()).hexdigest()}"
    for name in sorted(each):
        total.update(f"{name} {each[name]}\n".encode())
    return total.hexdigest()
