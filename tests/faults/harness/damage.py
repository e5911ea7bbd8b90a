"""a checkpoint with one thing wrong in it -> is that seen, is the one before it used, does going on end the same."""

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import cases, peers
from harness.lab import SCRATCH, Lab, command, finished, tree
from harness.lanes import spread
from harness.verdicts import LLMT, Family, Verdict, families

COUNT, PEER_COUNT, RESUMED = 2000, 200, 25
"""Damages; those of the peer; one resume for each so many."""

RUN = ("--max-steps", "6", "--save-steps", "2", "--eval-steps", "1000")
OLD, NEW = "checkpoint-2", "checkpoint-4"


def flip(files: list[Path], choose: random.Random) -> str:
    """One bit of one file."""
    path = choose.choice([path for path in files if path.stat().st_size])
    data, at = bytearray(path.read_bytes()), choose.randrange(8 * path.stat().st_size)
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)
    return f"bit {at} of {path.name} flipped"


def truncate(files: list[Path], choose: random.Random) -> str:
    """The end of a file is missing."""
    path = choose.choice([path for path in files if path.stat().st_size])
    size = choose.choice((0, path.stat().st_size - 1, choose.randrange(path.stat().st_size)))
    os.truncate(path, size)
    return f"{path.name} cut to {size} bytes"


def zero(files: list[Path], choose: random.Random) -> str:
    """A range of a file is zeros, as after a power failure."""
    path = choose.choice([path for path in files if path.stat().st_size])
    data = bytearray(path.read_bytes())
    begin = choose.choice((0, choose.randrange(len(data))))
    end = min(begin + choose.choice((16, 512, 4096, len(data))), len(data))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    return f"bytes {begin} to {end} of {path.name} zeroed"


def swap(files: list[Path], choose: random.Random) -> str:
    """Two files under each other's name."""
    first, second = choose.sample(files, 2)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    return f"{first.name} and {second.name} swapped"


def delete(files: list[Path], choose: random.Random) -> str:
    """A file is gone."""
    path = choose.choice(files)
    path.unlink()
    return f"{path.name} deleted"


def duplicate(files: list[Path], choose: random.Random) -> str:
    """A part of a file is there twice."""
    path = choose.choice([path for path in files if path.stat().st_size])
    data = path.read_bytes()
    at = choose.randrange(len(data))
    path.write_bytes(data[: at + 1] + data[max(at - 511, 0) :])
    return f"a part of {path.name} is there twice"


def exchange(files: list[Path], choose: random.Random) -> str:
    """A file of the checkpoint before."""
    path = choose.choice(files)
    shutil.copyfile(path.parent.parent / OLD / path.name, path)
    return f"{path.name} is that of {OLD}"


KINDS: tuple[Callable[[list[Path], random.Random], str], ...] = (
    flip, flip, truncate, zero, swap, delete, duplicate, exchange,
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A run that was stopped after its second checkpoint.

    Attributes:
        place: The folder it is in.
        digest: The finished model of a run that went on from there.
    """

    place: Path
    digest: str


def interrupted(lab: Lab) -> Start:
    """Such a run of llmt."""

    def make(place: Path) -> None:
        lab.must(place, *SCRATCH, *RUN, "-o", "whole")
        lab.child(place, _stop_after_second)

    place = lab.prepared("damage", make)
    shutil.rmtree(place / cases.RUN_DIRECTORY / "checkpoint-6", ignore_errors=True)
    return Start(place, finished(place / "whole"))


def _stop_after_second() -> None:
    from llmt.checkpoints.store import CheckpointStore

    save = CheckpointStore.save

    def stop(self: CheckpointStore, step: int, *args: object, **more: object) -> Path:
        path = save(self, step, *args, **more)  # type: ignore[arg-type]
        if path.name == NEW:
            os._exit(0)
        return path

    CheckpointStore.save = stop  # type: ignore[method-assign]
    command((*SCRATCH, *RUN, "-o", cases.RUN_DIRECTORY))


def damaged_copy(lab: Lab, source: Path, run: str, name: str, number: int) -> tuple[Path, str, str]:
    """A copy with one damage in its newest checkpoint: where, the kind, and what was done."""
    choose = random.Random(lab.seed * 10**6 + number)
    kind = KINDS[number % len(KINDS)]
    while True:
        place = lab.copy(source, name)
        before = tree(place / run / NEW)
        files = sorted(path for path in (place / run / NEW).iterdir() if path.is_file())
        what = kind(files, choose)
        if tree(place / run / NEW) != before:
            return place, kind.__name__, what


def examine(lab: Lab, start: Start, number: int) -> Verdict:
    """One damage: what is picked afterwards."""
    from llmt.checkpoints.store import CheckpointStore
    from llmt.errors import ModelFileError

    place, kind, what = damaged_copy(lab, start.place, cases.RUN_DIRECTORY, f"damage-{os.getpid()}", number)
    run, messages, outcome, why = place / cases.RUN_DIRECTORY, [], "detected", ""
    try:
        found = CheckpointStore(run).latest(messages.append)
    except ModelFileError as error:  # a manifest that says it is of another format
        found, outcome = None, "refused"
        why = "" if "format" in error.message else f"stops: {error.message}"
    if outcome == "detected":
        why = _right(start, run, found.path.name if found is not None else "none", messages)
        outcome = "harmless" if found is not None and found.path.name == NEW else outcome
    if not why and outcome == "detected" and number % RESUMED == 0:
        ended = lab.llmt(place, "train", cases.RUN_DIRECTORY, "--resume")
        if ended.code:
            why = f"resume fails: exit code {ended.code}: {ended.last_line}"
        elif finished(run) != start.digest:
            why = "resume ends with other weights"
    return Verdict(f"{kind}: {what}", why, LLMT, (kind, number), "silent" if why else outcome)


def _right(start: Start, run: Path, found: str, messages: list[str]) -> str:
    """What is wrong with a choice: the older, whole one, or the newer where no byte but of its manifest changed."""
    whole = {name: tree(start.place / cases.RUN_DIRECTORY / name) for name in (OLD, NEW)}
    if found == OLD:
        if not messages or not any(path.name.startswith(".bad-") for path in run.iterdir()):
            return "the damaged one is neither named nor kept"
        return "" if tree(run / OLD) == whole[OLD] else "the older checkpoint was changed"
    if found != NEW:
        return f"picks {found}"
    now, before = tree(run / NEW), whole[NEW]
    changed = [name for name in before if now.get(name) != before[name]]
    return "" if changed == ["MANIFEST.json"] else f"loads {', '.join(changed)} as if nothing were wrong"


def interrupted_hf(lab: Lab) -> Start:
    """A run of the Trainer of transformers with two checkpoints, and how it ends."""

    def train(steps: int, directory: str, **settings: object) -> None:
        peers.hf_trainer(Path(directory), save_total_limit=None, max_steps=steps, lr_scheduler_type="constant",
                         **settings).train()  # fmt: skip

    def make(place: Path) -> None:
        lab.child(place, lambda: train(4, "run"))

    place = lab.prepared("damage-hf", make)
    whole = lab.copy(place, "damage-hf-whole")
    lab.child(whole, resume_hf)
    return Start(place, peers.digest_hf(whole))


def resume_hf() -> None:
    """Go on from the newest checkpoint, as the Trainer finds it."""
    from transformers.trainer_utils import get_last_checkpoint

    trainer = peers.hf_trainer(Path("run"), save_total_limit=None, lr_scheduler_type="constant")
    trainer.train(resume_from_checkpoint=get_last_checkpoint("run"))
    trainer.save_model("run")


def examine_hf(lab: Lab, start: Start, number: int) -> Verdict:
    """One damage of a checkpoint of the Trainer: it must be refused, or change nothing."""
    place, kind, what = damaged_copy(lab, start.place, "run", f"damage-hf-{os.getpid()}", number)
    ended = lab.child(place, resume_hf)
    why = ""
    if ended.code == 0 and peers.digest_hf(place) != start.digest:
        why = "goes on and ends with other weights"
    return Verdict(f"{kind}: {what}", why, "HF Trainer", (kind, number), "silent" if why else "detected")


def run(lab: Lab) -> list[Family]:
    """Damage checkpoints in every way."""
    started = time.monotonic()
    own, peer = interrupted(lab), interrupted_hf(lab)
    work: list[tuple[Callable[[Lab, Start, int], Verdict], Start, int]] = []
    work += [(examine, own, number) for number in range(lab.count(COUNT))]
    work += [(examine_hf, peer, number) for number in range(lab.count(PEER_COUNT))]
    found = spread(work, lambda item: item[0](lab, *item[1:]), lab.lanes)
    own_outcomes = [verdict.outcome for verdict in found if verdict.subject == LLMT]
    counts = {outcome: own_outcomes.count(outcome) for outcome in sorted(set(own_outcomes))}
    return families("damage", found, started, {"outcomes": counts})
