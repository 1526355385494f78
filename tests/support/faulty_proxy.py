"""A TCP proxy in front of a server that resets, stalls, cuts messages in the middle, and falls silent."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import cycle

FAULTS = ("reset", "stall", "cut")


class FaultyProxy:
    """A share of the messages meets a fault, each kind in turn; `faults` counts them."""

    def __init__(self, port: int, share: float) -> None:
        self._server_port = port
        self._share = share
        self._writers: set[asyncio.StreamWriter] = set()
        self.faults = dict.fromkeys(FAULTS, 0)
        self._next_fault = cycle(FAULTS)
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._answers_left: dict[asyncio.StreamWriter, int] = {}
        self._answers = asyncio.Event()
        self._answers.set()
        self.port = 0
        self._server: asyncio.Server

    @asynccontextmanager
    async def silent(self) -> AsyncGenerator[None]:
        """Accepts connections and forwards nothing until the block is left, as a network that drops every packet."""
        self._speaks.clear()
        try:
            yield
        finally:
            self._speaks.set()

    @asynccontextmanager
    async def withholding(self, after: int) -> AsyncGenerator[None]:
        """Lets the server do what it is asked, and withholds what it answers, until the block is left.

        Args:
            after: How many answers each connection gets before.
        """
        self._answers_left = dict.fromkeys(self._writers, after)
        self._answers.clear()
        try:
            yield
        finally:
            self._answers_left = {}
            self._answers.set()

    def cut(self) -> None:
        """Cuts all connections. New ones are served."""
        for writer in self._writers:
            writer.transport.abort()

    @asynccontextmanager
    async def refusing(self) -> AsyncGenerator[None]:
        """Cuts all connections, and refuses new ones until the block is left."""
        self._server.close()
        self.cut()
        try:
            yield
        finally:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Serves until the block is left."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            self._server.close()
            self.cut()
            await asyncio.sleep(0.05)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._writers.add(to_client)
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:  # the server restarts: refuse as the server would
            to_client.transport.abort()
            return
        self._writers.add(to_server)
        ways = [
            asyncio.create_task(self._pump(client, to_server)),
            asyncio.create_task(self._pump(server, to_client, is_answer=True)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for writer in (to_client, to_server):
            writer.transport.abort()
            self._writers.discard(writer)

    async def _pump(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, is_answer: bool = False) -> None:
        try:
            while data := await source.read(65536):
                if random.random() < self._share:
                    fault = next(self._next_fault)
                    self.faults[fault] += 1
                    if fault == "reset":
                        return
                    if fault == "cut":
                        to.write(data[: len(data) // 2])
                        await to.drain()
                        return
                    await asyncio.sleep(random.uniform(0.1, 1.0))
                await self._speaks.wait()
                if is_answer and to in self._answers_left:
                    self._answers_left[to] -= 1
                    if self._answers_left[to] < 0:
                        await self._answers.wait()
                to.write(data)
                await to.drain()
        except ConnectionError:
            return
