"""Word counts -> WordPiece merges by likelihood, exactly.

The rule: merge the pair AB with the largest score n(AB) / (c(A) c(B)), the one whose join raises the
likelihood of a unigram model most per occurrence (Schuster and Nakajima, "Japanese and Korean voice search",
2012). Here n counts neighbours and c counts symbols in the present segmentation of the whole corpus. Scores
are compared as the fractions they are, never as rounded numbers.

The other score, `gain`, is the whole of what the join adds to the log-likelihood (see `gain`).

Two engines find the same merges: `hubs` and `gain` in Python, `compiled` with the package numba.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from llmt.errors import ConfigError, MissingPackageError
from llmt.tokenizers.progress import Progress, TrainingProgress
from llmt.tokenizers.segments import Job, Join

Threshold = Literal["anneal", "fixed"]
Score = Literal["likelihood", "gain"]
Engine = Literal["auto", "python", "compiled"]

PROGRESS_EVERY = 256

COMPILED_FROM = 200_000
"""Characters in the word table from which the compiled engine pays, the time to load it included."""

LARGEST_CORPUS = 2**53
"""Symbols that the compiled engine can count: up to here every count is a double, too."""

_LARGEST_ID = 0x10FFFF - 0x800  # one Unicode character a symbol, surrogates left out


@dataclass(frozen=True, slots=True)
class Symbols:
    """What symbols there are besides those of the words.

    Attributes:
        continuation_prefix: Marks symbols that do not begin a word.
        alphabet: Symbols to include whether or not they occur.
        reserved: Ids that special tokens take.
    """

    continuation_prefix: str = "##"
    alphabet: tuple[str, ...] = ()
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Merge:
    """One learnt join: the two pieces, what they spell, how often they met and the score."""

    left: str
    right: str
    piece: str
    count: int
    score: float


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Vocabulary in id order (the sorted alphabet, then one piece per merge) and the merges in order.

    Attributes:
        vocabulary: The pieces; a run for a larger vocabulary begins with these.
        merges: How the pieces after the alphabet were made.
        engine: Which engine ran; it changes nothing else.
    """

    vocabulary: list[str]
    merges: list[Merge]
    engine: Literal["python", "compiled"] = field(default="python", compare=False)


def train_merges(
    words: Mapping[str, int],
    vocab_size: int,
    min_frequency: int = 2,
    threshold: Threshold = "anneal",
    score: Score = "likelihood",
    engine: Engine = "auto",
    symbols: Symbols | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Learn WordPiece merges.

    Ties go to the larger n, then to the smaller (id of A, id of B), so the result does not depend on the
    order of `words`. A word-initial symbol that begins the continuation prefix is never a left half: `#` +
    `###` would spell `##`, which already means something else.

    Args:
        words: How often each word occurs. Counts must be positive.
        vocab_size: Ids wanted: `symbols.reserved`, alphabet and merges together.
        min_frequency: Pairs that occur less often are never merged.
        threshold: `fixed` considers every pair from `min_frequency` up. `anneal` first considers only pairs
            that make up 2 % of the words, and lowers that by a fifth whenever none is left, down to
            `min_frequency`: without it the likelihood score prefers the rarest pairs and the vocabulary is
            spent on them.
        score: `likelihood`, n / (c c), or `gain`, the rise of the log-likelihood by all joins of the pair.
        engine: `compiled` needs the package numba; `auto` takes it where it is installed and the words have
            `COMPILED_FROM` characters or more. The merges are the same.
        symbols: Continuation prefix, further alphabet and reserved ids.
        progress: Told the ids so far and the latest piece.

    Returns:
        At most `vocab_size - reserved` symbols; fewer when no pair is left.

    Raises:
        ConfigError: `vocab_size` is smaller than reserved ids and alphabet, or counts are too large for
            `engine="compiled"`.
        MissingPackageError: `engine="compiled"` and numba cannot be imported.
    """
    symbols = symbols or Symbols()
    alphabet = _alphabet(words, symbols)
    least = symbols.reserved + len(alphabet)
    if vocab_size < least:
        raise ConfigError(
            [f"vocab_size {vocab_size}: {symbols.reserved} special tokens and {len(alphabet)} symbols need {least}"],
            f"ask for at least {least}",
        )
    if vocab_size > _LARGEST_ID:
        raise ConfigError([f"vocab_size {vocab_size}: it can be {_LARGEST_ID} at most"])
    levels = _levels(sum(words.values()), max(min_frequency, 1), threshold)
    job = Job(words, alphabet, symbols.continuation_prefix, levels, score, vocab_size - least)
    chosen = _engine(engine, job)
    vocabulary, merges = list(alphabet), []
    for left, right, count, value in _joins(chosen, job):
        first, second = vocabulary[left], vocabulary[right]
        piece = first + second.removeprefix(symbols.continuation_prefix)
        vocabulary.append(piece)
        merges.append(Merge(first, second, piece, count, value))
        if progress is not None and len(merges) % PROGRESS_EVERY == 0:
            progress(TrainingProgress("merging", least + len(merges), vocab_size, piece))
    if progress is not None:
        latest = merges[-1].piece if merges else None
        progress(TrainingProgress("merging", least + len(merges), vocab_size, latest))
    return MergeResult(vocabulary, merges, chosen)


def _alphabet(words: Mapping[str, int], symbols: Symbols) -> list[str]:
    initial = {word[0] for word in words if word}
    others = set("".join([word[1:] for word in words]))
    continued = {symbols.continuation_prefix + char for char in others}
    return sorted(initial | continued | set(symbols.alphabet))


def _levels(total: int, floor: int, threshold: Threshold) -> list[int]:
    """Least pair counts, from the first considered down to `floor`."""
    level = max(floor, total // 50 + 1) if threshold == "anneal" else floor
    levels = [level]
    while level > floor:
        level = max(floor, min(level * 4 // 5, level - 1))
        levels.append(level)
    return levels


def _engine(asked: Engine, job: Job) -> Literal["python", "compiled"]:
    """Which engine does the job."""
    if asked not in get_args(Engine):
        raise ConfigError([f"engine {asked!r}: it must be one of {', '.join(get_args(Engine))}"])
    if asked == "python":
        return "python"
    fits = sum(n * len(word) for word, n in job.words.items()) < LARGEST_CORPUS
    if asked == "auto":
        large = sum(map(len, job.words)) >= COMPILED_FROM
        return "compiled" if large and fits and _numba_problem() is None else "python"
    if not fits:
        raise ConfigError(
            [f"engine compiled: it counts up to {LARGEST_CORPUS} symbols, and the words have more"],
            "--engine python",
        )
    if problem := _numba_problem():
        missing = MissingPackageError("numba", problem)
        missing.hint = 'python -m pip install "llmt[fast]", or --engine python'
        raise missing
    return "compiled"


def _numba_problem() -> str | None:
    """Why numba cannot be used, or None; one that does not fit the installed numpy fails on import."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def _joins(engine: Literal["python", "compiled"], job: Job) -> Iterator[Join]:
    if engine == "compiled":
        from llmt.tokenizers import compiled

        return compiled.joins(job)
    if job.score == "gain":
        from llmt.tokenizers import gain

        return gain.joins(job)
    from llmt.tokenizers import hubs

    return hubs.joins(job)
