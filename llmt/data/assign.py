"""configuration -> each document of a run, with where it goes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmt.config.data import DataConfig
from llmt.config.names import BUILTIN
from llmt.data.findings import DocumentDigest, Finding, digest_of
from llmt.data.split import HELD_CHARACTERS, Survey, describe_split, hold_out, survey
from llmt.text.documents import Document
from llmt.text.reading import Reading
from llmt.text.sources import open_documents, open_each

Split = Literal["train", "validation"]


class Place(NamedTuple):
    """Where a document goes.

    Attributes:
        split: Trained on, or held out.
        part: Number of its source where sources are mixed by weight, otherwise 0.
    """

    split: Split
    part: int


class Assignment:
    """Reads the sources of a run once, in order, and says where each document goes.

    Held-out sources come first. What they hold is left out of training, but for documents of more than four
    million characters. What was read before is left out too, where the configuration says so; this takes about a
    hundred bytes for each document.

    Args:
        config: The sources and how they are split.
        reading: How they are read; its callbacks are told once for each row.
        watch: Told each document, or part of one, as it is read.

    Attributes:
        deduplicated: Documents that were left out since they repeat an earlier one.
        overlap: Documents of the sources that are held out too; of pairs those that answer what a held-out one does.
        overlap_kept: Those of them that are trained on nevertheless, since they are long.
        notes: What is held out, a sentence for each kind of source.
    """

    def __init__(self, config: DataConfig, reading: Reading, watch: Callable[[Document], None] | None = None) -> None:
        self._config = config
        self._reading = reading
        self._watch = watch
        self._sources = config.sources or (BUILTIN,)
        self._held_out: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._met: set[int] = set()
        self._seen: set[int] = set()
        self._digest = DocumentDigest()
        self._left_out = ""
        self.deduplicated = self.overlap_kept = 0
        self.overlap = Finding()
        self.notes: list[str] = []

    @property
    def overlap_share(self) -> float:
        """Share of the held-out texts that the sources hold too."""
        return len(self._met) / max(len(self._held_out), 1)

    def documents(self) -> Iterator[tuple[Document, Place]]:
        """The documents of a run, or parts of them; not those that are left out.

        Raises:
            DataError: As `open_documents`; so do the other errors.
        """
        config = self._config
        if config.validation_sources:
            yield from self._validation()
        surveys = self._survey()
        share = 0.0 if config.validation_sources else config.validation_split
        for (number, documents), found in zip(open_each(self._sources, self._reading), surveys, strict=True):
            part = number if config.mixture else 0
            for document, is_held_out in self._kept(hold_out(self._watched(documents), share, found)):
                yield document, Place("validation", 0) if is_held_out else Place("train", part)

    def _watched(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if self._watch is not None:
                self._watch(document)
            yield document

    def _validation(self) -> Iterator[tuple[Document, Place]]:
        digests: list[int] = []
        for document in self._watched(open_documents(self._config.validation_sources, self._reading)):
            digest = self._digest.add(document)
            if digest is not None:
                digests.append(_held_by(document, digest))
            yield document, Place("validation", 0)
        self._held_out = np.unique(np.array(digests, dtype=np.uint64))
        self.notes.append(f"validated on {', '.join(self._config.validation_sources)}")

    def _survey(self) -> list[Survey | None]:
        """What has to be known before the first document of each source can be placed."""
        if self._config.validation_sources:
            return [None] * len(self._sources)
        if self._config.validation_split == 0:
            self.notes.append(describe_split(0, few=False))
            return [None] * len(self._sources)
        silent = replace(self._reading, on_bad=None, on_empty=None, on_format=None)
        surveys = [survey(documents) for _, documents in open_each(self._sources, silent)]
        for is_few in sorted({found.is_few for found in surveys}):
            self.notes.append(describe_split(self._config.validation_split, few=is_few))
        return list(surveys)

    def _kept(self, documents: Iterable[tuple[Document, bool]]) -> Iterator[tuple[Document, bool]]:
        """The documents that are used; the parts of one are held until it ends, or is too long for that."""
        config = self._config
        if not len(self._held_out) and not config.deduplicate:
            yield from documents
            return
        held: list[tuple[Document, bool]] = []
        is_too_long = False
        for document, is_held_out in documents:
            digest = self._digest.add(document)
            held.append((document, is_held_out))
            if digest is None:
                is_too_long = is_too_long or sum(len(part.text) for part, _ in held) > HELD_CHARACTERS
                if not is_too_long:
                    continue
            elif not self._is_wanted(digest, document, is_too_long=is_too_long) and not is_too_long:
                held.clear()
            yield from held
            held.clear()
            is_too_long = is_too_long and document.more

    def _is_wanted(self, digest: int, document: Document, *, is_too_long: bool) -> bool:
        """Whether the document of the sources that ends here may be used; counts it where not."""
        config, source, held_by = self._config, document.source, _held_by(document, digest)
        if self._is_held_out(held_by):
            self._met.add(held_by)
            self.overlap.add(source)
            self.overlap_kept += is_too_long
            return False
        if config.deduplicate:
            if digest in self._seen:
                # Of a text that was cut both sides come here.
                self.deduplicated += not is_too_long and source != self._left_out
                self._left_out = source
                return False
            self._seen.add(digest)
        return True

    def _is_held_out(self, digest: int) -> bool:
        at = int(np.searchsorted(self._held_out, np.uint64(digest)))
        return at < len(self._held_out) and int(self._held_out[at]) == digest


def _held_by(document: Document, digest: int) -> int:
    """The digest by which a document is held out: of a pair that of what both answer."""
    return digest_of(document.belongs_with) if document.pair else digest


def training_texts(config: DataConfig, reading: Reading) -> Iterator[str]:
    """The texts that are trained on: all but the held-out ones."""
    return (document.text for document, place in Assignment(config, reading).documents() if place.split == "train")
