"""Statements in the host's transaction, which stays the host's."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Engine, Executable, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from session_lifecycle.errors import ConfigurationError, TransactionConflictError
from session_lifecycle.models import Viewer
from session_lifecycle.postgres.driver_statements import VIEWER_SETTING, KeptStatement
from session_lifecycle.postgres.engines import OTHER_LOOP
from session_lifecycle.postgres.execution import (
    Run,
    Stream,
    all_rows,
    bucket_of,
    is_elsewhere,
    refuse_bucket,
    schema_options,
    streamed,
)
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.host_engines import check_encoding, driver_connection, look_at_host_engine
from session_lifecycle.postgres.schema_check import check_schema_once

_SET_VIEWER = f"SELECT pg_catalog.set_config('{VIEWER_SETTING}', $1::text, true)"
_checked_hosts: "WeakSet[Engine]" = WeakSet()
_take_any_user: "WeakKeyDictionary[Engine, set[str]]" = WeakKeyDictionary()
"""The schemas that are no buckets, by the engine of the host."""
_turns: "WeakKeyDictionary[AsyncConnection | AsyncSession, tuple[asyncio.AbstractEventLoop, asyncio.Lock]]"
_turns = WeakKeyDictionary()
"""Who uses the host's connection. Savepoints of two calls at once would end each other and abort the transaction."""


class BoundExecution:
    """Runs statements in the host's transaction, which this library never commits, rolls back or repeats."""

    def __init__(
        self,
        host: AsyncConnection | AsyncSession,
        schema: str,
        *,
        savepoints: bool,
        sign: Callable[[Viewer], str] | None = None,
    ) -> None:
        self.schema = schema
        self._sign = sign
        self._host = host
        self._savepoints = savepoints
        self._is_isolation_checked = False

    async def fetch(
        self,
        statement: Any,
        parameters: dict[str, Any] | None = None,
        *,
        viewer: Viewer | None = None,
        writes: bool = False,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        del writes, has_deadline  # the host's transaction decides both: what it loses, and for how long it waits
        if parameters is None:
            return await self._within(partial(_built_rows, statement, schema_options(self.schema)))
        token = None if viewer is None or self._sign is None else self._sign(viewer)
        return await self._within(partial(_rows_for, token, self.schema, statement, parameters))

    async def write(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        del repeatable, has_deadline  # a failed statement cannot be repeated inside the host's transaction
        if on_sent is not None:
            on_sent()
        return await self._within(partial(_rows_for, None, self.schema, statement, parameters))

    async def write_together(
        self,
        work: Callable[[Run], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        del repeatable  # see `write`
        if on_sent is not None:
            on_sent()
        return await self._within(lambda connection: work(partial(all_rows, connection, self.schema)))

    async def check_takes_any_user(self) -> None:
        async with self._turn():
            connection = await self._connection()
        known = _take_any_user.setdefault(connection.engine.sync_engine, set())
        if self.schema not in known:
            refuse_bucket(self.schema, await self.fetch(bucket_of(self.schema)))
            known.add(self.schema)

    async def vacuum(self, tables: Sequence[str]) -> None:
        async def analyze(connection: AsyncConnection) -> Sequence[Any]:
            await connection.exec_driver_sql(f"ANALYZE {', '.join(tables)}")
            return ()

        await self._within(analyze)

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Stream]:
        async def stream(statement: Executable, size: int) -> AsyncGenerator[Sequence[Any]]:
            try:
                connection = await self._checked_connection()
                async with aclosing(streamed(connection, statement, size, None, schema_options(self.schema))) as rows:
                    async for batch in rows:
                        yield batch
            except DRIVER_FAILURES as error:
                raise_as_ours(error)

        yield stream

    async def _within(self, work: Callable[[AsyncConnection], Awaitable[Sequence[Any]]]) -> Sequence[Any]:
        try:
            async with self._turn():
                connection = await self._checked_host()
                # Citus may have the schema on a node that is away, which the look at the schema finds out.
                async with connection.begin_nested() if self._savepoints else nullcontext():
                    await check_schema_once(connection, self.schema)
                    return await work(connection)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    def _turn(self) -> asyncio.Lock:
        """The calls on one host wait for each other, also those of two `bind`. A lock is for one event loop."""
        here = asyncio.get_running_loop()
        loop, lock = _turns.get(self._host, (None, None))
        if lock is None or loop is not here:
            lock = asyncio.Lock()
            _turns[self._host] = here, lock
        return lock

    async def _checked_connection(self) -> AsyncConnection:
        connection = await self._checked_host()
        await check_schema_once(connection, self.schema)
        return connection

    async def _checked_host(self) -> AsyncConnection:
        connection = await self._connection()
        await self._check_isolation(connection)
        await self._check_host(connection)
        return connection

    async def _connection(self) -> AsyncConnection:
        try:
            connection = await self._host.connection() if isinstance(self._host, AsyncSession) else self._host
            if connection.invalidated:  # it was lost and rolled back: SQLAlchemy connects again
                await connection.get_raw_connection()
            driver = driver_connection(connection)
        except RuntimeError as error:  # its connections belong to another event loop
            raise ConfigurationError(OTHER_LOOP) from error
        except exc.ResourceClosedError as error:
            raise ConfigurationError(
                "the host's connection is closed: call what `bind` gives while the connection is open"
            ) from error
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        if is_elsewhere(driver):
            raise ConfigurationError(OTHER_LOOP)
        return connection

    async def _check_host(self, connection: AsyncConnection) -> None:
        engine = connection.engine.sync_engine
        if engine not in _checked_hosts:
            check_encoding(connection)
            await look_at_host_engine(connection)
            _checked_hosts.add(engine)

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


async def _rows_for(
    token: str | None,
    schema: str,
    statement: KeptStatement,
    parameters: dict[str, Any],
    connection: AsyncConnection,
) -> Sequence[Any]:
    """The rows that a viewer of row-level security sees. The rest of the transaction has no viewer."""
    if token is None:
        return await all_rows(connection, schema, statement, parameters)
    await connection.exec_driver_sql(_SET_VIEWER, (token,))
    rows = await all_rows(connection, schema, statement, parameters)
    await connection.exec_driver_sql(_SET_VIEWER, ("",))
    return rows


async def _built_rows(statement: Executable, options: dict[str, Any], connection: AsyncConnection) -> Sequence[Any]:
    return (await connection.execute(statement, execution_options=options)).all()
