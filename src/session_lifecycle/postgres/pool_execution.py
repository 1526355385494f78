"""Statements on the pool: each in a transaction of its own, repeated where that is safe."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, cast

import asyncpg
from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only, greenlet_spawn

from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError
from session_lifecycle.models import Viewer
from session_lifecycle.postgres.driver_statements import KeptStatement, driver_statement
from session_lifecycle.postgres.engines import OTHER_LOOP, Engines, LoopEngine
from session_lifecycle.postgres.execution import (
    Run,
    Stream,
    all_rows,
    bucket_of,
    is_elsewhere,
    refuse_bucket,
    schema_options,
    streamed,
    with_jitter,
)
from session_lifecycle.postgres.failures import (
    DRIVER_FAILURES,
    driver_error,
    is_connection_lost,
    is_transient,
    raise_as_ours,
    wrote_nothing,
)
from session_lifecycle.postgres.host_engines import check_encoding, driver_connection, look_at_host_engine
from session_lifecycle.postgres.schema_check import check_everything, check_schema

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 1.0
LONGEST_JOB_SECONDS = 3_600.0
"""For how long the client waits for a statement of a job whose time grows with the data."""


class PoolExecution:
    """Runs each statement in its own transaction, on a connection of the engine's pool. Retries transient failures."""

    def __init__(
        self,
        engines: Engines,
        schema: str,
        retries: int,
        *,
        repeat_within_seconds: float | None = None,
        is_for_reads: bool = False,
        sign: Callable[[Viewer], str] | None = None,
    ) -> None:
        """Opens no connection.

        Args:
            engines: The engine of each event loop.
            schema: The Postgres schema that holds the tables.
            retries: How often a call is repeated at most.
            repeat_within_seconds: A call that has taken longer is not repeated; None: `retries` alone decides.
            is_for_reads: Whether no call writes, so that any isolation level will do.
            sign: Writes a viewer as row-level security reads it; None: row-level security is off.
        """
        self.schema = schema
        self._sign = sign
        self._engines = engines
        self._retries = retries
        self._repeat_within_seconds = repeat_within_seconds
        self._is_for_reads = is_for_reads
        self._is_schema_checked = False
        self._takes_any_user = False
        # A host's own server timeout and some more. An engine of ours brings its deadline along, so this stays None.
        self._deadline_seconds: float | None = None

    async def fetch(
        self,
        statement: Any,
        parameters: dict[str, Any] | None = None,
        *,
        viewer: Viewer | None = None,
        writes: bool = False,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        if parameters is not None:
            engine = self._engines.current()
            kept = driver_statement(statement, parameters, self.schema)
            if viewer is not None and self._sign is not None:
                values = [*kept.values(parameters), self._sign(viewer)]
                on_driver = partial(greenlet_spawn, self._on_driver, engine, kept.sql_for_viewer, values, has_deadline)
                return kept.rows_for_viewer(await self._repeated(on_driver, repeatable=True, writes=writes))
            on_driver = partial(
                greenlet_spawn, self._on_driver, engine, kept.sql, kept.values(parameters), has_deadline
            )
            return kept.rows(await self._repeated(on_driver, repeatable=True, writes=writes))

        async def run(mark_sent: Callable[[], None]) -> Sequence[Any]:
            async with self._connection() as connection:
                mark_sent()
                async with asyncio.timeout(self._deadline_seconds):
                    return (await connection.execute(statement)).all()

        return await self._repeated(run, repeatable=True, writes=writes)

    async def write(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        """See `Execution`.

        Runs on the driver's own connection: SQLAlchemy's work around a statement would take a third of the call.
        """
        engine = self._engines.current()
        kept = driver_statement(statement, parameters, self.schema)
        run = partial(greenlet_spawn, self._on_driver, engine, kept.sql, kept.values(parameters), has_deadline)
        return await self._repeated(run, repeatable=repeatable, on_sent=on_sent)

    async def write_together(
        self,
        work: Callable[[Run], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:

        async def run(mark_sent: Callable[[], None]) -> Sequence[Any]:
            async with self._connection(in_transaction=True) as connection, connection.begin():
                mark_sent()
                async with asyncio.timeout(self._deadline_seconds):
                    return await work(partial(all_rows, connection, self.schema))

        return await self._repeated(run, repeatable=repeatable, on_sent=on_sent)

    async def check_takes_any_user(self) -> None:
        if not self._takes_any_user:
            refuse_bucket(self.schema, await self.fetch(bucket_of(self.schema)))
            self._takes_any_user = True

    async def vacuum(self, tables: Sequence[str]) -> None:
        # It gives no space back: for that, it would have to keep everybody else from the table.
        sql = f"VACUUM (ANALYZE, TRUNCATE false, SKIP_LOCKED) {', '.join(tables)}"
        await self._repeated(
            partial(greenlet_spawn, self._on_driver, self._engines.current(), sql, (), True), repeatable=True
        )

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Stream]:
        try:
            await self._check_schema()
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True, **schema_options(self.schema)}
        engine = self._engines.current().engine.execution_options(**options)
        pooled = _PooledConnection(engine, self._engines, self._raise_no_connection)
        try:
            connection = await pooled.__aenter__()
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        # An error of the caller's block is no failure of the driver, though it may be of the same class.
        failure: BaseException | None = None

        async def stream(statement: Executable, size: int) -> AsyncGenerator[Sequence[Any]]:
            nonlocal failure
            async with aclosing(streamed(connection, statement, size, self._deadline_seconds)) as rows:
                while True:
                    try:
                        batch = await anext(rows, None)
                    except DRIVER_FAILURES as error:
                        failure = error
                        raise_as_ours(error)
                    if batch is None:
                        return
                    yield batch

        try:
            yield stream
        finally:
            await pooled.__aexit__(type(failure) if failure else None, failure, None)

    async def _repeated(
        self,
        run: Callable[[Callable[[], None]], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
        writes: bool = True,
    ) -> Sequence[Any]:
        """Returns the rows of `run`, and retries it where that is safe.

        Args:
            run: Runs the statement. It calls its argument just before it sends the statement.
            repeatable: See `Execution.write`.
            on_sent: See `Execution.write`.
            writes: See `Execution.fetch`.
        """
        sent = False

        def mark_sent() -> None:
            nonlocal sent
            sent = True
            if on_sent is not None:
                on_sent()

        began = time.monotonic()
        pause = FIRST_PAUSE_SECONDS
        may_have_written = False
        for attempt in range(self._retries + 1):
            sent = False
            try:
                await self._check_schema()
                return await run(mark_sent)
            except DRIVER_FAILURES as error:
                is_outcome_unknown = sent and not wrote_nothing(error)
                may_have_written = may_have_written or (writes and is_outcome_unknown)
                is_safe = repeatable or not is_outcome_unknown
                # The client's deadline, which the next attempt would exceed as well.
                timed_out = sent and isinstance(driver_error(error), TimeoutError)
                is_over = self._repeat_within_seconds and time.monotonic() - began > self._repeat_within_seconds
                if attempt == self._retries or timed_out or is_over or not (is_safe and is_transient(error)):
                    raise_as_ours(error, may_have_written=may_have_written)
            await asyncio.sleep(with_jitter(pause))
            pause = min(pause * 3, LONGEST_PAUSE_SECONDS)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _check_schema(self) -> None:
        if self._is_schema_checked:
            return
        async with self._connection() as connection:
            await self._look_at(connection)
            async with asyncio.timeout(self._deadline_seconds):
                await check_schema(connection, self.schema)
        self._is_schema_checked = True

    async def _look_at(self, connection: AsyncConnection) -> None:
        """Checks that the database, and a host's engine, can do our work; learns how long a host's engine may take."""
        check_encoding(connection)
        if self._engines.is_own:
            return
        async with asyncio.timeout(self._deadline_seconds):
            host = await look_at_host_engine(connection)
        if host.isolation != "read committed" and not self._is_for_reads:
            raise ConfigurationError(
                f"the default isolation level of the host's connections is {host.isolation.upper()}, expected "
                "READ COMMITTED: set default_transaction_isolation, or use SessionDatabase.connect"
            )
        self._deadline_seconds = host.deadline_seconds

    async def check_everything(self) -> list[str]:
        """See `SessionDatabase.check`."""
        async with self._connection() as connection:
            await self._look_at(connection)
            async with asyncio.timeout(self._deadline_seconds):
                return await check_everything(connection, self.schema)

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection of the pool, for statements that are not repeated. Each is a transaction of its own.

        Raises:
            ConfigurationError: On entering: the host's engine has connections of another event loop.
        """
        return self._connection()

    def _connection(self, *, in_transaction: bool = False) -> "_PooledConnection":
        return _PooledConnection(self._engine(in_transaction=in_transaction), self._engines, self._raise_no_connection)

    def _engine(self, *, in_transaction: bool) -> AsyncEngine:
        engine = self._engines.current()
        if not in_transaction:
            return engine.autocommit
        # A copy that shares the pool, so that a host's engine keeps its options.
        return engine.engine.execution_options(isolation_level="READ COMMITTED", **schema_options(self.schema))

    def _on_driver(
        self, engine: LoopEngine, sql: str, values: Sequence[Any], has_deadline: bool, mark_sent: Callable[[], None]
    ) -> Sequence[Any]:
        """Runs the SQL on the driver's connection of a pooled connection. Must run in a greenlet of SQLAlchemy."""
        try:
            pooled = engine.autocommit.sync_engine.raw_connection()
        except RuntimeError as error:
            self._raise_no_connection(error)
        driver = cast("asyncpg.Connection", pooled.driver_connection)
        try:
            if not self._engines.is_own and is_elsewhere(driver):
                raise ConfigurationError(OTHER_LOOP)
            mark_sent()
            rows: Sequence[Any]
            if has_deadline or not self._engines.is_own:
                rows = await_only(driver.fetch(sql, *values, timeout=self._deadline_seconds))
            else:
                rows = await_only(_fetch_of_job(driver, sql, values))
        except DRIVER_FAILURES as error:
            if is_connection_lost(driver, error):
                pooled.invalidate()
            raise
        except asyncio.CancelledError:
            # As SQLAlchemy does. A statement that was parsed and not yet run keeps its locks until more is said on the
            # connection, and an idle one would stop every migration.
            pooled.invalidate()
            raise
        else:
            return rows
        finally:
            pooled.close()

    def _raise_no_connection(self, error: RuntimeError) -> NoReturn:
        """Raises our error for what asyncio refuses before a connection is had."""
        if self._engines.is_own:
            # At the end of the interpreter no thread looks up the name of the server any more.
            raise DatabaseUnavailableError(f"no connection could be opened: {error}") from error
        raise ConfigurationError(OTHER_LOOP) from error


class _PooledConnection:
    """A connection of the pool. A lost one does not go back, nor one of a cancelled call.

    SQLAlchemy notices neither where a statement went to the driver itself.

    It is no asynchronous generator: asyncio closes those when its loop shuts down, and a recorder still writes then.
    """

    def __init__(
        self, engine: AsyncEngine, engines: Engines, raise_no_connection: Callable[[RuntimeError], NoReturn]
    ) -> None:
        self._is_own = engines.is_own
        self._connection = engine.connect()
        self._raise_no_connection = raise_no_connection

    async def __aenter__(self) -> AsyncConnection:
        connection = self._connection
        try:
            await connection.start()
        except RuntimeError as error:
            self._raise_no_connection(error)
        if not self._is_own and is_elsewhere(driver_connection(connection)):
            await connection.close()
            raise ConfigurationError(OTHER_LOOP)
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self._connection
        try:
            if not connection.invalidated and (
                isinstance(error, asyncio.CancelledError)
                or (isinstance(error, DRIVER_FAILURES) and is_connection_lost(driver_connection(connection), error))
            ):
                await connection.invalidate()
        finally:
            await connection.close()


async def _fetch_of_job(driver: "asyncpg.Connection", sql: str, values: Sequence[Any]) -> Sequence[Any]:
    async with driver.transaction():
        # For this transaction only, so it also holds behind a pooler that shares connections.
        await driver.execute("SET LOCAL statement_timeout = 0")
        rows: Sequence[Any] = await driver.fetch(sql, *values, timeout=LONGEST_JOB_SECONDS)
        return rows
