"""sequences -> what is learnt in them, for people to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from llmt.data.mixture import TrainingSet
from llmt.data.sequences import Sequences
from llmt.tokenizers.base import Tokenizer

Kind = Literal["start", "trained", "masked", "padding"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Ids in a row of which the same becomes.

    Attributes:
        kind: `trained` ids are predicted, `masked` ones only read; `start` is the id before a document, and `padding`
            is neither read nor predicted.
        ids: The ids.
        text: What they say.
        source: Where their document came from.
    """

    kind: Kind
    ids: tuple[int, ...]
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One sequence.

    Attributes:
        sample: Its place in the order of training; of held-out ones its number.
        part: Number of its source where sources are mixed by weight, otherwise 0.
        sequence: Its number in that part.
        stretches: All of it, in order.
    """

    sample: int
    part: int
    sequence: int
    stretches: tuple[Stretch, ...]


def show_samples(train: TrainingSet, tokenizer: Tokenizer, seed: int, start: int, count: int) -> Iterator[ShownRow]:
    """The samples `start` to `start + count - 1` of a run with this seed."""
    for sample, (part, number) in enumerate(train.find(seed, start, count), start):
        yield ShownRow(sample, part, number, tuple(_stretches(train.parts[part], number, tokenizer)))


def show_held_out(held_out: Sequences, tokenizer: Tokenizer, start: int, count: int) -> Iterator[ShownRow]:
    """The held-out sequences from a number on, in the order in which they are measured."""
    for number in range(start, min(start + count, held_out.count)):
        yield ShownRow(number, 0, number, tuple(_stretches(held_out, number, tokenizer)))


def _stretches(sequences: Sequences, number: int, tokenizer: Tokenizer) -> Iterator[Stretch]:
    shards = sequences.shards
    filled = 0
    for document, start, length in sequences.parts(number):
        source = shards.place(document)
        tokens = shards.tokens[start : start + length + 1].tolist()
        learnt = [True] * length if shards.mask is None else shards.mask[start + 1 : start + length + 1].tolist()
        if sequences.masks or not filled:  # otherwise it was a label of the part before
            yield _stretch("start", tokens[:1], tokenizer, source)
        place = 1
        for is_learnt, run in groupby(learnt):
            end = place + len(list(run))
            yield _stretch("trained" if is_learnt else "masked", tokens[place:end], tokenizer, source)
            place = end
        filled += length
    if filled < sequences.block_size:
        yield Stretch("padding", (shards.eos_token_id,) * (sequences.block_size - filled), "", "")


def _stretch(kind: Kind, ids: list[int], tokenizer: Tokenizer, source: str) -> Stretch:
    return Stretch(kind, tuple(ids), tokenizer.decode(ids, skip_special_tokens=False), source)
