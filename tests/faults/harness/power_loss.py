"""the calls of a save -> every state that a power failure could leave; which of them lose what was promised.

The same model on simpler ways to save, and on the Trainer of transformers, shows what it finds.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import cases, peers
from harness.calls import Reference, record
from harness.disk import KEPT, History, State, contents
from harness.lab import Lab, finished
from harness.lanes import spread
from harness.shim import Call, read_journal
from harness.verdicts import LLMT, Family, Verdict, families

COUNTS = {"full": 2500, "lora": 1500, "shards": 1000}
PEER_COUNT = 1000
HF = "HF Trainer"
CHUNK = 50


@dataclass(frozen=True)
class Trace:
    """What one save did.

    Attributes:
        name: Whose save.
        subject: Who made it.
        before: What was there.
        calls: What was done, with every byte.
        judge: The folder after a power failure, and what had been promised -> what is wrong; empty when nothing is.
    """

    name: str
    subject: str
    before: dict[str, bytes | None]
    calls: list[Call]
    judge: Callable[[Path, list[str]], str]


def record_bytes(lab: Lab, name: str, source: Path, struck: str, work: Callable[[], object]) -> list[Call]:
    """Run `work` in a copy of `source` and write down every call with its bytes, paths relative to the copy.

    Raises:
        RuntimeError: It failed.
    """
    place, journal = lab.copy(source, f"trace-{name}"), lab.root / f"{name}.trace"

    def traced() -> object:
        lab.shim.journal(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), data=True)
        lab.shim.arm(place / struck)
        try:
            return work()
        finally:
            lab.shim.mark("done")

    ended = lab.child(place, traced)
    if ended.code:
        raise RuntimeError(f"{name}: {ended.log}")
    calls = [call for call in read_journal(journal) if call.kind != "failed"]
    moved = [Call(c.kind, _moved(c.path, place), _moved(c.other, place), c.offset, c.data) for c in calls]
    shutil.rmtree(place)
    return moved


def _moved(path: str, place: Path) -> str:
    return "/w" + path.removeprefix(str(place)) if path.startswith(str(place)) else path


def with_marks(lab: Lab, work: Callable[[], object]) -> Callable[[], object]:
    """`work` that notes every checkpoint once `CheckpointStore.save` has returned: it is promised then."""

    def marked() -> object:
        from llmt.checkpoints.store import CheckpointStore

        save = CheckpointStore.save

        def saved(self: CheckpointStore, step: int, *args: object, **more: object) -> Path:
            path = save(self, step, *args, **more)  # type: ignore[arg-type]
            lab.shim.mark(f"saved {step}")
            return path

        CheckpointStore.save = saved  # type: ignore[method-assign]
        return work()

    return marked


def judge_run(run: Path, promised: list[str], reference: Reference, digest: str) -> str:
    """A run: the newest checkpoint is whole and no older than promised; the finished model is whole or absent."""
    from llmt.checkpoints import layout
    from llmt.checkpoints.manifest import verify_manifest
    from llmt.checkpoints.store import CheckpointStore
    from llmt.errors import ModelFileError

    steps = [int(text.split()[1]) for text in promised if text.startswith("saved")]
    store = CheckpointStore(run)
    store.clean()
    found = store.latest()
    if found is not None:
        now = {name: r.sha256 for name, r in found.manifest.files.items() if name in reference.checkpoints[found.step]}
        if now != reference.checkpoints[found.step] or _hashes(found.path, list(now)) != now:
            return f"picks a checkpoint {found.step} that is not what was saved"
    if (found.step if found is not None else 0) < max(steps, default=0):
        return f"checkpoint {max(steps)} was promised, found {found.step if found is not None else 'none'}"
    if steps and not ((run / layout.RUN_CONFIG).is_file() and json.loads((run / layout.PLAN).read_bytes())):
        return "a checkpoint was promised, but the configuration of its run is gone"
    try:
        verify_manifest(run)
    except ModelFileError as error:
        return f"the finished model was promised: {error}" if "done" in promised else ""
    return "" if finished(run) == digest else "the finished model is not what was published"


def _hashes(directory: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}


def judge_shards(out: Path, promised: list[str], old: str, new: str) -> str:
    """A model that replaces another: where there is a configuration, the weights beside it are one of the two."""
    if not (out / "config.json").is_file() or not json.loads((out / "config.json").read_bytes() or b"0"):
        return "the new model was promised, and is gone" if promised else ""
    found = finished(out)
    if promised:
        return "" if found == new else "the new model was promised, and is not there"
    return "" if found in (old, new) else "a configuration beside weights of two models"


def own_traces(lab: Lab) -> list[tuple[Trace, int]]:
    """The saves of llmt."""
    traces = []
    for case in cases.CASES:
        if case.name not in COUNTS:
            continue
        reference = record(lab, case)
        source = lab.prepared(case.name, lambda place: None)
        calls = record_bytes(lab, case.name, source, case.struck, with_marks(lab, case.work))
        before = {p: d for p, d in contents(source).items() if p.split("/")[0] == case.struck}
        if case.run:

            def judge(place: Path, promised: list[str], reference: Reference = reference) -> str:
                return judge_run(place / cases.RUN_DIRECTORY, promised, reference, reference.digest)

        else:
            old = finished(source / "out")

            def judge(place: Path, promised: list[str], reference: Reference = reference, old: str = old) -> str:
                return judge_shards(place / "out", promised, old, reference.digest)

        traces.append((Trace(case.name, LLMT, before, calls, judge), lab.count(COUNTS[case.name])))
    return traces


FILES = {"model": b"w" * 5000, "optimizer": b"o" * 9000}
STEPS = (1, 2)


def _files(step: int) -> dict[str, bytes]:
    return {name: data.replace(data[:1], bytes([data[0] + step])) for name, data in FILES.items()} | {
        "state": b"%d" % step
    }


def save_simply(lab: Lab, *, staged: bool, manifest: bool) -> None:
    """Two checkpoints, as most programs write them: nothing is forced to the disk."""
    for step in STEPS:
        final = Path("run", f"checkpoint-{step}")
        folder = final.with_name(f"tmp-{step}") if staged else final
        folder.mkdir(parents=True)
        for name, data in _files(step).items():
            (folder / name).write_bytes(data)
        if manifest:
            listed = {name: hashlib.sha256(data).hexdigest() for name, data in _files(step).items()}
            (folder / "manifest").write_text(json.dumps(listed))
        if staged:
            folder.rename(final)
        lab.shim.mark(f"saved {step}")


def judge_simple(place: Path, promised: list[str], *, manifest: bool) -> str:
    """The highest checkpoint that has all its files is what was saved, and no older than promised."""
    promise = max((int(text.split()[1]) for text in promised if text.startswith("saved")), default=0)
    for step in reversed(STEPS):
        folder = place / "run" / f"checkpoint-{step}"
        names = [*_files(step), "manifest"] if manifest else list(_files(step))
        if not all((folder / name).is_file() for name in names):
            continue
        right = all((folder / name).read_bytes() == data for name, data in _files(step).items())
        if manifest and not right:
            continue
        if not right:
            return f"picks a corrupt checkpoint {step}"
        return "" if step >= promise else f"checkpoint {promise} was promised, found {step}"
    return f"checkpoint {promise} was promised, found none" if promise else ""


def simple_traces(lab: Lab) -> list[tuple[Trace, int]]:
    """Three ways to save that are simpler than that of llmt."""
    ways = {
        "files written in place": (False, False), "renamed, not forced": (True, False),
        "renamed, manifest, not forced": (True, True),
    }  # fmt: skip
    traces = []
    for name, (staged, manifest) in ways.items():
        source = lab.prepared("simple", lambda place: (place / "run").mkdir())
        before = {"run": None}
        calls = record_bytes(
            lab, "simple", source, "run",
            lambda staged=staged, manifest=manifest: save_simply(lab, staged=staged, manifest=manifest),
        )  # fmt: skip

        def judge(place: Path, promised: list[str], manifest: bool = manifest) -> str:
            return judge_simple(place, promised, manifest=manifest)

        traces.append((Trace(name, name, before, calls, judge), lab.count(PEER_COUNT, 50)))
    return traces


def train_hf_with_marks(lab: Lab) -> None:
    """The run of the Trainer, which notes every checkpoint once it was written."""
    from transformers import Trainer

    save = Trainer._save_checkpoint

    def saved(self: Trainer, *args: object, **more: object) -> None:
        save(self, *args, **more)
        lab.shim.mark(f"saved {self.state.global_step}")

    Trainer._save_checkpoint = saved
    peers.train_hf()


def judge_hf(run: Path, promised: list[str], whole: dict[int, dict[str, bytes | None]]) -> str:
    """The checkpoint that the Trainer takes, the one with the highest number, is what it wrote."""
    there = [int(path.name.removeprefix("checkpoint-")) for path in run.glob("checkpoint-*")]
    promise = max((int(text.split()[1]) for text in promised if text.startswith("saved")), default=0)
    step = max(there, default=0)
    if step < promise:
        return f"checkpoint {promise} was promised, found {step or 'none'}"
    if step and contents(run / f"checkpoint-{step}") != whole[step]:
        return f"picks a corrupt checkpoint {step}"
    return ""


def completed(calls: list[Call]) -> list[Call]:
    """The calls with those that the shim does not see: files that C++ opens, and the rename that ends a tensor file.

    safetensors writes into `.tmp...` and gives it its name by a direct system call.
    """
    last = {call.path: at for at, call in enumerate(calls)}
    found, there = list[Call](), set[str]()
    for at, call in enumerate(calls):
        if call.kind in ("write", "more") and call.path not in there:
            found.append(Call("create", call.path))
        if call.kind in ("create", "write", "more"):
            there.add(call.path)
        if call.kind == "unlink":
            there.discard(call.path)
        found.append(call)
        if call.kind != "mark" and Path(call.path).name.startswith(".tmp") and last[call.path] == at:
            found.append(Call("rename", call.path, str(Path(call.path).with_name("model.safetensors"))))
    return found


def hf_trace(lab: Lab) -> tuple[Trace, int]:
    """The saves of the Trainer of transformers; what is whole is what it had written when it went on."""
    source = lab.prepared(HF, lambda place: peers.prepare_hf(lab, place))
    before = {path: data for path, data in contents(source).items() if path.split("/")[0] == "run"}
    calls = completed(record_bytes(lab, "hf", source, "run", lambda: train_hf_with_marks(lab)))
    history, whole = History(Path("/w"), before, calls), dict[int, dict[str, bytes | None]]()
    for at, text in history.marks:
        if text.startswith("saved"):
            folder = f"run/checkpoint-{text.split()[1]}/"
            files = history.state(at, lambda effect: KEPT).walk()
            whole[int(text.split()[1])] = {p.removeprefix(folder): d for p, d in files if p.startswith(folder)}

    def judge(place: Path, promised: list[str]) -> str:
        return judge_hf(place / "run", promised, whole)

    return Trace(HF, HF, before, calls, judge), lab.count(PEER_COUNT, 50)


def examine(lab: Lab, trace: Trace, history: History, chunk: list[tuple[int, State, str]]) -> list[Verdict]:
    """Make each state a folder and look at it as the program would."""
    found = []
    for at, state, how in chunk:
        promised = [text for number, text in history.marks if number < at]
        with tempfile.TemporaryDirectory(dir=lab.root) as folder:
            state.write(Path(folder))
            why = trace.judge(Path(folder), promised)
        call = trace.calls[at - 1]
        what = f"{trace.name}: power lost after call {at} ({call.kind} {Path(call.path).name}), {how}"
        found.append(Verdict(what, why, trace.subject, (trace.name, at), _outcome(why)))
    return found


def _outcome(why: str) -> str:
    return "" if not why else "promise" if "promised" in why else "corrupt"


def run(lab: Lab) -> list[Family]:
    """Power lost at any call of a save."""
    started, work = time.monotonic(), []
    for trace, count in [*own_traces(lab), *simple_traces(lab), hf_trace(lab)]:
        history = History(Path("/w"), trace.before, trace.calls)
        states = list(history.states(count, lab.seed))
        work += [(trace, history, states[i : i + CHUNK]) for i in range(0, len(states), CHUNK)]
    found = spread(work, lambda item: examine(lab, *item), lab.lanes)
    verdicts = [verdict for chunk in found for verdict in chunk]
    corrupt = [f"{sum(v.outcome == 'corrupt' for v in group)} of {len(group)}"
               for group in ([v for v in verdicts if v.subject == who] for who in (LLMT, HF))]  # fmt: skip
    return families("power_loss", verdicts, started, {f"corrupt picks, {LLMT} and {HF}": corrupt})
