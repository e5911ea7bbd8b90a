"""What one process can be asked of the others, and what a launcher leaves behind."""

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmt import errors
from llmt.config.run import TrainConfig
from llmt.config.training import TrainingConfig
from llmt.errors import DeviceError, Interrupted, LlmtError, PeerLostError, StorageError, UsageError
from llmt.training import launch as launching
from llmt.training import worker
from llmt.training.optim import Optimizer
from llmt.training.runtime import AcceleratedRuntime, Runtime, _buckets, _described, _reason, _restored, open_runtime
from llmt.training.worker import check_launcher, in_worker, is_launched, should_report, world_size

WORKER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}


def config(**settings: Any) -> TrainConfig:
    """A configuration; `training__max_steps=5` sets a value of a section."""
    values: dict[str, Any] = {"device": "cpu"}
    for key, value in settings.items():
        section, _, name = key.rpartition("__")
        (values.setdefault(section, {}) if section else values)[name] = value
    return TrainConfig.model_validate(values)


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    for name in WORKER:
        monkeypatch.delenv(name, raising=False)
    runtime = open_runtime(config(training__accelerate=True), "cpu", "gloo", {})
    yield runtime
    runtime.close()


def trained(precision: torch.dtype, runtime: Runtime) -> str:
    """SHA-256 of the weights and moments of a small network after five steps."""
    torch.manual_seed(0)
    names = ["layers", "norm", "head"]
    model = torch.nn.ModuleDict(
        zip(names, (torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 5)), strict=True)
    )
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.to(precision)
    optimizer = Optimizer(model, TrainingConfig(optimizer="muon"), exact)
    runtime.prepare(model, optimizer)
    for step in range(5):
        inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)).to(precision)
        hidden = inputs
        for name in names:
            hidden = model[name](hidden)
        hidden.float().square().mean().backward()
        optimizer.accumulate()
        runtime.sum_gradients(optimizer.gradients())
        optimizer.set_rate(1 / (step + 1))
        optimizer.step()
    digest = hashlib.sha256()
    for name, tensor in sorted((optimizer.masters() | optimizer.state()).items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()


def test_one_process_answers_itself() -> None:
    """Nothing is asked of anybody, and what fails fails."""
    runtime = open_runtime(config(), "cpu", "gloo", {})
    assert type(runtime) is Runtime
    assert runtime.is_main
    assert (runtime.rank, runtime.world_size) == (0, 1)
    assert runtime.total(1.5, 2) == [1.5, 2]
    assert runtime.highest(3) == 3
    assert runtime.from_main(0.25) == 0.25
    assert runtime.share({"a": [1]}) == {"a": [1]}
    gradient = torch.ones(3)
    runtime.sum_gradients([gradient, None])
    assert gradient.tolist() == [1, 1, 1]
    assert runtime.on_main(lambda: 5) == 5
    with pytest.raises(StorageError):
        runtime.on_main(lambda: _fail(StorageError("full", "")))
    runtime.close()


def _fail(error: Exception) -> None:
    raise error


def test_accelerate_with_one_process_answers_the_same(accelerated: Runtime) -> None:
    """The same answers, through accelerate."""
    assert isinstance(accelerated, AcceleratedRuntime)
    assert (accelerated.rank, accelerated.world_size) == (0, 1)
    assert accelerated.total(1.5, 2) == [1.5, 2]
    assert accelerated.highest(3) == 3
    assert accelerated.from_main(0.25) == 0.25
    assert accelerated.share({"a": [1]}) == {"a": [1]}
    assert accelerated.on_main(lambda: 5) == 5
    accelerated.check_equal({"a": torch.ones(1)}, "weights")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_accelerate_with_one_process_changes_no_bit(accelerated: Runtime, precision: torch.dtype) -> None:
    """Weights and moments are those of the plain path, in either precision; the optimizers are accelerate's."""
    threads = torch.get_num_threads()
    assert trained(precision, accelerated) == trained(precision, Runtime())
    assert torch.get_num_threads() == threads


def test_the_optimizers_go_through_accelerate(accelerated: Runtime) -> None:
    """`prepare` replaces what steps."""
    from accelerate.optimizer import AcceleratedOptimizer

    model = torch.nn.Linear(2, 2)
    optimizer = Optimizer(model, TrainingConfig(optimizer="adamw"))
    accelerated.prepare(model, optimizer)
    assert {type(group.optimizer) for group in optimizer.groups} == {AcceleratedOptimizer}


def test_it_can_be_closed_and_opened_again(accelerated: Runtime) -> None:
    """What accelerate keeps of a process does not outlive the run."""
    accelerated.close()
    again = open_runtime(config(training__accelerate=True), "cpu", "gloo", {})
    assert again.total(1) == [1]
    again.close()
    accelerated.close()


def test_buckets_keep_the_order_and_the_size() -> None:
    """About 25 MB each; a larger gradient is sent by itself, and number formats do not mix."""
    sizes = [1_000_000, 3_000_000, 4_000_000, 9_000_000, 5]
    found = list(_buckets([torch.empty(size) for size in sizes]))
    assert [[len(g) for g in bucket] for bucket in found] == [[1_000_000, 3_000_000], [4_000_000], [9_000_000], [5]]
    mixed = list(_buckets([torch.empty(2), torch.empty(2, dtype=torch.float64), torch.empty(2, dtype=torch.float64)]))
    assert [len(bucket) for bucket in mixed] == [1, 2]
    assert list(_buckets([])) == []


@pytest.mark.parametrize(
    "error",
    [
        StorageError("the disk is full", "free some space"),
        errors.ConfigError(["first", "second"], "look"),
        Interrupted("saved", "go on", 15),
        errors.MissingPackageError("peft", "no such module"),
        PeerLostError("gone"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_of_the_first_process_arrives_whole(error: LlmtError) -> None:
    """Class, text, hint, exit code and the rest."""
    found = _restored(_described(error), "again")
    assert type(found) is type(error)
    assert found.exit_code == error.exit_code
    assert (str(found), found.hint, vars(found)) == (str(error), error.hint, vars(error))


def test_a_kind_of_error_that_only_one_module_knows_arrives_as_its_parent() -> None:
    """The exit code is what counts."""

    class SpecialError(StorageError):
        pass

    found = _restored(_described(SpecialError("special", "hint")), "")
    assert type(found) is StorageError
    assert (found.message, found.hint) == ("special", "hint")


def test_what_is_no_refusal_is_a_lost_peer() -> None:
    """The others do not run into the bug of the first, but they end."""
    found = _restored(_described(KeyError("x")), "again")
    assert type(found) is PeerLostError
    assert found.message == "process 0 failed: KeyError: 'x'"
    assert found.hint == "again"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[/a/pair.cc:553] Connection closed by peer [127.0.0.1]:10148. This is typically", "another process is gone"),
        ("[/a/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete", "no answer"),
        ("Application timeout caused pair closure", "no answer"),
        ("[/a/b.cc:1] odd\nsecond line", "odd"),
        ("odd", "odd"),
        ("", "RuntimeError"),
    ],
)
def test_reasons_are_short(text: str, reason: str) -> None:
    """What gloo says, in words for people."""
    assert _reason(RuntimeError(text)) == reason


def test_who_is_a_worker() -> None:
    """By the variables of torchrun and of our own launcher."""
    assert not in_worker({})
    assert in_worker(WORKER)
    assert (world_size({}), world_size(WORKER)) == (1, 2)
    assert not is_launched(WORKER)
    with pytest.raises(UsageError, match="WORLD_SIZE is 'two'"):
        world_size({"WORLD_SIZE": "two"})


@pytest.mark.parametrize(
    ("settings", "environ", "processes"),
    [
        ({}, {}, 1),
        ({"training__num_processes": 2}, {}, 2),
        ({}, WORKER, 2),
        ({"training__num_processes": 2}, WORKER, 2),
        ({}, LAUNCHED, 1),
        ({}, LAUNCHED | WORKER | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, 2),
        ({"training__precision": "bf16"}, LAUNCHED | {"ACCELERATE_MIXED_PRECISION": "bf16"}, 1),
        ({}, {"OMPI_COMM_WORLD_SIZE": "1"}, 1),
    ],
)
def test_launchers_that_did_as_they_were_told(
    settings: dict[str, Any], environ: dict[str, str], processes: int
) -> None:
    """The number of processes."""
    assert check_launcher(config(**settings), environ) == processes


@pytest.mark.parametrize(
    ("settings", "environ", "message"),
    [
        ({}, LAUNCHED | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, "asked for several processes and start"),
        ({"training__num_processes": 3}, WORKER, "num_processes 3: the launcher started 2"),
        ({}, {"WORLD_SIZE": "2"}, "without RANK"),
        ({}, {"OMPI_COMM_WORLD_SIZE": "4"}, "without RANK"),
        ({}, {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "y"}, "WORLD_SIZE is 'y'"),
        ({}, WORKER | {"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP"),
        ({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision bf16"),
        ({"training__num_processes": 2, "data__sources": ["a.txt", "-"]}, {}, "one standard input"),
        (
            {
                "training__num_processes": 2,
                "data__streaming": True,
                "data__sources": ["a"],
                "data__validation_split": 0,
            },
            {},
            "a stream is not divided",
        ),
    ],
)
def test_launchers_that_did_not(settings: dict[str, Any], environ: dict[str, str], message: str) -> None:
    """Exit code 2, and what to type instead."""
    with pytest.raises(UsageError, match=message) as caught:
        check_launcher(config(**settings), environ)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_fewer_devices_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 9, unless the processes are to compute on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="there are 1"):
        check_launcher(config(training__num_processes=2, device="cuda"), {})
    with pytest.raises(DeviceError, match="there are 1"):
        check_launcher(config(device="auto"), WORKER)
    assert check_launcher(config(training__num_processes=2), {}) == 2
    assert check_launcher(config(training__num_processes=1, device="cuda"), {}) == 1


def test_processes_do_not_share_mps() -> None:
    """Apple's device has no way to sum gradients."""
    with pytest.raises(DeviceError, match="mps"):
        open_runtime(config(), "mps", "gloo", WORKER)


@pytest.mark.parametrize(
    ("error", "alone", "first", "other", "launched_first", "launched_other"),
    [
        (StorageError("full"), True, True, False, True, True),
        (PeerLostError("gone"), True, True, True, False, True),
        (errors.OutOfMemoryError("memory"), True, True, True, True, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_who_prints_an_error(
    error: LlmtError, alone: bool, first: bool, other: bool, launched_first: bool, launched_other: bool
) -> None:
    """The first process, and others where it may not know."""
    zero, ours = WORKER | {"RANK": "0"}, {worker.LAUNCHED: "1"}
    found = [should_report(error, environ) for environ in ({}, zero, WORKER, zero | ours, WORKER | ours)]
    assert found == [alone, first, other, launched_first, launched_other]


def test_the_settings_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They meet at this machine's own address, divide the cores, and what the user set stays."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launching, "physical_cores", lambda: 8)
    found = launching._settings(3)
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["MASTER_ADDR"] == "127.0.0.1"
    assert 0 < int(found["MASTER_PORT"]) < 65536
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launching._settings(3)["OMP_NUM_THREADS"] == "5"


def test_the_hint_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to type when a process is lost."""
    told: list[str] = []

    class Fake(AcceleratedRuntime):
        def __init__(self, device: str, backend: str, processes: int, *, timeout: float, hint: str = "") -> None:
            told.append(hint)
            self.world_size = processes

    monkeypatch.setattr("llmt.training.runtime.AcceleratedRuntime", Fake)
    open_runtime(config(output_dir=str(tmp_path), training__num_processes=2), "cpu", "gloo", WORKER)
    open_runtime(config(), "cpu", "gloo", WORKER)
    assert told == [f"llmt train {tmp_path} --resume", "the same command with --resume"]


def test_a_silent_process_lets_the_first_one_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits a little, and a signal meanwhile ends it without a word."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    earlier = {signum: signal.getsignal(signum) for signum in worker.STOP_SIGNALS}
    try:
        worker.wait_for_first()
        assert {signal.getsignal(signum) for signum in earlier} == {signal.SIG_DFL}
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
    assert waited == [worker.SETTLING]
