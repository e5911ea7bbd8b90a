"""Packed bytes."""

import gzip
from collections.abc import Callable

import pyarrow
import pytest

Pack = Callable[[str, bytes], bytes]


@pytest.fixture(scope="session")
def pack() -> Pack:
    """The bytes of a .gz or .zst file."""

    def packed(suffix: str, content: bytes) -> bytes:
        if suffix == ".gz":
            return gzip.compress(content)
        return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))

    return packed
