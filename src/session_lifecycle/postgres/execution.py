"""What runs statements: the protocol of executions, and what both of them share.

`PoolExecution` runs them on the pool, with retries; `BoundExecution` in the host's transaction.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from random import SystemRandom
from typing import Any, Protocol, overload

import asyncpg
from sqlalchemy import Executable, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.entities import metadata, quoted
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.models import Viewer
from session_lifecycle.postgres.driver_statements import KeptStatement, driver_statement

# The system's source of randomness: forked processes would share the state of a seeded one.
_random = SystemRandom()


def with_jitter(seconds: float) -> float:
    """The duration ±50 %, so that callers that failed together do not retry together."""
    return seconds * _random.uniform(0.5, 1.5)


Run = Callable[[KeptStatement, dict[str, Any]], Awaitable[Sequence[Any]]]
"""Runs a kept statement with the values of its bound parameters, and returns all its rows."""


Stream = Callable[[Executable, int], AsyncGenerator[Sequence[Any]]]
"""Runs a statement and yields its rows by a cursor, at most so many at once. Close what it returns."""


class Execution(Protocol):
    """Runs statements and raises this library's errors.

    Attributes:
        schema: The Postgres schema that holds the tables.
    """

    schema: str

    @overload
    async def fetch(self, statement: Executable, *, writes: bool = False) -> Sequence[Any]: ...

    @overload
    async def fetch(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        viewer: Viewer | None = None,
        writes: bool = False,
        has_deadline: bool = True,
    ) -> Sequence[Any]: ...

    async def fetch(
        self,
        statement: Any,
        parameters: dict[str, Any] | None = None,
        *,
        viewer: Viewer | None = None,
        writes: bool = False,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        """Runs a statement and returns all its rows.

        Args:
            statement: The statement. It must be harmless to repeat.
            parameters: The values of its bound parameters. The statement of every read is kept. None: the statement was
                built for this call, with its values, as those of jobs are.
            viewer: Who is asking, for row-level security. None: a role that is walled in sees no row.
            writes: Whether it writes. The error of a lost answer says so.
            has_deadline: Whether the statement timeout of an engine of ours holds. A kept statement of a job whose time
                grows with the data has an hour instead. What a host's engine says holds always.
        """
        ...

    async def write(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        """Runs a statement that writes and returns all its rows, each readable as a tuple.

        Args:
            statement: The kept statement.
            parameters: The values of its bound parameters.
            repeatable: Whether the statement can safely run again when its first run may have been committed.
            on_sent: Called before the statement is sent, each time. Before that, nothing can have been written.
            has_deadline: See `fetch`.
        """
        ...

    async def write_together(
        self,
        work: Callable[[Run], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        """Runs several statements that write, in one transaction. An error of `work` undoes all of them.

        Args:
            work: Runs the statements and returns the rows. It is called again where the transaction is repeated.
            repeatable: See `write`.
            on_sent: See `write`.
        """
        ...

    async def check_takes_any_user(self) -> None:
        """Makes sure that what belongs to any user may come into the schema. Asks the database once.

        Raises:
            ConfigurationError: The schema is a bucket, and nothing here knows which users belong to it.
        """
        ...

    async def vacuum(self, tables: Sequence[str]) -> None:
        """Removes the dead rows of the tables and gathers statistics of them.

        Postgres leaves out a table that another role owns, and one that is locked. In a host's transaction it gathers
        the statistics only: no transaction can contain a VACUUM.

        Args:
            tables: The tables, quoted and with their schema.
        """
        ...

    def snapshot(self) -> AbstractAsyncContextManager[Stream]:
        """A stream of rows, for statements that read. Nothing is repeated.

        On the pool, everything that the stream reads is one snapshot: the database as it was at the first statement.
        In a host's transaction, which is READ COMMITTED, each statement has a snapshot of its own.
        """
        ...


def is_elsewhere(driver: "asyncpg.Connection") -> bool:
    """Whether the connection belongs to another event loop. asyncpg has no public name for its loop."""
    loop = asyncio.get_running_loop()
    return getattr(driver, "_loop", loop) is not loop


def bucket_of(schema: str) -> TextClause:
    """At most one row: which bucket the schema is, of how many."""
    name = f"{quoted(schema)}.session_buckets"
    return text(f"SELECT number, bucket_count FROM {name}".replace(":", "\\:"))  # noqa: S608 - the name is quoted


def refuse_bucket(schema: str, rows: Sequence[Any]) -> None:
    for number, bucket_count in rows:
        raise ConfigurationError(
            f"schema {schema!r} is bucket {number} of {bucket_count}, and a database of one schema does not know which "
            "users belong to it: write with SessionDatabase.buckets and all places"
        )


async def all_rows(
    connection: AsyncConnection, schema: str, statement: KeptStatement, parameters: dict[str, Any]
) -> Sequence[Any]:
    kept = driver_statement(statement, parameters, schema)
    return kept.rows(await connection.exec_driver_sql(kept.sql, tuple(kept.values(parameters))))


async def streamed(
    connection: AsyncConnection,
    statement: Executable,
    size: int,
    deadline_seconds: float | None,
    options: dict[str, Any] | None = None,
) -> AsyncGenerator[Sequence[Any]]:
    """The rows by a cursor of the server, which holds those that are not yet asked for."""
    async with asyncio.timeout(deadline_seconds):
        result = await connection.stream(statement, execution_options={**(options or {}), "max_row_buffer": size})
    try:
        while True:
            async with asyncio.timeout(deadline_seconds):
                batch = await result.fetchmany(size)
            if not batch:
                return
            yield batch
    finally:
        await result.close()


def schema_options(schema: str) -> dict[str, Any]:
    return {"schema_translate_map": {metadata.schema: schema}}
