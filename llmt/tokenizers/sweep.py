"""one trained tokenizer -> the smaller ones that the same training would have given.

BPE and WordPiece learn one piece after another, and what was learnt first does not depend on how many pieces were
asked for. So a smaller vocabulary is the beginning of a larger one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import tokenizers

from llmt.errors import ConfigError, UsageError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.history import read_merges
from llmt.tokenizers.inspect import inspect_tokenizer
from llmt.tokenizers.trial import rust_refusals

FIRST_SIZE = 500


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A vocabulary size and what it gives.

    Attributes:
        vocab_size: Ids, special tokens included.
        tokens: Ids that the text becomes.
        characters_per_token: Spaces included.
        bytes_per_token: Spaces included.
        unknown_share: Part of the tokens that is the unknown token, 0 to 1.
        vocabulary_used: Part of the vocabulary that occurs in the text, 0 to 1.
    """

    vocab_size: int
    tokens: int
    characters_per_token: float
    bytes_per_token: float
    unknown_share: float
    vocabulary_used: float


def sweep_sizes(tokenizer: Tokenizer, text: str, sizes: Sequence[int] | None = None) -> list[SweepPoint]:
    """Characters per token at several vocabulary sizes, from one training run.

    Args:
        tokenizer: A BPE or WordPiece tokenizer with its merges.
        text: The text to measure on.
        sizes: Vocabulary sizes, each at most the tokenizer's. None takes the smallest possible one, 500, 1,000,
            2,000, 4,000 and so on, and the full size.

    Raises:
        UsageError: The tokenizer was not built by merges.
        ConfigError: A size that it cannot have.
        DataError: A text without any token.
    """
    growth = _Growth(tokenizer)
    points = []
    for size in growth.usual_sizes() if sizes is None else sizes:
        report = inspect_tokenizer(growth.cut(size), text)
        points.append(
            SweepPoint(
                size,
                report.tokens,
                report.characters_per_token,
                report.bytes_per_token,
                report.unknown_share,
                report.vocabulary_used,
            )
        )
    return points


def truncate(tokenizer: Tokenizer, vocab_size: int) -> FastTokenizer:
    """The tokenizer that the same training would have given with a smaller vocabulary.

    Special tokens and the alphabet stay; the pieces that were learnt last go. Of a tokenizer that llmt trained,
    the ids are those of one trained to this size; of another one, what stays is numbered in the old order.

    Raises:
        UsageError: The tokenizer was not built by merges.
        ConfigError: A size above the present one, or below special tokens and alphabet.
    """
    return _Growth(tokenizer).cut(vocab_size)


class _Growth:
    """A tokenizer as the sequence of pieces that it learnt.

    Raises:
        UsageError: It was not built by merges.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._whole = _with_parts(tokenizer)
        self._spec: dict[str, Any] = json.loads(self._whole.backend.to_str())
        kind = self._spec["model"]["type"]
        self._steps = read_merges(tokenizer)
        if kind not in ("BPE", "WordPiece") or not self._steps:
            raise UsageError(
                f"--sweep: {_why_not(kind, tokenizer)}", "name a BPE or WordPiece tokenizer with its merges"
            )
        vocab: dict[str, int] = self._spec["model"]["vocab"]
        # In the order of learning; a piece that two merges make was learnt with the first.
        fixed = {*tokenizer.special_tokens.values(), *(token["content"] for token in self._spec["added_tokens"])}
        made = dict.fromkeys(step["piece"] for step in self._steps)
        self._learnt = [piece for piece in made if piece in vocab and piece not in fixed]
        self._size = tokenizer.vocab_size
        self._least = self._size - len(self._learnt)

    def usual_sizes(self) -> list[int]:
        """The smallest size, round ones between, and the full size."""
        doubled = (FIRST_SIZE << number for number in range(self._size.bit_length()))
        between = [size for size in takewhile(lambda size: size < self._size, doubled) if size > self._least]
        return sorted({self._least, *between, self._size})

    def cut(self, vocab_size: int) -> FastTokenizer:
        """The tokenizer of this size."""
        if not self._least <= vocab_size <= self._size:
            raise ConfigError(
                [f"vocab_size {vocab_size}: this tokenizer can be cut to {self._least} up to {self._size}"],
                f"ask for {self._least} to {self._size}",
            )
        if vocab_size == self._size:
            return self._whole
        kept = vocab_size - self._least
        dropped = set(self._learnt[kept:])
        # Training ends with the merge that makes the last piece wanted.
        last = self._learnt[kept - 1] if kept else None
        places = [number for number, step in enumerate(self._steps, 1) if step["piece"] == last]
        count = places[0] if places else 0
        parts = self._whole.parts
        training = None
        if parts.training is not None:
            training = {**parts.training, "vocab_size": vocab_size}
            if "merges" in training:
                training["merges"] = training["merges"][:count]
        with rust_refusals("--sweep"):
            backend = tokenizers.Tokenizer.from_str(json.dumps(self._smaller(dropped, count)))
        return self._whole.from_parts(replace(parts, backend=backend, training=training))

    def _smaller(self, dropped: set[str], merges: int) -> dict[str, Any]:
        """The specification without the dropped pieces, numbered anew in the old order."""
        model = self._spec["model"]
        old = {**model["vocab"], **{token["content"]: token["id"] for token in self._spec["added_tokens"]}}
        order = sorted((number, piece) for piece, number in old.items() if piece not in dropped)
        ids = {piece: number for number, (_, piece) in enumerate(order)}
        smaller = {**model, "vocab": {piece: ids[piece] for piece in model["vocab"] if piece in ids}}
        if model["type"] == "BPE":
            smaller["merges"] = model["merges"][:merges]
        added = [{**token, "id": ids[token["content"]]} for token in self._spec["added_tokens"]]
        # The frame around a document names ids, and is not needed to count tokens.
        return {**self._spec, "model": smaller, "added_tokens": added, "post_processor": None}


def _with_parts(tokenizer: Tokenizer) -> FastTokenizer:
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer
    raise UsageError(
        f"--sweep: {type(tokenizer).__name__} has no tokenizer.json to cut",
        "save it with save_pretrained, and name that",
    )


def _why_not(kind: str, tokenizer: FastTokenizer | Tokenizer) -> str:
    if kind == "Unigram":
        return "a unigram vocabulary is pruned from a larger one, and its beginning is no smaller one"
    if kind == "BPE":
        return "it has no merges, so there is no smaller vocabulary inside it"
    return f"{type(tokenizer).__name__} has no record of the merges that made its vocabulary"
