"""Real text of this machine for benchmarks: English prose from its documentation, and Python sources."""

import argparse
import gzip
import re
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

MEGABYTE = 1_000_000
HELD_OUT_BYTES = 700_000
LARGEST_FILE = 4 * MEGABYTE

_PROSE_SUFFIXES = {".md", ".rst", ".txt", ".markdown", ".html"}
_TAG = re.compile(r"<[^>]*>")
_ROFF = re.compile(r"\\f[A-Z]|\\f\([A-Z]{2}|\\[&|^,/]|\\s[-+]?\d")
_ENGLISH = re.compile(r"\b(?:the|of|and|to|is|in|for|that|with|are|not|be|or|this|from)\b")


def folders() -> list[Path]:
    """Where documentation and sources usually lie: this Python's own folders, then the system's."""
    paths = sysconfig.get_paths()
    own = [paths["purelib"], paths["platlib"], paths["stdlib"], sys.prefix, sys.base_prefix]
    usual = [Path(root) / "share" / kind for root in ("/usr", "/usr/local", "/opt/homebrew") for kind in ("doc", "man")]
    libraries = [Path("/usr/lib"), Path("/usr/share")]
    found: dict[Path, None] = {}
    for folder in [*map(Path, own), *usual, *libraries]:
        if folder.is_dir():
            found.setdefault(folder.resolve())
    return list(found)


def _files(wanted: Iterable[str]) -> Iterator[Path]:
    """Files below `folders()` with one of these suffixes (also compressed), each once, in a fixed order."""
    suffixes = set(wanted)
    seen: set[Path] = set()
    for folder in folders():
        for path in sorted(folder.rglob("*")):
            plain = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
            manual = _is_manual(path)
            notes = path.name.split(".")[0].upper() in ("README", "NEWS", "CHANGELOG", "COPYRIGHT", "LICENSE")
            if not (plain in suffixes or (".md" in suffixes and (manual or notes))):
                continue
            real = path.resolve()
            if real not in seen and path.is_file() and path.stat().st_size <= LARGEST_FILE:
                seen.add(real)
                yield path


def _is_manual(path: Path) -> bool:
    """A manual page in English: translations lie one folder deeper."""
    return path.parent.parent.name == "man" and re.fullmatch(r"man\d", path.parent.name) is not None


def _read(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error):
        return ""


def _prose_lines(path: Path) -> Iterator[str]:
    """Lines that read like English sentences."""
    manual = _is_manual(path)
    for raw in _read(path).splitlines():
        line = raw.strip()
        if manual:
            if line.startswith((".", "'")):
                continue
            line = _ROFF.sub("", line).replace("\\-", "-").replace("\\(aq", "'")
        elif ".html" in path.suffixes:
            line = _TAG.sub("", line).strip()
        letters = sum(map(str.isalpha, line)) + line.count(" ")
        if len(line) >= 30 and letters > 0.85 * len(line) and _ENGLISH.search(line):
            yield line


def _doc_lines(path: Path) -> Iterator[str]:
    """Comments and docstrings of a Python source that read like English sentences."""
    for raw in _read(path).splitlines():
        line = raw.strip().lstrip("#").strip()
        letters = sum(map(str.isalpha, line)) + line.count(" ")
        if len(line) >= 30 and letters > 0.9 * len(line) and len(_ENGLISH.findall(line)) >= 2:
            yield line


def _source_lines(path: Path) -> Iterator[str]:
    for line in _read(path).splitlines():
        if line.strip():
            yield line.rstrip()


def _unique(lines: Iterable[str], seen: set[int]) -> Iterator[str]:
    for line in lines:
        key = hash(line)
        if key not in seen:
            seen.add(key)
            yield line


def _prose(seen: set[int]) -> Iterator[str]:
    for path in _files(_PROSE_SUFFIXES):
        yield from _unique(_prose_lines(path), seen)
    for path in _files({".py"}):
        yield from _unique(_doc_lines(path), seen)


def _sources(seen: set[int]) -> Iterator[str]:
    for path in _files({".py", ".c", ".h", ".pl", ".pm", ".js"}):
        yield from _unique(_source_lines(path), seen)


def _fill(path: Path, lines: Iterable[str], size: int) -> int:
    """Write lines up to `size` bytes; returns how many bytes there were."""
    written = 0
    partial = path.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")
            written += len(line.encode()) + 1
            if written >= size:
                break
    partial.replace(path)
    return written


def gather(megabytes: int, folder: Path | None = None) -> tuple[Path, Path]:
    """A file of real text and a held-out one, made once and kept in `folder`.

    Up to 50 MB are English prose; beyond that, half prose and half source text.

    Args:
        megabytes: Size wanted; the file is smaller where the machine has less text.
        folder: Where to keep them; the system's temporary folder if not given.

    Returns:
        Paths of the training text and of the held-out prose, one line a document.
    """
    home = folder or Path(tempfile.gettempdir()) / "llmt-bench-texts"
    home.mkdir(parents=True, exist_ok=True)
    training, held_out = home / f"train-{megabytes}.txt", home / "held-out.txt"
    if not (home / "prose.txt").exists():
        _separate(_prose(set()), home / "prose.txt", held_out)
    if not training.exists():
        size = megabytes * MEGABYTE
        prose = _lines(home / "prose.txt")
        if megabytes > 50:
            half = home / "half.txt"
            size -= _fill(half, prose, size // 2)
            _fill(training, _chain(half, _sources(set())), megabytes * MEGABYTE)
            half.unlink()
        else:
            _fill(training, prose, size)
    return training, held_out


def _separate(lines: Iterator[str], training: Path, held_out: Path) -> None:
    """Blocks of 200 lines in turn: one of forty is held out; ends when both files are large enough."""
    sizes = {training: 0, held_out: 0}
    limits = {training: 60 * MEGABYTE, held_out: HELD_OUT_BYTES}
    partial = training.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as rest, held_out.open("w", encoding="utf-8") as held:
        for number, line in enumerate(lines):
            path, file = (held_out, held) if number // 200 % 40 == 7 else (training, rest)
            if sizes[path] < limits[path]:
                file.write(line + "\n")
                sizes[path] += len(line.encode()) + 1
            elif all(sizes[name] >= limit for name, limit in limits.items()):
                break
    partial.replace(training)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def _chain(first: Path, second: Iterable[str]) -> Iterator[str]:
    yield from _lines(first)
    yield from second


def main() -> None:
    """Gather and say where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=10)
    arguments = parser.parse_args()
    for path in gather(arguments.megabytes):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
