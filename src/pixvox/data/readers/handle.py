"""What a process opens for itself: file handles survive neither a fork nor pickling."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Handle(Generic[T]):
    """Something that is opened when it is first asked for, once in each process.

    Args:
        opener: Function at the top of its module, so that it can be pickled.
        arguments: What it is called with.
        opened: What is open already in this process, if anything.

    Example:
        >>> handle = Handle(list, "ab")
        >>> handle() is handle(), handle()
        (True, ['a', 'b'])
    """

    def __init__(self, opener: Callable[..., T], *arguments: Any, opened: T | None = None) -> None:
        self.opener, self.arguments = opener, arguments
        self._opened = None if opened is None else (os.getpid(), opened)

    def __call__(self) -> T:
        """Return what the opener returned in this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self.opener(*self.arguments))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
