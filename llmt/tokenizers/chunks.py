"""text -> ids, several times faster than the library: text is cut at spaces, and the ids of the chunks are kept.

A text is cut only where its pre-tokenizer cuts it in any case, whatever stands on the two sides. The ids of the
chunks, in a row, are then the ids of the text, and a chunk that was seen before costs one look into a table.
"""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice
from operator import not_
from typing import Any

import tokenizers

from llmt.tokenizers.pretokenize import BERT_WORDS, GPT2_SPLIT, GPT4_SPLIT

# So much text is looked up at once.
BLOCK_CHARACTERS = 1 << 17
# A longer chunk will hardly come again.
KEPT_CHARACTERS = 64
# A text with fewer spaces, one after so many characters, has chunks that hardly ever come again.
_MOST_BETWEEN = 32

# A space after a visible character. In the patterns of GPT-2 and GPT-4 a space is the first character of a match
# or stands among white space alone, and only white space looks ahead (`\s+(?!\S)`): no match crosses such a
# place, and none that ends there would end elsewhere for what follows. Python's \S is the narrower one: U+001C
# to U+001F are white space here and visible to the library.
_SPACE = re.compile(r" (?<=\S )")
_WHITE = re.compile(r"[^\S\x1c-\x1f]+")
_WHITE_TO_PYTHON_ALONE = "\x1c\x1d\x1e\x1f"
# Inside a chunk of ASCII those patterns also cut after letters, after digits, and before digits that stand
# behind a sign; the pattern for words alone cuts at every sign.
_PIECES = re.compile(r"[^A-Za-z0-9]*[A-Za-z]+|(?:[^A-Za-z0-9]*\s)?[0-9]+|[^A-Za-z0-9]+")
_WORDS = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]")
# Marks the first chunk of a text, which has no space before it, where others have one. No other chunk begins
# like this: it would have been cut at the space.
_FIRST = "\x00 "


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a text may be cut.

    Attributes:
        keeps_space: The pre-tokenizer keeps white space, and each chunk but the first of a text begins with the
            space that it was cut at. Otherwise white space is dropped, and chunks are what stands between it.
    """

    keeps_space: bool


def find_cut(spec: Mapping[str, Any]) -> Cut | None:
    """Where the text of a tokenizer.json (parsed) may be cut; None where no place is known to be safe.

    It must be used with `encode_special_tokens`, so that special tokens in the text are ordinary text.
    """
    # NFC composes and reorders nothing across white space, and makes white space of nothing else.
    if spec.get("normalizer") not in (None, {"type": "NFC"}) or spec.get("padding") or spec.get("truncation"):
        return None
    if not all(token.get("special") for token in spec.get("added_tokens") or ()) or not _goes_by_word(spec["model"]):
        return None
    steps = list(_steps(spec.get("pre_tokenizer")))
    for number, step in enumerate(steps):
        cut = _word_cut(step)
        if cut is not None:
            return cut if all(_acts_inside_words(later) for later in steps[number + 1 :]) else None
        if step["type"] != "Digits":  # which looks at one character at a time
            return None
    return None


def _goes_by_word(model: Mapping[str, Any]) -> bool:
    """Whether the model gives a word the same ids each time."""
    if model["type"] == "Unigram":
        return not (model.get("alpha") or model.get("nbest_size"))
    return model["type"] in ("BPE", "WordPiece") and not model.get("dropout")


def _word_cut(step: Mapping[str, Any]) -> Cut | None:
    if step["type"] == "ByteLevel":
        plain = step.get("use_regex", True) and not step.get("add_prefix_space")
        return Cut(keeps_space=True) if plain else None
    if step["type"] != "Split":
        return None
    pattern = step["pattern"].get("Regex")
    way = (step["behavior"], step["invert"])
    if pattern in (GPT2_SPLIT, GPT4_SPLIT) and way in (("Isolated", False), ("Removed", True)):
        return Cut(keeps_space=True)
    return Cut(keeps_space=False) if pattern == BERT_WORDS and way == ("Removed", True) else None


def _acts_inside_words(step: Mapping[str, Any]) -> bool:
    return step["type"] in ("Split", "Digits", "Punctuation") or (
        step["type"] == "ByteLevel" and not step.get("add_prefix_space")
    )


def _steps(node: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if node is not None and node["type"] == "Sequence":
        for child in node["pretokenizers"]:
            yield from _steps(child)
    elif node is not None:
        yield node


class ChunkEncoder:
    """Encodes as a tokenizer of the library does, and remembers chunks and their pieces.

    Threads may share one: a table only gains entries that are complete, and a full one is replaced, not emptied.

    Args:
        backend: The library's tokenizer, with `encode_special_tokens`.
        cut: What `find_cut` says of it.
        capacity: How many chunks and pieces are remembered at most.
    """

    def __init__(self, backend: tokenizers.Tokenizer, cut: Cut, capacity: int = 10_000) -> None:
        self.capacity = capacity
        self._backend = backend
        self._keeps_space = cut.keeps_space
        self._find_pieces = (_PIECES if cut.keeps_space else _WORDS).findall
        self.clear()

    def __len__(self) -> int:
        return len(self._chunks) + len(self._pieces)

    def clear(self) -> None:
        """Forget all, as one must when the backend changes."""
        self._chunks: dict[str, bytes] = {}
        self._pieces: dict[str, bytes] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which has no lone surrogates."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [unpack_ids(ids) for ids in self.encode_packed(texts)]

    def encode_packed(self, texts: Sequence[str]) -> list[bytes]:
        """`encode` of each text, in the form that `unpack_ids` reads."""
        packed: list[list[bytes]] = [[] for _ in texts]
        whole = [number for number, text in enumerate(texts) if text.count(" ") * _MOST_BETWEEN < len(text)]
        encodings = self._backend.encode_batch([texts[number] for number in whole], add_special_tokens=False)
        for number, encoding in zip(whole, encodings, strict=True):
            packed[number].append(array("I", encoding.ids).tobytes())
        blocks: list[tuple[int, list[str]]] = []
        characters = 0
        for number in sorted(set(range(len(texts))).difference(whole)):
            for chunks, length in self._blocks(texts[number]):
                blocks.append((number, chunks))
                characters += length
                if characters >= BLOCK_CHARACTERS:
                    self._look_up(blocks, packed)
                    blocks, characters = [], 0
        self._look_up(blocks, packed)
        return [b"".join(parts) for parts in packed]

    def _blocks(self, text: str) -> Iterator[tuple[list[str], int]]:
        """The chunks of `text` as they stand in the table, by block, with the length of the block."""
        pattern = _SPACE if self._keeps_space else _WHITE
        start = 0
        while place := pattern.search(text, start + BLOCK_CHARACTERS):
            end = place.start()
            yield self._cut_block(text[start:end], first=start == 0), end - start
            start = end + 1
        if text:
            yield self._cut_block(text[start:], first=start == 0), len(text) - start

    def _cut_block(self, block: str, *, first: bool) -> list[str]:
        if self._keeps_space:
            chunks = _SPACE.split(block)
            if first:
                chunks[0] = _FIRST + chunks[0]
            return chunks
        if any(char in block for char in _WHITE_TO_PYTHON_ALONE):
            return _WHITE.split(block)
        return block.split()

    def _look_up(self, blocks: Sequence[tuple[int, list[str]]], packed: list[list[bytes]]) -> None:
        """Append the ids of each block to those of its text."""
        known = self._chunks.get
        found: list[list[Any]] = [list(map(known, chunks)) for _, chunks in blocks]
        places = [list(compress(range(len(ids)), map(not_, ids))) for ids in found]
        missing = {chunks[at] for (_, chunks), unknown in zip(blocks, places, strict=True) for at in unknown}
        fresh = self._encode(list(missing))
        for (number, chunks), ids, unknown in zip(blocks, found, places, strict=True):
            for at in unknown:
                ids[at] = fresh[chunks[at]]
            packed[number].append(b"".join(ids))

    def _encode(self, chunks: Sequence[str]) -> dict[str, bytes]:
        """Ids of chunks that are not in the table, put together from those of their pieces, of which few are new."""
        texts = list(map(_text, chunks)) if self._keeps_space else chunks
        find = self._find_pieces
        pieces_of = [find(text) if text.isascii() else [text] for text in texts]
        known = self._pieces
        new = list(set(chain.from_iterable(pieces_of)).difference(known))
        if new:
            # Without offsets, which for short texts cost the library as much as the ids.
            encodings = self._backend.encode_batch_fast(new, add_special_tokens=False)
            fresh = dict(zip(new, [array("I", encoding.ids).tobytes() for encoding in encodings], strict=True))
            self._pieces = _add(known, fresh, self.capacity // 2)
            if not fresh.keys() <= known.keys():  # the table is full, or a piece is too long for it
                known = known | fresh
        ids = [b"".join(map(known.__getitem__, pieces)) for pieces in pieces_of]
        fresh = dict(zip(chunks, ids, strict=True))
        self._chunks = _add(self._chunks, fresh, self.capacity - self.capacity // 2)
        return fresh


def unpack_ids(packed: bytes) -> list[int]:
    """Ids from four bytes each in this machine's order."""
    return memoryview(packed).cast("I").tolist()


def _text(chunk: str) -> str:
    return chunk[len(_FIRST) :] if chunk.startswith(_FIRST) else " " + chunk


def _add(known: dict[str, bytes], fresh: Mapping[str, bytes], capacity: int) -> dict[str, bytes]:
    """The table with what is new in it: the same one, or where that would be too large, one without the oldest half."""
    kept = {chunk: ids for chunk, ids in fresh.items() if len(chunk) <= KEPT_CHARACTERS}
    if len(known) + len(kept) <= capacity:
        known.update(kept)
        return known
    newest = dict(islice(kept.items(), capacity))
    places = min(capacity // 2, capacity - len(newest))
    return dict(islice(known.items(), max(len(known) - places, 0), None)) | newest
