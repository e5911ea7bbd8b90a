"""Bytes of floating numbers in one format -> the same numbers in another, as torch rounds them."""

from typing import Any, Literal

from llmt.checkpoints.dtypes import DTYPE_BYTES

FloatName = Literal["float32", "float16", "bfloat16"]

FLOATS: dict[FloatName, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names as in `config.json` -> names of the safetensors format."""

_CAST = ("F64", "F32", "F16", "BF16")


def cast_dtype(dtype: str, wanted: FloatName | None) -> str:
    """What a tensor of `dtype` becomes: floating numbers of 16 bits and more are converted, all else stays."""
    return FLOATS[wanted] if wanted is not None and dtype in _CAST else dtype


def cast(data: memoryview, source: str, target: str) -> memoryview:
    """Convert numbers, rounding to the nearest and of two as near to the even one.

    Args:
        data: Whole numbers of `source`.
        source: Their format, by the name of the safetensors format.
        target: The format wanted.

    Raises:
        OverflowError: A finite number has no finite neighbour in the target format.
    """
    import numpy as np

    if source == target:
        return data
    raw = np.frombuffer(data, dtype=f"<u{DTYPE_BYTES[source]}")
    with np.errstate(over="ignore", invalid="ignore"):
        # torch, too, goes from 64 to 16 bits by way of 32.
        wide = _widen(raw, source).astype(np.float32, copy=False)
        narrow = _narrow(wide, target)
        if (
            np.isinf(_widen(narrow.view(f"<u{DTYPE_BYTES[target]}"), target)).sum()
            != np.isinf(_widen(raw, source)).sum()
        ):
            raise OverflowError(f"a number is too large for {target}")
    return memoryview(narrow.view(np.uint8).data)


def _widen(raw: Any, source: str) -> Any:
    """Numbers from their bits."""
    import numpy as np

    if source == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[source])


def _narrow(wide: Any, target: str) -> Any:
    """`float32` to the target's bits."""
    import numpy as np

    if target == "F32":
        return wide
    if target == "F16":
        return wide.astype(np.float16)
    bits = wide.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # Rounding could carry a NaN over into a number.
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded)
