"""Running a statement, on the pool or in a host's transaction: what is repeated, and what is raised."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from random import SystemRandom
from typing import Any, NoReturn, Protocol, cast
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Engine, Executable, Select, exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from session_lifecycle.entities import metadata
from session_lifecycle.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    SchemaError,
    SessionLifecycleError,
    TransactionConflictError,
)
from session_lifecycle.migrations import UPGRADE_COMMAND, check_revisions, quoted
from session_lifecycle.statements import schema_version

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 1.0

# https://www.postgresql.org/docs/current/errcodes-appendix.html
CONFLICTS = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55P03": "lock not available",
    "SL003": "a session was deleted",  # raised by our functions, as is the next one
}
READ_ONLY = "25006"
MISSING = {"42P01", "42883", "42703", "3F000", "42704"}
UNAVAILABLE_CLASSES = {"08", "53", "57", "58"}
ERASED = "SL004"
# The server stops, crashed, starts, or has no connection left.
PASSING = {"57P01", "57P02", "57P03", "53300"}
# What SQLAlchemy makes of the driver's errors, and wraps once more only around its own statements.
AdaptedError = AsyncAdapt_asyncpg_dbapi.Error
DATABASE_TROUBLE = (
    exc.SQLAlchemyError,
    AdaptedError,
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresError,
)

# The system's, so that no two processes have the same chances, however they were made of each other.
_chance = SystemRandom()
_checked: "WeakKeyDictionary[Engine, set[str]]" = WeakKeyDictionary()


def with_jitter(seconds: float) -> float:
    """About so long, so that those who failed together do not come back together."""
    return seconds * _chance.uniform(0.5, 1.5)


AnySelect = Select[*tuple[Any, ...]]


class Execution(Protocol):
    """Where statements run."""

    schema: str

    async def fetch(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:
        """All rows of a statement that reads, and what it binds where it was built without values."""
        ...

    async def write(self, statement: AnySelect, parameters: dict[str, Any], *, repeatable: bool) -> Sequence[Any]:
        """All rows of a statement that writes, each readable as a tuple.

        Args:
            statement: The statement; the same object every time.
            parameters: What it binds.
            repeatable: Whether running it again is harmless when nobody knows if it took effect.
        """
        ...


class PoolExecution:
    """Each statement is a transaction of its own, on a connection of the engine's pool."""

    def __init__(self, engine: AsyncEngine, schema: str, retries: int) -> None:
        self.schema = schema
        self._retries = retries
        # A copy that shares the pool: the host's own engine keeps its options. One statement is one transaction
        # without asking for one, which saves two of three round trips.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT", **_options(schema))
        self._compiled: dict[Executable, tuple[str, Sequence[str]]] = {}

    async def fetch(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:
        """See `Execution`."""

        async def run(sending: Callable[[], None]) -> Sequence[Any]:
            async with self._connection() as connection:
                sending()
                return (await connection.execute(statement, parameters)).all()

        return await self._repeated(run, repeatable=True)

    async def write(self, statement: AnySelect, parameters: dict[str, Any], *, repeatable: bool) -> Sequence[Any]:
        """See `Execution`.

        Runs on the driver's own connection: what SQLAlchemy does around a statement would be a third of the call.
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
        """What `run` answers, which calls what it is given before it sends anything; again, where that is safe."""
        sent = False

        def sending() -> None:
            nonlocal sent
            sent = True

        pause = FIRST_PAUSE_SECONDS
        may_have_written = False
        for attempt in range(self._retries + 1):
            sent = False
            try:
                await self._check_schema()
                return await run(sending)
            except DATABASE_TROUBLE as error:
                in_the_dark = sent and not _wrote_nothing(error)
                may_have_written = may_have_written or in_the_dark
                harmless = repeatable or not in_the_dark
                overdue = sent and isinstance(_driver_error(error), TimeoutError)  # and would be again
                if attempt == self._retries or overdue or not (harmless and _is_passing(error)):
                    raise_ours(error, may_have_written=may_have_written)
            await asyncio.sleep(with_jitter(pause))
            pause = min(pause * 3, LONGEST_PAUSE_SECONDS)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _check_schema(self) -> None:
        if not _is_checked(self._engine.sync_engine, self.schema):
            async with self._connection() as connection:
                await check_schema_once(connection, self.schema)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection]:
        """A connection of the pool; a lost one is kept out of it, also where SQLAlchemy does not see that it is."""
        async with self._engine.connect() as connection:
            try:
                yield connection
            except DATABASE_TROUBLE as error:
                if not connection.invalidated:
                    driver = cast("asyncpg.Connection", (await connection.get_raw_connection()).driver_connection)
                    if _is_lost(driver, error):
                        await connection.invalidate()
                raise

    def _on_driver(self, sql: str, values: Sequence[Any], sending: Callable[[], None]) -> Sequence[Any]:
        """The same on the driver's own connection, of the pool as well: to be run in a greenlet of SQLAlchemy's."""
        pooled = self._engine.sync_engine.raw_connection()
        driver = cast("asyncpg.Connection", pooled.driver_connection)
        sending()
        try:
            rows: Sequence[Any] = await_only(driver.fetch(sql, *values))
        except DATABASE_TROUBLE as error:
            if _is_lost(driver, error):
                pooled.invalidate()
            raise
        else:
            return rows
        finally:
            pooled.close()


class BoundExecution:
    """Statements run in the host's transaction. It is never committed, rolled back or repeated by us."""

    def __init__(self, host: AsyncConnection | AsyncSession, schema: str, *, savepoints: bool) -> None:
        self.schema = schema
        self._host = host
        self._savepoints = savepoints
        self._level_known = False

    async def fetch(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:
        """See `Execution`."""
        return await self._run(statement, parameters or {})

    async def write(self, statement: AnySelect, parameters: dict[str, Any], *, repeatable: bool) -> Sequence[Any]:
        """See `Execution`."""
        del repeatable  # nothing can be repeated inside a transaction that is not ours
        return await self._run(statement, parameters)

    async def _run(self, statement: Executable, parameters: dict[str, Any]) -> Sequence[Any]:
        try:
            connection = await self._host.connection() if isinstance(self._host, AsyncSession) else self._host
            await self._check_isolation(connection)
            await check_schema_once(connection, self.schema)
            async with connection.begin_nested() if self._savepoints else nullcontext():
                return (await connection.execute(statement, parameters, execution_options=_options(self.schema))).all()
        except DATABASE_TROUBLE as error:
            raise_ours(error)

    async def _check_isolation(self, connection: AsyncConnection) -> None:
        if self._level_known:
            return
        level = (await connection.exec_driver_sql("SHOW transaction_isolation")).scalar_one()
        if level != "read committed":
            raise TransactionConflictError(
                f"the host's transaction is {level.upper()}, expected READ COMMITTED: under any other level concurrent "
                "writers of one session fail, and inside a transaction of the host nothing can be repeated"
            )
        self._level_known = True


def _options(schema: str) -> dict[str, Any]:
    return {"schema_translate_map": {metadata.schema: schema}}


async def check_schema_once(connection: AsyncConnection, schema: str) -> None:
    """Looks at the schema's revision, once per engine (rule R20)."""
    if not _is_checked(connection.engine.sync_engine, schema):
        await check_schema(connection, schema)
        _checked.setdefault(connection.engine.sync_engine, set()).add(schema)


def _is_checked(engine: Engine, schema: str) -> bool:
    return schema in _checked.get(engine, ())


async def check_schema(connection: AsyncConnection, schema: str) -> None:
    """Looks at the schema's revision.

    Raises:
        SchemaError: It is not the one this version works with.
    """
    name = f"{quoted(schema)}.{schema_version.VERSION_TABLE}"
    found: list[str] | None = None
    if (await connection.execute(schema_version.version_table_exists(), {"name": name})).scalar_one():
        found = [row.version_num for row in await connection.execute(schema_version.revisions(schema))]
    check_revisions(schema, found)


def _is_lost(driver: "asyncpg.Connection", error: BaseException) -> bool:
    """Whether the connection is of no use any more.

    A backend that dies while a statement is being prepared may leave asyncpg with "cannot switch to state".
    """
    return isinstance(_driver_error(error), asyncpg.InternalClientError | OSError | TimeoutError) or driver.is_closed()


def _driver_error(error: BaseException) -> BaseException:
    """The error of asyncpg or of the network, under SQLAlchemy's where it is wrapped."""
    adapted = getattr(error, "orig", None) or error
    return adapted.__cause__ or adapted if isinstance(adapted, AdaptedError) else adapted


def _sqlstate(error: BaseException) -> str | None:
    return getattr(_driver_error(error), "sqlstate", None)


def _wrote_nothing(error: BaseException) -> bool:
    """Whether a statement that was sent certainly took no effect."""
    if _sqlstate(error) in {*CONFLICTS, READ_ONLY}:
        return True  # the transaction was rolled back
    # The plan was of an older schema, or the connection was known to be closed.
    return isinstance(_driver_error(error), asyncpg.InvalidCachedStatementError | asyncpg.InterfaceError)


def _is_passing(error: BaseException) -> bool:
    """Whether it may be gone at the next attempt."""
    if isinstance(error, exc.TimeoutError):
        return False  # the pool's own: waiting again would only wait longer
    state = _sqlstate(error) or ""
    lost = isinstance(_driver_error(error), OSError | asyncpg.InternalClientError)
    return lost or _wrote_nothing(error) or state[:2] == "08" or state in PASSING


def raise_ours(error: BaseException, *, may_have_written: bool = False) -> NoReturn:
    """Raises the error of ours that says what happened, the original kept as its cause."""
    cause = _driver_error(error)
    state = _sqlstate(error)
    told = f"{type(cause).__name__}: {cause}" if state is None else f"{type(cause).__name__} ({state}): {cause}"
    if isinstance(error, exc.TimeoutError):
        raise DatabaseUnavailableError(f"no connection became free in time: {error}") from error
    if isinstance(cause, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError) or (
        state and state[:2] in UNAVAILABLE_CLASSES
    ):
        raise DatabaseUnavailableError(
            f"the database cannot be reached or did not answer: {told}", may_have_written=may_have_written
        ) from error
    if state == READ_ONLY:
        raise DatabaseUnavailableError(f"the database only reads, as a replica does: {told}") from error
    if state == ERASED:
        user_id = getattr(cause, "detail", None)
        raise InvalidValueError("user_id", user_id, "a user who was not erased for good") from error
    if state in CONFLICTS:
        raise TransactionConflictError(f"another transaction was in the way ({CONFLICTS[state]}): {told}") from error
    if state in MISSING:
        raise SchemaError(
            f"the schema is not the one this version works with: run `{UPGRADE_COMMAND}`; {told}"
        ) from error
    if state and state[:2] == "28":
        raise ConfigurationError(f"the database refuses this user: {told}") from error
    if state in {"42501", "3D000"}:
        raise ConfigurationError(f"the database refuses access: {told}") from error
    if state and state[:2] == "22":
        raise InvalidValueError("value", told, "a value whose totals the database can hold") from error
    raise SessionLifecycleError(f"Postgres refused: {told}") from error
