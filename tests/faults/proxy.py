"""A TCP proxy before a server's socket, which can stop passing bytes as a broken network does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any


class Proxy:
    """Listens on a port of this machine only and passes what it gets to a UNIX socket, and back."""

    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, target: Path) -> None:
        self._target = target
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server = self._in_loop(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()

    def hold(self) -> None:
        """Pass nothing on: connections stay, and new ones get no answer."""
        self._call(self._passing.clear)

    def let_pass(self) -> None:
        """Pass on what was held, and what comes."""
        self._call(self._passing.set)

    def close(self) -> None:
        self._call(self._server.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        try:
            there, back = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        await self._passing.wait()
        writer.close()

    # All proxies share one thread.

    @classmethod
    def _running_loop(cls) -> asyncio.AbstractEventLoop:
        if cls._loop is None:
            cls._loop = asyncio.new_event_loop()
            threading.Thread(target=cls._loop.run_forever, daemon=True).start()
        return cls._loop

    @classmethod
    def _in_loop(cls, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, cls._running_loop()).result()

    @classmethod
    def _call(cls, act: Any) -> None:
        cls._running_loop().call_soon_threadsafe(act)
