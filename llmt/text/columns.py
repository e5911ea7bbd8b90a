"""the value of one field or column -> text, or why it is none."""

from collections.abc import Iterable

from llmt.errors import DataError

_HINT = "--text-column FIELD"


def no_column(place: str, kind: str, column: str, names: Iterable[str]) -> DataError:
    """No field or column has this name; says which there are."""
    known = ", ".join(str(name) for name in list(names)[:10]) or "nothing"
    return DataError(f"{place}: no {kind} {column!r}; it has {known}", _HINT)


def require_text(value: object, place: str) -> str:
    """The value, which has to be text.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, str):
        return value
    kind = "null" if value is None else type(value).__name__
    raise DataError(f"{place} is {kind}, not text", _HINT)
