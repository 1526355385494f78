"""BucketDatabase: the front door over buckets of users. `SessionDatabase.buckets` makes it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Literal, Protocol, Self, cast, overload
from uuid import UUID
from weakref import WeakSet

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from session_lifecycle.activity import SessionActivityDb
from session_lifecycle.buckets import citus
from session_lifecycle.buckets.activity import BucketActivityDb
from session_lifecycle.buckets.budgets import BucketBudgetsDb
from session_lifecycle.buckets.directory import Deployment
from session_lifecycle.buckets.execution import BoundBucketExecution
from session_lifecycle.buckets.homes import Homes
from session_lifecycle.buckets.lifecycle import BucketLifecycleDb
from session_lifecycle.buckets.maintenance import BucketMaintenanceDb
from session_lifecycle.buckets.placement import BucketPlacement
from session_lifecycle.buckets.places import (
    HASH_NAME,
    HOSTS_OWN,
    ChooseBucket,
    Place,
    checked_choice,
    hashed,
    places_of,
)
from session_lifecycle.buckets.recorder import BucketRecorder
from session_lifecycle.buckets.reports import BucketReportsDb
from session_lifecycle.buckets.routing import Bucket, Routing
from session_lifecycle.budgets import SessionBudgetsDb
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.maintenance.background import DEFAULT_ROLL_UP_EVERY, BackgroundRollUp
from session_lifecycle.maintenance.role import SessionMaintenanceDb
from session_lifecycle.models.session_filters import OneUser
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.postgres.home import SchemaHome
from session_lifecycle.postgres.server import Server
from session_lifecycle.reports import SessionReportsDb
from session_lifecycle.repository import SessionLifecycleDb
from session_lifecycle.roles import SessionRoles
from session_lifecycle.settings import Settings
from session_lifecycle.writing.losses import OnLost
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.recorder import (
    DEFAULT_DRAIN_WITHIN,
    DEFAULT_GIVE_UP_AFTER,
    DEFAULT_MAX_BATCH,
    DEFAULT_MAX_PENDING,
    SessionRecorder,
)
from session_lifecycle.writing.session_block import SessionBlock
from session_lifecycle.writing.synchronous import SynchronousRecorder


class BucketRoles(SessionRoles):
    """The roles over all buckets."""

    def __init__(self, routing: Routing, lifecycle: SessionLifecycleDb) -> None:
        self.lifecycle = lifecycle
        self.activity: SessionActivityDb = BucketActivityDb(routing)
        self.reports: SessionReportsDb = BucketReportsDb(routing)
        self.budgets: SessionBudgetsDb = BucketBudgetsDb(routing)
        self.maintenance: SessionMaintenanceDb = BucketMaintenanceDb(routing)


class DatabaseOfBucket(Protocol):
    """Hands out what works in one bucket. `SessionDatabase` is one."""

    @property
    def primary(self) -> SessionRoles: ...
    @property
    def recorder(self) -> Callable[..., SessionRecorder]: ...
    @property
    def session(self) -> Callable[..., SessionBlock]: ...
    def roles_on(self, execution: Execution) -> SessionRoles: ...


class BucketDatabase:
    """The sessions of several Postgres schemas, on one server or on many. Made by `SessionDatabase.buckets`.

    Each schema is a bucket, and a user's bucket is fixed for life. The roles are those of a `SessionDatabase`, and give
    the answers that one database with all sessions would give. A call about one user is one call to the user's bucket.
    A bucket that is away raises DatabaseUnavailableError for calls that need it, and for no others.

    What differs is in `docs/how-to/buckets.md`: a call that writes for users of several buckets is one transaction in
    each of them, and a read over several buckets has one clock and a snapshot in each of them.

    Attributes:
        lifecycle: Writes sessions and reads them.
        activity: Reads what happened in sessions.
        reports: Reads figures.
        budgets: Limits of users, and reservations before a model is called.
        maintenance: The operator's jobs.
        placement: Where the buckets are, and moving them.

    Example:
        async with SessionDatabase.buckets([f"sessions_{number}" for number in range(16)], url=url) as db:
            await db.migrate()
            await db.lifecycle.accumulate_usage("s-1", user_id, "gpt-4o", 120, 40)
    """

    def __init__(
        self,
        places: Sequence[Place | str],
        of: ChooseBucket | None,
        of_name: str | None,
        server: Callable[[str | None], Server],
        database: Callable[[SchemaHome, Execution], DatabaseOfBucket],
        settings: Settings,
        *,
        is_on_hosts_engine: bool = False,
    ) -> None:
        """Use `SessionDatabase.buckets` instead."""
        where = places_of(places)
        if of is None and of_name is not None:
            raise ConfigurationError(f"of_name: got {of_name!r} without `of`, expected none: the hash has its own name")
        if of_name == HASH_NAME:
            raise ConfigurationError(f"of_name: got {of_name!r}, which is the name of the library's hash")
        choose = hashed(len(where)) if of is None else checked_choice(of, len(where))
        self._is_on_hosts_engine = is_on_hosts_engine
        self._synchronous: WeakSet[SynchronousRecorder] = WeakSet()
        deployment = Deployment(len(where), HASH_NAME if of is None else of_name or HOSTS_OWN)
        self._homes = homes = Homes(where, server, deployment, settings)
        self._databases = list(map(database, homes, homes.executions))
        buckets = [Bucket(number, homes.executions[number], one.primary) for number, one in enumerate(self._databases)]
        self._choose = choose
        self._routing = Routing(buckets, choose)
        self._roles = BucketRoles(self._routing, BucketLifecycleDb(self._routing))
        self.lifecycle = self._roles.lifecycle
        self.activity = self._roles.activity
        self.reports = self._roles.reports
        self.budgets = self._roles.budgets
        self.maintenance = self._roles.maintenance
        self.placement = BucketPlacement(homes)

    @property
    def primary(self) -> SessionRoles:
        """The roles. Every read is on the primary of its bucket."""
        return self._roles

    @property
    def bucket_count(self) -> int:
        """The number of buckets."""
        return len(self._homes)

    def bucket_of(self, user_id: UUID | str) -> int:
        """The number of the user's bucket, from 0.

        Raises:
            InvalidValueError: `user_id` is no UUID.
            ConfigurationError: The host's function gave a number that no bucket has.
        """
        return self._choose(OneUser.of_call(user_id=user_id).user_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the recorders, the background roll-ups and the engines of all servers. A second call does nothing."""
        for one in list(self._synchronous):
            await asyncio.to_thread(one.close)
        await self._homes.close()

    async def migrate(self) -> None:
        """Migrates every bucket, and writes down in each which one it is. Does nothing where that is done.

        Raises:
            ConfigurationError: A bucket says that it is another one, a schema that becomes one has users of another,
                or as in `SessionDatabase.migrate`.
            DatabaseUnavailableError: A bucket was away. The message names it; all others are migrated.
            SessionLifecycleError: As in `SessionDatabase.migrate`.
        """

        async def migrate(number: int) -> None:
            execution = self._homes.executions[number]
            await execution.settle()
            await self._homes[number].migrate()
            write = self._homes.deployment.write
            await execution.run_here(lambda pool: write(pool, number, self._choose), compares=False)
            if await self.placement.node_of(number) is not None:
                async with self._homes.connection(number) as connection:
                    await citus.distribute_functions(connection, execution.schema)

        await self._homes.each(migrate)

    async def check(self) -> list[str]:
        """Checks every bucket as `SessionDatabase.check` does, and that each is the one that its place says.

        Returns:
            Advice on optional parts that a schema lacks, each sentence once.

        Raises:
            SchemaError: A bucket is not migrated, lacks something, or does not serve this version.
            ConfigurationError: A bucket says that it is another one.
            DatabaseUnavailableError: A bucket was away. The message names it; all others were checked.
        """
        advice: list[str] = []

        async def check(number: int) -> None:
            execution = self._homes.executions[number]
            await execution.settle()
            advice.extend(await self._homes[number].check())
            await execution.run_here(lambda pool: self._homes.deployment.look(pool, number), compares=False)
            await execution.run_here(execution.check_functions, compares=False)

        await self._homes.each(check)
        return list(dict.fromkeys(advice))

    def session(
        self,
        session_id: str,
        user_id: UUID,
        dataset_id: UUID | None = None,
        *,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
        quiet: bool = False,
        attempt_timeout: timedelta | float | None = None,
        on_lost: OnLost | None = None,
    ) -> SessionBlock:
        """A session block in the user's bucket. See `SessionDatabase.session`."""
        return self._databases[self._routing.number_of(user_id)].session(
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            quiet=quiet,
            attempt_timeout=attempt_timeout,
            on_lost=on_lost,
        )

    def recorder(
        self,
        *,
        max_batch: int = DEFAULT_MAX_BATCH,
        max_delay: timedelta | float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        on_full: Literal["wait", "raise"] = "wait",
        give_up_after: timedelta | float = DEFAULT_GIVE_UP_AFTER,
        drain_within: timedelta | float = DEFAULT_DRAIN_WITHIN,
        on_lost: OnLost | None = None,
    ) -> BucketRecorder:
        """Makes a `SessionWriter` with a queue for each bucket. See `SessionDatabase.recorder`; it takes no spool.

        Args:
            max_batch: The most items of one transaction, which is in one bucket.
            max_delay: See `SessionDatabase.recorder`.
            max_pending: The most items of one bucket that may be accepted and not yet written.
            on_full: See `SessionDatabase.recorder`.
            give_up_after: See `SessionDatabase.recorder`.
            drain_within: See `SessionDatabase.recorder`.
            on_lost: See `SessionDatabase.recorder`.

        Raises:
            ConfigurationError: An argument is out of range.
        """
        recorders = [
            one.recorder(
                max_batch=max_batch,
                max_delay=max_delay,
                max_pending=max_pending,
                on_full=on_full,
                give_up_after=give_up_after,
                drain_within=drain_within,
                on_lost=on_lost,
            )
            for one in self._databases
        ]
        pipeline = cast("WritePipeline", self._routing.buckets[0].lifecycle)
        return BucketRecorder(recorders, self._routing.number_of, pipeline, self.budgets)

    def synchronous_recorder(
        self,
        *,
        max_batch: int = DEFAULT_MAX_BATCH,
        max_delay: timedelta | float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        on_full: Literal["wait", "raise"] = "wait",
        give_up_after: timedelta | float = DEFAULT_GIVE_UP_AFTER,
        drain_within: timedelta | float = DEFAULT_DRAIN_WITHIN,
        on_lost: OnLost | None = None,
    ) -> SynchronousRecorder:
        """Makes a recorder for synchronous code with a queue for each bucket. See `recorder` for its arguments.

        Raises:
            ConfigurationError: An argument is out of range, or places are on the engine of the host, which belongs to
                the host's event loop.
        """
        if self._is_on_hosts_engine:
            raise ConfigurationError(
                "synchronous_recorder: places are on the host's engine, which belongs to the host's event loop; "
                "give their URL, or use `submit_threadsafe` of a recorder"
            )
        recorder = self.recorder(
            max_batch=max_batch,
            max_delay=max_delay,
            max_pending=max_pending,
            on_full=on_full,
            give_up_after=give_up_after,
            drain_within=drain_within,
            on_lost=on_lost,
        )
        # It has the calls of a `SessionRecorder` that the synchronous front makes.
        synchronous = SynchronousRecorder(cast("SessionRecorder", recorder))
        self._synchronous.add(synchronous)
        return synchronous

    def rolling_up(self, *, every: timedelta | float = DEFAULT_ROLL_UP_EVERY) -> BackgroundRollUp:
        """Makes a task that calls `maintenance.roll_up` again and again. See `SessionDatabase.rolling_up`.

        It belongs to the host: leave its `async with` before the database is closed.
        """
        return BackgroundRollUp(self.maintenance.roll_up, every)

    def bind(self, host: AsyncConnection | AsyncSession, *, savepoints: bool = True) -> SessionRoles:
        """The roles inside the host's transaction, for users whose buckets are in the host's own database.

        See `SessionDatabase.bind`. A call that needs a bucket of another database raises ConfigurationError, and the
        host's transaction goes on. Without savepoints, a call that is refused after it has written into one of several
        buckets leaves what it wrote in the transaction.

        Raises:
            ConfigurationError: `host` is neither an `AsyncConnection` nor an `AsyncSession`.
        """
        if not isinstance(host, AsyncConnection | AsyncSession):
            raise ConfigurationError(f"bind: got {host!r}, expected an AsyncConnection or an AsyncSession")

        def bound(number: int) -> Bucket:
            schema = self._homes.executions[number].schema
            execution = BoundBucketExecution(number, schema, self._homes.deployment, host, savepoints=savepoints)
            return Bucket(number, execution, self._databases[number].roles_on(execution))

        @asynccontextmanager
        async def together() -> AsyncGenerator[None]:
            if not savepoints:
                yield
                return
            async with host.begin_nested():
                yield

        routing = Routing(_Lazily(len(self._homes), bound), self._choose, is_at_once=False)
        return BucketRoles(routing, BucketLifecycleDb(routing, together))


class _Lazily(Sequence[Bucket]):
    """Buckets that are made when they are first used: a transaction of the host needs few of them."""

    def __init__(self, count: int, make: Callable[[int], Bucket]) -> None:
        self._count = count
        self._make = make
        self._made: dict[int, Bucket] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Bucket: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Bucket]: ...
    def __getitem__(self, index: int | slice) -> Bucket | Sequence[Bucket]:
        if isinstance(index, slice):
            return [self[number] for number in range(self._count)[index]]
        if not 0 <= index < self._count:
            raise IndexError(index)
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def __iter__(self) -> Iterator[Bucket]:
        return (self[number] for number in range(self._count))
