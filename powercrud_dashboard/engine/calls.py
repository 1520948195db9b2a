"""Calls of a project's functions and hooks: a coroutine runs to its end, and a generator is refused."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

from asgiref.sync import async_to_sync


def call(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call the function and return its result; what an ``async`` function returns is awaited.

    A coroutine runs in an event loop of another thread. What it calls with ``sync_to_async``, such as the ORM, runs in
    this thread, so that it uses the same connections and transactions.

    Raises:
        TypeError: if the call returns a generator, as it has run nothing.
    """
    result = func(*args, **kwargs)
    if isinstance(result, Generator | AsyncGenerator):
        raise TypeError(generator_refusal(_name_of(func)))
    return _Coroutine(result).run() if inspect.isawaitable(result) else result


def is_generator_function(func: Callable[..., Any]) -> bool:
    """Return whether a call of the function returns a generator and runs nothing."""
    while isinstance(func, functools.partial):
        func = func.func
    candidates = (func, getattr(type(func), "__call__", None))  # noqa: B004 - the method itself is wanted
    return any(inspect.isgeneratorfunction(item) or inspect.isasyncgenfunction(item) for item in candidates)


def generator_refusal(name: str) -> str:
    """Return the error message for a generator function."""
    return (
        f"{name} is a generator function: a call of it runs nothing until somebody iterates over what it returns. "
        "Use a function without yield."
    )


def _name_of(func: Callable[..., Any]) -> str:
    module, name = getattr(func, "__module__", ""), getattr(func, "__qualname__", "")
    return f"{module}.{name}" if module and name else type(func).__qualname__


class _Coroutine:
    """Runs an awaitable to its end."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable = awaitable
        self._running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
        self._interrupted = threading.Event()
        self._ended = threading.Event()

    def run(self) -> Any:
        try:
            return async_to_sync(self._await)()
        except BaseException:
            # A cancellation or a time limit is raised in this thread, and the coroutine goes on in its own.
            self._interrupted.set()
            for loop, task in self._running:
                if not self._ended.is_set():
                    loop.call_soon_threadsafe(task.cancel)
                    self._ended.wait()
            if not self._running and inspect.iscoroutine(self._awaitable):
                self._awaitable.close()
            raise

    async def _await(self) -> Any:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it runs in a loop
        self._running.append((asyncio.get_running_loop(), task))
        try:
            if self._interrupted.is_set():
                raise asyncio.CancelledError
            return await self._awaitable
        finally:
            self._ended.set()
