"""Every way llmt refuses to go on, each with its exit code and a hint that says what to type next.

LlmtError                       1  a bug in llmt, when raised bare
├── UsageError                  2  a command line that asks for the impossible
│   └── ConfigError             2  one or more problems in the configuration
├── DataError                   3  text that is missing, empty, undecodable or too short
├── ModelFileError              4  a model, tokenizer or checkpoint that is missing, damaged or unsafe
├── MismatchError               5  two things that do not belong together
├── HubError                    6  the hub cannot be reached
├── StorageError                6  the disk said no
├── OutOfMemoryError            7  memory or device memory ran out
├── DivergedError               8  the numbers stopped being numbers, or nothing would be learnt
├── DeviceError                 9  a device or backend that this machine does not have
│   └── MissingPackageError     9  a Python package that cannot be imported
├── BusyOutputError            10  the output directory belongs to another run
├── PeerLostError              11  another process of this run is gone
└── Interrupted       128+signal  stopped by a signal, after a good checkpoint
"""

from collections.abc import Sequence

_NO_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")


class LlmtError(Exception):
    """What went wrong, and what to do about it.

    Args:
        message: One line: what, where, why.
        hint: One line: what to type or change. Empty when nothing helps.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LlmtError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class ConfigError(UsageError):
    """Everything that is wrong in a configuration, reported at once.

    Args:
        problems: One line each, already naming the place (file:line:column, flag or variable).
        hint: What to type next.
    """

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        super().__init__(problems[0], hint)
        self.problems = tuple(problems)


class DataError(LlmtError):
    """Text that cannot be trained on."""

    exit_code = 3


class ModelFileError(LlmtError):
    """A model, tokenizer or checkpoint file that is missing, unreadable, damaged or unsafe."""

    exit_code = 4


class MismatchError(LlmtError):
    """Two inputs that do not belong together (a tokenizer and a model, a resume and other data)."""

    exit_code = 5


class HubError(LlmtError):
    """A name that only the hub could resolve, while the hub cannot be reached."""

    exit_code = 6


class StorageError(LlmtError):
    """The file system refused: full, read-only, no permission."""

    exit_code = 6


class OutOfMemoryError(LlmtError):
    """Main or device memory ran out."""

    exit_code = 7


class DivergedError(LlmtError):
    """The loss, a gradient or a weight is not finite, or training would change nothing."""

    exit_code = 8


class DeviceError(LlmtError):
    """A device, precision or backend was named that this machine does not have."""

    exit_code = 9


class MissingPackageError(DeviceError):
    """A Python package that this command needs cannot be imported.

    Args:
        package: Import name of the package.
        reason: What the import said.
    """

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(
            f"the package {package!r} cannot be imported: {reason}",
            f"python -m pip install --force-reinstall {package}",
        )
        self.package = package


class BusyOutputError(LlmtError):
    """The output directory is in use, or holds another run."""

    exit_code = 10


class PeerLostError(LlmtError):
    """Another process of a distributed run died or stopped answering."""

    exit_code = 11


class Interrupted(LlmtError):  # noqa: N818 - a stop that was asked for is no error
    """The run was stopped by a signal, after it had saved.

    Args:
        message: What was saved where.
        hint: How to go on.
        signum: The signal's number; the exit code is 128 + signum.
    """

    def __init__(self, message: str, hint: str, signum: int) -> None:
        super().__init__(message, hint)
        self.signum = signum
        self.exit_code = 128 + signum


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; some allocators raise a plain RuntimeError that says so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
