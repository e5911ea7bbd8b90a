"""files that are wrong in some way -> llmt refuses them in its own words, or reads what is in them.

Many share a child; where one ends the child, the rest goes on in another. A child has 1 GB more than it began with,
and ten seconds for a file. Whatever it opens outside of its folder, and every socket or program, is noticed.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.fuzz_kinds import KINDS, Kind
from harness.lab import Lab
from harness.lanes import spread
from harness.mutations import mutate
from harness.verdicts import LLMT, Family, Verdict, families

BATCH = 250
SECONDS = 10
MEMORY = 2**30
FORBIDDEN = ("socket.", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "ctypes.dlopen")
TRIAL = "trial_child.py"
"""The program in which llmt itself tries a foreign tokenizer, within limits."""


@dataclass(frozen=True)
class Batch:
    """Some files of one kind."""

    kind: Kind
    seed: dict[str, bytes]
    first: int
    count: int


class Watch:
    """An audit hook: what happened that should not have."""

    def __init__(self, folder: Path) -> None:
        self.found: list[str] = []
        self.on = False
        root = Path(__file__).resolve().parents[3]
        self._allowed = (
            str(folder), sys.prefix, sys.base_prefix, str(root), "/proc/", "/sys/", "/usr/", "/lib", "/dev/null",
            "/dev/urandom", "/etc/localtime", "/etc/ld.so",
        )  # fmt: skip

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(self._allowed):
                self.found.append(f"opens {path}")
        elif event.startswith(FORBIDDEN) and TRIAL not in repr(arguments):
            self.found.append(f"{event} {arguments!r}"[:200])


def try_batch(batch: Batch, place: Path, results: Path, start: int, seed: int) -> None:
    """In a child: one file after the other, each result written down at once."""
    folder = place / "input"
    folder.mkdir(exist_ok=True)
    batch.kind.read(_written(folder, batch.seed))  # imports happen here, before anything is watched
    watch = Watch(place)
    sys.addaudithook(watch)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with results.open("a", encoding="utf-8") as out:
        for number in range(start, batch.first + batch.count):
            choose = random.Random(f"{seed} {batch.kind.name} {number}")
            target = batch.kind.target or choose.choice(sorted(batch.seed))
            files = batch.seed | {target: mutate(batch.seed[target], choose)}
            _written(folder, files)
            out.write(f"{number}\t")
            out.flush()
            signal.alarm(SECONDS)
            why = judge(batch.kind, folder, watch)
            signal.alarm(0)
            out.write(json.dumps(why) + "\n")
            out.flush()


def _written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def judge(kind: Kind, folder: Path, watch: Watch) -> str:
    """What is wrong with how llmt takes a file; `refused` and `read` where nothing is."""
    from llmt.errors import LlmtError

    watch.found.clear()
    watch.on = True
    try:
        found = kind.read(folder)
    except LlmtError as error:
        watch.on = False
        text = error.message
        if watch.found:
            return watch.found[0]
        return "its message is not one line" if "\n" in text or "\x1b" in text else "refused"
    except BaseException as error:  # noqa: BLE001 - any other error is what is looked for
        watch.on = False
        return f"{type(error).__name__}: {error}"[:300]
    watch.on = False
    if watch.found:
        return watch.found[0]
    if kind.reference is None:
        return "read"
    return _compared(kind, folder, found)


def _compared(kind: Kind, folder: Path, found: Any) -> str:
    assert kind.reference is not None
    try:
        expected = kind.reference(folder)
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        return f"reads what its library refuses: {error}"[:300]
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        return f"reads what its library refuses: {error}"[:300]
    if expected is None or found == expected:
        return "read"
    return "reads something else than its library"


def examine(lab: Lab, batch: Batch) -> list[Verdict]:
    """A batch, in as many children as it takes."""
    place = lab.fresh(f"fuzz-{batch.kind.name}-{batch.first}")
    results, start, verdicts = place / "results", batch.first, []
    while start < batch.first + batch.count:
        results.write_text("")
        begin = start
        ended = lab.child(
            place, lambda begin=begin: try_batch(batch, place, results, begin, lab.seed), SECONDS * batch.count
        )
        lines = results.read_text(encoding="utf-8").splitlines()
        for line in lines:
            number, _, said = line.partition("\t")
            why = json.loads(said) if said else _fatal(ended.code, ended.last_line)
            verdicts.append(_verdict(batch.kind, int(number), why))
            start = int(number) + 1
        if not lines:
            raise RuntimeError(f"{batch.kind.name}: {ended.log}")
    return verdicts


def _fatal(code: int, line: str) -> str:
    if code == -signal.SIGALRM:
        return f"takes longer than {SECONDS} s"
    return f"ends the process with {code}: {line}"


def _verdict(kind: Kind, number: int, why: str) -> Verdict:
    fine = why in ("refused", "read")
    return Verdict(f"{kind.name} {number}", "" if fine else why, LLMT, (kind.name, number), why if fine else "broken")


def run(lab: Lab) -> list[Family]:
    """Read wrong files of nine kinds."""
    started, work = time.monotonic(), []
    for kind in KINDS:
        place = lab.fresh("fuzz-seed")
        made = place / "seed.json"

        def make(kind: Kind = kind, made: Path = made) -> None:
            made.write_text(json.dumps({name: data.hex() for name, data in kind.seed().items()}))

        ended = lab.child(place, make)
        if ended.code:
            raise RuntimeError(f"{kind.name}: {ended.log}")
        seed = {name: bytes.fromhex(data) for name, data in json.loads(made.read_text()).items()}
        count = lab.count(kind.count)
        work += [Batch(kind, seed, first, min(BATCH, count - first)) for first in range(0, count, BATCH)]
    found = [verdict for batch in spread(work, lambda batch: examine(lab, batch), lab.lanes) for verdict in batch]
    outcomes: dict[str, dict[str, int]] = {}
    for verdict in found:
        kinds = outcomes.setdefault(verdict.cell[0], {})
        kinds[verdict.outcome] = kinds.get(verdict.outcome, 0) + 1
    return families("fuzz", found, started, {"outcomes": outcomes})
