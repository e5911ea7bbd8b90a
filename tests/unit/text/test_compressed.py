"""Files that are unpacked as they are read."""

import gzip
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from llmt.errors import DataError
from llmt.text.blocks import BLOCK_CHARACTERS
from llmt.text.reading import Reading
from llmt.text.sources import fingerprint_sources, open_blocks, open_documents

Pack = Callable[[str, bytes], bytes]
PACKINGS = pytest.mark.parametrize("packing", [".gz", ".zst"])
TEXT = "one\r\ntwo\rthree \u2028 vier äöü 四\n\n" * 50


def _refused(path: Path) -> DataError:
    with pytest.raises(DataError) as documents:
        list(open_documents([str(path)]))
    with pytest.raises(DataError) as blocks:
        list(open_blocks([str(path)]))
    assert blocks.value.message == documents.value.message
    assert documents.value.message.startswith(str(path))
    assert "\n" not in documents.value.message
    assert documents.value.hint
    return documents.value


@PACKINGS
@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.md", "a", "notes.log"])
def test_a_packed_text_is_the_text(tmp_path: Path, pack: Pack, packing: str, name: str) -> None:
    """Byte for byte and without a byte order mark, whatever the suffix inside, also in capitals."""
    for suffix in (packing, packing.upper()):
        path = tmp_path / (name + suffix)
        path.write_bytes(pack(packing, b"\xef\xbb\xbf" + TEXT.encode()))
        assert [(d.text, d.source) for d in open_documents([str(path)])] == [(TEXT, str(path))]
        assert list(open_blocks([str(path)])) == [TEXT]


@PACKINGS
def test_packed_rows_have_the_line_numbers_of_the_text(tmp_path: Path, pack: Pack, packing: str) -> None:
    """A document for each line; a bad one is named by its line in the unpacked text."""
    path = tmp_path / f"a.jsonl{packing}"
    rows = [json.dumps({"text": f"row {number}"}) for number in range(3)]
    path.write_bytes(pack(packing, "\n".join(rows).encode()))
    assert [(d.text, d.source) for d in open_documents([str(path)])] == [
        (f"row {number}", f"{path}:{number + 1}") for number in range(3)
    ]
    path.write_bytes(pack(packing, "\n".join([*rows, "{"]).encode()))
    assert _refused(path).message.startswith(f"{path}:4:2: not JSON")


@PACKINGS
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_the_offset_of_a_bad_byte_is_that_of_the_text(tmp_path: Path, pack: Pack, packing: str, suffix: str) -> None:
    """Millions of bytes into what was unpacked."""
    good = b'{"text": "caf\xc3\xa9"}\n' * 60_000
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(pack(packing, good + b'{"text": "\xe9"}\n'))
    assert _refused(path).message == f"{path}:60001: byte 0xe9 at offset {len(good) + 10} is not UTF-8"


@PACKINGS
def test_folders_and_patterns_hold_packed_files(tmp_path: Path, pack: Pack, packing: str) -> None:
    """Beside others, sorted with them; what is packed and no text is passed over in a folder."""
    for name in ("b.txt", "a.md" + packing, "c.text" + packing, "d.py" + packing, "e.tar" + packing):
        content = name.encode()
        (tmp_path / name).write_bytes(pack(packing, content) if name.endswith(packing) else content)
    assert [d.text for d in open_documents([str(tmp_path)])] == ["a.md" + packing, "b.txt", "c.text" + packing]
    assert [d.text for d in open_documents([str(tmp_path / f"*.m*{packing}")])] == ["a.md" + packing]


@PACKINGS
def test_several_members_are_one_text(tmp_path: Path, pack: Pack, packing: str) -> None:
    """`cat a.gz b.gz > c.gz` is a packed file too."""
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(pack(packing, b"one ") + pack(packing, b"two"))
    assert [d.text for d in open_documents([str(path)])] == ["one two"]


@PACKINGS
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_file_that_is_cut_off_is_damaged(tmp_path: Path, pack: Pack, packing: str, suffix: str) -> None:
    """However little is missing."""
    rows = "".join(json.dumps({"text": f"row {number * number}"}) + "\n" for number in range(30_000)).encode()
    packed = pack(packing, rows)
    for length in (len(packed) // 2, len(packed) - 1):
        path = tmp_path / f"a{suffix}{packing}"
        path.write_bytes(packed[:length])
        error = _refused(path)
        assert "ends too early" in error.message
        assert error.hint == "get the file again"


@PACKINGS
def test_a_file_with_a_changed_byte_is_damaged(tmp_path: Path, pack: Pack, packing: str) -> None:
    """Checksum or structure, one of them tells."""
    import random

    packed = bytearray(pack(packing, bytes(random.Random(0).choices(b"abcdefgh \n", k=200_000))))
    packed[len(packed) // 2] ^= 0xFF
    packed[len(packed) // 3] ^= 0x55
    if packing == ".zst":  # whose checksum is optional, and was left out
        packed = packed[:4] + b"\xff" * 40 + packed[44:]
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(packed)
    assert "damaged" in _refused(path).message


@PACKINGS
def test_what_follows_the_packed_text_is_damage(tmp_path: Path, pack: Pack, packing: str) -> None:
    """Bytes after the end that begin no further member."""
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(pack(packing, b"text") + b"and more, unpacked")
    assert "damaged" in _refused(path).message


@PACKINGS
@pytest.mark.parametrize("content", [b"plain text", b"\x00", b"PK\x03\x04....", b"BZh91AY&SY"])
def test_a_name_that_lies_is_refused(tmp_path: Path, packing: str, content: bytes) -> None:
    """A .gz that is no gzip, a .zst that is no zstd."""
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(content)
    assert f"this is not {'gzip' if packing == '.gz' else 'zstd'}" in _refused(path).message


def test_a_frame_that_is_skipped_may_come_first(tmp_path: Path, pack: Pack) -> None:
    """As parallel packers of .zst write it."""
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\x00\x00\x00note" + pack(".zst", b"text"))
    assert [d.text for d in open_documents([str(path)])] == ["text"]


def test_one_packing_under_the_name_of_the_other_is_refused(tmp_path: Path, pack: Pack) -> None:
    """Both ways round."""
    for name, packing in ((".zst", ".gz"), (".gz", ".zst")):
        path = tmp_path / f"a.txt{name}"
        path.write_bytes(pack(packing, b"text"))
        assert "this is not" in _refused(path).message


def test_packed_bytes_under_a_plain_name_are_recognised(tmp_path: Path, pack: Pack) -> None:
    """The error says what they are."""
    path = tmp_path / "a.txt"
    path.write_bytes(pack(".gz", TEXT.encode()))
    assert _refused(path).message.endswith("is not UTF-8: this is gzip")


@PACKINGS
def test_an_archive_of_files_inside_is_refused(tmp_path: Path, pack: Pack, packing: str) -> None:
    """By its name, and by its content where the name is silent."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    for name, said in (("a.tar", "not .tar."), ("a.txt", "tar archive"), ("a", "tar archive"), ("a.jsonl", "tar")):
        path = tmp_path / (name + packing)
        path.write_bytes(pack(packing, content.getvalue()))
        assert said in _refused(path).message


@PACKINGS
@pytest.mark.parametrize("outer", [".gz", ".zst"])
def test_what_is_packed_twice_is_refused(tmp_path: Path, pack: Pack, packing: str, outer: str) -> None:
    """By its name, and by its content."""
    for name in (f"a.txt{packing}{outer}", f"b.txt{outer}"):
        path = tmp_path / name
        path.write_bytes(pack(outer, pack(packing, TEXT.encode())))
        error = _refused(path)
        assert "packed twice" in error.message
        assert error.hint == "unpack it once"


@PACKINGS
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("content", [None, b"", b" \n\t\n", b"\xef\xbb\xbf"])
def test_a_packed_file_without_text_is_refused(
    tmp_path: Path, pack: Pack, packing: str, suffix: str, content: bytes | None
) -> None:
    """An empty file, an empty text, white space."""
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(b"" if content is None else pack(packing, content))
    assert "no text in it" in _refused(path).message


@PACKINGS
def test_nul_and_utf16_are_seen_through_the_packing(tmp_path: Path, pack: Pack, packing: str) -> None:
    """With the offset in the text."""
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(pack(packing, b"te\0xt"))
    assert "0x00 at offset 2" in _refused(path).message
    path.write_bytes(pack(packing, TEXT.encode("utf-16")))
    assert "this is UTF-16" in _refused(path).message


_PEAK = """
import resource, sys
from llmt.errors import DataError
from llmt.text import compressed, readers
from llmt.text.sources import open_blocks
said = ""
compressed.EXPANSION_IS_CHECKED_FROM = readers.MAX_LINE_BYTES = 32_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for block in open_blocks([sys.argv[1]]):
        pass
except DataError as error:
    said = error.message
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(said)
"""


def _pack_large(path: Path, part: bytes, times: int) -> None:
    """Write `part` so many times, packed, without holding it."""
    if path.suffix == ".gz":
        packer = zlib.compressobj(1, wbits=31)
        with path.open("wb") as file:
            for _ in range(times):
                file.write(packer.compress(part))
            file.write(packer.flush())
        return
    import pyarrow

    with path.open("wb") as file, pyarrow.CompressedOutputStream(pyarrow.PythonFile(file, mode="w"), "zstd") as stream:
        for _ in range(times):
            stream.write(part)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no `resource` to read the peak of memory with")
@PACKINGS
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_bomb_fills_no_memory(tmp_path: Path, run_python: Callable[..., str], packing: str, suffix: str) -> None:
    """Two hundred megabytes in a few kilobytes: refused as what it is, or as a line that is too long."""
    path = tmp_path / f"a{suffix}{packing}"
    _pack_large(path, b"a" * (1 << 22), 50)
    assert path.stat().st_size < 1_000_000
    peak, said = run_python(_PEAK, str(path)).split("\n")
    assert int(peak) < 140_000  # kilobytes; that of .zst holds pyarrow, 60 MB
    assert said.startswith(str(path))
    assert "grows more than 200 times" in said or "a line of more than 32 MB" in said


@pytest.mark.skipif(sys.platform == "win32", reason="there is no `resource` to read the peak of memory with")
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, run_python: Callable[..., str], name: str) -> None:
    """Less than a text of 100 MB is held while its blocks are read."""
    path = tmp_path / name
    part = "".join(f"word{number * number} " for number in range(80_000)).encode()
    if path.suffix == ".txt":
        with path.open("wb") as file:
            file.writelines([part] * (100_000_000 // len(part)))
    else:
        _pack_large(path, part, 100_000_000 // len(part))
    peak, said = (run_python(_PEAK, str(path)) + "\n").split("\n")[:2]
    assert said == ""
    assert int(peak) < 90_000


def test_a_large_packed_text_is_read_in_blocks(tmp_path: Path) -> None:
    """No block is longer than four million characters, and joined they are the text."""
    line = "".join(f"word{number} " for number in range(1000)) + "\n"
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress((line * 1200).encode(), 1))
    blocks = list(open_blocks([str(path)]))
    assert len(blocks) > 2
    assert max(map(len, blocks)) <= BLOCK_CHARACTERS
    assert "".join(blocks) == line * 1200


@PACKINGS
def test_the_fingerprint_is_of_the_packed_content(tmp_path: Path, pack: Pack, packing: str) -> None:
    """Changed content is noticed; the name in front does not matter, the packing does."""
    for name, text in (("a", b"text"), ("b", b"text"), ("c", b"tixt")):
        (tmp_path / f"{name}.txt{packing}").write_bytes(pack(packing, text))
    (tmp_path / "d.txt").write_bytes(pack(packing, b"text"))
    prints = [fingerprint_sources([str(tmp_path / f"{name}.txt{packing}")]) for name in "abc"]
    assert prints[0] == prints[1] != prints[2]
    assert fingerprint_sources([str(tmp_path / "d.txt")]) not in prints
    assert fingerprint_sources([str(tmp_path / f"a.txt{packing}")], Reading(max_samples=1)) not in prints


@pytest.mark.parametrize("name", ["a.xlsx.gz", "a.db.zst", "a.pdf.gz", "a.bin.gz", "a.tgz", "a.txt.bz2", "a.zip.gz"])
def test_what_no_text_is_inside_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """The whole suffix is named."""
    (tmp_path / name).write_text("text")
    suffix = name[1:] if name.count(".") > 1 and name[-3:] in (".gz", "zst") else "." + name.split(".")[-1]
    with pytest.raises(DataError, match="this version reads") as error:
        open_documents([str(tmp_path / name)])
    assert error.value.message.endswith(f"not {suffix}")
