"""The value types of every setting, and the base of every section.

Values arrive as YAML scalars from files, as text from the environment and from flags. The types here
accept both spellings and nothing else: no yes/no, no silent rounding, no NaN.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from llmt.config.strictyaml import parse_value
from llmt.units import parse_count, parse_duration, parse_size


def _count(value: Any) -> Any:
    return parse_count(value) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _duration(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None


def _flag(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _list(value: Any) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(value) if isinstance(value, list) else value


def _numbers(value: Any) -> Any:
    value = _list(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = (value,)
    if not isinstance(value, tuple):
        return value
    parts = [part for item in value for part in (item.split(",") if isinstance(item, str) else (item,))]
    return tuple(_number(part) for part in parts)


def _pairs(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(separator and key.strip() and item.strip() for key, separator, item in pairs):
        raise ValueError(f"{value!r} is not NAME=COLUMN,NAME=COLUMN")
    return {key.strip(): item.strip() for key, _, item in pairs}


def _mapping(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return parse_value(value)
    return {key: parse_value(item) for key, item in _pairs(value).items()}


def _lines(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, BeforeValidator(_count), Field(le=2**63 - 1)]
"""A whole number: `5000`, `10_000`, `5k`, `10M`."""

Size = Annotated[int, BeforeValidator(_size), Field(gt=0, le=2**63 - 1)]
"""Bytes: `2GB`, `500MB`, `1.5GiB`."""

Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0, allow_inf_nan=False)]
"""Seconds: `90`, `90s`, `5m`, `1h30m`."""

Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
"""A real number: `0.1`, `3e-4`."""

Flag = Annotated[bool, BeforeValidator(_flag)]
"""`true` or `false`."""

Text = Annotated[str, BeforeValidator(_text)]
"""Any text."""

TextList = Annotated[tuple[Text, ...], BeforeValidator(_list)]
"""A list of texts; on the command line and in the environment separated by commas."""

NumberList = Annotated[tuple[Number, ...], BeforeValidator(_numbers)]
"""A list of real numbers; on the command line and in the environment separated by commas."""

TextMap = Annotated[dict[str, Text], BeforeValidator(_pairs)]
"""Names and texts; on the command line and in the environment `NAME=TEXT,NAME=TEXT`."""

Mapping = Annotated[dict[str, Any], BeforeValidator(_mapping)]
"""Names and values of any kind; on the command line `{name: value, name: value}` or `NAME=VALUE,NAME=VALUE`."""

TextLines = Annotated[tuple[Text, ...], BeforeValidator(_lines)]
"""A list of texts that may hold commas; one text stands for a list of one."""


class Section(BaseModel):
    """A frozen group of settings whose attribute docstrings are its documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        protected_namespaces=(),
    )
