"""text <-> quantities: the only place that knows GB from GiB, and 10M from 10,000,000."""

import re
from fractions import Fraction

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_COUNT = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmbt]?)", re.IGNORECASE)
_DURATION = re.compile(r"(?:([0-9]+)\s*h)?\s*(?:([0-9]+)\s*m(?:in)?)?\s*(?:([0-9]+(?:\.[0-9]+)?)\s*s)?", re.IGNORECASE)
_MAX_DIGITS = 100
_COUNT_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_size(text: str | int) -> int:
    """Bytes from `"2GB"` (10^9), `"1.5 GiB"` (2^30), `"200MB"` or a plain number of bytes.

    Raises:
        ValueError: Not a positive size, or a part of a byte.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write 2GB, 500MB or 1.5GiB")
    unit = (match[2] or "").lower()
    exact = _exact(match[1]) * (_BINARY.get(unit) or _DECIMAL[unit])
    if not unit and exact.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes; write 2GB, 500MB or 1.5GiB")
    size = round(exact)
    if size <= 0:
        raise ValueError(f"{text!r} is not a size above zero")
    return size


def parse_count(text: str | int) -> int:
    """A whole number from `"5k"`, `"10M"`, `"1.5B"`, `"10_000"` or an int.

    Raises:
        ValueError: Not a whole number of at least zero.
    """
    match = _COUNT.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"{text!r} is not a count; write 5000, 5k or 10M")
    exact = _exact(match[1]) * _COUNT_FACTOR[match[2].lower()]
    if exact.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number")
    return int(exact)


def parse_duration(text: str | float) -> float:
    """Seconds from `"90s"`, `"5m"`, `"1h30m"` or a plain number of seconds.

    Raises:
        ValueError: Not a duration above zero.
    """
    if isinstance(text, int | float) or re.fullmatch(r"[0-9]+(\.[0-9]+)?", text.strip()):
        seconds = float(text)
    else:
        match = _DURATION.fullmatch(text.strip())
        if not match or not any(match.groups()):
            raise ValueError(f"{text!r} is not a duration; write 90s, 5m or 1h30m")
        hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r} is not a duration above zero")
    return seconds


def _exact(digits: str) -> Fraction:
    """A decimal number without rounding: 1.001 thousand is 1001."""
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too long")
    return Fraction(digits.replace("_", ""))


def format_size(size: float) -> str:
    """Bytes as people read them, in decimal units: `1.24 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if abs(size) < 999.5 else f"{size:.0f} TB"


def format_count(count: float) -> str:
    """A count as people read it: `812`, `5.7M`, `1.2B`."""
    for unit in ("", "k", "M", "B"):
        if abs(count) < 999.5:
            return f"{count:.0f}" if unit == "" else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T" if abs(count) < 999.5 else f"{count:.0f}T"


def format_duration(seconds: float) -> str:
    """Seconds as people read them: `42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_number(count: int, noun: str) -> str:
    """A number of things: `1 file`, `1,200 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
