"""tokenizer, word -> the merges that the word's tokens were made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from llmt.errors import ModelFileError, UsageError
from llmt.tokenizers.base import MergeStep, Tokenizer, well_formed
from llmt.tokenizers.spans import Segment, label, segment


@dataclass(frozen=True, slots=True)
class RankedMerge:
    """One merge of the training, and when it was learnt.

    Attributes:
        rank: Its place among all merges, from 1.
        left: The left piece.
        right: The right piece.
        piece: What they become.
        shown: The three as people read them: bytes that are no whole character are written `<E2>`.
        count: How often they met; None where the trainer kept no count.
        score: What they were chosen by; None where the trainer kept no score.
    """

    rank: int
    left: str
    right: str
    piece: str
    count: int | None
    score: float | None
    shown: tuple[str, str, str] = ("", "", "")


@dataclass(frozen=True, slots=True)
class WordHistory:
    """How one word is built.

    Attributes:
        word: The word.
        tokens: How the tokenizer cuts it.
        merges: Every merge inside these tokens, in the order of learning. Each stands once, however often the
            word needs it.
    """

    word: str
    tokens: list[Segment]
    merges: list[RankedMerge]


def word_histories(tokenizer: Tokenizer, words: str) -> list[WordHistory]:
    """How each word of a text is built, merge by merge.

    BPE cuts a word by its merges, so they are carried out here in the order of their ranks. WordPiece takes the
    longest piece that fits; there the merges are those by which each piece was learnt.

    Args:
        tokenizer: One that keeps its merges.
        words: One word or several, with white space between them.

    Raises:
        UsageError: The tokenizer has no merges, or there is no word.
    """
    if not words.split():
        raise UsageError("--word: there is no word in it", "--word WORD")
    merges = _ranked(read_merges(tokenizer))
    if not merges:
        kind = type(tokenizer).__name__
        raise UsageError(f"--word: {kind} was not built by merges", "name a BPE or WordPiece tokenizer")
    return [_history(tokenizer, merges, word) for word in well_formed(words).split()]


def read_merges(tokenizer: Tokenizer) -> list[MergeStep]:
    """The merges of a tokenizer in the order of learning; empty where it has none.

    Raises:
        ModelFileError: Its record of them is damaged.
    """
    try:
        return tokenizer.get_merge_history()
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"tokenizer: its record of merges is damaged: {error}", "train it again") from error


def _ranked(steps: Sequence[MergeStep]) -> dict[tuple[str, str], RankedMerge]:
    """Merges by their two pieces; the first of equal ones counts."""
    merges: dict[tuple[str, str], RankedMerge] = {}
    for rank, step in enumerate(steps, 1):
        merges.setdefault((step["left"], step["right"]), RankedMerge(rank, **step))
    return merges


def _history(tokenizer: Tokenizer, merges: Mapping[tuple[str, str], RankedMerge], word: str) -> WordHistory:
    tokens = segment(tokenizer, word)
    made_by: dict[str, RankedMerge] = {}
    for merge in merges.values():
        made_by.setdefault(merge.piece, merge)
    used: dict[int, RankedMerge] = {}
    for token in tokens:
        for merge in _replay(token.piece, merges) or _derivation(token.piece, made_by):
            used[merge.rank] = merge
    return WordHistory(word, tokens, [_readable(tokenizer, used[rank]) for rank in sorted(used)])


def _readable(tokenizer: Tokenizer, merge: RankedMerge) -> RankedMerge:
    pieces = (merge.left, merge.right, merge.piece)
    ids = [tokenizer.token_to_id(piece) for piece in pieces]
    left, right, piece = (
        raw if token_id is None else label(tokenizer, token_id) for raw, token_id in zip(pieces, ids, strict=True)
    )
    return replace(merge, shown=(left, right, piece))


def _replay(piece: str, merges: Mapping[tuple[str, str], RankedMerge]) -> list[RankedMerge]:
    """Merge the characters of a piece by rank, as BPE does; empty where that does not end in the piece."""
    symbols = list(piece)
    done = []
    while len(symbols) > 1:
        known = [merge for pair in pairwise(symbols) if (merge := merges.get(pair)) is not None]
        if not known:
            return []
        best = min(known, key=lambda merge: merge.rank)
        done.append(best)
        symbols = _merged(symbols, best)
    return done if symbols == [piece] else []


def _merged(symbols: Sequence[str], merge: RankedMerge) -> list[str]:
    result: list[str] = []
    place = 0
    while place < len(symbols):
        if tuple(symbols[place : place + 2]) == (merge.left, merge.right):
            result.append(merge.piece)
            place += 2
        else:
            result.append(symbols[place])
            place += 1
    return result


def _derivation(piece: str, made_by: Mapping[str, RankedMerge]) -> list[RankedMerge]:
    """The merge that made a piece, and those that made its parts."""
    found: dict[str, RankedMerge] = {}
    open_pieces = [piece]
    while open_pieces:
        name = open_pieces.pop()
        if name in made_by and name not in found:
            found[name] = made_by[name]
            open_pieces += [found[name].left, found[name].right]
    return list(found.values())
