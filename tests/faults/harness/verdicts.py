"""what became of each fault -> one line for a family, and whether llmt held."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LLMT = "llmt"
SHOWN = 5


@dataclass(frozen=True)
class Verdict:
    """What became of one fault.

    Attributes:
        what: The fault, in a few words.
        why: What went wrong; empty when nothing did.
        subject: Who was struck: llmt, or a peer that is only reported.
        cell: Its place in a figure: the case, and the point in it.
        outcome: One word for the figure: old, new, broken; empty for none.
    """

    what: str
    why: str = ""
    subject: str = LLMT
    cell: tuple[str, int] = ("", 0)
    outcome: str = ""


@dataclass
class Family:
    """All faults of one kind against one subject.

    Attributes:
        name: Of the family.
        subject: Who was struck.
        verdicts: One for each fault.
        seconds: How long they took.
        notes: Numbers beside the verdicts.
    """

    name: str
    subject: str
    verdicts: Sequence[Verdict]
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[Verdict]:
        """Those that went wrong."""
        return [verdict for verdict in self.verdicts if verdict.why]

    def line(self) -> dict[str, Any]:
        """The family as one line of JSON."""
        failed = [f"{v.what}: {v.why}"[:400] for v in self.failed[:SHOWN]]
        line = {"family": self.name, "subject": self.subject, "faults": len(self.verdicts),
                "passed": len(self.verdicts) - len(self.failed), "failed": failed,
                "seconds": round(self.seconds, 1)}  # fmt: skip
        return line | ({"notes": self.notes} if self.notes else {})


def families(
    name: str, verdicts: Sequence[Verdict], started: float, notes: dict[str, Any] | None = None
) -> list[Family]:
    """The verdicts of one family, apart by subject; llmt first."""
    subjects = sorted({verdict.subject for verdict in verdicts}, key=lambda s: (s != LLMT, s))
    seconds = time.monotonic() - started
    return [
        Family(name, s, [v for v in verdicts if v.subject == s], seconds, (notes or {}) if s == LLMT else {})
        for s in subjects
    ]
