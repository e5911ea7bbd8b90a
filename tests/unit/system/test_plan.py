"""Decisions, each with its reason."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt.config.model import ModelConfig
from llmt.config.run import TrainConfig
from llmt.errors import DeviceError, OutOfMemoryError
from llmt.system.estimate import CUDA_BUILD_BYTES, Workload, checkpoint_bytes, training_bytes
from llmt.system.machine import DeviceInfo, Machine, Speed
from llmt.system.plan import (
    RunPlan,
    choose_backend,
    choose_device,
    choose_precision,
    choose_products,
    choose_threads,
    plan_run,
)

MB, GB = 10**6, 10**9
CPU = DeviceInfo("cpu", "Some CPU", True, "", 64 * GB)
CUDA = DeviceInfo("cuda", "Some GPU", True, "", 16 * GB)
MPS = DeviceInfo("mps", "Apple GPU", True, "", 32 * GB)
NO_CUDA = DeviceInfo("cuda", "", False, "torch is built without CUDA")
NO_MPS = DeviceInfo("mps", "", False, "no Metal device found")
BROKEN = replace(CUDA, problem="failed its first computation: no kernel image")
EVEN, FAST = Speed(1e11, 1e11), Speed(1e11, 3e11)


def machine(*devices: DeviceInfo, **values: Any) -> Machine:
    """A machine with these devices, four cores and 32 GB free."""
    found = {"cuda": NO_CUDA, "mps": NO_MPS, "cpu": CPU} | {d.kind: d for d in devices}
    plain = Machine(
        "Linux x86_64", "3.11.0", "2.13.0", tuple(found.values()), 4, None, 64 * GB, 32 * GB, "/usr/bin/g++"
    )
    return replace(plain, **values)


def plan(
    here: Machine | None = None,
    speed: Speed = EVEN,
    steps: int = 100,
    vocab_size: int = 4096,
    device: str = "auto",
    **sections: dict[str, Any],
) -> RunPlan:
    """The plan of a run with these settings."""
    here = here or machine()
    config = TrainConfig.model_validate(sections)
    batch = config.training.per_device_train_batch_size
    work = Workload(config.model, vocab_size, batch, config.data.block_size)
    return plan_run(
        config,
        here,
        *choose_device(device, here),
        speed,
        work,
        steps,
        config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps,
    )


def reason(made: RunPlan, name: str) -> str:
    """Why something was decided."""
    return next(line.reason for line in made.lines if line.name == name)


@pytest.mark.parametrize(
    ("devices", "kind"),
    [((CUDA, MPS), "cuda"), ((MPS,), "mps"), ((), "cpu"), ((BROKEN, MPS), "mps"), ((BROKEN,), "cpu")],
)
def test_auto_takes_the_first_that_computes(devices: tuple[DeviceInfo, ...], kind: str) -> None:
    """CUDA, then MPS, then the CPU; what is absent or broken is passed over, and the reason tells why."""
    here = machine(*devices)
    device, why = choose_device("auto", here)
    assert device.kind == kind
    passed = here.devices[: here.devices.index(device)]
    assert why == "; ".join([*(f"{d.kind}: {d.problem}" for d in passed), f"{device.name} computes"])


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_a_named_device_is_taken(kind: str) -> None:
    """A device that was named is used, whatever else is there."""
    device, why = choose_device(kind, machine(CUDA, MPS))
    assert (device.kind, why) == (kind, "asked for")


@pytest.mark.parametrize(("kind", "device"), [("cuda", NO_CUDA), ("mps", NO_MPS), ("cuda", BROKEN)])
def test_a_named_device_that_cannot_be_used_is_an_error(kind: str, device: DeviceInfo) -> None:
    """Never a silent run on something else: exit 9 with the reason and what is usable."""
    with pytest.raises(DeviceError, match=f"--device {kind}: {device.problem}") as caught:
        choose_device(kind, machine(device))
    assert caught.value.exit_code == 9
    assert caught.value.hint == "usable here: cpu; or --device auto"


def test_a_machine_where_nothing_computes_is_an_error() -> None:
    """If even the CPU fails, every reason is told."""
    with pytest.raises(DeviceError, match=r"cuda: .*; mps: .*; cpu: wrong"):
        choose_device("auto", machine(replace(CPU, problem="wrong")))


@pytest.mark.parametrize(
    ("asked", "environment", "threads", "why"),
    [
        (3, 2, 3, "asked for"),
        (None, 2, 2, "OMP_NUM_THREADS says so"),
        (None, None, 4, "one for each of 4 physical cores"),
    ],
)
def test_threads(asked: int | None, environment: int | None, threads: int, why: str) -> None:
    """As asked, else as the environment says, else one for each core."""
    line = choose_threads(asked, machine(threads_from_environment=environment))
    assert (line.name, line.value, line.reason) == ("threads", threads, why)


@pytest.mark.parametrize(
    ("busy", "threads", "more"),
    [
        (0.0, 4, ""),
        (0.7, 4, ""),
        (0.8, 3, ", but for 1 that other processes keep busy"),
        (2.1, 2, ", but for 2 that other processes keep busy"),
        (9.0, 1, ", but for 3 that other processes keep busy"),
    ],
)
def test_threads_leave_out_cores_that_are_taken(busy: float, threads: int, more: str) -> None:
    """Where nothing was asked, others keep their cores, and one thread is left; what was asked is kept."""
    made = plan(speed=replace(EVEN, busy_cores=busy))
    assert (made.threads, reason(made, "threads")) == (threads, f"one for each of 4 physical cores{more}")
    assert choose_threads(4, machine(), busy).value == 4
    assert choose_threads(None, machine(threads_from_environment=4), busy).value == 4


@pytest.mark.parametrize(
    ("asked", "speed", "value", "why"),
    [
        ("auto", FAST, "bf16", "bf16 products measured 3x as fast as fp32; weights and moments stay in fp32"),
        ("auto", EVEN, "fp32", "bf16 products measured 1x as fast as fp32"),
        ("auto", Speed(1e11, 0.0), "fp32", "cpu has no bf16 products"),
        ("fp32", FAST, "fp32", "asked for"),
        ("bf16", EVEN, "bf16", "asked for"),
    ],
)
def test_precision(asked: str, speed: Speed, value: str, why: str) -> None:
    """As asked, else bf16 where it was measured to be faster."""
    line = choose_precision(asked, "cpu", speed)
    assert (line.value, line.reason) == (value, why)


def test_bf16_that_is_not_there_is_an_error() -> None:
    """bf16 is never replaced by another format where it was asked for."""
    with pytest.raises(DeviceError, match="mps has no bf16 products"):
        choose_precision("bf16", "mps", Speed(1e11, 0.0))


@pytest.mark.parametrize(
    ("device", "workers", "pinned", "backend"),
    [(CPU, 0, False, "gloo"), (MPS, 2, False, "gloo"), (CUDA, 2, True, "nccl")],
)
def test_what_depends_on_the_device(device: DeviceInfo, workers: int, pinned: bool, backend: str) -> None:
    """A CPU reads in its own process, pins nothing and talks through gloo; CUDA pins and talks through nccl."""
    made = plan(machine(device))
    assert (made.device, made.num_workers, made.pin_memory, made.distributed_backend) == (
        device.kind, workers, pinned, backend,
    )  # fmt: skip


def test_what_is_asked_is_done() -> None:
    """Workers, pinning, backend, compiling, threads and precision are taken as asked, and say so."""
    made = plan(
        machine(CUDA),
        data={"num_workers": 3, "pin_memory": False},
        training={"distributed_backend": "gloo", "compile": "never", "precision": "bf16"},
    )
    assert (made.num_workers, made.pin_memory, made.distributed_backend) == (3, False, "gloo")
    assert (made.compile, made.precision) == (False, "bf16")
    for name in ("num_workers", "pin_memory", "distributed_backend", "compile", "precision", "micro_batch"):
        assert reason(made, name).startswith("asked for")


@pytest.mark.parametrize(
    ("sections", "values", "problem"),
    [
        ({"data": {"pin_memory": True}}, {}, "data.pin_memory: page-locked memory serves CUDA, not cpu"),
        ({"training": {"distributed_backend": "nccl"}}, {}, "nccl: needs CUDA, not cpu"),
        ({"training": {"compile": "always"}}, {"compiler": None}, "compile always: no C.* compiler found"),
    ],
)
def test_what_cannot_be_done_is_an_error(sections: dict[str, Any], values: dict[str, Any], problem: str) -> None:
    """What was asked and does not exist here ends with exit 9."""
    with pytest.raises(DeviceError, match=problem) as caught:
        plan(machine(**values), **sections)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("here", "steps", "asked", "compiled", "why"),
    [
        (machine(compiler=None), 10**6, "auto", False, "no C++ compiler found"),
        (machine(), 10, "auto", False, "would shrink by"),
        (machine(), 10**6, "auto", True, "would shrink by"),
        (machine(MPS), 10**6, "auto", False, "not used on mps"),
        (machine(CUDA, compiler=None), 10**6, "auto", True, "would shrink by"),
        (machine(), 1, "always", True, "asked for"),
        (machine(), 10**6, "never", False, "asked for"),
    ],
)
def test_compiling_must_pay(here: Machine, steps: int, asked: str, compiled: bool, why: str) -> None:
    """`auto` compiles where there is a compiler and the run is long enough to win its time back."""
    made = plan(here, steps=steps, training={"compile": asked})
    assert made.compile is compiled
    assert why in reason(made, "compile")


@pytest.mark.parametrize("batch", [16, 12, 7, 1])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("free", [0.66, 0.75, 0.85, 1.5, 64])
def test_the_micro_batch_is_lowered_to_what_fits(batch: int, passes: int, free: float) -> None:
    """A divisor is taken, the largest that fits; sequences in a step stay the same, and the plan says so."""
    training = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes}
    room = round(free * GB)
    made = plan(machine(available=room), training=training)
    assert batch % made.micro_batch == 0
    assert made.micro_batch * made.accumulation == batch * passes
    assert made.estimated_bytes <= 0.85 * room
    larger = [n for n in range(made.micro_batch + 1, batch + 1) if batch % n == 0]
    for micro in larger:
        work, several = Workload(ModelConfig(), 4096, micro, 256), batch * passes > micro
        assert training_bytes(work, "fp32", checkpointing=False, accumulates=several) > 0.85 * room
    if larger:
        assert reason(made, "micro_batch").startswith(f"{batch} would not fit into ")
        assert reason(made, "accumulation") == f"keeps {batch * passes} sequences a step"
    else:
        assert reason(made, "micro_batch") == reason(made, "accumulation") == "asked for"


def test_a_small_budget_lowers_the_micro_batch() -> None:
    """The case of the table above where something is lowered is really there."""
    assert 1 <= plan(machine(available=680 * MB)).micro_batch < 16


def test_nothing_that_fits_is_an_error() -> None:
    """Where one sequence is too much, the run stops before it starts, with exit 7 and what to change."""
    with pytest.raises(OutOfMemoryError, match=r"one sequence needs about .* may be used") as caught:
        plan(machine(available=GB // 3))
    assert caught.value.exit_code == 7
    assert "--gradient-checkpointing" in caught.value.hint


def test_unknown_memory_limits_nothing() -> None:
    """Where the system does not tell, what was asked is tried."""
    assert plan(machine(available=None)).micro_batch == 16


def test_a_gpu_is_limited_by_its_own_memory() -> None:
    """On CUDA the memory of the device counts, not that of the machine."""
    assert plan(machine(CUDA, available=GB // 3)).micro_batch == 16
    assert plan(machine(replace(CUDA, memory=680 * MB))).micro_batch < 16


@pytest.mark.parametrize("launched", [True, False])
def test_processes_share_the_memory_of_a_cpu(launched: bool) -> None:
    """Each of four may plan a fourth of it, whoever started them; CUDA devices are one process's own."""
    here = machine(available=2720 * MB)
    here = replace(here, processes=4) if launched else here
    training = {} if launched else {"num_processes": 4}
    alone, shared = plan(machine(available=680 * MB)), plan(here, training=training)
    assert alone.micro_batch == shared.micro_batch < plan(machine(available=2720 * MB)).micro_batch
    assert reason(shared, "micro_batch") == reason(alone, "micro_batch") + " for each of 4 processes"
    assert plan(machine(CUDA, available=GB), training={"num_processes": 4}).micro_batch == 16
    with pytest.raises(OutOfMemoryError, match=r"may be used for each of 4 processes"):
        plan(replace(here, available=GB), training=training)


def test_average_and_copy_take_memory() -> None:
    """An average is one more fp32 copy; a checkpoint written meanwhile is a whole one, where main memory counts."""
    parameters = ModelConfig().num_parameters(4096)
    needed = plan().estimated_bytes
    assert plan(training={"ema_decay": 0.9}).estimated_bytes == needed + 4 * parameters
    assert plan(training={"async_save": True}).estimated_bytes == needed + 12 * parameters
    both = {"ema_decay": 0.9, "async_save": True}
    assert plan(training=both).estimated_bytes == needed + (4 + 16) * parameters
    here = machine(CUDA)
    assert plan(here, training={"async_save": True}).estimated_bytes == plan(here).estimated_bytes


def test_the_build_of_torch_takes_main_memory() -> None:
    """torch's build for CUDA takes more of it, beside which a model on a GPU does not lie."""
    small, large = machine(), machine(torch="2.13.0+cu130")
    assert plan(machine(torch="2.13.0+cpu")).estimated_bytes == plan(small).estimated_bytes
    assert plan(large).estimated_bytes == plan(small).estimated_bytes + CUDA_BUILD_BYTES
    assert plan(machine(CUDA, torch="2.13.0+cu130")).estimated_bytes == plan(machine(CUDA)).estimated_bytes


def test_counted_parameters_are_planned_with() -> None:
    """Where the parameters of a foreign network were counted, it is they that need memory."""
    config, here = TrainConfig(), machine()
    needed = []
    for counted in (10**6, 10**9):
        work = Workload(config.model, 4096, 16, 256, counted=counted)
        needed.append(plan_run(config, here, CPU, "", EVEN, work, 10, 16).estimated_bytes)
    assert needed[1] - needed[0] == 16 * (10**9 - 10**6)


@pytest.mark.parametrize(
    ("config", "world_size", "said"),
    [(1, None, "one process, nothing"), (1, 4, "4 processes"), (4, None, "4 processes"), (4, 1, "one process")],
)
def test_the_backend_speaks_of_the_processes_that_there_are(config: int, world_size: int | None, said: str) -> None:
    """A launcher may start several for a configuration that says nothing."""
    asked = TrainConfig.model_validate({"training": {"num_processes": config}})
    assert said in choose_backend(asked, CPU, world_size).reason
    made = plan(replace(machine(), world_size=world_size), training={"num_processes": config})
    assert said in reason(made, "distributed_backend")


@pytest.mark.parametrize(("device", "precision", "portable", "onednn", "value", "said"), [
    ("cpu", "fp32", False, 1.5e11, "onednn", "1.5x as fast"),
    ("cpu", "fp32", False, 0.9e11, "onednn", "0.9x as fast"),  # two runs alike compute alike, on a slow minute too
    ("cpu", "fp32", False, 0.0, "torch", "is for AMD's processors"),
    ("cpu", "fp32", True, 1.5e11, "torch", "portable_numerics"),
    ("cpu", "bf16", False, 1.5e11, "torch", "in bf16"),
    ("cuda", "fp32", False, 0.0, "torch", "cuda has its own"),
])  # fmt: skip
def test_the_library_of_fp32_products(
    device: str, precision: str, portable: bool, onednn: float, value: str, said: str
) -> None:
    """oneDNN multiplies where a run computes in fp32 and it may be used, whichever was the faster just now."""
    config = TrainConfig.model_validate({"portable_numerics": portable})
    line = choose_products(config, device, precision, Speed(1e11, 2e11, onednn=onednn))
    assert line.value == value
    assert said in line.reason


def test_every_decision_has_a_reason() -> None:
    """The plan has a line for every decision, agrees with them, and can be written as JSON."""
    made = plan(training={"max_steps": 100})
    values = json.loads(json.dumps(made.values()))
    lines = {line.name: line for line in made.lines}
    assert list(lines) == [
        "device", "precision", "fp32_products", "threads", "micro_batch", "accumulation", "num_workers", "pin_memory",
        "reuse_memory", "compile", "distributed_backend", "memory", "steps",
    ]  # fmt: skip
    assert all(line.reason for line in made.lines)
    assert all(values[name] == line.value for name, line in lines.items() if name not in ("memory", "steps"))
    assert (lines["steps"].value, lines["steps"].reason) == (100, "training.max_steps 100; 4,096 tokens read a step")


@pytest.mark.parametrize("name", ["batch_size", "block_size", "vocab_size"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@given(st.integers(1, 2**16), st.integers(1, 2**10))
def test_more_work_needs_more(name: str, precision: str, checkpointing: bool, size: int, more: int) -> None:
    """The estimate grows with the batch, the block and the vocabulary, in bytes and in operations."""
    sizes = {"vocab_size": 100, "batch_size": 2, "block_size": 8, name: size}
    work, larger = Workload(ModelConfig(), **sizes), Workload(ModelConfig(), **{**sizes, name: size + more})
    small, large = (training_bytes(w, precision, checkpointing=checkpointing) for w in (work, larger))
    assert small < large
    assert work.flops() < larger.flops()


def test_logits_in_pieces_are_counted_as_such() -> None:
    """Twice the tokens take no more logits, but where all exist: in fp16, and of another architecture."""
    model = ModelConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
    more = 4096 * 32_000 * 12

    def added(precision: str, **counted: int) -> int:
        few, many = (Workload(model, 32_000, size, 512, **counted) for size in (8, 16))
        return training_bytes(many, precision, checkpointing=True) - training_bytes(few, precision, checkpointing=True)

    assert added("bf16") < 0.05 * more
    assert added("fp16") == pytest.approx(added("bf16") + more, rel=1e-6)
    assert added("bf16", counted=model.num_parameters(32_000)) == added("fp16")


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "intermediate_size"])
def test_a_larger_model_needs_more(name: str) -> None:
    """The estimate grows with every size of the network."""
    needed = []
    for factor in (1, 2, 4):
        model = ModelConfig.model_validate({name: factor * ModelConfig.model_fields[name].default})
        needed.append(training_bytes(Workload(model, 4096, 16, 256), "fp32", checkpointing=False))
    assert needed == sorted(set(needed))


def test_less_is_kept_with_checkpointing_and_adapters() -> None:
    """Recomputing saves activations, and frozen weights have no gradient and no moments."""
    work = Workload(ModelConfig(), 4096, 16, 256)
    assert training_bytes(work, "fp32", checkpointing=True) < training_bytes(work, "fp32", checkpointing=False)
    frozen = replace(work, trainable=0.01)
    assert training_bytes(frozen, "bf16", checkpointing=False) < training_bytes(work, "bf16", checkpointing=False)


def test_several_passes_need_more() -> None:
    """Gradients that are summed lie beside the activations of the next pass: as asked, and where a batch is divided."""
    one, two = plan(), plan(training={"gradient_accumulation_steps": 2})
    parameters = ModelConfig().num_parameters(4096)
    assert two.estimated_bytes == one.estimated_bytes + 8 * parameters


def test_a_checkpoint_is_weights_and_moments() -> None:
    """Four bytes a weight, and eight for each that is trained."""
    assert checkpoint_bytes(1000) == 12_000
    assert checkpoint_bytes(1000, 0.5) == 8000


def test_a_checkpoint_of_an_adapter_is_the_adapter() -> None:
    """The frozen base is not in it: a base of 28 GB does not ask for three times as much room."""
    assert checkpoint_bytes(7 * 10**9, 0.001, adapter=True) == 12 * 7 * 10**6


def test_a_checkpoint_with_an_average_holds_both() -> None:
    """The average is the model, and the weights that training goes on from stand beside it."""
    assert checkpoint_bytes(1000, average=True) == 16_000
    assert checkpoint_bytes(1000, 0.5, average=True) == 10_000
    assert checkpoint_bytes(1000, 0.5, adapter=True, average=True) == 8000


def test_operations_are_six_for_each_parameter_and_token() -> None:
    """Against the count by hand for one shape."""
    model = ModelConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    work = Workload(model, vocab_size=10, batch_size=3, block_size=5)
    assert (work.tokens, work.parameters) == (15, model.num_parameters(10))
    assert work.flops() == 15 * (6 * model.num_parameters(10) + 6 * 2 * 5 * 8)
