"""How far something is: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from llmt.cli.output import Output, safe
from llmt.system.memory import process_memory
from llmt.units import format_duration, format_size

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines of one piece of work."""


class Bar:
    """One piece of work.

    Args:
        out: Where to show it.
        title: What is being done.
        live: The bar to move; None writes plain lines.
    """

    def __init__(self, out: Output, title: str, live: Progress | None) -> None:
        self._out = out
        self._title = title
        self._live = live
        self._task = live.add_task(title, total=None) if live is not None else None
        self._said = time.monotonic()

    def update(self, done: float, total: float | None, detail: str = "") -> None:
        """`done` of `total` is finished; a total of None is not known."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=total, description=safe(f"{self._title}  {detail}"))
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            share = f" {100 * done / total:.0f} %" if total else ""
            self._out.say(f"{self._title}{share} {detail}".rstrip())


@contextmanager
def progress_bar(out: Output, title: str) -> Iterator[Bar]:
    """Show one piece of work while the body runs; the bar goes when it is done."""
    if not out.live:
        yield Bar(out, title, None)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out.err, transient=True) as live:
        yield Bar(out, title, live)


class TrainingView:
    """Loss, rate, speed, time left and memory of a run, and a plain line every so many steps."""

    def __init__(self, out: Output, total_steps: int, every: int) -> None:
        self._out = out
        self._total = total_steps
        self._every = every

    def line(self, step: int, loss: float, rate: float, speed: float, left: float) -> str:
        """The numbers of one step in words."""
        return (
            f"step {step:>{len(str(self._total))}}/{self._total}  loss {loss:.4f}  lr {rate:.2e}  "
            f"{speed:,.0f} tok/s  {format_duration(left)} left  {format_size(process_memory())}"
        )

    def show(self, bar: Bar, step: int, line: str) -> None:
        """Move the bar; in a pipe, write the line where it is due."""
        if self._out.live:
            bar.update(step, self._total, line)
        elif step % self._every == 0 or step in (1, self._total):
            self._out.say(line)
