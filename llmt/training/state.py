"""What must survive between two processes of one run, besides tensors."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmt.errors import ModelFileError

STATE_FORMAT = 1


@dataclass(frozen=True)
class RunState:
    """The position of a run. The sample order, the rates and the random numbers follow from `step`.

    Attributes:
        step: Optimizer steps finished.
        tokens: Trained tokens so far.
        seconds: Wall time of training so far, over all processes.
        best_step: Step of the best validation; None before the first.
        best_loss: Its nats for each token.
        stale: Validations in a row without a gain.
        owes_validation: A validation was due after `step`, and a stop came in its middle.
        losses: The last losses that were not unusually high.
        high: Steps in a row whose loss was.
        loss_scale: What the loss is multiplied by in fp16; None in other precisions.
        scaled_steps: Steps since the scale was last changed.
        stream: Where text that is streamed goes on; None where it is prepared.
        fingerprint: What the run depends on, by name: data, tokenizer, versions, precision, threads.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    stale: int = 0
    owes_validation: bool = False
    losses: tuple[float, ...] = ()
    high: int = 0
    loss_scale: float | None = None
    scaled_steps: int = 0
    stream: dict[str, Any] | None = None
    fingerprint: dict[str, Any] | None = None

    def advance(self, **changes: Any) -> "RunState":
        """A copy with some values changed."""
        return replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """The content of `state.json`."""
        return {"format": STATE_FORMAT, **asdict(self)}


@dataclass(frozen=True)
class Written:
    """A checkpoint that stands.

    Attributes:
        path: Its directory.
        problem: Why an older one could not be removed; empty where none had to be, or it was.
    """

    path: Path
    problem: str = ""


def parse_state(values: dict[str, Any], name: str) -> RunState:
    """The state that a `state.json` holds.

    Raises:
        ModelFileError: Written by another format version, or fields are missing.
    """
    if values.get("format") != STATE_FORMAT:
        raise ModelFileError(
            f"{name}: state format {values.get('format')!r}, this version reads {STATE_FORMAT}",
            "resume with the version of llmt that wrote it",
        )
    fields = {key: value for key, value in values.items() if key != "format"}
    fields["losses"] = tuple(fields.get("losses", ()))
    try:
        return RunState(**fields)
    except TypeError as error:
        raise ModelFileError(f"{name}: {error}", "resume from an earlier checkpoint") from None
