"""the files of an adapter -> what peft is to make of them, checked field by field.

peft checks neither types nor sizes, reads layer names as regular expressions, and imports what some fields name. So it
is given the fields that are known here, in their types and bounds, and the layers by the names of the file's tensors.
"""

import json
import math
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

from torch import Tensor

from llmt.checkpoints import layout
from llmt.config.lora import CHANGES_BASE
from llmt.errors import ModelFileError

PREFIX = "base_model.model."
"""What peft puts before the name of a tensor of the base."""

AGAIN = "copy the adapter again"
_LAYER = re.compile(r"base_model\.model\.(.+?)\.(?:lora_|hada_|lokr_|vera_lambda|hra_|miss_|ia3_l)")
_PLAIN = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_LARGEST_RANK = 1024

_SAID_ELSEWHERE = {
    "peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config", "megatron_core",
}  # fmt: skip
"""Fields that are not handed on: the layers are known by their tensors, and nothing is imported."""

_RANKS = {"r", "target_r", "init_r", "mini_r"}
_COUNTS = {"total_step", "tinit", "tfinal", "deltaT", "projection_prng_key", "decompose_factor"}
_NUMBERS = {
    "lora_alpha", "alpha", "lora_dropout", "rank_dropout", "module_dropout", "vera_dropout", "miss_dropout",
    "d_initial", "beta1", "beta2", "orth_reg_weight",
}  # fmt: skip
_FLAGS = {
    "use_rslora", "use_dora", "fan_in_fan_out", "save_projection", "decompose_both", "rank_dropout_scale",
    "use_effective_conv2d", "apply_GS", "ensure_weight_tying", "init_weights", "init_ia3_weights",
}  # fmt: skip
_NAMES = {"modules_to_save", "feedforward_modules"}
_PATTERNS = {"rank_pattern", "alpha_pattern"}
LEAVES_BASE = (True, False, "gaussian", "orthogonal", "mica", "eva")
"""First numbers of an adapter, as peft calls them, for which the base keeps its own."""

_WORDS: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", "all", "lora_only"),
    "init_lora_weights": (*LEAVES_BASE, *CHANGES_BASE),
}


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The parsed `adapter_config.json`.

    Raises:
        ModelFileError: There is none, or it is no JSON mapping.
    """
    path = directory / layout.ADAPTER_CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: {error}", "name the directory of an adapter") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: is not a mapping", "name the directory of an adapter")
    return values


def checked_fields(
    values: Mapping[str, Any], fields: Mapping[str, Field[Any]], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Any]:
    """The arguments of a class of peft's configurations.

    Args:
        values: What the file says.
        fields: The fields of the class.
        tensors: The adapter's.
        path: The file, for errors.

    Raises:
        ModelFileError: A field has an impossible value, or means something that is not done here.
    """
    largest = max([_LARGEST_RANK, *(size for tensor in tensors.values() for size in tensor.shape)])
    layers = _layers(tensors, path)
    found: dict[str, Any] = {"target_modules": layers}
    for name, value in values.items():
        if name in _SAID_ELSEWHERE or name not in fields or value in (_default(fields[name]), [], {}):
            continue
        if name == "trainable_token_indices":  # looked at with the base's vocabulary
            found[name] = value
            continue
        check = _check_of(name, largest)
        if check is None:
            raise ModelFileError(
                f"{path}: {name} is set, which this version does not do", "merge it with peft, and take the whole model"
            )
        if not check(value):
            raise ModelFileError(f"{path}: {name} is {str(value)[:80]!r}, which cannot be", AGAIN)
        found[name] = value
    if "feedforward_modules" in found:  # as whole names too
        ends = found["feedforward_modules"]
        found["feedforward_modules"] = [name for name in layers if any(f".{name}".endswith(f".{end}") for end in ends)]
    if found.get("init_lora_weights", True) in LEAVES_BASE:
        found.pop("init_lora_weights", None)  # all numbers come from the file
    return found


def _layers(tensors: Mapping[str, Tensor], path: Path) -> list[str]:
    """The layers that have an adapter, by the names of its tensors."""
    layers = sorted({match[1] for name in tensors if (match := _LAYER.match(name))})
    if not layers:
        raise ModelFileError(f"{path.parent / layout.ADAPTER_MODEL}: holds no tensors of an adapter", AGAIN)
    return layers


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _check_of(name: str, largest: int) -> Callable[[Any], bool] | None:
    """What a value of a field has to pass; None where the field is not known."""
    most = largest if name == "rank_pattern" else math.inf
    checks: tuple[tuple[Container[str], Callable[[Any], bool]], ...] = (
        (_RANKS, lambda value: _is_whole(value) and 0 < value <= largest),
        (_COUNTS, lambda value: _is_whole(value) and abs(value) < 1 << 62),
        (_NUMBERS, _is_number),
        (_FLAGS, lambda value: isinstance(value, bool)),
        (_NAMES, lambda value: isinstance(value, list) and all(map(_is_plain, value))),
        (_PATTERNS, lambda value: _is_pattern(value, most)),
        (_WORDS, lambda value: isinstance(value, str | bool) and value in _WORDS[name]),
    )
    return next((check for names, check in checks if name in names), None)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: Any) -> bool:
    """A name that means itself where peft reads it as a regular expression."""
    return isinstance(value, str) and _PLAIN.fullmatch(value) is not None


def _is_pattern(value: Any, most: float) -> bool:
    return isinstance(value, dict) and all(
        _is_plain(name) and _is_number(number) and 0 < number <= most for name, number in value.items()
    )
