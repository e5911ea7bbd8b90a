"""A signal asks the run to stop; Ctrl-C after it stops it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def signal_name(signum: int) -> str:
    """What a signal is called."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


@contextmanager
def stop_on_signal(request: Callable[[int], None]) -> Iterator[None]:
    """While the body runs, the first SIGINT, SIGTERM or SIGHUP calls `request` with its number.

    A SIGINT after it raises KeyboardInterrupt; whatever else comes is heard already. The earlier handlers are
    put back afterwards.
    """
    asked: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked.append(signum)
            request(signum)

    with handled_by(handle):
        yield


@contextmanager
def handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While the body runs, SIGINT, SIGTERM and SIGHUP call `handle`; the earlier handlers are put back afterwards."""
    # What was told to be ignored stays ignored: a run under nohup outlives its terminal.
    heard = [signum for signum in STOP_SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    earlier = {signum: signal.signal(signum, handle) for signum in heard}
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
