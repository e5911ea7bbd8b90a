"""What a machine has."""

import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmt.errors import DeviceError
from llmt.system import doctor
from llmt.system.machine import (
    DEVICE_ORDER,
    DeviceInfo,
    Machine,
    Speed,
    find_compiler,
    inspect_machine,
    measure_speed,
    require_device,
)
from llmt.system.memory import busy_cores, get_memory_usage, physical_cores, process_memory

ABSENT = [d.kind for d in inspect_machine().devices if not d.present]


def run_without_psutil(code: str) -> str:
    """What a fresh interpreter prints that cannot import psutil."""
    hidden = "import sys; sys.modules['psutil'] = None\n"
    done = subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_the_machine_is_found() -> None:
    """Every kind of device is listed in order, and the CPU computes."""
    machine = inspect_machine()
    assert tuple(d.kind for d in machine.devices) == DEVICE_ORDER
    assert machine.device("cpu").usable
    assert machine.device("cpu").name
    assert machine.cores >= 1
    assert machine.python == sys.version.split()[0]


def test_an_absent_device_says_why() -> None:
    """What is not there has a reason and no memory."""
    for kind in ABSENT:
        info = inspect_machine().device(kind)
        assert info.problem
        assert not info.usable
        assert info.memory is None


@pytest.mark.parametrize("kind", ABSENT)
def test_requiring_an_absent_device_is_an_error(kind: str) -> None:
    """A named device is never replaced: exit 9, with what is usable."""
    with pytest.raises(DeviceError, match=f"--device {kind}: ") as caught:
        require_device(inspect_machine(), kind)
    assert caught.value.exit_code == 9
    assert "cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "threads"),
    [("3", 3), ("1", 1), ("", None), ("0", None), ("-2", None), ("many", None), ("4,2", None), ("²", None)],
)
def test_threads_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, threads: int | None) -> None:
    """OMP_NUM_THREADS counts where it is a whole number above zero, and nothing else in it stops a command."""
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert inspect_machine().threads_from_environment == threads


def test_threads_may_be_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable nothing is said."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert inspect_machine().threads_from_environment is None


@pytest.mark.parametrize(
    ("here", "everywhere", "found"),
    [("2", "4", (2, 4)), (None, "4", (4, 4)), (None, None, (None, None)), ("many", "", (None, None))],
)
def test_the_processes_are_those_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch, here: str | None, everywhere: str | None, found: tuple[int | None, int | None]
) -> None:
    """As many share this machine as it says, or all of them where it does not say."""
    for name, value in (("LOCAL_WORLD_SIZE", here), ("WORLD_SIZE", everywhere)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    machine = inspect_machine()
    assert (machine.processes, machine.world_size) == found


def test_the_compiler_is_the_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX comes first; without a compiler on the path there is none."""
    monkeypatch.setenv("CXX", sys.executable)
    assert find_compiler() == sys.executable
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None


def test_speed_is_measured() -> None:
    """Products take time: the speeds are above zero, and their ratio is the gain."""
    speed = measure_speed("cpu", 1)
    assert speed.fp32 > 0
    assert speed.bf16 > 0
    assert speed.bf16_gain == speed.bf16 / max(speed.fp32, speed.onednn)
    assert measure_speed("cpu", 1) is speed
    assert Speed(2.0, 0.0).bf16_gain == 0


def test_a_neighbour_is_noticed() -> None:
    """A process that computes without end is seen, for as many cores as it may use at most."""
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = busy_cores()
    finally:
        hog.kill()
        hog.wait()
    assert 0.4 < found <= (os.cpu_count() or 1)


def test_neighbours_are_not_known_without_psutil() -> None:
    """Nothing else here tells."""
    assert run_without_psutil("from llmt.system.memory import busy_cores; print(busy_cores())") == "0.0\n"


def test_memory_adds_up() -> None:
    """Available is a part of the total, the share lies between 0 and 100, and this process needs some."""
    memory = get_memory_usage()
    assert memory.total
    assert memory.available
    assert 0 < memory.available <= memory.total
    assert memory.percentage is not None
    assert 0 <= memory.percentage <= 100
    assert 10**6 < memory.process < memory.total
    assert memory.cuda_allocated <= memory.cuda_reserved


def test_memory_of_the_process_grows() -> None:
    """Three hundred megabytes that are held are seen; they are mapped, since the heap may have as much to spare."""
    before = process_memory()
    with mmap.mmap(-1, 300_000_000) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert process_memory() - before > 200_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module; psutil is required there")
def test_memory_is_known_without_psutil() -> None:
    """The `resource` module and the system's counters give the same numbers."""
    code = (
        "from llmt.system.memory import *; m = get_memory_usage(); print(m.total, m.available, m.percentage, m.process)"
    )
    total, available, percentage, process = run_without_psutil(code).split()
    assert int(total) == pytest.approx(get_memory_usage().total, rel=0.02)
    if available != "None":
        assert 0 < int(available) <= int(total)
        assert 0 <= float(percentage) <= 100
    assert 10**6 < int(process) < int(total)


def test_cores_are_known_without_psutil() -> None:
    """At least one core, and never more than this process may use."""
    without = int(run_without_psutil("from llmt.system.memory import physical_cores; print(physical_cores())"))
    assert 1 <= physical_cores() <= without <= (os.cpu_count() or 1)


def test_the_doctor_checks_everything() -> None:
    """Packages, system, devices, memory, disk and compiler are checked, and here nothing fails."""
    checks = list(doctor.diagnose())
    names = [check.name for check in checks]
    assert names[: len(doctor.PACKAGES)] == list(doctor.PACKAGES)
    assert {"system", *DEVICE_ORDER, "cpu speed", "memory", "disk", "compiler"} <= set(names)
    assert all(check.status in ("ok", "warn") and check.detail for check in checks)


@pytest.mark.parametrize("kind", ABSENT)
def test_the_doctor_fails_a_named_device_that_is_absent(kind: str) -> None:
    """Asked for one device, the doctor looks at that one alone, and its absence fails."""
    checks = {check.name: check for check in doctor.diagnose(kind)}
    assert checks[kind].status == "fail"
    assert checks[kind].detail.startswith("not here: ")
    assert not set(DEVICE_ORDER) - {kind} & set(checks)


def test_the_doctor_knows_what_it_needs_to_be_installed() -> None:
    """Every package of the list is a requirement of this one, with the same oldest version."""
    from importlib import metadata

    lines = metadata.requires("llmt") or []
    required = dict(found.groups() for line in lines if (found := re.match(r"([a-z]+)\b.*>=([0-9.]+)", line)))
    assert {name: required.get(name) for name in doctor.PACKAGES} == doctor.PACKAGES


def test_the_doctor_goes_on_without_packages() -> None:
    """A package that cannot be imported fails its check, with the command that installs it, and the rest is checked."""
    hidden = ("psutil", "peft", "torch")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        "from llmt.system.doctor import diagnose\n"
        "for c in diagnose(): print(c.name, c.status, c.detail)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    lines = {line.partition(" ")[0]: line for line in done.stdout.splitlines()}
    for package in hidden:
        assert lines[package].startswith(f"{package} fail cannot be imported")
        assert f"pip install {package}" in lines[package]
    assert lines["devices"].startswith("devices fail the package 'torch' cannot be imported")
    assert {"pydantic", "memory", "disk", "compiler"} <= set(lines)


def test_a_broken_device_is_not_usable() -> None:
    """A device is usable when it is there and computed right."""
    assert DeviceInfo("cuda", "GPU", True).usable
    assert not DeviceInfo("cuda", "GPU", True, "failed").usable
    assert not DeviceInfo("cuda", "", False).usable
    assert isinstance(inspect_machine(), Machine)
