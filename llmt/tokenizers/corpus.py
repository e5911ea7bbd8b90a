"""texts -> the same texts, measured on the way past."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from llmt.errors import DataError
from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.progress import Progress, TrainingProgress

SAMPLE_CHARACTERS = 100_000
REPORT_CHARACTERS = 1_000_000


class MeasuredCorpus:
    """An iterable of texts, made well-formed, that remembers their size, hash and beginning.

    Args:
        texts: Documents; read once, in order.
        progress: Told how much was read, about every million characters.
    """

    def __init__(self, texts: Iterable[str], progress: Progress | None = None) -> None:
        self._texts = texts
        self._progress = progress
        self._hash = hashlib.sha256()
        self._sample: list[str] = []
        self._sampled = 0
        self.texts = 0
        self.bytes = 0
        self.characters = 0
        self._blank = True

    def __iter__(self) -> Iterator[str]:
        said = 0
        for raw in self._texts:
            text = well_formed(raw)
            content = text.encode()
            self._hash.update(content)
            self.texts += 1
            self.bytes += len(content)
            self.characters += len(text)
            self._blank = self._blank and (not text or text.isspace())
            if self._sampled < SAMPLE_CHARACTERS:
                self._sample.append(text[: SAMPLE_CHARACTERS - self._sampled])
                self._sampled += len(self._sample[-1])
            if self._progress is not None and self.characters - said >= REPORT_CHARACTERS:
                said = self.characters
                self._progress(TrainingProgress("reading", said))
            yield text

    def require_text(self) -> None:
        """Refuse a corpus that had nothing in it but white space; call it after reading.

        Raises:
            DataError: No text at all.
        """
        if self._blank:
            raise DataError(
                f"training text: {self.texts} documents, and no text in them",
                "name files that hold text",
            )

    def facts(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the training record says about the result, with characters per token on the text's beginning."""
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(self._sample))
        return {
            "vocab_size": tokenizer.vocab_size,
            "corpus": {"texts": self.texts, "bytes": self.bytes, "sha256": self._hash.hexdigest()},
            "characters_per_token": round(self._sampled / tokens, 3) if tokens else None,
        }
