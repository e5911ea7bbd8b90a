"""texts -> the same texts, measured on the way past."""

from collections.abc import Iterable, Iterator
from typing import Any

from llmt.errors import DataError
from llmt.tokenizers.base import Tokenizer, well_formed

SAMPLE_CHARACTERS = 500_000


class MeasuredCorpus:
    """An iterable of texts, made well-formed, that remembers how many there were and the first of them.

    Args:
        texts: Documents; read once, in order.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = 0
        self.bytes = 0
        self._sample: list[str] = []
        self._sampled = 0

    def __iter__(self) -> Iterator[str]:
        for raw in self._texts:
            text = well_formed(raw)
            self.documents += 1
            self.bytes += len(text) if text.isascii() else len(text.encode())
            if self._sampled < SAMPLE_CHARACTERS:
                self._sample.append(text[: SAMPLE_CHARACTERS - self._sampled])
                self._sampled += len(self._sample[-1])
            yield text

    def require_text(self) -> None:
        """Refuse a corpus that had nothing in it; call it after reading.

        Raises:
            DataError: No text at all.
        """
        if self.bytes == 0:
            raise DataError(
                f"training text: {self.documents} documents, and no text in them",
                "name files that hold text",
            )

    def facts(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the training record says about the corpus, with characters per token on its first part."""
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(self._sample))
        return {
            "vocab_size": tokenizer.vocab_size,
            "corpus_documents": self.documents,
            "corpus_bytes": self.bytes,
            "characters_per_token": round(self._sampled / tokens, 3) if tokens else None,
        }
