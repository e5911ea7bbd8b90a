"""Quantities in text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512", 512),
        ("512B", 512),
        ("1_000", 1000),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1K", 1000),
        ("1KiB", 1024),
        ("1.5GiB", 3 * 2**29),
        ("1.5 GiB", 3 * 2**29),
        ("200MB", 200_000_000),
        ("2GB", 2_000_000_000),
        ("2gb", 2_000_000_000),
        (" 2 GB ", 2_000_000_000),
        ("2g", 2_000_000_000),
        ("1tib", 2**40),
        ("3T", 3 * 10**12),
        ("0.001kB", 1),
        (7, 7),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    """Decimal units are powers of 1000, binary ones of 1024, in any case, and a bare number is bytes."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1GB", "0GB", "0", "1.5", "1.5B", "nan", "inf", "1e9", "GB", "1 G B", "1XB", "1,5GB", "1.GB", "١GB"],
)
def test_other_sizes_are_refused(text: str) -> None:
    """Nothing negative, empty, zero, fractional in bytes or in an unknown unit is a size."""
    with pytest.raises(ValueError, match=r"size|bytes"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("5000", 5000),
        ("007", 7),
        ("10_000", 10_000),
        ("5k", 5000),
        ("5K", 5000),
        ("10M", 10_000_000),
        ("1.5B", 1_500_000_000),
        ("2t", 2 * 10**12),
        ("1.001k", 1001),
        ("4.35M", 4_350_000),
        ("2.0", 2),
        (12, 12),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_counts_are_read_exactly(text: str | int, count: int) -> None:
    """No count passes through a binary fraction: 1.001k is 1001."""
    assert units.parse_count(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1.0005k", "nan", "inf", "1e3", "5 k k", "k", "5KiB", "0x10", "_1"])
def test_other_counts_are_refused(text: str) -> None:
    """A count is whole and not negative."""
    with pytest.raises(ValueError, match=r"count|whole"):
        units.parse_count(text)


@pytest.mark.parametrize("read", [units.parse_size, units.parse_count])
def test_endless_numbers_are_refused(read: object) -> None:
    """Five thousand digits are a ValueError, and never an overflow."""
    with pytest.raises(ValueError, match="5000 digits"):
        read("9" * 5000)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (90, 90),
        (1.5, 1.5),
        ("0.5", 0.5),
        ("90s", 90),
        ("1.5s", 1.5),
        ("5m", 300),
        ("5min", 300),
        ("5 min 3 s", 303),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1H30M5S", 5405),
        ("2h 5s", 7205),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    """Hours, minutes and seconds add up; a bare number is seconds."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "0s", "-5m", "nan", "inf", "5x", "m", "1m30", "30m1h", "1:30", "٣s", "9" * 400,
     0, -1.0, float("nan"), float("inf")],
)  # fmt: skip
def test_other_durations_are_refused(text: str | float) -> None:
    """A duration is finite, above zero and in order."""
    with pytest.raises(ValueError, match="duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_240_000_000, "1.24 GB"),
        (5 * 10**12, "5 TB"),
        (999_600, "1 MB"),
        (7 * 10**15, "7000 TB"),
    ],
)
def test_sizes_are_written(size: int, text: str) -> None:
    """Sizes are written in decimal units with three digits."""
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (812, "812"),
        (5_700_000, "5.7M"),
        (1_200_000_000, "1.2B"),
        (3 * 10**12, "3T"),
        (25_500, "25.5k"),
        (999_999, "1M"),
        (10**16, "10000T"),
    ],
)
def test_counts_are_written(count: int, text: str) -> None:
    """Counts are written with three digits."""
    assert units.format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (3599.9, "1 h 00 min"),
    ],
)
def test_durations_are_written(seconds: float, text: str) -> None:
    """Durations are written in two units."""
    assert units.format_duration(seconds) == text


@given(st.integers(1, 2**63 - 1))
def test_plain_numbers_are_themselves(number: int) -> None:
    """A whole number is its own size and count, however large."""
    assert units.parse_size(str(number)) == units.parse_count(str(number)) == units.parse_count(f"{number:_}") == number


@given(st.integers(1, 10**6), st.sampled_from([("k", 10**3), ("M", 10**6), ("G", 10**9), ("Gi", 2**30)]))
def test_thousandths_of_a_unit_are_exact(thousandths: int, unit: tuple[str, int]) -> None:
    """`N.NNN UNIT` is the nearest whole number of bytes."""
    name, factor = unit
    exact = thousandths * factor / 1000
    assert abs(units.parse_size(f"{thousandths / 1000:.3f}{name}B") - exact) <= 0.5


@given(st.integers(1, 10**12))
def test_written_sizes_are_read_back(size: int) -> None:
    """What is written is read back within the three digits that are shown."""
    assert units.parse_size(units.format_size(size)) == pytest.approx(size, rel=0.006)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    """No text raises anything but ValueError."""
    for read in (units.parse_size, units.parse_count, units.parse_duration):
        try:
            quantity = read(text)
        except ValueError:
            continue
        assert quantity >= 0
