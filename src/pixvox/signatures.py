"""What a ``_target_`` takes: its parameters, whether a value fits them, and how to say so to a user."""

from __future__ import annotations

import collections.abc
import difflib
import importlib
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixvox.errors import ConfigError

_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable,
              collections.abc.Collection, collections.abc.MutableSequence)  # fmt: skip
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names ``name`` may have meant, or list some when none is near.

    Example:
        >>> nearest("learning_rte", ["learning_rate", "seed"])
        'did you mean learning_rate?'
    """
    known = list(dict.fromkeys(known))
    # A dotted key is often right but for its place: the same last word comes first.
    leaf = name.rpartition(".")[2]
    close = [key for key in known if key.rpartition(".")[2] == leaf][:count]
    alike = difflib.get_close_matches(name, known, n=count, cutoff=0.6)
    close += [key for key in alike if key not in close][: count - len(close)]
    if not close:
        by_leaf: dict[str, str] = {}
        for key in known:
            by_leaf.setdefault(key.rpartition(".")[2], key)
        close = [by_leaf[word] for word in difflib.get_close_matches(leaf, by_leaf, n=count, cutoff=0.7)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(sorted(known)[:20])
    return f"known: {shown}{', ...' if len(known) > 20 else ''}"


@dataclass(frozen=True)
class Signature:
    """Parameters of a callable by name.

    Args:
        annotations: Annotation of each named parameter; ``Any`` where there is none.
        open: True when further keyword arguments are taken.
    """

    annotations: Mapping[str, Any]
    open: bool


def locate(target: str) -> Any:
    """Import the object at a dotted path.

    Raises:
        ConfigError: If there is no such module or object.
    """
    parts = target.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise ConfigError(f"_target_={target}: importing {name} failed: {error}") from error
        for i, part in enumerate(parts[count:]):
            if not hasattr(found, part):
                where = ".".join(parts[: count + i])
                raise ConfigError(
                    f"_target_={target}: {where} has no {part!r}; {nearest(part, _public_names(found))}"
                )
            found = getattr(found, part)
        return found
    raise ConfigError(f"_target_={target}: there is no module {parts[0]!r}; is it installed and on the path?")


def _public_names(found: Any) -> list[str]:
    return [name for name in dir(found) if not name.startswith("_")]


def signature(target: Any) -> Signature:
    """Return the parameters that ``target``, a class or function, takes.

    A class of this package that hands further keyword arguments on (``**options``) takes those of its base.

    Example:
        >>> class Base:
        ...     def __init__(self, size: int, colour: str = "red") -> None: ...
        >>> class Derived(Base):
        ...     def __init__(self, size: float, **options: object) -> None: ...
        >>> sorted(signature(Derived).annotations), signature(Derived).open
        (['colour', 'size'], False)
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some built-in callables have none
        return Signature({}, open=True)
    hints = _hints(function)
    named = {
        parameter.name: hints.get(parameter.name, Any)
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    base = _base_that_takes_the_rest(target) if is_open else None
    if base is None:
        return Signature(named, is_open)
    further = signature(base)
    return Signature({**further.annotations, **named}, further.open)


def _base_that_takes_the_rest(target: Any) -> type | None:
    """Return the class whose constructor a class of ours hands its further arguments to."""
    # What classes of others do with further arguments is not known.
    if not inspect.isclass(target) or not target.__module__.startswith("pixvox."):
        return None
    owners = [kind for kind in target.__mro__ if "__init__" in vars(kind)]
    return owners[1] if len(owners) > 1 and owners[1].__module__.startswith("pixvox.") else None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return annotations; one that cannot be resolved (imported for type checkers only) is left out."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):
        pass
    function = inspect.unwrap(function)
    resolved: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, getattr(function, "__globals__", {}))
            except Exception:  # an annotation that cannot be read is no reason to refuse a value
                continue
        resolved[name] = annotation
    return resolved


def fits(value: Any, annotation: Any) -> bool:
    """Tell whether a plain value of a configuration may stand where ``annotation`` is asked for.

    What cannot be judged (protocols, type variables, shapes of tensors) fits.

    Example:
        >>> fits(1, float), fits("abc", float), fits([512, 512], int | list[int]), fits(True, int)
        (True, False, True, False)
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    kind = origin or annotation
    if kind is Any or not inspect.isclass(kind) or getattr(kind, "_is_protocol", False):
        return True
    if kind in _SEQUENCES:
        return isinstance(value, (list, tuple)) and _elements_fit(value, kind, arguments)
    if kind in _MAPPINGS:
        return isinstance(value, Mapping)
    return _is_a(value, kind)


def _elements_fit(value: Sequence[Any], kind: Any, arguments: tuple[Any, ...]) -> bool:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return not arguments or all(fits(element, arguments[0]) for element in value)


def _is_a(value: Any, kind: type) -> bool:
    if kind is object:
        return True
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float, complex):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if issubclass(kind, os.PathLike):
        return isinstance(value, (str, os.PathLike))
    if kind.__module__ in ("collections.abc", "jaxtyping", "types"):
        return True
    return isinstance(value, kind)


def describe(annotation: Any) -> str:
    """Say in words what an annotation asks for.

    Example:
        >>> describe(int | list[int])
        'a whole number or a list of whole numbers'
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if _in_words(option)]
        return " or ".join(dict.fromkeys(describe(option) for option in options))
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    kind = origin or annotation
    if kind in _SEQUENCES:
        inner = arguments[0] if arguments else Any
        plural = {int: "whole numbers", float: "numbers", str: "texts", bool: "true or false"}.get(inner)
        return f"a list of {plural}" if plural else "a list"
    if kind in _MAPPINGS:
        return "a mapping"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
    }
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _in_words(option: Any) -> bool:
    """Tell whether an option of a union can be typed on a command line (a Tensor cannot)."""
    kind = typing.get_origin(option) or option
    return kind in (int, float, bool, str, type(None), typing.Literal, *_SEQUENCES, *_MAPPINGS) or (
        inspect.isclass(kind) and issubclass(kind, os.PathLike)
    )


def example(annotation: Any) -> str:
    """Return a value of the right form as it is typed on the command line, or an empty text.

    Example:
        >>> example(list[int]), example(float), example(bool)
        ('[512,512]', '1e-4', 'true')
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        examples = [example(option) for option in arguments if option is not type(None)]
        return " or ".join(dict.fromkeys(text for text in examples if text))
    if origin is typing.Literal:
        return str(arguments[0])
    if (origin or annotation) in _SEQUENCES:
        inner: Any = arguments[0] if arguments else None
        return {int: "[512,512]", float: "[0.5,1.0]", str: "[a,b]"}.get(inner, "[...]")
    return {int: "8", float: "1e-4", bool: "true"}.get(annotation, "")
