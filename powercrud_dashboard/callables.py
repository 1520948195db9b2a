"""Task functions: their dotted paths, whether a worker can import them, and what they take."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from powercrud_dashboard.exceptions import UnimportableCallable

TaskFunction = Callable[..., Any]

#: Functions whose signatures a process keeps, as it takes Python a while to find one out.
KNOWN_SIGNATURES = 500


def resolve(func: str | TaskFunction) -> tuple[str, TaskFunction]:
    """Return the dotted path and the function itself.

    Raises:
        UnimportableCallable: if a worker, knowing only the path, would not find this function.
    """
    path = func if isinstance(func, str) else _path_of(func)
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnimportableCallable(path, f"importing it fails with {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UnimportableCallable(path, f"it is a {type(found).__name__}, not a function")
    if not isinstance(func, str) and found != func:
        raise UnimportableCallable(path, "that path leads to a different object")
    return path, found


def _path_of(func: TaskFunction) -> str:
    module = getattr(func, "__module__", None)
    name = getattr(func, "__qualname__", None)
    if not module or not name:
        raise UnimportableCallable(repr(func), "it has no importable name")
    path = f"{module}.{name}"
    if "<lambda>" in name:
        raise UnimportableCallable(path, "a lambda has no importable name")
    if "<locals>" in name:
        raise UnimportableCallable(path, "it is defined inside another function")
    if module == "__main__":
        raise UnimportableCallable(path, "a worker has another __main__ module")
    return path


def injected_arguments(func: TaskFunction, available: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the ``available`` keyword arguments that the function's signature takes."""
    if (signature := _signature(func)) is None:
        return {}
    parameters = signature.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(available)
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: value for name, value in available.items() if name in parameters and parameters[name].kind in by_keyword
    }


def check_arguments(path: str, func: TaskFunction, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Make sure that the function can be called like this.

    Raises:
        TypeError: in the words that the call itself would have failed with in the worker.
    """
    if (signature := _signature(func)) is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{path}(): {error}") from error


def _signature(func: TaskFunction) -> inspect.Signature | None:
    """Return the function's signature; None for some built-in ones, whose signature Python can't read."""
    try:
        return _known_signature(func)
    except TypeError:
        # It can't be hashed.
        return _known_signature.__wrapped__(func)


@lru_cache(maxsize=KNOWN_SIGNATURES)
def _known_signature(func: TaskFunction) -> inspect.Signature | None:
    try:
        return inspect.signature(func)
    except (TypeError, ValueError):
        return None
