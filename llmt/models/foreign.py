"""A `config.json` of any architecture -> is it safe to hand on?"""

from collections.abc import Mapping
from typing import Any

from llmt.checkpoints.reading import FETCH_AGAIN, shown
from llmt.errors import ModelFileError

_CODE = ("auto_map", "custom_generate", "custom_pipelines", "_attn_implementation_internal")
_HARMLESS = (None, False, True, "eager", "sdpa")


def check_config(values: Mapping[str, Any], name: str) -> None:
    """Refuse a configuration that would make a loader run or fetch code, at any depth, or that has quantised weights.

    Args:
        values: The parsed file.
        name: How errors call it.

    Raises:
        ModelFileError: It would.
    """
    for key, value in values.items():
        if key in _CODE or (key == "trust_remote_code" and value):
            raise ModelFileError(f"{name}: {key} would run foreign code", "use another model")
        if "_implementation" in key and not (value is None or value in _HARMLESS):
            raise ModelFileError(f"{name}: {key} {shown(value)} would fetch code", f"remove {key}")
        if key in ("quantization_config", "compression_config") and value:
            raise ModelFileError(f"{name}: its weights are quantised, and llmt reads plain ones", "use the plain model")
        if isinstance(value, dict):
            check_config(value, name)


def require_layers(layers: object, tensors: int, name: str) -> None:
    """Refuse to build more layers than there are tensors: it could take all memory before the first is missed.

    Args:
        layers: Their number.
        tensors: Number of tensors in the weight files.
        name: How errors call the configuration.

    Raises:
        ModelFileError: There are too many.
    """
    if isinstance(layers, int) and layers > tensors:
        raise ModelFileError(
            f"{name}: describes {layers:,} layers, and the weights are {tensors:,} tensors",
            FETCH_AGAIN,
        )
