"""Executions run statements: on the pool, with retries, or in the host's transaction."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from random import SystemRandom
from typing import Any, Protocol, cast

import asyncpg
from sqlalchemy import Executable, Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from session_lifecycle.entities import metadata
from session_lifecycle.errors import TransactionConflictError
from session_lifecycle.postgres.failures import (
    DRIVER_FAILURES,
    driver_error,
    is_connection_lost,
    is_transient,
    raise_as_ours,
    wrote_nothing,
)
from session_lifecycle.postgres.schema_check import check_schema, check_schema_once

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 1.0

# The system's source of randomness: forked processes would share the state of a seeded one.
_random = SystemRandom()


def with_jitter(seconds: float) -> float:
    """The duration ±50 %, so that callers that failed together do not retry together."""
    return seconds * _random.uniform(0.5, 1.5)


AnySelect = Select[*tuple[Any, ...]]


class Execution(Protocol):
    """Runs statements and raises this library's errors.

    Attributes:
        schema: The Postgres schema that holds the tables.
    """

    schema: str

    async def fetch(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:
        """Runs a statement and returns all its rows.

        Args:
            statement: The statement. It must be harmless to repeat.
            parameters: The values of its bound parameters, where it was built without values.
        """
        ...

    async def write(self, statement: AnySelect, parameters: dict[str, Any], *, repeatable: bool) -> Sequence[Any]:
        """Runs a statement that writes and returns all its rows, each readable as a tuple.

        Args:
            statement: The statement. Pass the same object every time: its SQL is compiled once per object.
            parameters: The values of its bound parameters.
            repeatable: Whether the statement can safely run again when its first run may have been committed.
        """
        ...


class PoolExecution:
    """Runs each statement in its own transaction, on a connection of the engine's pool. Retries transient failures."""

    def __init__(self, engine: AsyncEngine, schema: str, retries: int) -> None:
        self.schema = schema
        self._retries = retries
        # A copy that shares the pool, so that the host's engine keeps its options. With AUTOCOMMIT each statement is a
        # transaction without BEGIN and COMMIT, which saves two of three round trips.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT", **_options(schema))
        self._is_schema_checked = False
        self._compiled: dict[Executable, tuple[str, Sequence[str]]] = {}

    async def fetch(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:

        async def run(mark_sent: Callable[[], None]) -> Sequence[Any]:
            async with self._connection() as connection:
                mark_sent()
                return (await connection.execute(statement, parameters)).all()

        return await self._repeated(run, repeatable=True)

    async def write(self, statement: AnySelect, parameters: dict[str, Any], *, repeatable: bool) -> Sequence[Any]:
        """See `Execution`.

        Runs on the driver's own connection: SQLAlchemy's work around a statement would take a third of the call.
        """
        if statement not in self._compiled:
            compiled = statement.compile(dialect=self._engine.dialect)
            self._compiled[statement] = (str(compiled), compiled.positiontup or ())
        sql, names = self._compiled[statement]
        values = [parameters[name] for name in names]
        return await self._repeated(partial(greenlet_spawn, self._on_driver, sql, values), repeatable=repeatable)

    async def _repeated(
        self, run: Callable[[Callable[[], None]], Awaitable[Sequence[Any]]], *, repeatable: bool
    ) -> Sequence[Any]:
        """Returns the rows of `run`, and retries it where that is safe.

        Args:
            run: Runs the statement. It calls its argument just before it sends the statement.
            repeatable: See `Execution.write`.
        """
        sent = False

        def mark_sent() -> None:
            nonlocal sent
            sent = True

        pause = FIRST_PAUSE_SECONDS
        may_have_written = False
        for attempt in range(self._retries + 1):
            sent = False
            try:
                await self._check_schema()
                return await run(mark_sent)
            except DRIVER_FAILURES as error:
                is_outcome_unknown = sent and not wrote_nothing(error)
                may_have_written = may_have_written or is_outcome_unknown
                is_safe = repeatable or not is_outcome_unknown
                # The client's command timeout, which the next attempt would exceed as well.
                timed_out = sent and isinstance(driver_error(error), TimeoutError)
                if attempt == self._retries or timed_out or not (is_safe and is_transient(error)):
                    raise_as_ours(error, may_have_written=may_have_written)
            await asyncio.sleep(with_jitter(pause))
            pause = min(pause * 3, LONGEST_PAUSE_SECONDS)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _check_schema(self) -> None:
        if not self._is_schema_checked:
            async with self._connection() as connection:
                await check_schema(connection, self.schema)
            self._is_schema_checked = True

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection]:
        """A connection of the pool. A lost one does not go back, even where SQLAlchemy does not notice the loss."""
        async with self._engine.connect() as connection:
            try:
                yield connection
            except DRIVER_FAILURES as error:
                if not connection.invalidated:
                    driver = cast("asyncpg.Connection", (await connection.get_raw_connection()).driver_connection)
                    if is_connection_lost(driver, error):
                        await connection.invalidate()
                raise

    def _on_driver(self, sql: str, values: Sequence[Any], mark_sent: Callable[[], None]) -> Sequence[Any]:
        """Runs the SQL on the driver's connection of a pooled connection. Must run in a greenlet of SQLAlchemy."""
        pooled = self._engine.sync_engine.raw_connection()
        driver = cast("asyncpg.Connection", pooled.driver_connection)
        mark_sent()
        try:
            rows: Sequence[Any] = await_only(driver.fetch(sql, *values))
        except DRIVER_FAILURES as error:
            if is_connection_lost(driver, error):
                pooled.invalidate()
            raise
        else:
            return rows
        finally:
            pooled.close()


class BoundExecution:
    """Runs statements in the host's transaction, which this library never commits, rolls back or repeats."""

    def __init__(self, host: AsyncConnection | AsyncSession, schema: str, *, savepoints: bool) -> None:
        self.schema = schema
        self._host = host
        self._savepoints = savepoints
        self._is_isolation_checked = False

    async def fetch(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:
        return await self._run(statement, parameters or {})

    async def write(self, statement: AnySelect, parameters: dict[str, Any], *, repeatable: bool) -> Sequence[Any]:
        del repeatable  # a failed statement cannot be repeated inside the host's transaction
        return await self._run(statement, parameters)

    async def _run(self, statement: Executable, parameters: dict[str, Any]) -> Sequence[Any]:
        try:
            connection = await self._host.connection() if isinstance(self._host, AsyncSession) else self._host
            await self._check_isolation(connection)
            await check_schema_once(connection, self.schema)
            async with connection.begin_nested() if self._savepoints else nullcontext():
                return (await connection.execute(statement, parameters, execution_options=_options(self.schema))).all()
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    async def _check_isolation(self, connection: AsyncConnection) -> None:
        if self._is_isolation_checked:
            return
        level = (await connection.exec_driver_sql("SHOW transaction_isolation")).scalar_one()
        if level != "read committed":
            raise TransactionConflictError(
                f"the host's transaction is {level.upper()}, expected READ COMMITTED: under another level concurrent "
                "writers of one session fail, and a statement in the host's transaction cannot be repeated"
            )
        self._is_isolation_checked = True


def _options(schema: str) -> dict[str, Any]:
    return {"schema_translate_map": {metadata.schema: schema}}
