"""How far long work is: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

log = logging.getLogger("pixvox")


def progress(items: Iterable[Item], total: int, what: str, interval: float = 15.0) -> Iterator[Item]:
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
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, total, console=Console(stderr=True), transient=True)
        return
    start = last = time.perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - last >= interval:
            last = now
            minutes, seconds = divmod(round((now - start) / done * (total - done)), 60)
            log.info("%s: %d of %d, %d:%02d left", what, done, total, minutes, seconds)
