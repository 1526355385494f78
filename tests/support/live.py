"""A host's app on a real socket, and a client of its event streams."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import httpx
import uvicorn
from fastapi import FastAPI

from session_lifecycle import SessionDatabase
from session_lifecycle.web.feed import LiveFeed
from session_lifecycle.web.reading import session_router
from support.eventually import eventually
from support.web import PREFIX, viewer


class Event(NamedTuple):
    """One server-sent event."""

    id: str
    name: str
    data: dict[str, Any]

    @property
    def session_id(self) -> Any:
        return self.data.get("session_id")


class QuietServer(uvicorn.Server):
    """A server that leaves the signals to the test."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    """The app on a free port of this machine; its URL."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = QuietServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        await eventually(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def live_host(db: SessionDatabase, **more: Any) -> AsyncGenerator["LiveHost"]:
    """A host that has mounted the reading router with a feed."""
    feed = LiveFeed(db, **more)
    app = FastAPI()
    app.include_router(session_router(db, viewer=viewer, feed=feed), prefix=PREFIX)
    async with served(app) as url:
        try:
            yield LiveHost(url, feed)
        finally:
            await feed.close()


class LiveHost:
    """The host at its URL, and its feed."""

    def __init__(self, url: str, feed: LiveFeed) -> None:
        self.url = url
        self.feed = feed

    @asynccontextmanager
    async def stream(self, user: str = "a", after: str | None = None, **parameters: Any) -> AsyncGenerator["Stream"]:
        """An open stream of the user. It begins without sessions, unless `recent` asks for some."""
        headers = {"X-User": user} | ({} if after is None else {"Last-Event-ID": after})
        parameters = {"recent": 0} | parameters
        async with (
            httpx.AsyncClient(base_url=self.url + PREFIX, timeout=30) as client,
            client.stream("GET", "/events", params=parameters, headers=headers) as response,
        ):
            assert response.status_code == 200, await response.aread()
            found = Stream(response)
            assert (await found.block()).startswith("retry: ")
            yield found


class Stream:
    """The events of an answer."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def block(self) -> str:
        """The next lines up to an empty one. Raises StopAsyncIteration at the end of the stream."""
        lines = []
        while line := await anext(self._lines):
            lines.append(line)
        return "\n".join(lines)

    async def next(self, within_seconds: float = 20) -> Event:
        """The next event, after any heartbeats."""
        async with asyncio.timeout(within_seconds):
            while (block := await self.block()).startswith(":"):
                pass
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        return Event(fields["id"], fields["event"], json.loads(fields["data"]))

    async def until(self, session_id: str, name: str = "session") -> list[Event]:
        """The events up to one of this session."""
        found: list[Event] = []
        while not found or (found[-1].session_id, found[-1].name) != (session_id, name):
            found.append(await self.next())
        return found

    async def ended(self, within_seconds: float = 10) -> bool:
        """Waits for the end of the stream."""
        async with asyncio.timeout(within_seconds):
            try:
                while True:
                    await self.block()
            except StopAsyncIteration:
                return True
