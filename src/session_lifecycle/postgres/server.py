"""Server: reaches one Postgres server from every event loop, and closes what it opened when a loop or the host ends."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from session_lifecycle.errors import ConfigurationError
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from session_lifecycle.postgres.engines import (
    Engines,
    EnginesOfSchema,
    HostEngine,
    OwnEngines,
    asyncpg_url,
    check_engine,
    create_engine,
)
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.settings import Settings


@dataclass
class InLoop:
    """What a server has in one event loop."""

    at_end: AsyncGenerator[None]
    """Suspended. asyncio resumes it when the loop shuts down."""
    roll_up_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the roll-up that runs in this loop."""


class Server:
    """The engines of one Postgres server, and the end of each event loop that uses them.

    The schemas of several buckets on one server share it.

    Attributes:
        read_engines: The engines of a replica; None: there is none.
        close_first: Called before engines are closed, for what still needs them: with the event loop that shuts down,
            or with None where all is closed.
    """

    def __init__(self, settings: Settings) -> None:
        """Use `connect`, `embedded` or `from_engine` instead."""
        self._settings = settings
        self._engines: Engines | None = None
        self.read_engines: Engines | None = None
        self._make_engine: Callable[..., AsyncEngine] | None = None
        self._start: Callable[[], Awaitable[EmbeddedPostgres]] | None = None
        self._embedded: EmbeddedPostgres | None = None
        self.close_first: list[Callable[[asyncio.AbstractEventLoop | None], Awaitable[None]]] = []
        self._in_loops: dict[asyncio.AbstractEventLoop, InLoop] = {}
        forget_in_child(self)

    @classmethod
    def connect(
        cls, url: str | URL, settings: Settings, *, read_url: str | URL | None = None, pgbouncer: bool = False
    ) -> Self:
        """The server of a URL, with engines of our own. See `SessionDatabase.connect`."""
        server = cls(settings)
        server._make_engine = partial(create_engine, asyncpg_url(url), settings, pgbouncer=pgbouncer)
        server._engines = server._own_engines(server._make_engine)
        if read_url is not None:
            make = partial(create_engine, asyncpg_url(read_url), settings, pgbouncer=pgbouncer)
            server.read_engines = server._own_engines(make)
        return server

    @classmethod
    def embedded(cls, data_dir: str | Path | None, settings: Settings) -> Self:
        """An embedded server, which `start` starts. See `SessionDatabase.embedded`."""
        server = cls(settings)
        server._start = partial(EmbeddedPostgres.start, data_dir)
        return server

    @classmethod
    def from_engine(cls, engine: AsyncEngine, settings: Settings, *, read_engine: AsyncEngine | None = None) -> Self:
        """The server of the host's engines. See `SessionDatabase.from_engine`."""
        check_engine("engine", engine)
        if read_engine is not None:
            check_engine("read_engine", read_engine)
        server = cls(settings)
        server._engines = HostEngine(engine, settings.database_schema, server.enter_loop)
        if read_engine is not None:
            server.read_engines = HostEngine(read_engine, settings.database_schema, server.enter_loop)
        return server

    def _own_engines(self, make: Callable[[], AsyncEngine]) -> OwnEngines:
        return OwnEngines(make, self._settings.database_schema, self.enter_loop)

    @property
    def engines(self) -> Engines:
        """The engines of the primary, for the schema of the settings.

        Raises:
            ConfigurationError: The embedded server is not running.
        """
        if self._engines is None:
            raise ConfigurationError(
                "the embedded server is not running: use `async with SessionDatabase.embedded() as db`"
            )
        return self._engines

    def engines_of(self, schema: str) -> Engines:
        """The engines of the primary, for a schema. All schemas share the pools.

        Raises:
            ConfigurationError: The embedded server is not running.
        """
        engines = self.engines
        return engines if schema == self._settings.database_schema else EnginesOfSchema(engines, schema)

    @asynccontextmanager
    async def patient_engine(self) -> AsyncGenerator[AsyncEngine]:
        """An engine whose client waits for as long as a migration takes; the host's, where it is the host's."""
        if self._make_engine is None:
            yield self.engines.engine
            return
        engine = self._make_engine(has_deadline=False)
        try:
            yield engine
        finally:
            await engine.dispose()

    async def start(self) -> None:
        """Starts the embedded server, if it is one and does not run."""
        if self._start is not None and self._engines is None:
            self._embedded = await self._start()
            url = asyncpg_url(self._embedded.url)
            self._make_engine = partial(create_engine, url, self._settings, pgbouncer=False)
            self._engines = self._own_engines(self._make_engine)

    async def close(self) -> None:
        """Closes what needs the engines, our own engines in every event loop, and the embedded server.

        Raises:
            DatabaseUnavailableError: The embedded server could not be stopped.
        """
        for close in self.close_first:
            await close(None)
        for engines in (self._engines, self.read_engines):
            if isinstance(engines, OwnEngines):
                await engines.close()
        if (here := self._in_loops.pop(asyncio.get_running_loop(), None)) is not None:
            await here.at_end.aclose()
        if self._embedded is not None:
            embedded, self._embedded = self._embedded, None
            self._engines = self._make_engine = None
            await embedded.stop()

    def enter_loop(self) -> InLoop:
        """Has what the running event loop uses closed when the loop shuts down."""
        loop = asyncio.get_running_loop()
        if loop in self._in_loops:
            return self._in_loops[loop]
        for gone in [one for one in self._in_loops if one.is_closed()]:
            del self._in_loops[gone]
        at_end = self._close_at_end()
        # `asyncio.run` and `asyncio.Runner` close every asynchronous generator that was begun in their loop. This one
        # is begun without waiting: its first step ends at the `yield`.
        try:
            at_end.__anext__().send(None)
        except StopIteration:
            self._in_loops[loop] = InLoop(at_end)
        return self._in_loops[loop]

    async def _close_at_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            for close in self.close_first:
                await close(asyncio.get_running_loop())
            for engines in (self._engines, self.read_engines):
                if isinstance(engines, OwnEngines):
                    await engines.close_here()

    def forget_parent(self) -> object:
        """See `HasParents`: the parent's event loops are none of this process."""
        ours, self._in_loops = self._in_loops, {}
        return ours
