"""Every file and folder name that llmt writes or looks for, in one place."""

import re
from typing import Literal

Format = Literal["safetensors", "pytorch"]
"""Of weight files."""

MODEL_FILE = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
ADAPTER_MODEL = "adapter_model.safetensors"
BASE_HASH = "base_sha256"
"""Name, in the metadata of an adapter's file, of the hash of the weights that it was trained on."""
ADAPTER_CONFIG = "adapter_config.json"

RUN_CONFIG = "config.yaml"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
AUDIT = "audit.json"
MODEL_CARD = "README.md"
RESULT = "result.json"
OPTIMIZER = "optimizer.safetensors"
MASTERS = "masters.safetensors"
"""The weights that are trained, where the model of a checkpoint is their average."""

STATE = "state.json"
MANIFEST = "MANIFEST.json"
LOCK = "LOCK"
LOCK_OWNER = "LOCK.json"

PICKLED_MODEL = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_ADAPTER = "adapter_model.bin"
PICKLED_NAMES = (PICKLED_MODEL, "pytorch_model.pt", "pytorch_model.pth", "model.bin", "model.pt", "model.pth")
"""Names of a whole model in one file of PyTorch."""

DIVERGED_PREFIX = "diverged-"
"""Of the folder with the batches of a step that went wrong."""

TEMPORARY_PREFIX = ".tmp-"
DELETED_PREFIX = ".del-"
DAMAGED_PREFIX = ".bad-"
LATER_PREFIX = ".later-"

RUNS_DIRECTORY = "runs"

COMPANIONS = (
    CONFIG_FILE,
    GENERATION_CONFIG,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    ADAPTER_CONFIG,
    "training.json",  # how llmt's tokenizer was learnt
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
"""Small files that stand beside weights and are needed to use them."""

_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")
_SHARD = r"(?:-[0-9]{5,}-of-[0-9]{5,})?"
_WEIGHTS = re.compile(
    rf"(?:adapter_)?model{_SHARD}\.safetensors(?:\.index\.json)?|pytorch_model{_SHARD}\.bin(?:\.index\.json)?", re.ASCII
)


def checkpoint_name(step: int) -> str:
    """The folder name of the checkpoint after `step` optimizer steps."""
    return f"checkpoint-{step}"


def parse_checkpoint_step(name: str) -> int | None:
    """The step in a folder name, or None where the name is not exactly one that `checkpoint_name` makes."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def shard_name(number: int, count: int, file: str = MODEL_FILE) -> str:
    """The name of weight file `number` (from 1) of `count` in place of `file`, as transformers writes it."""
    stem, _, ending = file.rpartition(".")
    return f"{stem}-{number:05d}-of-{count:05d}.{ending}"


def is_weight_file(name: str) -> bool:
    """Whether `name` is a weight file or weight index that a loader would pick up."""
    return name in PICKLED_NAMES or name == PICKLED_ADAPTER or _WEIGHTS.fullmatch(name) is not None
