"""A signal asks the run to stop; a second one stops it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def stop_on_signal(request: Callable[[int], None]) -> Iterator[None]:
    """While the body runs, the first SIGINT, SIGTERM or SIGHUP calls `request` with its number.

    The second raises KeyboardInterrupt. The earlier handlers are put back afterwards.
    """
    asked: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)
        request(signum)

    # What was told to be ignored stays ignored: a run under nohup outlives its terminal.
    heard = [signum for signum in STOP_SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    earlier = {signum: signal.signal(signum, handle) for signum in heard}
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
