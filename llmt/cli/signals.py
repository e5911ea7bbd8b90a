"""A signal that comes before training listens: the command ends with its own exit code."""

import signal
from types import FrameType


class Stopped(BaseException):
    """A signal asked the process to end; no KeyboardInterrupt, which the parser of the command line would swallow.

    Args:
        signum: Its number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


def raise_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP raise `Stopped` where the process is; an ignored SIGHUP stays ignored."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is None or (name == "SIGHUP" and signal.getsignal(signum) is signal.SIG_IGN):
            continue
        signal.signal(signum, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)
