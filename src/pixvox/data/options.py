"""Check keyword arguments that come from a command line before they are passed on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pixvox.errors import ConfigError
from pixvox.signatures import describe, example, fits, nearest, signature


def check_options(
    options: Mapping[str, Any], target: Callable[..., Any], given: Collection[str] = ()
) -> None:
    """Refuse options that ``target`` does not take, or values of another type.

    Args:
        options: Keyword arguments.
        target: The function or class that is to get them.
        given: Arguments of ``target`` that are decided already.

    Raises:
        ConfigError: If an option does not fit; the message names what would.

    Example:
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> check_options({"overlp": 0.5}, Shapes)
        Traceback (most recent call last):
        ...
        pixvox.errors.ConfigError: Shapes takes no option 'overlp'; did you mean overlap?
    """
    takes = {name: kind for name, kind in signature(target).annotations.items() if name not in given}
    name_of_target = getattr(target, "__name__", str(target))
    for name, value in options.items():
        if name not in takes:
            raise ConfigError(f"{name_of_target} takes no option {name!r}; {nearest(name, takes)}")
        if not fits(value, takes[name]):
            form = example(takes[name])
            hint = f", for example {name}={form}" if form else ""
            raise ConfigError(f"{name}={value}: it takes {describe(takes[name])}{hint}")
