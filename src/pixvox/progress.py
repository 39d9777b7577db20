"""How far long work is: bars on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

Tell = Callable[[str, int, int], None]
"""Takes what is done, how many of it are, and how many there are."""

log = logging.getLogger("pixvox")

INTERVAL = 15.0
"""Seconds between two lines in the log."""


def progress(items: Iterable[Item], total: int, what: str, interval: float = INTERVAL) -> Iterator[Item]:
    """Yield items, and show how many of them are done.

    Args:
        items: Whatever the work goes through.
        total: How many there are.
        what: What is done with them, such as ``"converting"``.
        interval: Seconds between two lines in the log.

    Example:
        >>> list(progress("ab", 2, "spelling"))
        ['a', 'b']
    """
    with progress_bars(interval) as tell:
        tell(what, 0, total)
        for done, item in enumerate(items, 1):
            yield item
            tell(what, done, total)


@contextlib.contextmanager
def progress_bars(interval: float = INTERVAL) -> Iterator[Tell]:
    """Give a function that is told ``(what, done, total)``, for work that goes through several things.

    Args:
        interval: Seconds between two lines in the log.

    Example:
        >>> with progress_bars() as tell:
        ...     tell("converting", 1, 2)
    """
    if not sys.stderr.isatty():
        yield _Lines(interval)
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(file=sys.stderr), transient=True) as bars:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


class _Lines:
    """Writes a line to the log now and then, with the time that is left."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.begun: dict[str, tuple[float, int]] = {}
        self.last = time.perf_counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        start, before = self.begun.setdefault(what, (now, done))
        if now - self.last < self.interval:
            return
        self.last = now
        left = ""
        if done > before:
            minutes, seconds = divmod(round((now - start) / (done - before) * (total - done)), 60)
            left = f", {minutes}:{seconds:02d} left"
        log.info("%s: %d of %d%s", what, done, total, left)
