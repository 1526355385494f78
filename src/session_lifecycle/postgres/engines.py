"""Database URLs, and the engine of each event loop and process."""

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakSet

import asyncpg
from sqlalchemy import Pool, QueuePool, event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from session_lifecycle.entities import metadata
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.settings import Settings

DRIVER = "postgresql+asyncpg"
# https://magicstack.github.io/asyncpg/current/api/index.html#connection
URL_OPTIONS = {"direct_tls", "gsslib", "host", "krbsrvname", "passfile", "port", "ssl", "target_session_attrs"}

DEADLINE_MARGIN_SECONDS = 5.0
"""How much longer than the server the client waits for an answer: the server cancels first, and says so."""
CLOSE_SECONDS = 5.0
"""How long closing the connections of an engine may take."""
SERVER_SETTINGS = {
    # Nobody's objects stand in for Postgres's own: our statements name their schema. `pg_temp` comes last.
    "search_path": "pg_catalog, pg_temp",
    # A database may have another default, under which concurrent writers of one session fail.
    "default_transaction_isolation": "read committed",
    # JSON has each float to its last digit.
    "extra_float_digits": "1",
    # Postgres overestimates the cost of a page, and would compile it for longer than the page takes.
    "jit": "off",
    # Citus hides its shards from everybody else, table by table. Without that, what the driver asks of a new connection
    # about types takes 0.06 s in place of 1.9. No other server reads the setting.
    "citus.show_shards_for_app_name_prefixes": "*",
}
"""What a connection of ours asks of the server when it starts, and so without a round trip."""
OTHER_LOOP = (
    "the host's engine has connections of another event loop or process: give each loop an engine of its own, "
    "call `await engine.dispose()` before the loop ends and `engine.sync_engine.dispose(close=False)` in a forked "
    "child, use `poolclass=NullPool`, or use SessionDatabase.connect, which has a pool for each loop and process"
)


def asyncpg_url(url: str | URL) -> URL:
    """Returns the URL with asyncpg as its driver and asyncpg's names of its options.

    Raises:
        ConfigurationError: The URL cannot be read, is for another database or driver, or has an unknown option.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        # Neither the message nor a cause may quote the URL: an unescaped @ or : makes the password part of anything.
        raise ConfigurationError(
            "the database URL cannot be read, expected postgresql://user:password@host/name "
            "with special characters of the password percent-encoded"
        ) from None
    if parsed.drivername not in {"postgresql", "postgres", DRIVER}:
        raise ConfigurationError(
            f"the database URL is for {parsed.drivername!r}, expected postgresql:// or {DRIVER}://: "
            f"{parsed.set(drivername=DRIVER).render_as_string(hide_password=True)}"
        )
    query = dict(parsed.query)
    if "sslmode" in query:  # libpq's name of the option that asyncpg calls ssl
        query["ssl"] = query.pop("sslmode")
    if unknown := sorted(set(query) - URL_OPTIONS):
        known = ", ".join(sorted({*URL_OPTIONS, "sslmode"}))
        raise ConfigurationError(
            f"the database URL has the option {unknown[0]!r}, expected none but {known}: "
            "set other options in Settings, or pass your own engine to SessionDatabase.from_engine"
        )
    return parsed.set(drivername=DRIVER, query=query)


def check_engine(name: str, engine: object) -> None:
    """Checks an engine that the host passed as the argument `name`.

    Raises:
        ConfigurationError: `engine` is not an `AsyncEngine` that uses asyncpg.
    """
    if not isinstance(engine, AsyncEngine) or engine.dialect.driver != "asyncpg":
        raise ConfigurationError(f"{name}: got {engine!r}, expected an AsyncEngine of {DRIVER}://…")


def create_engine(url: URL, settings: Settings, *, pgbouncer: bool, has_deadline: bool = True) -> AsyncEngine:
    """Creates an engine with the pool size and timeouts of the settings. Opens no connection.

    Args:
        url: A URL from `asyncpg_url`.
        settings: The settings.
        pgbouncer: Whether a pgbouncer in transaction mode stands between the engine and the database.
        has_deadline: Whether the statement timeout applies. False is for migrations.
    """
    server_settings = {"application_name": settings.application_name}
    arguments: dict[str, object] = {
        "timeout": settings.connect_timeout_seconds,
        "server_settings": server_settings,
        "async_creator_fn": _connect,
    }
    timeout = settings.statement_timeout_seconds if has_deadline else None
    if pgbouncer:
        # A statement that was prepared on one server connection of pgbouncer is unknown on the next.
        arguments["statement_cache_size"] = 0
        # pgbouncer refuses these start-up parameters, so the client alone keeps the timeout.
        arguments["command_timeout"] = timeout
    else:
        # A connection keeps each statement that it has prepared, however long its text is, and Postgres keeps its plan.
        arguments |= {"max_cacheable_statement_size": 0, "max_cached_statement_lifetime": 0}
        server_settings |= SERVER_SETTINGS
        server_settings["statement_timeout"] = "0" if timeout is None else str(round(timeout * 1000))
        # The server is asked first, as it tells whether it wrote. The client's deadline is for a server that is gone.
        # asyncpg keeps it with one timer for each statement, on BEGIN, COMMIT and ROLLBACK as well.
        arguments["command_timeout"] = None if timeout is None else timeout + DEADLINE_MARGIN_SECONDS
    return create_async_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout_seconds,
        # The connection used last is used next, as its backend has warm caches. In turns, each call of a single caller
        # would meet a cold backend and take half as long again.
        pool_use_lifo=True,
        connect_args=arguments,
    )


async def _connect(*arguments: Any, **options: Any) -> "asyncpg.Connection":
    """Opens a connection. A caller that is cancelled meanwhile does not interrupt it.

    asyncpg 0.32 leaves a future behind when it is interrupted while it asks for TLS, and asyncio logs "Future exception
    was never retrieved".
    """
    connecting = asyncio.ensure_future(asyncpg.connect(*arguments, **options))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(_discard)
        raise


def _discard(connecting: "asyncio.Future[asyncpg.Connection]") -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


class LoopEngine(NamedTuple):
    """An engine that one event loop uses."""

    loop: asyncio.AbstractEventLoop | None
    engine: AsyncEngine
    autocommit: AsyncEngine
    """A copy that shares the pool, so that a host's engine keeps its options. With AUTOCOMMIT each statement is a
    transaction without BEGIN and COMMIT, which saves two of three round trips."""
    connections: "WeakSet[asyncpg.Connection]"
    """The open connections, in the pool or in use; empty for a host's engine."""


class Engines(ABC):
    """The engine of one database for the running event loop and process (rule R23).

    Attributes:
        is_own: Whether this library made the engine.
    """

    is_own: bool

    def __init__(self, schema: str, on_loop: Callable[[], object]) -> None:
        """Makes no engine.

        Args:
            schema: The Postgres schema of the tables.
            on_loop: Called in each event loop before its engine is first used.
        """
        self._options = {"isolation_level": "AUTOCOMMIT", "schema_translate_map": {metadata.schema: schema}}
        self._on_loop = on_loop
        self._last: LoopEngine | None = None
        forget_in_child(self)

    def current(self) -> LoopEngine:
        """The engine for the running event loop.

        Raises:
            ConfigurationError: A host's engine has connections of another event loop or process.
        """
        last, loop = self._last, asyncio.get_running_loop()
        if last is not None and last.loop is loop:
            return last
        self._on_loop()
        self._last = found = self._enter(loop)
        return found

    @property
    @abstractmethod
    def engine(self) -> AsyncEngine:
        """The engine for the running event loop; outside one, the engine that the next loop will use."""

    @abstractmethod
    def _enter(self, loop: asyncio.AbstractEventLoop) -> LoopEngine: ...

    @abstractmethod
    def forget_parent(self) -> object:
        """See `HasParents`."""


class OwnEngines(Engines):
    """Engines of our own: a pool for each event loop and process."""

    is_own = True

    def __init__(self, make: Callable[[], AsyncEngine], schema: str, on_loop: Callable[[], object]) -> None:
        super().__init__(schema, on_loop)
        self._make = make
        self._in_loops: list[LoopEngine] = []
        # Made outside any loop. The next loop takes it, and so does the loop that opens a connection of it.
        self._spare: LoopEngine | None = None
        self._lock = threading.Lock()

    @property
    def engine(self) -> AsyncEngine:
        try:
            return self.current().engine
        except RuntimeError:  # no event loop runs
            with self._lock:
                self._spare = self._spare or self._new()
                return self._spare.engine

    def _enter(self, loop: asyncio.AbstractEventLoop) -> LoopEngine:
        with self._lock:
            known, self._in_loops = self._in_loops, []
            for one in known:
                if one.loop is not None and one.loop.is_closed():
                    _abandon(one)
                else:
                    self._in_loops.append(one)
            for one in self._in_loops:
                if one.loop is loop:
                    return one
            return self._take_spare(loop) or self._put(self._new(), loop)

    def _take_spare(self, loop: asyncio.AbstractEventLoop) -> LoopEngine | None:
        spare, self._spare = self._spare, None
        return None if spare is None else self._put(spare, loop)

    def _put(self, one: LoopEngine, loop: asyncio.AbstractEventLoop) -> LoopEngine:
        self._in_loops.append(one._replace(loop=loop))
        return self._in_loops[-1]

    def _new(self) -> LoopEngine:
        engine = self._make()
        connections: WeakSet[asyncpg.Connection] = WeakSet()

        def keep(adapted: Any, _: object) -> None:
            connections.add(adapted.driver_connection)
            self._connected(engine)

        event.listen(engine.sync_engine, "connect", keep)
        return LoopEngine(None, engine, engine.execution_options(**self._options), connections)

    def _connected(self, engine: AsyncEngine) -> None:
        """Notes the loop that uses the spare engine by itself: a host may ask for it outside any loop."""
        spare = self._spare
        if spare is not None and spare.engine is engine:
            self._on_loop()
            with self._lock:
                if self._spare is spare:
                    self._take_spare(asyncio.get_running_loop())

    async def close(self) -> None:
        """Closes the connections of every event loop that are not in use, within `CLOSE_SECONDS`."""
        here = asyncio.get_running_loop()
        with self._lock:
            known = self._in_loops
            self._in_loops = [one for one in known if one.loop is here]
        await asyncio.gather(*map(_close_in_its_loop, known))

    async def close_here(self) -> None:
        """Closes the connections of the running event loop that are not in use, within `CLOSE_SECONDS`."""
        here = asyncio.get_running_loop()
        await asyncio.gather(*(_close(one) for one in self._in_loops if one.loop is here))

    def forget_parent(self) -> object:
        """See `HasParents`. The child gives its copies of the sockets back, and the parent keeps its connections."""
        ours = (self._in_loops, self._last)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for one in self._in_loops:
            for connection in list(one.connections):
                if (descriptor := _descriptor(connection)) is not None:
                    # The number stays taken, so that no finalizer closes a file that got it later.
                    os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)
        self._in_loops, self._last, self._lock = [], None, threading.Lock()
        return ours


class HostEngine(Engines):
    """A host's engine, which may be used in one event loop and process at a time."""

    is_own = False

    def __init__(self, engine: AsyncEngine, schema: str, on_loop: Callable[[], object]) -> None:
        super().__init__(schema, on_loop)
        self._engine = engine
        self._autocommit = engine.execution_options(**self._options)
        self._pool: Pool | None = None

    @property
    def engine(self) -> AsyncEngine:
        return self._engine

    def _enter(self, loop: asyncio.AbstractEventLoop) -> LoopEngine:
        pool = self._engine.sync_engine.pool
        # `dispose` gives the engine a new pool.
        if pool is self._pool and isinstance(pool, QueuePool) and pool.checkedin() + pool.checkedout() > 0:
            raise ConfigurationError(OTHER_LOOP)
        self._pool = pool
        return LoopEngine(loop, self._engine, self._autocommit, WeakSet())

    def forget_parent(self) -> object:
        """See `HasParents`. The connections stay in the host's pool: the host decides what becomes of them."""
        self._last = None
        return None


class EnginesOfSchema(Engines):
    """The engines of a server for one of several schemas on it. They share the server's pools."""

    def __init__(self, server: Engines, schema: str) -> None:
        super().__init__(schema, lambda: None)
        self._server = server
        self.is_own = server.is_own

    @property
    def engine(self) -> AsyncEngine:
        return self._server.engine

    def _enter(self, loop: asyncio.AbstractEventLoop) -> LoopEngine:
        of_server = self._server.current()
        return of_server._replace(loop=loop, autocommit=of_server.engine.execution_options(**self._options))

    def forget_parent(self) -> object:
        """See `HasParents`. The server's engines are forgotten by themselves."""
        ours, self._last = self._last, None
        return ours


async def call_in(
    loop: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, object]], *, within_seconds: float
) -> bool:
    """Runs a call in an event loop of this process and waits for it. Returns whether it ended in time."""
    if loop is asyncio.get_running_loop():
        await call()
        return True
    if not loop.is_running():
        return False
    called = call()
    try:
        running = asyncio.run_coroutine_threadsafe(called, loop)
    except RuntimeError:  # the loop was closed meanwhile
        called.close()
        return False
    done, _ = await asyncio.wait([asyncio.wrap_future(running)], timeout=within_seconds)
    return bool(done)


async def _close_in_its_loop(one: LoopEngine) -> None:
    if one.loop is None or not await call_in(one.loop, lambda: _close(one), within_seconds=CLOSE_SECONDS + 1):
        _abandon(one)


async def _close(one: LoopEngine) -> None:
    # A task of its own, so that cancelling the caller does not stop it half-way.
    closing = asyncio.ensure_future(one.engine.dispose())
    done, _ = await asyncio.wait([closing], timeout=CLOSE_SECONDS)
    if done:
        closing.result()
        return
    # The other side is silent. Without their connections the task ends.
    for connection in list(one.connections):
        connection.terminate()
    one.engine.sync_engine.dispose(close=False)
    closing.cancel()
    await asyncio.wait([closing], timeout=CLOSE_SECONDS)


def _abandon(one: LoopEngine) -> None:
    """Ends connections whose event loop does not run: nothing can be sent on them any more."""
    for connection in list(one.connections):
        with suppress(RuntimeError):  # the loop is closed
            connection.terminate()
    # The finalizers of the transports close the sockets.
    one.engine.sync_engine.dispose(close=False)


def _descriptor(connection: "asyncpg.Connection") -> int | None:
    """The file descriptor of a connection; None where it is closed. asyncpg has no public name for it."""
    transport: asyncio.BaseTransport | None = getattr(connection, "_transport", None)
    open_socket = None if transport is None else transport.get_extra_info("socket")
    descriptor: int = -1 if open_socket is None else open_socket.fileno()
    return descriptor if descriptor >= 0 else None
