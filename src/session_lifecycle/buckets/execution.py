"""BucketExecution: runs the statements of one bucket where the bucket is, by the clock of the question."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from session_lifecycle.buckets import citus
from session_lifecycle.buckets.directory import INCOMPLETE, Deployment
from session_lifecycle.entities import quoted
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from session_lifecycle.models import Viewer
from session_lifecycle.postgres.driver_statements import KeptStatement
from session_lifecycle.postgres.execution import BoundExecution, PoolExecution, Run, Stream
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.statements.buckets import directory
from session_lifecycle.statements.writing.record import GATE, record

MOST_MOVES = 8
"""How many moves of a bucket one call follows."""

Answer = TypeVar("Answer")
_TABLE = text("SELECT pg_catalog.to_regclass(:table)")

question_clock: ContextVar[datetime | None] = ContextVar("question_clock", default=None)
"""The moment by which every bucket judges that one question is put to; None: each by its own clock."""


def at_clock(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """The parameters of a statement with the clock of the question, where they have none of their own."""
    as_of = question_clock.get()
    if as_of is not None and parameters is not None and "as_of" in parameters and parameters["as_of"] is None:
        return {**parameters, "as_of": as_of}
    return parameters


class BucketExecution:
    """Runs each statement at the present place of its bucket. Looks once whether that place is the bucket's.

    A bucket that moved is no longer at its old place: a statement that reaches the old place fails there without an
    effect. Then this execution reads where the bucket went, and runs the statement there.
    """

    def __init__(
        self,
        number: int,
        schema: str,
        deployment: Deployment,
        pool: Callable[[], PoolExecution],
        follow: Callable[[str], None],
    ) -> None:
        """Opens no connection.

        Args:
            number: The number of the bucket.
            schema: The schema, which is the same at every place.
            deployment: What all buckets agree on.
            pool: Gives the execution at the present place.
            follow: Takes the URL of the next place, without a password; `pool` then gives the execution there.
        """
        self.schema = schema
        self._number = number
        self._deployment = deployment
        self._pool = pool
        self._follow = follow
        self._looked_at: PoolExecution | None = None
        self._has_followed = False
        self._record = record(schema)
        self._is_on_citus = False

    async def fetch(
        self, statement: Any, parameters: dict[str, Any] | None = None, *, viewer: Viewer | None = None
    ) -> Sequence[Any]:
        values = at_clock(parameters)
        return await self.run_here(lambda pool: pool.fetch(statement, values, viewer=viewer))

    async def write(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        async def write(pool: PoolExecution) -> Sequence[Any]:
            asked = record(self.schema, GATE) if self._is_on_citus and statement is self._record else statement
            return await pool.write(asked, parameters, repeatable=repeatable, on_sent=on_sent)

        return await self.run_here(write)

    async def write_together(
        self,
        work: Callable[[Run], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        return await self.run_here(lambda pool: pool.write_together(work, repeatable=repeatable, on_sent=on_sent))

    async def vacuum(self, tables: Sequence[str]) -> None:
        await self.run_here(lambda pool: pool.vacuum(tables))

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Stream]:
        async def here(pool: PoolExecution) -> PoolExecution:
            return pool

        pool = await self.run_here(here)
        async with pool.snapshot() as stream:
            yield stream

    async def run_here(self, call: Callable[[PoolExecution], Awaitable[Answer]], *, compares: bool = True) -> Answer:
        """Makes a call at the present place of the bucket.

        Args:
            call: The call. A SchemaError of it means that it had no effect, so it is made again at the next place.
            compares: Whether to look first whether the place is the bucket's.
        """
        try:
            moves = 0
            while True:
                pool = self._pool()
                try:
                    if compares and self._looked_at is not pool:
                        # A place to which the bucket's own pointer led is complete, whatever it says of itself.
                        await self._deployment.look(pool, self._number, is_complete=self._has_followed)
                        self._is_on_citus = await self.check_functions(pool)
                        self._looked_at = pool
                    return await call(pool)
                except SchemaError:
                    moves += 1
                    if moves > MOST_MOVES or not await self._has_moved_from(pool):
                        raise
        except DatabaseUnavailableError as error:
            message = f"bucket {self._number}: {error}"
            raise DatabaseUnavailableError(message, may_have_written=error.may_have_written) from error.__cause__
        except (SchemaError, ConfigurationError) as error:
            raise type(error)(f"bucket {self._number}: {error}") from error.__cause__

    async def check_functions(self, pool: PoolExecution) -> bool:
        """Whether Citus has distributed the bucket. Raises SchemaError where it has not distributed every function."""
        try:
            async with pool.connection() as connection:
                return await citus.check_functions(connection, self.schema)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    async def settle(self) -> None:
        """Goes to the place where the bucket is now. Does nothing where it has not moved."""
        for _ in range(MOST_MOVES):
            if not await self._has_moved_from(self._pool()):
                return

    async def _has_moved_from(self, pool: PoolExecution) -> bool:
        """Whether the bucket is no longer at this place. Then the next call goes to its new place.

        Raises:
            ConfigurationError: The bucket is not here yet.
        """
        if pool is not self._pool():  # another call has found it out
            return True
        try:
            async with pool.connection() as connection:
                if await connection.scalar(_TABLE, {"table": f"{quoted(self.schema)}.session_buckets"}) is None:
                    return False
                found = (await connection.execute(directory.present_state())).one_or_none()
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        if found is not None and found.is_arriving and not self._has_followed:
            raise ConfigurationError(INCOMPLETE)
        if found is None or found.moved_to is None:
            return False
        if pool is self._pool():
            self._follow(found.moved_to)
            self._has_followed = True
        return True


class BoundBucketExecution:
    """Runs the statements of one bucket in the host's transaction, whose database must have the bucket."""

    def __init__(
        self,
        number: int,
        schema: str,
        deployment: Deployment,
        host: AsyncConnection | AsyncSession,
        *,
        savepoints: bool,
    ) -> None:
        self.schema = schema
        self._number = number
        self._deployment = deployment
        self._host = host
        self._bound = BoundExecution(host, schema, savepoints=savepoints)
        self._is_looked_at = False

    async def fetch(
        self, statement: Any, parameters: dict[str, Any] | None = None, *, viewer: Viewer | None = None
    ) -> Sequence[Any]:
        await self._look()
        return await self._bound.fetch(statement, at_clock(parameters), viewer=viewer)

    async def write(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        await self._look()
        return await self._bound.write(statement, parameters, repeatable=repeatable, on_sent=on_sent)

    async def write_together(
        self,
        work: Callable[[Run], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        await self._look()
        return await self._bound.write_together(work, repeatable=repeatable, on_sent=on_sent)

    async def vacuum(self, tables: Sequence[str]) -> None:
        await self._look()
        await self._bound.vacuum(tables)

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Stream]:
        await self._look()
        async with self._bound.snapshot() as stream:
            yield stream

    async def _look(self) -> None:
        """Refuses a bucket that is not in the host's database. Nothing fails there, so the transaction goes on."""
        if self._is_looked_at:
            return
        name = f"{quoted(self.schema)}.session_buckets"
        host = self._host
        try:
            connection = await host.connection() if isinstance(host, AsyncSession) else host
            oid = await connection.scalar(_TABLE, {"table": name})
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        refusal = (
            f"bind: bucket {self._number} is not in the database of this transaction: only users whose buckets are in "
            "the host's own database can be written and read in its transactions"
        )
        if oid is None:
            raise ConfigurationError(refusal)
        try:
            await self._deployment.look(self._bound, self._number)
        except (SchemaError, ConfigurationError) as error:
            raise ConfigurationError(f"{refusal}: {error}") from error
        self._is_looked_at = True
