"""Exit codes and hints."""

import inspect
import re

import pytest

from llmt import errors

CODES = {
    "LlmtError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "DataError": 3,
    "ModelFileError": 4,
    "MismatchError": 5,
    "HubError": 6,
    "StorageError": 6,
    "OutOfMemoryError": 7,
    "DivergedError": 8,
    "DeviceError": 9,
    "MissingPackageError": 9,
    "BusyOutputError": 10,
    "PeerLostError": 11,
}
CLASSES = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
}


def test_every_error_has_its_exit_code() -> None:
    """The exit codes are a contract with scripts; a new class needs a line here."""
    assert {name: kind.exit_code for name, kind in CLASSES.items() if name != "Interrupted"} == CODES
    assert all(issubclass(kind, errors.LlmtError) for kind in CLASSES.values())


def test_the_table_in_the_docstring_is_the_code() -> None:
    """The tree at the top of the module names every class with its code."""
    listed = dict(re.findall(r"(\w+) +(\d+) ", errors.__doc__ or ""))
    assert {name: int(code) for name, code in listed.items() if name in CODES} == CODES
    assert "Interrupted       128+signal" in (errors.__doc__ or "")


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_an_interruption_exits_as_shells_expect(signum: int, code: int) -> None:
    """A run stopped by a signal exits with 128 and its number."""
    assert errors.Interrupted("saved", "llmt train --resume runs/a", signum).exit_code == code


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA Out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("expected scalar type Float"), False),
        (RuntimeError("out of bounds memory access"), False),
    ],
)
def test_memory_that_runs_out_is_known_by_its_words(error: Exception, found: bool) -> None:
    """Some allocators raise a plain RuntimeError, each with words of its own."""
    assert errors.says_out_of_memory(error) is found


def test_an_error_keeps_its_message_and_hint() -> None:
    """Message and hint are apart, and `str` is the message."""
    error = errors.DataError("a.txt: empty", "name another file")
    assert (str(error), error.message, error.hint) == ("a.txt: empty", "a.txt: empty", "name another file")


def test_a_configuration_error_keeps_every_problem() -> None:
    """All problems are there, the first as the message."""
    error = errors.ConfigError(["one", "two"], "hint")
    assert (error.message, error.problems, error.hint) == ("one", ("one", "two"), "hint")


def test_a_missing_package_says_how_to_install_it() -> None:
    """The hint is a command that can be typed."""
    error = errors.MissingPackageError("peft", "No module named 'peft'")
    assert error.package == "peft"
    assert error.hint == "python -m pip install --force-reinstall peft"
