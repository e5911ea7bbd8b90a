"""Several real processes: what they tell each other, and how all of them end when one does not go on."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmt import ModelConfig, TransformerLM, train_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stops processes, and looks for them in /proc")

LIMIT = 60.0
OPEN = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
from llmt.config.training import TrainingConfig
from llmt.errors import *
from llmt.training.optim import Optimizer
from llmt.training.runtime import AcceleratedRuntime, Runtime
TIMEOUT = float(os.environ.get("TIMEOUT", "20"))
def world():
    return AcceleratedRuntime("cpu", "gloo", int(os.environ["WORLD_SIZE"]), timeout=TIMEOUT, hint="again")
def told(action):
    try:
        return action()
    except LlmtError as error:
        return [type(error).__name__, error.message, error.hint, error.exit_code]
"""


@dataclass
class Ended:
    """How one process ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def value(self) -> dict[str, object]:
        """The JSON that it printed last."""
        found: dict[str, object] = json.loads(self.out.strip().splitlines()[-1])
        return found


def _variables(environment: dict[str, str], **more: str) -> dict[str, str]:
    mine = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in environment.items() if name not in mine} | more


def start(code: str, environment: dict[str, str], processes: int = 2, **more: str) -> list[subprocess.Popen[str]]:
    """A piece of Python in several processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = _variables(
        environment,
        WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        GLOO_SOCKET_IFNAME="lo",
        **more,
    )
    return [
        subprocess.Popen(
            [sys.executable, "-c", OPEN + code], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip


def finish(processes: Sequence[subprocess.Popen[str]], waited: Sequence[int]) -> list[Ended]:
    """Wait for some of the processes, and end the rest."""
    begun = time.monotonic()
    try:
        ended = []
        for rank in waited:
            out, err = processes[rank].communicate(timeout=LIMIT)
            ended.append(Ended(processes[rank].returncode, out, err, time.monotonic() - begun))
        return ended
    finally:
        for process in processes:
            process.kill()
            process.communicate()


QUESTIONS = """
runtime = world()
found = {"ranks": [runtime.rank, runtime.world_size, runtime.is_main]}
found["total"] = runtime.total(1.5, runtime.rank, 2.0**53 if runtime.is_main else 0)
found["highest"] = runtime.highest(15 * runtime.rank)
found["from_main"] = runtime.from_main(runtime.rank + 0.1)
found["share"] = runtime.share({"ä": [runtime.rank, None]})
gradients = [torch.full((3, 2), runtime.rank + 1.0), None, torch.arange(4.0).reshape(2, 2).T * (runtime.rank + 1),
             torch.full((7_000_000,), runtime.rank + 1.0)]
runtime.sum_gradients(gradients)
found["sums"] = [gradients[0].unique().tolist(), gradients[2].tolist(), gradients[3].unique().tolist()]
found["missing"] = told(lambda: runtime.sum_gradients([torch.ones(2), torch.ones(2) if runtime.rank else None]))
runtime.check_equal({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3)}, "weights")
found["unequal"] = told(lambda: runtime.check_equal(
    {"a": torch.ones(2), "b": torch.ones(2) * runtime.rank, "c": torch.ones(2) * runtime.rank}, "weights"))
found["done"] = runtime.on_main(lambda: 5)
def fail(error):
    raise error
found["full"] = told(lambda: runtime.on_main(lambda: fail(StorageError("full", "free some"))))
found["bad"] = told(lambda: runtime.on_main(lambda: fail(ConfigError(["one", "two"], "look"))))
found["stopped"] = told(lambda: runtime.on_main(lambda: fail(Interrupted("saved", "go on", 15))))
found["still"] = runtime.total(1)
model = torch.nn.Linear(2, 2)
torch.nn.init.zeros_(model.bias)
torch.nn.init.constant_(model.weight, runtime.rank)
found["differing"] = told(lambda: runtime.prepare(model, Optimizer(model, TrainingConfig(optimizer="adamw"))))
begun = time.monotonic()
runtime.on_main(lambda: time.sleep(TIMEOUT + 1))
found["waited"] = time.monotonic() - begun
try:
    found["bug"] = told(lambda: runtime.on_main(lambda: fail(ZeroDivisionError("oops"))))
except ZeroDivisionError:
    pass
runtime.close()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
found["threads"] = [name for name in names if "gloo" in name]
print(json.dumps(found))
"""


def test_all_processes_hear_the_same(environment: dict[str, str]) -> None:
    """Sums, agreements, what the first one did, however long it took, and how it failed, on both."""
    ended = finish(start(QUESTIONS, environment, TIMEOUT="5"), (0, 1))
    assert [one.code for one in ended] == [0, 0], ended
    for rank, one in enumerate(ended):
        found = one.value
        assert found["ranks"] == [rank, 2, rank == 0]
        assert found["total"] == [3.0, 1.0, 2.0**53]
        assert found["highest"] == 15
        assert found["from_main"] == 0.1
        assert found["share"] == {"ä": [0, None]}
        assert found["sums"] == [[3.0], [[0.0, 6.0], [3.0, 9.0]], [3.0]]
        assert found["missing"][:2] == [  # type: ignore[index]
            "MismatchError",
            "the gradients of a step: number 1 has 0 values on one process and 2 on another",
        ]
        assert found["unequal"][1] == "weights: b is not the same on all processes"  # type: ignore[index]
        assert found["done"] == (5 if rank == 0 else None)
        assert found["full"] == ["StorageError", "full", "free some", 6]
        assert found["bad"] == ["ConfigError", "one", "look", 2]
        assert found["stopped"] == ["Interrupted", "saved", "go on", 143]
        assert found["still"] == [2.0]
        assert found["differing"][1] == "weights at the start: fp32 weight is not the same on all processes"  # type: ignore[index]
        assert found["waited"] >= 5.9  # type: ignore[operator]
        assert found["threads"] == []  # what is left of a group can abort the process that ends
    assert ended[1].value["bug"] == ["PeerLostError", "process 0 failed: ZeroDivisionError: oops", "again", 11]


STEPS = """
from torch import nn
from llmt.data.batch import IGNORED, Batch
from llmt.models.base import BaseLanguageModel
from llmt.training.step import Stepper

class Small(BaseLanguageModel):
    def __init__(self):
        super().__init__()
        self.vocab_size, self.context_length = 7, 5
        self.embed, self.mix, self.rare = nn.Embedding(7, 16), nn.Linear(16, 32), nn.Linear(16, 32)
        self.head, self.never = nn.Linear(32, 7, bias=False), nn.Linear(3, 3)

    def hidden_states(self, input_ids, cache=None):
        rare = (input_ids == 0)[..., None]
        inputs = self.embed(input_ids)
        found = self.mix(inputs)
        return torch.tanh(found + rare * self.rare(inputs) if bool(rare.any()) else found)

    def output_weight(self):
        return self.head.weight

def batches(step, size):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, 7, (4, 5), generator=generator)
    labels = torch.randint(7, (4, 5), generator=generator)
    labels[0, 3:] = labels[1, 1:] = labels[2, :] = IGNORED
    if step == 1:
        labels[1] = labels[3] = IGNORED  # all that the second process has
    if step == 2:
        ids[3, 1] = 0  # what only the second process has a gradient of
    rows = [slice(first, first + size) for first in range(0, 4, size)]
    return [Batch(ids[row], labels[row], int((labels[row] != IGNORED).sum())) for row in rows]

def steps(runtime, size):
    torch.manual_seed(0)
    model = Small()
    optimizer = Optimizer(model, TrainingConfig(optimizer="adamw"))
    runtime.prepare(model, optimizer)
    stepper, kept = Stepper(model, optimizer, 0, runtime), []
    for step in range(4):
        window = batches(step, size)[runtime.rank :: runtime.world_size]
        tokens = round(runtime.total(sum(batch.tokens for batch in window))[0])
        found = stepper.gradients(window, step, tokens, 1024.0 if step == 3 else None)
        gradients = {w.name: None if w.master.grad is None else w.master.grad.flatten().tolist()
                     for w in optimizer.weights}
        kept.append([found.summed / tokens, found.norm, gradients])
        optimizer.set_rate(1.0)
        optimizer.step()
    return kept

runtime = world()
print(json.dumps({"two": steps(runtime, 1), "one": steps(Runtime(), 4)}))
"""


def test_gradients_are_those_of_one_process_on_the_whole_batch(environment: dict[str, str]) -> None:
    """Rows of unequal numbers of tokens, one with none, a step in which a process has nothing at all; and tensors that
    the loss reaches on one process, or on none.
    """
    ended = finish(start(STEPS, environment), (0, 1))
    assert [one.code for one in ended] == [0, 0], ended
    two, one = ended[0].value["two"], ended[0].value["one"]
    assert two == ended[1].value["two"]
    reached = []
    for (loss, norm, found), (whole_loss, whole_norm, whole) in zip(two, one, strict=True):  # type: ignore[call-overload]
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        assert norm == pytest.approx(whole_norm, rel=1e-6)
        assert {name: values is None for name, values in found.items()} == {
            name: values is None for name, values in whole.items()
        }
        reached.append({name.partition(".")[0] for name, values in found.items() if values is not None})
        for name, values in found.items():
            for value, expected in zip(values or (), whole[name] or (), strict=True):
                assert abs(value - expected) <= 1e-6 * whole_norm, name
    assert reached == [{"embed", "mix", "head"}] * 2 + [{"embed", "mix", "head", "rare"}, {"embed", "mix", "head"}]


LOST = """
runtime = world()
runtime.total(1)
if runtime.rank == 1:
    if HOW in (signal.SIGKILL, signal.SIGSTOP):
        os.kill(os.getpid(), HOW)
    sys.exit(3)
begun = time.monotonic()
found = told(lambda: WHAT)
print(json.dumps({"found": found, "waited": time.monotonic() - begun, "again": told(lambda: runtime.total(1))}))
runtime.close()
sys.exit(found[3])
"""


@pytest.mark.parametrize(
    ("how", "what", "words", "least", "most"),
    [
        ("signal.SIGKILL", "runtime.sum_gradients([torch.ones(3)])", "another process is gone", 0, 4.9),
        ("signal.SIGSTOP", "runtime.total(1)", "no answer", 4.9, 9),
    ],
)
def test_a_lost_process_ends_the_other(
    environment: dict[str, str], how: str, what: str, words: str, least: float, most: float
) -> None:
    """Killed, at once; hung, after the timeout: exit code 11 either way, and what it waited for."""
    code = LOST.replace("HOW", how).replace("WHAT", what)
    ended = finish(start(code, environment, TIMEOUT="5"), (0,))[0]
    assert ended.code == 11, ended
    assert ended.value["found"][0] == "PeerLostError"  # type: ignore[index]
    assert words in ended.value["found"][1]  # type: ignore[index]
    assert ended.value["found"][1].startswith("process 0 waited ")  # type: ignore[index]
    assert ended.value["again"][0] == "PeerLostError"  # type: ignore[index]
    assert least <= ended.value["waited"] <= most  # type: ignore[operator]


WORLD = """
runtime = world()
os.write(1, json.dumps([runtime.rank, runtime.total(1)]).encode() + b"\\n")  # in one piece: both write there
runtime.close()
"""


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        (("torch.distributed.run", "--standalone", "--nproc-per-node", "2"), {}),
        pytest.param(
            ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
            {"ACCELERATE_USE_CPU": "true"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["torchrun", "accelerate"],
)
def test_foreign_launchers(
    environment: dict[str, str], tmp_path: Path, launcher: tuple[str, ...], more: dict[str, str]
) -> None:
    """torchrun, and accelerate launch where it really starts several, give a world of two."""
    script = tmp_path / "world.py"
    script.write_text(OPEN + WORLD, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script)], env=_variables(environment, **more),
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line) for line in done.stdout.splitlines()) == [[0, [2.0]], [1, [2.0]]]


CHECK = """
from llmt.config.run import TrainConfig
from llmt.training.worker import check_launcher
from llmt.errors import UsageError
try:
    print(check_launcher(TrainConfig(device="cpu")))
except UsageError as error:
    print(error.message)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cpu", "--num_processes", "2"), "accelerate launch was asked for several processes and started one"),
        (("--cpu", "--num_processes", "1"), "1"),
    ],
)
def test_accelerate_launch_that_starts_one_instead_of_two(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """The trap is noticed by what it leaves in the environment; what was asked for as one process goes on."""
    script = tmp_path / "check.py"
    script.write_text(CHECK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments, str(script)], env=_variables(environment),
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.stdout.splitlines() == [said], done.stderr


WORKER = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
how, who = sys.argv[1:3]
folder = sys.argv[3]
open(os.path.join(folder, f"{rank}.pid"), "w").write(str(os.getpid()))
if how == "stop" and rank == 0:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
elif how == "stop":
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(143)))
elif how == "at once":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
open(os.path.join(folder, f"{rank}.ready"), "w").close()
if how in ("sleep", "stop", "at once", "ignored"):
    time.sleep(60)
while not all(os.path.exists(os.path.join(folder, f"{n}.ready")) for n in range(2)):
    time.sleep(0.01)
if str(rank) == who:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "fail":
        sys.stderr.write("noise\\nerror: no room\\nhint: make some\\n")
        sys.exit(6)
elif how == "hang":
    time.sleep(1)
    sys.exit(11)
elif how in ("kill", "fail"):
    time.sleep(60)
if how == "agree":
    sys.exit(7)
if how == "apart":
    sys.stderr.write("error: no answer\\n")
    sys.exit(11)
print("out", rank, os.environ["OMP_NUM_THREADS"], sys.argv[4:])
"""

PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from llmt.errors import LlmtError
from llmt.training import launch
launch.GRACE = 1.0
try:
    code = launch.launch(2, sys.argv[2:], timeout=1, hint="again", module="llmt_test_worker")
except LlmtError as error:
    print(type(error).__name__, "|", error.message, "|", error.hint)
    code = error.exit_code
sys.exit(code)
"""


class Launched:
    """`launch` in a process of its own.

    Args:
        folder: Where the module that is launched is, and where workers leave signs.
        environment: Of the process.
        how: What the workers do.
        who: The number of the one that does it.
    """

    def __init__(self, folder: Path, environment: dict[str, str], how: str, who: int = 1) -> None:
        (folder / "llmt_test_worker.py").write_text(WORKER, encoding="utf-8")
        self.folder = folder
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder), how, str(who), str(folder), "-x", "a b"],
            env=_variables(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def pids(self) -> list[int]:
        """The workers, once both are ready."""
        until = time.monotonic() + LIMIT
        while len(list(self.folder.glob("*.ready"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        return [int((self.folder / f"{rank}.pid").read_text()) for rank in (0, 1)]

    def end(self) -> Ended:
        """How it ended; nobody is left."""
        try:
            out, err = self.process.communicate(timeout=LIMIT)
        finally:
            self.process.kill()
        assert not [pid for pid in self.pids() if alive(pid)]
        return Ended(self.process.returncode, out, err, time.monotonic() - self.begun)


def alive(pid: int) -> bool:
    """The process runs, or is stopped; one that has ended and was not waited for does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


@pytest.mark.parametrize(
    ("how", "who", "code", "out"),
    [
        ("well", 1, 0, "out 0 1 ['-x', 'a b']"),
        ("agree", 1, 7, ""),
        ("fail", 0, 6, ""),
        ("fail", 1, 6, "LlmtError | process 1 (of 2, from 0): no room | make some"),
        ("kill", 1, 11, "PeerLostError | process 1 (of 2, from 0) was ended by SIGKILL, maybe since memory ran"),
        ("kill", 0, 11, "PeerLostError | process 0 (of 2, from 0) was ended by SIGKILL, maybe since memory ran"),
        ("hang", 1, 11, "PeerLostError | process 1 (of 2, from 0) did not answer for 1 s and was ended | again"),
        ("apart", 1, 11, "PeerLostError | the processes ended: no answer | again"),
    ],
)
def test_launch_ends_as_its_processes_do(
    tmp_path: Path, environment: dict[str, str], how: str, who: int, code: int, out: str
) -> None:
    """Exit codes are kept, what only we have read is said, and nobody is left behind."""
    ended = Launched(tmp_path, environment, how, who).end()
    assert ended.code == code, ended
    assert ended.out.strip().startswith(out)
    assert len(ended.out.splitlines()) <= 1
    assert ended.err.count("error: ") == (1 if (how, who) == ("fail", 0) or how == "apart" else 0)


@pytest.mark.parametrize(("how", "code"), [("stop", 143), ("at once", 130)])
def test_a_signal_is_passed_on(tmp_path: Path, environment: dict[str, str], how: str, code: int) -> None:
    """SIGTERM to the parent alone: the workers stop as they do, and their code is ours; Ctrl-C may have come too."""
    launched = Launched(tmp_path, environment, how)
    launched.pids()
    launched.process.send_signal(signal.SIGTERM)
    ended = launched.end()
    assert (ended.code, ended.out) == (code, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_before_the_workers_listen(tmp_path: Path, environment: dict[str, str], name: str) -> None:
    """They die of it, which is what was asked for."""
    launched = Launched(tmp_path, environment, "sleep")
    launched.pids()
    launched.process.send_signal(getattr(signal, name))
    ended = launched.end()
    assert ended.code == 128 + getattr(signal, name), ended
    assert ended.out.startswith("Interrupted | stopped, and nothing new was saved")


def test_workers_end_with_their_parent(tmp_path: Path, environment: dict[str, str]) -> None:
    """`kill -9` of the parent leaves no orphan, not even a stopped one."""
    launched = Launched(tmp_path, environment, "sleep")
    pids = launched.pids()
    os.kill(pids[1], signal.SIGSTOP)
    launched.process.kill()
    launched.process.communicate()
    until = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.02)


RUN = """
import hashlib
from itertools import islice
from pathlib import Path
from llmt.config.run import TrainConfig
from llmt.training.build import build_trainer, prepare
from llmt.training.runtime import open_runtime
folder = Path(os.environ["FOLDER"])
accumulation = 4 // int(os.environ["WORLD_SIZE"])
values = {
    "device": "cpu", "threads": 1, "tokenizer": {"algo": "byte"}, "output_dir": str(folder / os.environ["WORLD_SIZE"]),
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    "data": {"sources": [str(folder / "text.txt")], "block_size": 16, "cache_dir": str(folder / "cache")},
    "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, "precision": "fp32",
                 "compile": "never", "max_steps": 6, "eval_steps": 3, "optimizer": "adamw", "warmup_steps": 2,
                 "save_steps": 2, "retry_on_divergence": True, "learning_rate": 0.001}}
for section, more in json.loads(os.environ.get("MORE", "{}")).items():
    values[section] = values.get(section, {}) | more
config = TrainConfig.model_validate(values)
base = Path(os.environ["BASE"]) if "BASE" in os.environ else None
runtime = open_runtime(config, "cpu", "gloo")
prepared = prepare(config, Path(config.output_dir), base=base, resume=False, progress=lambda *_: None, runtime=runtime)
loop, keeper = build_trainer(prepared, base=base, runtime=runtime)
sample = lambda batch: hashlib.sha256(batch.input_ids.numpy().tobytes() + batch.labels.numpy().tobytes()).hexdigest()
strikes = [int(os.environ.get("STRIKES", "0")) if runtime.rank else 0]
def poison(gradient):
    if loop.state.step != 5 or not strikes[0]:
        return gradient
    strikes[0] -= 1
    return gradient * float("nan")
loop.optimizer.weights[1].parameter.register_hook(poison)
samples = [sample(batch) for batch in islice(loop.loader.batches(0), 8 * accumulation)]
reports, error = [], ""
try:
    reports += loop.run()
except DivergedError as diverged:
    error = diverged.message
weights = hashlib.sha256(b"".join(w.master.detach().numpy().tobytes() for w in loop.optimizer.weights)).hexdigest()
print(json.dumps({"samples": samples, "loss": [r.loss for r in reports], "norm": [r.grad_norm for r in reports],
                  "tokens": reports[-1].tokens, "weights": weights,
                  "steps": [r.step for r in reports], "said": [w for r in reports for w in r.warnings], "error": error,
                  "validation": [r.evaluation.loss for r in reports if r.evaluation]}))
runtime.close()
"""


def test_a_run_of_two_is_that_of_one(environment: dict[str, str], tmp_path: Path) -> None:
    """The same stream of samples, divided; the same losses and norms to 1e-6; one set of weights."""
    (tmp_path / "text.txt").write_text("".join(f"Line {n}: {n * n}.\n" for n in range(300)), encoding="utf-8")
    first, second = (one.value for one in finish(start(RUN, environment, FOLDER=str(tmp_path), TIMEOUT="30"), (0, 1)))
    (whole,) = (one.value for one in finish(start(RUN, environment, 1, FOLDER=str(tmp_path)), (0,)))
    interleaved = [sample for pair in zip(first["samples"], second["samples"], strict=True) for sample in pair]  # type: ignore[call-overload]
    assert interleaved == whole["samples"]
    assert len(set(interleaved)) == len(interleaved)
    for name in ("loss", "norm", "validation"):
        assert first[name] == second[name]
        assert first[name] == pytest.approx(whole[name], rel=2e-6), name
    assert first["tokens"] == second["tokens"] == whole["tokens"]
    assert first["weights"] == second["weights"]


def test_preferences_of_two_are_those_of_one(environment: dict[str, str], tmp_path: Path) -> None:
    """Sequences hold one pair or several; a step is the mean over the pairs of both processes, as a validation is."""
    rows = [{"prompt": f"{n}:", "chosen": " a" * (n % 5 + 1), "rejected": " b" * (n % 9 + 1)} for n in range(90)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tokenizer = train_tokenizer("byte", ())
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    model = TransformerLM(shape, tokenizer.vocab_size, 64)
    model.initialize(0)
    model.save_pretrained(tmp_path / "base", tokenizer=tokenizer)
    more = {
        "training": {"objective": "dpo"}, "lora": {"enabled": True},
        "data": {"sources": [str(tmp_path / "pairs.jsonl")], "block_size": 64},
    }  # fmt: skip
    told = {"FOLDER": str(tmp_path), "BASE": str(tmp_path / "base"), "MORE": json.dumps(more)}
    first, second = (one.value for one in finish(start(RUN, environment, **told, TIMEOUT="30"), (0, 1)))
    (whole,) = (one.value for one in finish(start(RUN, environment, 1, **told), (0,)))
    assert whole["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("loss", "norm", "validation"):
        assert first[name] == second[name]
        assert first[name] == pytest.approx(whole[name], rel=2e-5), name
    assert first["tokens"] == second["tokens"] == whole["tokens"]
    assert first["weights"] == second["weights"]


@pytest.mark.slow
def test_a_run_of_two_goes_back(environment: dict[str, str], tmp_path: Path) -> None:
    """A NaN of one process once: both go back and end as if there had been none. Again: one error."""
    (tmp_path / "text.txt").write_text("".join(f"Line {n}: {n * n}.\n" for n in range(300)), encoding="utf-8")

    def run(strikes: int) -> tuple[dict[str, Any], dict[str, Any]]:
        shutil.rmtree(tmp_path / "2", ignore_errors=True)
        more = {"FOLDER": str(tmp_path), "TIMEOUT": "30", "STRIKES": str(strikes)}
        first, second = (one.value for one in finish(start(RUN, environment, **more), (0, 1)))
        return first, second

    quiet, struck, ended = run(0), run(1), run(9)
    for before, after, last in zip(quiet, struck, ended, strict=True):
        assert before["steps"] == [1, 2, 3, 4, 5, 6]
        assert after["steps"] == [1, 2, 3, 4, 5, 5, 6]
        assert after["weights"] == before["weights"]
        assert not after["error"]
        assert any("went back to step 4" in sentence for sentence in after["said"])
        assert last["steps"] == [1, 2, 3, 4, 5, 5]
        assert last["error"].count("at step 6") == 2


def _llmt(where: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmt", "train", *arguments], cwd=where, env=_variables(environment),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip


def _reach(process: subprocess.Popen[str], step: int) -> list[int]:
    """Read up to the line of a step; the workers by their number."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.replace(" ", "").startswith(f"step{step}/"):
            break
    else:
        pytest.fail("".join(said))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        ranks[next(value for value in variables if value.startswith("RANK="))] = int(child)
    return [ranks["RANK=0"], ranks["RANK=1"]]


def _last(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and the last two lines of stderr, of a process that ends soon."""
    try:
        _, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert "Traceback" not in err, err
    assert err.count("error: ") <= 1, err
    return process.returncode, err.splitlines()[-2:]


@pytest.mark.slow
def test_a_run_of_two_survives(environment: dict[str, str], text_file: Path, tiny: tuple[str, ...]) -> None:
    """A worker killed: 11. A signal to the parent: 143, saved. The end: the weights of a run nothing disturbed."""
    where = text_file.parent
    run = where / "runs" / "quickstart"
    command = (
        "quickstart", "--data", "text.txt", *tiny, "--max-steps", "120", "--save-steps", "25", "--eval-steps", "60",
        "--logging-steps", "5", "--num-processes", "2", "--distributed-timeout", "20",
    )  # fmt: skip
    again = ("runs/quickstart", "--resume")

    def end(*arguments: str) -> str:
        process = _llmt(where, environment, *arguments)
        code, lines = _last(process)
        assert code == 0, lines
        return (run / "model.safetensors").read_bytes().hex()

    whole = end(*command)
    run.rename(where / "whole")

    process = _llmt(where, environment, *command)
    workers = _reach(process, 40)
    os.kill(workers[1], signal.SIGKILL)
    assert _last(process) == (
        11,
        [
            "error: process 1 (of 2, from 0) was ended by SIGKILL, maybe since memory ran out",
            "hint: llmt train runs/quickstart --resume",
        ],
    )
    assert not any(map(alive, workers))

    process = _llmt(where, environment, *again)
    workers = _reach(process, 70)
    process.send_signal(signal.SIGTERM)
    code, lines = _last(process)
    assert code == 143, lines
    assert lines[0].startswith("error: stopped by SIG")
    saved = next(word for word in lines[0].split() if "checkpoint-" in word)
    assert (where / saved / "MANIFEST.json").is_file()
    assert lines[1] == "hint: llmt train runs/quickstart --resume"
    assert not any(map(alive, workers))

    assert end(*again) == whole


@pytest.mark.slow
def test_another_number_of_processes_reads_on_where_the_run_was(
    llmt: Any, text_file: Path, tiny: tuple[str, ...]
) -> None:
    """A step keeps its sequences and a pass its steps; the weights come out the same to rounding; replays are exact."""
    where = text_file.parent
    common = ("--data", "text.txt", *tiny, "--max-steps", "8", "--save-steps", "4", "--eval-strategy", "no")
    assert llmt("train", "quickstart", *common, "-o", "whole", cwd=where).code == 0
    shutil.copytree(where / "whole", where / "parts")
    resumed = llmt("train", "--resume", "parts/checkpoint-4", "--num-processes", "2", cwd=where)
    assert resumed.code == 0, resumed.err
    plan, before = (json.loads((where / name / "plan.json").read_text()) for name in ("parts", "whole"))
    assert 2 * plan["micro_batch"] * plan["accumulation"] == before["micro_batch"] * before["accumulation"]
    assert plan["total_steps"] == before["total_steps"]
    assert "processes 1 -> 2" in resumed.err
    weights = [load_file(where / name / "model.safetensors") for name in ("whole", "parts")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-5)
    states = [json.loads((where / name / "checkpoint-8" / "state.json").read_text()) for name in ("whole", "parts")]
    assert states[0]["tokens"] == states[1]["tokens"]
    verified = llmt("train", "parts", "--resume", "--max-steps", "16", cwd=where)
    assert verified.code == 0, verified.err
    replayed = llmt("train", "parts", "--verify-resume", cwd=where)
    assert replayed.code == 0, replayed.err
    assert "steps 12 to 16 replayed" in replayed.out
    odd = llmt("train", "parts", "--resume", "--num-processes", "3", cwd=where)
    assert odd.code == 5
    assert "3 processes cannot share" in odd.err
