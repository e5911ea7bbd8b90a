"""bytes that are right, and a random number -> bytes that are wrong in one to four ways."""

import random
import re
import struct
from collections.abc import Callable

HOSTILE = (
    b"-1", b"0", b"1e999", b"NaN", b"4294967296", b"18446744073709551616", b"9" * 60, b"true", b"null", b'""', b"[]",
    b"{}", b"[[[[[[[[[[[[", b'"../../etc/passwd"', b'"/etc/passwd"', b'"C:\\\\x"', b'"\\ud800"', b'"\\u0000"',
    b'"F64"', b'"I8"', b'"\x1b[2J"', b'"LORA"', b'"model"', b"&a [*a, *a]", b"!!python/object:os.system x", b"1.5",
)  # fmt: skip
"""Values to put in place of a value of JSON or YAML."""

_VALUE = re.compile(rb'"[^"\n]{0,60}"|-?\d+\.?\d*|true|false|null')
_NUMBERS = (0, 1, 7, 8, 2**16, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)


def flip(data: bytearray, choose: random.Random) -> None:
    """One bit."""
    at = choose.randrange(len(data))
    data[at] ^= 1 << choose.randrange(8)


def overwrite(data: bytearray, choose: random.Random) -> None:
    """Some bytes are others."""
    at = choose.randrange(len(data))
    for place in range(at, min(at + choose.randint(1, 8), len(data))):
        data[place] = choose.choice((0, 255, 10, 34, 123, choose.randrange(256)))


def cut(data: bytearray, choose: random.Random) -> None:
    """The end is missing."""
    del data[choose.randrange(len(data)) :]


def remove(data: bytearray, choose: random.Random) -> None:
    """Some bytes are missing."""
    at = choose.randrange(len(data))
    del data[at : at + choose.choice((1, 2, 8, 100))]


def repeat(data: bytearray, choose: random.Random) -> None:
    """Some bytes are there twice."""
    at = choose.randrange(len(data))
    data[at:at] = data[at : at + choose.choice((1, 8, 100, 1000))]


def insert(data: bytearray, choose: random.Random) -> None:
    """Something hostile in between."""
    at = choose.randrange(len(data) + 1)
    data[at:at] = choose.choice((*HOSTILE, b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\xe2\x80\xa8"))


def number(data: bytearray, choose: random.Random) -> None:
    """A number of eight or four bytes is another."""
    width, form = choose.choice(((8, "<Q"), (4, "<I"), (8, ">Q")))
    at = choose.choice((0, choose.randrange(len(data))))
    value = choose.choice(_NUMBERS) % 256**width
    data[at : at + width] = struct.pack(form, value)


def value(data: bytearray, choose: random.Random) -> None:
    """A value of JSON or YAML is another, or hostile."""
    found = list(_VALUE.finditer(data[:20000]))
    if found:
        place = choose.choice(found)
        other = choose.choice(HOSTILE) if choose.random() < 0.7 else bytes(choose.choice(found)[0])
        data[place.start() : place.end()] = other


WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip, flip, overwrite, cut, remove, repeat, insert, number, value, value, value,
)  # fmt: skip


def mutate(data: bytes, choose: random.Random) -> bytes:
    """`data` with one to four things wrong."""
    changed = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 2, 4))):
        if changed:
            choose.choice(WAYS)(changed, choose)
    return bytes(changed)
