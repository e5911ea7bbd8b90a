"""What a training run says of itself while it works."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["reading", "merging"]


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far training has come.

    Attributes:
        stage: `reading` text and counting its words, or `merging`.
        done: Characters read so far, or ids so far.
        total: Ids wanted; None where the end is not known.
        piece: The latest piece learnt.
    """

    stage: Stage
    done: int
    total: int | None = None
    piece: str | None = None


Progress = Callable[[TrainingProgress], None]


def log_progress(progress: TrainingProgress) -> None:
    """Write to the logger `llmt.tokenizers`, for `verbose=True`."""
    of = "" if progress.total is None else f" of {progress.total:,}"
    piece = "" if progress.piece is None else f", latest {progress.piece!r}"
    logging.getLogger("llmt.tokenizers").info("%s: %s%s%s", progress.stage, f"{progress.done:,}", of, piece)
