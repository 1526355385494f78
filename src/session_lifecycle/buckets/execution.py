"""BucketExecution: runs the statements of one bucket where the bucket is, by the clock of the question."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from session_lifecycle.buckets import citus
from session_lifecycle.buckets.directory import Deployment, Trace, find_trace
from session_lifecycle.entities import quoted
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from session_lifecycle.models import Viewer
from session_lifecycle.postgres.bound_execution import BoundExecution
from session_lifecycle.postgres.driver_statements import KeptStatement
from session_lifecycle.postgres.execution import Run, Stream
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours, was_cancelled
from session_lifecycle.postgres.host_engines import driver_connection
from session_lifecycle.postgres.pool_execution import PoolExecution

MOST_MOVES = 8
"""How many moves of a bucket one call follows."""
ARRIVAL_SECONDS = 10.0
"""How long a call waits for a bucket that has left its old place and has not arrived at the new one."""
ARRIVAL_PAUSE_SECONDS = 0.02

Answer = TypeVar("Answer")
# The driver reads a regclass only after it has asked the server what that is, once for each connection.
_TABLE = text("SELECT CAST(pg_catalog.to_regclass(:table) AS oid)")

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
    effect. Then this execution reads where the bucket went, waits until it has arrived there, and runs the statement.
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
        # The move of the pointer that led to the present place.
        self._led_by: UUID | None = None
        self._is_on_citus = False

    async def fetch(
        self,
        statement: Any,
        parameters: dict[str, Any] | None = None,
        *,
        viewer: Viewer | None = None,
        writes: bool = False,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        values = at_clock(parameters)
        return await self.run_here(
            lambda pool: pool.fetch(statement, values, viewer=viewer, writes=writes, has_deadline=has_deadline)
        )

    async def write(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        async def write(pool: PoolExecution) -> Sequence[Any]:
            with self._cancelled_by_coordinator():
                return await pool.write(
                    statement, parameters, repeatable=repeatable, on_sent=on_sent, has_deadline=has_deadline
                )

        return await self.run_here(write)

    async def write_together(
        self,
        work: Callable[[Run], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        async def write(pool: PoolExecution) -> Sequence[Any]:
            with self._cancelled_by_coordinator():
                return await pool.write_together(work, repeatable=repeatable, on_sent=on_sent)

        return await self.run_here(write)

    @contextmanager
    def _cancelled_by_coordinator(self) -> Generator[None]:
        """A coordinator that cancels a statement may find that the node has committed it."""
        try:
            yield
        except DatabaseUnavailableError as error:
            if self._is_on_citus and error.__cause__ is not None and was_cancelled(error.__cause__):
                raise DatabaseUnavailableError(str(error), may_have_written=True) from error.__cause__
            raise

    async def check_takes_any_user(self) -> None:
        pass  # the routing has chosen the user's bucket

    async def vacuum(self, tables: Sequence[str]) -> None:
        await self.run_here(lambda pool: pool.vacuum(tables))

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Stream]:
        async def here(pool: PoolExecution) -> PoolExecution:
            return pool

        await self.settle()
        pool = await self.run_here(here)
        async with pool.snapshot() as stream:
            yield stream

    async def run_here(self, call: Callable[[PoolExecution], Awaitable[Answer]], *, compares: bool = True) -> Answer:
        """Makes a call at the present place of the bucket.

        Args:
            call: The call. A SchemaError of it means that it had no effect, so it is made again where the bucket is.
            compares: Whether to look first whether the place is the bucket's.
        """
        way = _Way()
        try:
            while True:
                pool = self._pool()
                try:
                    if compares and self._looked_at is not pool:
                        await self._deployment.look(pool, self._number)
                        self._is_on_citus = await self.check_functions(pool)
                        self._looked_at = pool
                    return await call(pool)
                except SchemaError:
                    if not await self._go_on(pool, way):
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
        """Goes to the place where the bucket is now. Does nothing where it has not moved.

        Raises:
            DatabaseUnavailableError: A place is away, or the bucket has not arrived at its new one.
        """
        way = _Way(was_here=True)
        while await self._go_on(self._pool(), way):
            pass

    async def find_unarrived(self) -> UUID | None:
        """Goes to the place where the bucket is now. Returns the move that brought it, where it has not arrived."""
        for _ in range(MOST_MOVES):
            pool = self._pool()
            trace = await self._look_at(pool)
            if trace is not None and not self._follow_trace(pool, trace):
                return self._led_by if trace.is_arriving_by(self._led_by) else None
        raise SchemaError(f"the bucket has moved {MOST_MOVES} times within one look; look again")

    async def _go_on(self, pool: PoolExecution, way: "_Way") -> bool:
        """Whether a call that found nothing at this place is made again: the bucket has moved, or is just arriving.

        Raises:
            DatabaseUnavailableError: It does not arrive.
            ConfigurationError: The host names a place to which the bucket is being copied.
        """
        trace = await self._look_at(pool)
        if trace is None:
            return way.goes_on()
        if trace.is_arriving_by(self._led_by):
            await way.wait()
            return True
        if self._follow_trace(pool, trace):
            return way.goes_on()
        if trace.arriving_by is not None and not trace.is_here:
            raise ConfigurationError("the bucket is being copied to this place and is not complete")
        # It may have arrived after the call and before this look.
        was_here, way.was_here = way.was_here, True
        return trace.is_here and not was_here

    def _follow_trace(self, pool: PoolExecution, trace: Trace) -> bool:
        """Goes where the place points, if it does."""
        if trace.is_here or trace.moved_to is None or trace.is_arriving_by(self._led_by):
            return False
        if pool is self._pool():
            self._follow(trace.moved_to)
            self._led_by = trace.move_id
        return True

    async def _look_at(self, pool: PoolExecution) -> Trace | None:
        """What the place says of the bucket. None: look again, as another call has gone on or the place is changing."""
        if pool is not self._pool():
            return None
        try:
            async with pool.connection() as connection:
                return await find_trace(driver_connection(connection), self.schema)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)


class _Way:
    """How far one call has gone to find its bucket."""

    def __init__(self, *, was_here: bool = False) -> None:
        self.was_here = was_here
        self._moves = 0
        self._until: float | None = None

    def goes_on(self) -> bool:
        self._moves += 1
        return self._moves <= MOST_MOVES

    async def wait(self) -> None:
        """Waits for a bucket that is arriving.

        Raises:
            DatabaseUnavailableError: It has not arrived for `ARRIVAL_SECONDS`.
        """
        now = time.monotonic()
        if self._until is None:
            self._until = now + ARRIVAL_SECONDS
        if now > self._until:
            raise DatabaseUnavailableError(
                "the bucket has left its old place, and its move was interrupted before it arrived at the new one: "
                "run `session-lifecycle db buckets move` again"
            )
        await asyncio.sleep(ARRIVAL_PAUSE_SECONDS)


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
        self,
        statement: Any,
        parameters: dict[str, Any] | None = None,
        *,
        viewer: Viewer | None = None,
        writes: bool = False,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        await self._look()
        return await self._bound.fetch(
            statement, at_clock(parameters), viewer=viewer, writes=writes, has_deadline=has_deadline
        )

    async def write(
        self,
        statement: KeptStatement,
        parameters: dict[str, Any],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
        has_deadline: bool = True,
    ) -> Sequence[Any]:
        await self._look()
        return await self._bound.write(
            statement, parameters, repeatable=repeatable, on_sent=on_sent, has_deadline=has_deadline
        )

    async def write_together(
        self,
        work: Callable[[Run], Awaitable[Sequence[Any]]],
        *,
        repeatable: bool,
        on_sent: Callable[[], object] | None = None,
    ) -> Sequence[Any]:
        await self._look()
        return await self._bound.write_together(work, repeatable=repeatable, on_sent=on_sent)

    async def check_takes_any_user(self) -> None:
        pass  # as `BucketExecution`

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
