"""A signal that comes before training listens: the command ends with its own exit code."""

import signal
from types import FrameType, TracebackType


class Stopped(BaseException):
    """A signal asked the process to end; no KeyboardInterrupt, which the parser of the command line would swallow.

    Args:
        signum: Its number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


class Interruption:
    """A context in which an error that follows a signal is the end that the signal asked for.

    A library that is interrupted while it is imported may swallow the signal, and is left half imported.

    Attributes:
        signum: The signal that came first; None before any.
    """

    signum: int | None = None

    def __enter__(self) -> "Interruption":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Swallow what a signal led to: itself, or an error of a library that it interrupted."""
        return kind is not None and issubclass(kind, (Exception, Stopped)) and self.signum is not None


INTERRUPTION = Interruption()


def heed_swallowed() -> None:
    """Raise what a signal raised before, if a library that was just imported swallowed it.

    Raises:
        Stopped: A signal came.
    """
    if INTERRUPTION.signum is not None:
        raise Stopped(INTERRUPTION.signum)


def forget_signal() -> None:
    """What the signal asked for is done, and the command goes on: an error that follows is its own."""
    INTERRUPTION.signum = None


def raise_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP raise `Stopped` where the process is; an ignored SIGHUP stays ignored."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is None or (name == "SIGHUP" and signal.getsignal(signum) is signal.SIG_IGN):
            continue
        signal.signal(signum, _raise)


def ignore_signals() -> None:
    """From now on signals change nothing: the command has answered, and its exit code stands."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None:
            signal.signal(signum, signal.SIG_IGN)


def _raise(signum: int, frame: FrameType | None) -> None:
    INTERRUPTION.signum = INTERRUPTION.signum or signum
    raise Stopped(signum)
