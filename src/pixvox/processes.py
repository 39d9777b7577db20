"""Processes that start clean: workers, and those in which one thing is measured.

The peak of memory of a process of its own is its own, and if it is killed the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

Result = TypeVar("Result")


def context_with(modules: Sequence[str]) -> BaseContext:
    """Return how processes are to be started: clean ones, where possible with modules that are imported once.

    Args:
        modules: What all processes import.
    """
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(list(modules))
    return context


def run_alone(context: BaseContext, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a function returns in a process of its own.

    Args:
        context: Of ``context_with``.
        function: A function of a module.
        *arguments: Its arguments; they and what it returns are pickled.

    Raises:
        BrokenProcessPool: If the process was killed, most likely for its memory.
    """
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()
