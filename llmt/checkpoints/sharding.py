"""tensor sizes -> which file holds which tensor. A plan only: no file is touched."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmt.checkpoints.layout import MODEL_FILE, shard_name

DEFAULT_SHARD_SIZE = 5 * 10**9
_FILE_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")


@dataclass(frozen=True)
class ShardPlan:
    """Which file holds which tensors, both in order, and the bytes of all tensors together."""

    files: Mapping[str, tuple[str, ...]]
    total_size: int

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor name -> file name."""
        return {name: file for file, names in self.files.items() for name in names}


def plan_shards(sizes: Mapping[str, int], max_shard_size: int, file: str = MODEL_FILE) -> ShardPlan:
    """Fill files in order with tensors, each file up to `max_shard_size` bytes of tensors.

    A tensor larger than the limit gets a file of its own. What fits one file is called `file`.

    Args:
        sizes: Tensor name -> bytes, in the order of the model.
        max_shard_size: Bytes of tensors per file; the header comes on top.
        file: The name of a single file, from which those of shards are made.

    Raises:
        ValueError: The limit is not above zero.
    """
    if max_shard_size <= 0:
        raise ValueError(f"a shard of {max_shard_size} bytes holds nothing")
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    count = len(groups)
    names = [file] if count == 1 else [shard_name(i + 1, count, file) for i in range(count)]
    files = {name: tuple(group) for name, group in zip(names, groups, strict=True)}
    return ShardPlan(files, sum(sizes.values()))


def index_json(plan: ShardPlan, metadata: Mapping[str, str] | None = None) -> str:
    """The text of `model.safetensors.index.json`, as transformers writes and reads it, with our own metadata beside."""
    content = {"metadata": {**(metadata or {}), "total_size": plan.total_size}, "weight_map": plan.weight_map}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def is_shard_file_name(name: str) -> bool:
    """Whether an index may name this file: a safetensors file in the same directory."""
    return _FILE_NAME.fullmatch(name) is not None
