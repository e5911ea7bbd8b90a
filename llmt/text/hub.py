"""the name of a data set -> its rows. The door of datasets.

Rows are streamed, unless a download was asked for: what is read is held, not what is there. Code that lies beside a
data set is never run; `datasets` has no way to run it since its version 4.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmt.errors import DataError, HubError, LlmtError, MissingPackageError, StorageError
from llmt.text.find import PREFIX, is_saved_data_set
from llmt.text.reading import Reading
from llmt.text.rows import Choose, Row

BATCH_ROWS = 64
_LOUD = ("datasets", "huggingface_hub", "fsspec")
_READ_BYTES = 1 << 20


def read_data_set_rows(name: str, reading: Reading, choose: Choose | None = None, start: int = 0) -> Iterator[Row]:
    """Its rows, in the order of the data set.

    Args:
        name: A name on the hub, a folder of tables, or a folder that `save_to_disk` wrote.
        reading: The configuration and the split.
        choose: Which columns are read; None reads all.
        start: The first row, from 0.

    Raises:
        DataError: No such configuration or split; a damaged file; what `choose` raises.
        HubError: The hub does not have it or cannot be reached.
        StorageError: A file cannot be read.
        MissingPackageError: datasets is not installed, or a package that this data set needs.
    """
    with _plain_errors(name, reading), _quiet():
        rows = _open(name, reading)
        known = rows.column_names  # None where nothing but reading tells
        if known is not None and choose is not None:
            rows = rows.select_columns(list(choose(known)))
        batches = _batches(rows.skip(start) if start else rows)
    number = start
    while True:
        with _plain_errors(name, reading), _quiet():
            batch = next(batches, None)
        if batch is None:
            return
        if known is None and choose is not None:
            known = list(batch)
            choose(known)
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield Row(f"{_label(name)}: row {number}", dict(zip(batch, values, strict=True)), kind="column")


def fingerprint_data_set(name: str, reading: Reading) -> str:
    """SHA-256 of what decides the rows: the files of a folder, or the hub's revision; and of configuration and split.

    Raises:
        HubError: The hub does not have it or cannot be reached.
        StorageError: A file cannot be read.
    """
    digest = hashlib.sha256(f"{reading.config} {reading.split}\n".encode())
    if not Path(name).is_dir() and reading.download:
        with _plain_errors(name, reading), _quiet():
            paths = [Path(file["filename"]) for file in _open(name, reading).cache_files]
        for path in paths:  # what was downloaded is known by its content, which needs no network
            _add_file(digest, name, reading, path)
        return digest.hexdigest()
    if not Path(name).is_dir():
        digest.update(_revision(name, reading).encode())
        return digest.hexdigest()
    folder = Path(name)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            _add_file(digest, name, reading, path)
    return digest.hexdigest()


def _add_file(digest: "hashlib._Hash", name: str, reading: Reading, path: Path) -> None:
    with _plain_errors(name, reading), path.open("rb") as content:
        while part := content.read(_READ_BYTES):
            digest.update(part)


def _revision(name: str, reading: Reading) -> str:
    with _plain_errors(name, reading), _quiet():
        from huggingface_hub import dataset_info

        return f"{name} {dataset_info(name).sha}"


def _open(name: str, reading: Reading) -> Any:
    """The split, streamed; from a folder that was saved it is mapped into memory instead."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    folder = Path(name)
    if not folder.is_dir():
        if _names_a_format(name):
            raise DataError(f"{_label(name)}: a file format, not a data set", f"write {PREFIX}OWNER/{name}")
        return load_dataset(name, reading.config, split=reading.split, streaming=not reading.download)
    if not is_saved_data_set(folder):
        # As an absolute path, for a folder named `json` would be taken for the format.
        return load_dataset(str(folder.absolute()), reading.config, split=reading.split, streaming=True)
    if reading.config is not None:
        raise DataError(f"{_label(name)}: no configuration {reading.config!r}; it has none", "leave it out")
    saved = load_from_disk(str(folder))
    if not isinstance(saved, DatasetDict):
        return saved
    if reading.split not in saved:
        raise _no_part(name, "split", reading.split, ", ".join(saved))
    return saved[reading.split]


def _names_a_format(name: str) -> bool:
    """Whether datasets would take the name for a file format, and read what lies in the working directory."""
    try:
        return name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}") is not None
    except ImportError as error:
        raise MissingPackageError("datasets", _one_line(error)) from error


def _batches(rows: Any) -> Iterator[dict[str, list[Any]]]:
    batches: Iterable[dict[str, list[Any]]] = rows.iter(batch_size=BATCH_ROWS)
    return iter(batches)


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines and no progress bars: what goes wrong is said once, by the error."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    had_bars = not are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            enable_progress_bars()


@contextmanager
def _plain_errors(name: str, reading: Reading) -> Iterator[None]:
    """What datasets, the hub and their libraries say, in one line and in our classes."""
    try:
        yield
    except LlmtError:
        raise
    except ImportError as error:
        raise MissingPackageError(error.name or "datasets", _one_line(error)) from error
    except _library_errors() as error:
        if isinstance(error, OSError) and error.strerror and error.filename:  # of this machine, not of the network
            raise StorageError(
                f"{_label(name)}: {error.filename}: {error.strerror}", "check this path; HF_HOME moves the cache"
            ) from error
        raise _explained(name, reading, error) from error


def _library_errors() -> tuple[type[BaseException], ...]:
    """All that reading a data set is known to raise; some classes of the libraries are of no built-in kind."""
    from datasets.exceptions import DatasetsError
    from datasets.utils import metadata

    readme: type[BaseException] = metadata.yaml.YAMLError
    return ValueError, RuntimeError, LookupError, TypeError, EOFError, DatasetsError, readme, *_network_errors()


def _network_errors() -> tuple[type[BaseException], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, *HfHubHTTPError.__bases__  # the root of whichever HTTP client the hub's library uses


def _explained(name: str, reading: Reading, error: BaseException) -> LlmtError:
    said = _one_line(error)
    if choice := _choice(name, reading, said):
        return choice
    if Path(name).is_dir():
        cause = _one_line(error.__cause__) if error.__cause__ else said
        return DataError(f"{_label(name)}: cannot be read as a data set: {cause}", "check the files in this folder")
    if "OfflineModeIsEnabled" in said or "offline mode" in said.lower():
        return HubError(
            f"{_label(name)}: no such folder here, and offline mode forbids asking the hub",
            "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or name a file or folder",
        )
    if type(error).__name__ in ("DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError"):
        return HubError(
            f"{_label(name)}: the hub has no data set of this name, or does not show it to you",
            "check the name; for a private or gated one: hf auth login",
        )
    if isinstance(error, _network_errors()):
        return HubError(f"{_label(name)}: the hub does not answer: {said}", "check the name and the network")
    return DataError(f"{_label(name)}: cannot be read as a data set: {said}", "name another data set")


def _choice(name: str, reading: Reading, said: str) -> DataError | None:
    """A configuration or split that is missing or unknown, where datasets says which there are."""
    available = re.search(r"available[^:\[]*: \[(.*?)\]", said, re.IGNORECASE)
    if available is None:
        return None
    names = available[1].replace("'", "")
    if "Config name is missing" in said:
        return DataError(f"{_label(name)}: which configuration? it has {names}", "name one of them")
    if "BuilderConfig" in said:
        return _no_part(name, "configuration", str(reading.config), names)
    return _no_part(name, "split", reading.split, names) if "Bad split" in said else None


def _no_part(name: str, kind: str, part: str, names: str) -> DataError:
    return DataError(f"{_label(name)}: no {kind} {part!r}; it has {names}", "name one of them")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _label(name: str) -> str:
    return f"{PREFIX}{name}"
