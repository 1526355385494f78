"""BucketDatabase: the front door over buckets of users. `SessionDatabase.buckets` makes it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, cast, overload
from uuid import UUID, uuid4
from weakref import WeakSet

import asyncpg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from session_lifecycle.activity import SessionActivityDb
from session_lifecycle.buckets import citus
from session_lifecycle.buckets.activity import BucketActivityDb
from session_lifecycle.buckets.budgets import BucketBudgetsDb
from session_lifecycle.buckets.directory import Deployment
from session_lifecycle.buckets.execution import BoundBucketExecution, BucketExecution
from session_lifecycle.buckets.lifecycle import BucketLifecycleDb
from session_lifecycle.buckets.maintenance import BucketMaintenanceDb
from session_lifecycle.buckets.moving import Mover, arrive, claimed, clear_new_place
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
from session_lifecycle.errors import ConfigurationError, SessionLifecycleError
from session_lifecycle.maintenance.background import DEFAULT_ROLL_UP_EVERY, BackgroundRollUp
from session_lifecycle.maintenance.role import SessionMaintenanceDb
from session_lifecycle.models.maintenance import MoveReport
from session_lifecycle.postgres.execution import Execution, PoolExecution
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.host_engines import driver_connection
from session_lifecycle.postgres.notes import sends_notes
from session_lifecycle.reports import SessionReportsDb
from session_lifecycle.repository import SessionLifecycleDb
from session_lifecycle.roles import SessionRoles
from session_lifecycle.settings import Settings
from session_lifecycle.statements.buckets import moving
from session_lifecycle.statements.buckets.moving import arriving_schema
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.recorder import (
    DEFAULT_DRAIN_WITHIN,
    DEFAULT_GIVE_UP_AFTER,
    DEFAULT_MAX_BATCH,
    DEFAULT_MAX_PENDING,
    OnLost,
    SessionRecorder,
)
from session_lifecycle.writing.session_block import SessionBlock
from session_lifecycle.writing.synchronous import SynchronousRecorder

Answer = TypeVar("Answer")


class Home(Protocol):
    """What a bucket is made of: the database of one schema. `SessionDatabase` is one."""

    @property
    def engine(self) -> AsyncEngine: ...
    @property
    def primary(self) -> SessionRoles: ...
    @property
    def recorder(self) -> Callable[..., SessionRecorder]: ...
    @property
    def session(self) -> Callable[..., SessionBlock]: ...
    def home_of(self, schema: str | None) -> "Home": ...
    def move_to(self, server: Any, /) -> None: ...
    def run_through(self, execution: Execution) -> None: ...
    def pool_execution(self) -> PoolExecution: ...
    def roles_on(self, execution: Execution) -> SessionRoles: ...
    def patient_engine(self) -> AbstractAsyncContextManager[AsyncEngine]: ...
    async def migrate(self, *, connection: AsyncConnection | None = None, notes: bool | None = None) -> None: ...
    async def check(self) -> list[str]: ...
    async def close(self) -> None: ...


class BucketRoles(SessionRoles):
    """The roles over all buckets."""

    def __init__(self, routing: Routing, lifecycle: SessionLifecycleDb) -> None:
        self.lifecycle = lifecycle
        self.activity: SessionActivityDb = BucketActivityDb(routing)
        self.reports: SessionReportsDb = BucketReportsDb(routing)
        self.budgets: SessionBudgetsDb = BucketBudgetsDb(routing)
        self.maintenance: SessionMaintenanceDb = BucketMaintenanceDb(routing)


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
        server: Callable[[str | None], Any],
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
        self._make_server = server
        self._is_on_hosts_engine = is_on_hosts_engine
        self._synchronous: WeakSet[SynchronousRecorder] = WeakSet()
        self._servers: dict[str | None, Home] = {}
        self._deployment = Deployment(len(where), HASH_NAME if of is None else of_name or HOSTS_OWN)
        self._homes = [self._server(place.url).home_of(place.schema) for place in where]
        self._executions = [
            self._execution_of(number, place.schema or settings.database_schema) for number, place in enumerate(where)
        ]
        buckets = [
            Bucket(number, execution, home.primary)
            for number, (home, execution) in enumerate(zip(self._homes, self._executions, strict=True))
        ]
        self._choose = choose
        self._routing = Routing(buckets, choose)
        self._roles = BucketRoles(self._routing, BucketLifecycleDb(self._routing))
        self.lifecycle = self._roles.lifecycle
        self.activity = self._roles.activity
        self.reports = self._roles.reports
        self.budgets = self._roles.budgets
        self.maintenance = self._roles.maintenance

    def _server(self, url: str | None) -> Home:
        key = None if url is None else make_url(url).render_as_string(hide_password=False)
        if key not in self._servers:
            self._servers[key] = self._make_server(url)
        return self._servers[key]

    def _execution_of(self, number: int, schema: str) -> BucketExecution:
        home = self._homes[number]

        def follow(url: str) -> None:
            home.move_to(self._server(self._with_credentials(url, home)))

        execution = BucketExecution(number, schema, self._deployment, home.pool_execution, follow)
        home.run_through(execution)
        return execution

    def _with_credentials(self, url: str, home: Home) -> str:
        """The URL with the user and the password of a place that is there, or of the place before."""
        wanted = make_url(url)
        for known in self._servers:
            if known is not None:
                place = make_url(known)
                if (place.host, place.port, place.database, place.query) == (
                    wanted.host, wanted.port, wanted.database, wanted.query,
                ):  # fmt: skip
                    return known
        before = home.engine.url
        full = wanted.set(username=before.username, password=before.password)
        return full.render_as_string(hide_password=False)

    @property
    def primary(self) -> SessionRoles:
        """The roles. Every read is on the primary of its bucket."""
        return self._roles

    @property
    def bucket_count(self) -> int:
        """The number of buckets."""
        return len(self._homes)

    def bucket_of(self, user_id: UUID) -> int:
        """The number of the user's bucket, from 0."""
        return self._choose(user_id)

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
        failures: list[SessionLifecycleError] = []
        for server in self._servers.values():
            try:
                await server.close()
            except SessionLifecycleError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def migrate(self) -> None:
        """Migrates every bucket, and writes down in each which one it is. Does nothing where that is done.

        Raises:
            ConfigurationError: A bucket says that it is another one, or as in `SessionDatabase.migrate`.
            DatabaseUnavailableError: A bucket was away. The message names it; all others are migrated.
            SessionLifecycleError: As in `SessionDatabase.migrate`.
        """

        async def migrate(number: int) -> None:
            execution = self._executions[number]
            await execution.settle()
            await self._homes[number].migrate()
            await execution.run_here(lambda pool: self._deployment.write(pool, number), compares=False)
            if await self.node_of(number) is not None:
                async with self._to_server(number) as connection:
                    await citus.distribute_functions(connection, execution.schema)

        await self._each(migrate)

    async def distribute(self, *, on_progress: Callable[[str], object] | None = None) -> None:
        """Has Citus keep each bucket on one of its nodes. Does what is missing, so it may be called again.

        The places are schemas of a coordinator's database. Each becomes a distributed schema, and each of its functions
        one that runs on the node of its bucket. The writers of a bucket wait while its rows go to the node. `migrate`
        does afterwards what a later revision needs.

        Args:
            on_progress: Called with a sentence for each bucket.

        Raises:
            SchemaError: A schema is not migrated to the revision of this version, or is no bucket yet.
            ConfigurationError: A bucket says that it is another one, its database has no Citus, or Citus refuses the
                user.
            DatabaseUnavailableError: A bucket was away. The message names it; all others are distributed.
        """

        async def distribute(number: int) -> None:
            execution = self._executions[number]
            await execution.settle()
            await self._homes[number].check()
            await execution.run_here(lambda pool: self._deployment.look(pool, number), compares=False)
            async with self._to_server(number) as connection:
                await citus.distribute(connection, execution.schema)
                node = await citus.node_of(connection, execution.schema)
            if on_progress is not None:
                on_progress(f"bucket {number} is on node {node}")

        await self._each(distribute)

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
            execution = self._executions[number]
            await execution.settle()
            advice.extend(await self._homes[number].check())
            await execution.run_here(lambda pool: self._deployment.look(pool, number), compares=False)
            await execution.run_here(execution.check_functions, compares=False)

        await self._each(check)
        return list(dict.fromkeys(advice))

    async def where(self) -> list[str]:
        """Where each bucket is now, by number: the URL of the database without a password, `#` and the schema.

        Raises:
            DatabaseUnavailableError: A bucket was away. The message names it.
        """
        found: list[str] = []

        async def look(number: int) -> None:
            execution = self._executions[number]
            await execution.settle()
            found.append(f"{_public(self._homes[number].engine.url)}#{execution.schema}")

        await self._each(look)
        return found

    async def node_of(self, number: int) -> str | None:
        """The node of Citus that has a bucket, as host:port; None where Citus has not distributed it.

        Raises:
            DatabaseUnavailableError: The bucket was away.
        """
        schema = self._executions[number].schema

        async def look(pool: PoolExecution) -> str | None:
            try:
                async with pool.connection() as connection:
                    return await citus.node_of(driver_connection(connection), schema)
            except DRIVER_FAILURES as error:
                raise_as_ours(error)

        return await self._executions[number].run_here(look, compares=False)

    async def move_to_node(self, number: int, node: str) -> float:
        """Has Citus move a bucket to one of its nodes, while programs write into it. Returns the seconds it took.

        Writers of the bucket wait at the end, while Citus carries over their last changes.

        Args:
            number: The number of the bucket.
            node: The node, as host:port.

        Raises:
            ConfigurationError: There is no such bucket or node, or Citus has not distributed the bucket.
            TransactionConflictError: Transactions of hosts ended the move again and again. The bucket is where it was.
            DatabaseUnavailableError: The coordinator cannot be reached or lost the connection.
        """
        self._check_number(number)
        execution = self._executions[number]
        await execution.run_here(lambda pool: self._deployment.look(pool, number))
        async with self._to_server(number) as connection:
            return await citus.move(connection, execution.schema, node)

    async def rebalance(self) -> None:
        """Has Citus spread the buckets over its nodes, while programs write into them. Returns when that is done.

        Citus moves whatever it distributes in the database of the buckets, also what is not of this library.

        Raises:
            ConfigurationError: A bucket is not distributed.
            DatabaseUnavailableError: The coordinator cannot be reached, or Citus gave up.
        """
        coordinators: dict[str, int] = {}
        for number, home in enumerate(self._homes):
            await self._executions[number].settle()
            if await self.node_of(number) is None:
                raise ConfigurationError(
                    f"bucket {number} is not distributed: run `{citus.DISTRIBUTE_COMMAND}` with all places"
                )
            coordinators.setdefault(_public(home.engine.url), number)
        for number in coordinators.values():
            async with self._to_server(number) as connection:
                await citus.rebalance(connection)

    @asynccontextmanager
    async def _to_server(self, number: int) -> AsyncGenerator["asyncpg.Connection"]:
        """A connection to the bucket's server without a deadline, outside a transaction."""
        try:
            async with _connection(self._homes[number]) as connection:
                yield driver_connection(connection)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    def _check_number(self, number: int) -> None:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < self.bucket_count:
            raise ConfigurationError(f"number: got {number!r}, expected a bucket from 0 to {self.bucket_count - 1}")

    async def move_bucket(
        self,
        number: int,
        to: str,
        *,
        keep_copy: bool = False,
        on_progress: Callable[[str], object] | None = None,
    ) -> MoveReport:
        """Moves a bucket to another server, into a schema of the same name, while programs write into it.

        The writers of this bucket wait for less than a second at the end; no other bucket is touched. Every program
        goes on at the new place by itself. Tell them the new place before the old server goes: a program that starts
        afterwards must know it. The user of the new place owns the schema there; grant it to the role that works.

        An interrupted move changes nothing, and the next call begins anew. There is one exception: for some tenths of a
        second the bucket has left its old place and has not arrived. Interrupted there, calls of the bucket raise
        DatabaseUnavailableError until the next call of this one, which does the rest first.

        Args:
            number: The number of the bucket.
            to: The URL of the new server and its database.
            keep_copy: Whether the rows stay at the old place, in the schema with ` (moved)` after its name. They stay
                as they were: erasing a user does not reach them.
            on_progress: Called with a sentence after each step.

        Raises:
            ConfigurationError: There is no such bucket, it has row-level security or is on a node of Citus, the schema
                is there already at the new place, both places are one database, another move of the bucket is at work,
                or the database refuses the user or the access.
            TransactionConflictError: The writers never let the move have its lock. The bucket is where it was.
            DatabaseUnavailableError: A place cannot be reached or lost the connection.
        """
        self._check_number(number)
        execution, home = self._executions[number], self._homes[number]
        try:
            if (move_id := await execution.find_unarrived()) is not None:
                async with _connection(home) as here:
                    await arrive(driver_connection(here), execution.schema, move_id)
            wanted = self._server(to).home_of(execution.schema)
            if _public(wanted.engine.url) == _public(home.engine.url):
                return MoveReport(rows=0, changes=0, paused_seconds=0.0)
            await execution.run_here(lambda pool: self._deployment.look(pool, number))
            if (node := await self.node_of(number)) is not None:
                raise ConfigurationError(f"bucket {number} is on node {node} of Citus: give host:port of another node")
            async with (
                _connection(home) as old,
                _connection(wanted) as new,
                claimed(execution.schema, driver_connection(old), driver_connection(new)),
            ):
                report = await self._move(number, old, new, wanted, keep_copy=keep_copy, on_progress=on_progress)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        await execution.settle()
        return report

    async def _move(
        self,
        number: int,
        old: AsyncConnection,
        new: AsyncConnection,
        wanted: Home,
        *,
        keep_copy: bool,
        on_progress: Callable[[str], object] | None,
    ) -> MoveReport:
        """Moves a bucket from one connection to the other. Both are claimed."""
        schema, one, move_id = self._executions[number].schema, self._deployment, uuid4()
        reader, writer = driver_connection(old), driver_connection(new)
        if await reader.fetchval(moving.IS_ROW_SECURITY_ON, schema):
            raise ConfigurationError(
                f"bucket {number} has row-level security, whose roles and key a move does not carry: disable it, move "
                "the bucket, and enable it at the new place"
            )
        async with old.begin():
            notes = await sends_notes(old, schema)
        # One transaction: nobody finds a copy that does not say whose it is.
        async with new.begin():
            await clear_new_place(writer, schema, number)
            arriving = wanted.home_of(arriving_schema(schema))
            await arriving.migrate(connection=new, notes=notes)
            say, *grants = moving.say_arriving(arriving_schema(schema))
            await writer.execute(say, number, one.bucket_count, one.hash_name, one.deployment_id, move_id)
            for grant in grants:
                await writer.execute(grant)
        return await Mover(reader, writer, schema, move_id, on_progress).move(
            _public(wanted.engine.url), keeps_copy=keep_copy
        )

    async def _each(self, work: Callable[[int], Awaitable[None]]) -> None:
        """Does the work for each bucket, also after one has failed. The error names the buckets that failed."""
        failures: dict[int, SessionLifecycleError] = {}
        for number in range(len(self._homes)):
            try:
                await work(number)
            except SessionLifecycleError as error:
                failures[number] = error
        if failures:
            first = next(iter(failures.values()))
            named = "; ".join(
                text if (text := str(error)).startswith(f"bucket {number}: ") else f"bucket {number}: {text}"
                for number, error in failures.items()
            )
            raise type(first)(named) from first

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
        return self._homes[self._routing.number_of(user_id)].session(
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
            home.recorder(
                max_batch=max_batch,
                max_delay=max_delay,
                max_pending=max_pending,
                on_full=on_full,
                give_up_after=give_up_after,
                drain_within=drain_within,
                on_lost=on_lost,
            )
            for home in self._homes
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
            schema = self._executions[number].schema
            execution = BoundBucketExecution(number, schema, self._deployment, host, savepoints=savepoints)
            return Bucket(number, execution, self._homes[number].roles_on(execution))

        @asynccontextmanager
        async def together() -> AsyncGenerator[None]:
            if not savepoints:
                yield
                return
            async with host.begin_nested():
                yield

        routing = Routing(_Lazily(len(self._homes), bound), self._choose, is_at_once=False)
        return BucketRoles(routing, BucketLifecycleDb(routing, together))


def _public(url: URL) -> str:
    """The URL without user and password."""
    # `URL.set` keeps what is set to None.
    return URL.create("postgresql", None, None, url.host, url.port, url.database, url.query).render_as_string()


@asynccontextmanager
async def _connection(home: Home) -> AsyncGenerator[AsyncConnection]:
    """A connection without a deadline, outside a transaction."""
    async with home.patient_engine() as engine, engine.connect() as connection:
        yield connection


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
