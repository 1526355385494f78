"""SessionDatabase: opens and closes the database, migrates it, and hands out roles, recorders and session blocks."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar
from uuid import UUID
from weakref import WeakSet

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from session_lifecycle.activity import SessionActivityDb
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.buckets.places import ChooseBucket, Place
from session_lifecycle.budgets import SessionBudgetsDb
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.maintenance.administration import SchemaAdministration, role_of
from session_lifecycle.maintenance.background import DEFAULT_ROLL_UP_EVERY, BackgroundRollUp
from session_lifecycle.maintenance.doctor import Doctor
from session_lifecycle.maintenance.metrics import DEFAULT_MAX_AGE, DatabaseMetrics, RecorderSums
from session_lifecycle.maintenance.role import SessionMaintenanceDb
from session_lifecycle.models import RollUpReport
from session_lifecycle.models.doctor import DatabaseFigures, DoctorReport
from session_lifecycle.models.prices import PriceOverride
from session_lifecycle.postgres import migrations
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.home import SchemaHome
from session_lifecycle.postgres.notes import Notes, listening
from session_lifecycle.postgres.server import Server
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.reports import SessionReportsDb
from session_lifecycle.repository import KnownSize, SessionLifecycleDb
from session_lifecycle.roles import SessionRoles
from session_lifecycle.settings import Settings, check_callable, settings_of
from session_lifecycle.writing.losses import OnLost
from session_lifecycle.writing.payload_policy import PayloadPolicy, Redact
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.recorder import (
    DEFAULT_DRAIN_WITHIN,
    DEFAULT_GIVE_UP_AFTER,
    DEFAULT_MAX_BATCH,
    DEFAULT_MAX_PENDING,
    SessionRecorder,
)
from session_lifecycle.writing.recorder_metrics import RecorderCounts
from session_lifecycle.writing.session_block import SessionBlock
from session_lifecycle.writing.synchronous import SynchronousRecorder

if TYPE_CHECKING:
    from session_lifecycle.writing.spool import Spool

_Recorder = TypeVar("_Recorder", SessionRecorder, SynchronousRecorder)


class SessionDatabase:
    """The sessions of one Postgres schema.

    Made by `connect`, `embedded` or `from_engine`. Leaving `async with` closes it, as does `close()`. Each call runs in
    its own transaction; `bind` runs calls in the host's transaction.

    With `connect` and `embedded` it may be used in several event loops, threads and forked processes, one after another
    or at once: each event loop of each process has a pool of its own, which is closed when the loop shuts down as
    `asyncio.run` does it. An engine of the host belongs to one event loop at a time; in another one a call raises
    ConfigurationError before it sends anything.

    Example:
        async with SessionDatabase.connect("postgresql://me@localhost/app") as db:
            await db.migrate()
            await db.lifecycle.accumulate_usage("s-1", user_id, "gpt-4o", 120, 40)
    """

    def __init__(
        self,
        home: SchemaHome,
        prices: PriceCatalogue,
        payloads: PayloadPolicy,
        *,
        execution: Execution | None = None,
    ) -> None:
        """Use `connect`, `embedded` or `from_engine` instead."""
        self._home = home
        self._settings = home.settings
        self._prices = prices
        self._payloads = payloads
        # How a bucket runs its statements, wherever it is.
        self._execution_of_bucket = execution
        # Of this database, also for the roles in a host's transaction: a large one is not asked twice in each.
        self._size = KnownSize()
        self._on_primary: SessionRoles | None = None
        self._with_replica: SessionRoles | None = None
        self._background: WeakSet[SessionRecorder | SynchronousRecorder | BackgroundRollUp] = WeakSet()
        self._gone = RecorderCounts()
        home.server.close_first.append(self._close_background)

    @classmethod
    def _on(cls, server: Server, settings: Settings, prices: Sequence[PriceOverride], redact: Redact | None) -> Self:
        return cls(SchemaHome(server, settings), PriceCatalogue(prices), _payload_policy(settings, redact))

    @classmethod
    def connect(
        cls,
        url: str | URL | None = None,
        *,
        read_url: str | URL | None = None,
        schema: str | None = None,
        settings: Settings | None = None,
        prices: Sequence[PriceOverride] = (),
        redact: Redact | None = None,
        pgbouncer: bool = False,
    ) -> Self:
        """Makes a database from a URL, with its own engine. Opens no connection yet.

        Args:
            url: `postgresql://…` or `postgresql+asyncpg://…`; None: `SESSION_LIFECYCLE_DATABASE_URL`.
            read_url: The URL of a replica, for the reads that tolerate its lag; it gets its own engine. None: there is
                no replica, or, if `url` is None as well, `SESSION_LIFECYCLE_READ_DATABASE_URL`.
            schema: The Postgres schema of the tables; None: the settings' `database_schema`.
            settings: Pool, timeouts, thresholds; None: the environment's, read now.
            prices: The host's prices, in USD per million tokens. They override the catalogue's.
            redact: Called with every item before it is stored; returns the item that may be stored.
            pgbouncer: Whether a pgbouncer in transaction mode stands before the database.

        Raises:
            ConfigurationError: No URL is given or set, a URL is for another database or driver, or a setting or the
                schema's name is wrong.
        """
        settings = settings_of(settings, schema)
        if url is None and read_url is None and settings.read_database_url is not None:
            read_url = settings.read_database_url.get_secret_value()
        server = Server.connect(_url_of(url, settings), settings, read_url=read_url, pgbouncer=pgbouncer)
        return cls._on(server, settings, prices, redact)

    @classmethod
    def embedded(
        cls,
        data_dir: str | Path | None = None,
        *,
        schema: str | None = None,
        settings: Settings | None = None,
        prices: Sequence[PriceOverride] = (),
        redact: Redact | None = None,
    ) -> Self:
        """Makes a database on an embedded Postgres server.

        Entering `async with` starts the server, or attaches to the one that runs on this data directory. Leaving it
        detaches; the last user stops the server.

        Args:
            data_dir: The data directory, made if absent; None: one directory per user of this machine.
            schema: The Postgres schema of the tables; None: the settings' `database_schema`.
            settings: Pool, timeouts, thresholds; None: the environment's, read now.
            prices: The host's prices, in USD per million tokens. They override the catalogue's.
            redact: Called with every item before it is stored; returns the item that may be stored.

        Raises:
            ConfigurationError: A setting or the schema's name is wrong. On entering: there are no Postgres programs, or
                the data directory cannot be used.
            DatabaseUnavailableError: On entering: the server does not start.
        """
        settings = settings_of(settings, schema)
        return cls._on(Server.embedded(data_dir, settings), settings, prices, redact)

    @classmethod
    def from_engine(
        cls,
        engine: AsyncEngine,
        *,
        read_engine: AsyncEngine | None = None,
        schema: str | None = None,
        settings: Settings | None = None,
        prices: Sequence[PriceOverride] = (),
        redact: Redact | None = None,
    ) -> Self:
        """Makes a database on the host's engines. They keep their options; closing the database does not dispose them.

        Writes outside the host's transactions run on the driver's connection, so SQLAlchemy's events do not see them.

        Args:
            engine: The engine of the database.
            read_engine: The engine of a replica, for the reads that tolerate its lag; None: there is no replica.
            schema: The Postgres schema of the tables; None: the settings' `database_schema`.
            settings: Thresholds, retries, payloads; None: the environment's, read now. Its pool and timeouts do not
                apply to the host's engines.
            prices: The host's prices, in USD per million tokens. They override the catalogue's.
            redact: Called with every item before it is stored; returns the item that may be stored.

        Raises:
            ConfigurationError: An engine is not an `AsyncEngine` with asyncpg, or a setting or the schema's name is
                wrong.
        """
        settings = settings_of(settings, schema)
        return cls._on(Server.from_engine(engine, settings, read_engine=read_engine), settings, prices, redact)

    @classmethod
    def buckets(
        cls,
        places: Sequence[Place | str],
        *,
        of: ChooseBucket | None = None,
        of_name: str | None = None,
        url: str | URL | None = None,
        engine: AsyncEngine | None = None,
        settings: Settings | None = None,
        prices: Sequence[PriceOverride] = (),
        redact: Redact | None = None,
        pgbouncer: bool = False,
    ) -> BucketDatabase:
        """Makes a database over buckets of users: each is a complete copy of our schema. Opens no connection yet.

        Args:
            places: Where the buckets are, at most 64: names of schemas, URLs, or a `Place`. Their number, their order
                and `of` are fixed for ever; `migrate` writes them down, and a bucket that says something else is
                refused.
            of: The host's own choice of the bucket of a user, such as by tenant; None: a hash of the user id.
            of_name: A name of `of`, which the buckets keep; None: `host`.
            url: The URL of the places that have none; None: `SESSION_LIFECYCLE_DATABASE_URL`, unless there is an
                engine.
            engine: The host's engine, for the places that have no URL.
            settings: Pool of each server, timeouts, thresholds; None: the environment's, read now.
            prices: See `connect`.
            redact: See `connect`.
            pgbouncer: See `connect`.

        Raises:
            ConfigurationError: The places are none, too many, or twice the same, or as in `connect`.
        """
        settings = settings_of(settings, None)
        catalogue, payloads = PriceCatalogue(prices), _payload_policy(settings, redact)

        def server(at: str | None) -> Server:
            if at is None and engine is not None:
                return Server.from_engine(engine, settings)
            return Server.connect(_url_of(url, settings) if at is None else at, settings, pgbouncer=pgbouncer)

        def database(home: SchemaHome, execution: Execution) -> SessionDatabase:
            return cls(home, catalogue, payloads, execution=execution)

        return BucketDatabase(places, of, of_name, server, database, settings, is_on_hosts_engine=engine is not None)

    async def __aenter__(self) -> Self:
        await self._home.server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the recorders, the background roll-ups, the database's own engines and the embedded server.

        Recorders write their pending items first, for at most `drain_within`. The connections of every event loop are
        closed, within some seconds also where the server does not answer. A second call does nothing. The host's
        engines stay open.

        Raises:
            DatabaseUnavailableError: The embedded server could not be stopped.
        """
        try:
            await self._home.close()
        finally:
            self._on_primary = self._with_replica = None

    async def _close_background(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Closes the recorders and the background roll-ups: those of an event loop that shuts down, or all of them."""
        for one in list(self._background):
            if isinstance(one, SynchronousRecorder):
                if loop is None:
                    await asyncio.to_thread(one.close)
            elif loop is None or one.loop is loop:
                await one.close()

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the primary: the host's for `from_engine`, else the database's own for this event loop.

        The connections of an own engine have `pg_catalog` as their search path, so a statement names its schema.

        Raises:
            ConfigurationError: The embedded server is not running, as outside `async with`; or the host's engine has
                connections of another event loop.
        """
        return self._home.engines.engine

    def _execution(self) -> Execution:
        return self._home.pool_execution() if self._execution_of_bucket is None else self._execution_of_bucket

    def _roles_with(self, primary: Execution, reading: Execution) -> SessionRoles:
        return SessionRoles(primary, reading, self._prices, self._payloads, self._settings, self._size)

    def _roles(self) -> SessionRoles:
        if self._with_replica is None:
            reading = self._home.replica_execution()
            self._with_replica = self.primary if reading is None else self._roles_with(self._execution(), reading)
        return self._with_replica

    @property
    def lifecycle(self) -> SessionLifecycleDb:
        """The role that writes sessions and reads them: records items, gets and lists sessions, updates them."""
        return self._roles().lifecycle

    @property
    def activity(self) -> SessionActivityDb:
        """The role that reads what happened in sessions: summaries, details, threads, runs, messages."""
        return self._roles().activity

    @property
    def reports(self) -> SessionReportsDb:
        """The role that reads figures: spend in USD, tokens, and durations of sessions and runs."""
        return self._roles().reports

    @property
    def budgets(self) -> SessionBudgetsDb:
        """The role that limits what sessions use: budgets, and reservations before a model is called."""
        return self._roles().budgets

    @property
    def maintenance(self) -> SessionMaintenanceDb:
        """The role of the operator: roll-up, repricing, pruning, erasing, reconciling."""
        return self._roles().maintenance

    @property
    def primary(self) -> SessionRoles:
        """The same roles with every read on the primary, for reading your own writes. They differ only with a replica.

        Raises:
            ConfigurationError: The embedded server is not running, as outside `async with`.

        Example:
            page = await db.primary.lifecycle.list_session_rows(filters)
        """
        if self._on_primary is None:
            self._on_primary = self._roles_with(self._execution(), self._execution())
        return self._on_primary

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
        """A session block: entering touches the session, leaving ends it: `completed`, or `failed` on an exception.

        The touch and the end are two calls, each in its own transaction. Entering raises what
        `ensure_and_touch_session` raises. What its runs record is written by a recorder of the block, which writes
        what is pending when the block is left, for at most `drain_within` of a recorder.

        Args:
            session_id: The session's id.
            user_id: The session's owner.
            dataset_id: The dataset through which the session may be shared; stored if the session has none yet.
            agent_name: The agent's name; stored if the session has none yet.
            parent_session_id: The session that started this one; stored if the session has none yet.
            quiet: Whether entering and leaving hand over the touch and the end, and raise nothing for them.
            attempt_timeout: How long an attempt may be open, a timedelta or seconds; None: 15 minutes.
            on_lost: See `recorder`. It gets what the runs of this block recorded in vain.

        Raises:
            ConfigurationError: `attempt_timeout` is no duration above 0, `on_lost` is no such function, or the embedded
                server is not running.
        """
        recorder = self.recorder(on_lost=on_lost)
        return SessionBlock(
            self.lifecycle,
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            quiet_writer=recorder.quiet,
            is_quiet=quiet,
            attempt_timeout=attempt_timeout,
            own_recorder=recorder,
            budgets=self.budgets,
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
        spool: "Spool | None" = None,
    ) -> SessionRecorder:
        """Makes a `SessionWriter` that writes the items of many callers in few transactions.

        Enter it with `async with`. Durations are timedeltas or seconds. It belongs to the event loop that uses it
        first. When that loop is closed, the next loop that uses it takes it over.

        Args:
            max_batch: The most items of one transaction.
            max_delay: How long a call to a busy recorder waits for other calls to join it; a lone call never waits.
            max_pending: The most items that may be accepted and not yet written. This bounds the recorder's memory.
            on_full: What a call does at `max_pending`: `wait` for room, or `raise` RecorderFullError.
            give_up_after: How long a call is retried without the database before it raises DatabaseUnavailableError.
            drain_within: How long `close` goes on writing pending items.
            on_lost: Called with items that were accepted and not written, and with the error. Only for items whose
                caller does not get the error: those that were submitted, and those of cancelled callers. It is no
                coroutine function. It runs on the recorder's event loop, so it must not block; what it raises is
                logged.
            spool: Where `submit` and the quiet methods of session blocks put items, so that they are kept while the
                database is away, beyond `max_pending`, and after the end of the process. The recorder delivers them.
                Items are redacted before they are put there, on another thread, and again when they are delivered.
                None: they wait in memory.

        Raises:
            ConfigurationError: An argument is out of range, or the embedded server is not running.
        """
        recorder = SessionRecorder(
            self._pipeline(),
            max_batch=max_batch,
            max_delay=max_delay,
            max_pending=max_pending,
            on_full=on_full,
            give_up_after=give_up_after,
            drain_within=drain_within,
            on_lost=on_lost,
            on_start=self._home.enter_loop,
            spool=spool,
            budgets=self.budgets,
        )
        return self._kept(recorder)

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
        spool: "Spool | None" = None,
    ) -> SynchronousRecorder:
        """Makes a recorder for synchronous code: the calls of `recorder` without `await`, from any thread.

        It has a thread and an event loop of its own, which start with the first call. It closes with `with`, with
        `close()`, or by itself when the interpreter exits, and writes what is pending first. In a forked child it
        starts again, without the items of the parent.

        Args:
            max_batch: See `recorder`.
            max_delay: See `recorder`.
            max_pending: See `recorder`.
            on_full: See `recorder`.
            give_up_after: See `recorder`.
            drain_within: See `recorder`.
            on_lost: See `recorder`. It runs on the thread of this recorder, and must not call the recorder.
            spool: See `recorder`.

        Raises:
            ConfigurationError: An argument is out of range, the database is on a host's engine, which belongs to the
                host's event loop, or the embedded server is not running.
        """
        if not self._home.engines.is_own:
            raise ConfigurationError(
                "synchronous_recorder: the database is on the host's engine, which belongs to the host's event loop; "
                "use SessionDatabase.connect, or `submit_threadsafe` of a recorder"
            )
        recorder = SessionRecorder(
            self._pipeline(),
            max_batch=max_batch,
            max_delay=max_delay,
            max_pending=max_pending,
            on_full=on_full,
            give_up_after=give_up_after,
            drain_within=drain_within,
            on_lost=on_lost,
            on_start=self._home.enter_loop,
            spool=spool,
            budgets=self.budgets,
        )
        return self._kept(SynchronousRecorder(recorder))

    def _pipeline(self) -> WritePipeline:
        return WritePipeline(self._execution(), self._prices, self._payloads)

    def _kept(self, recorder: _Recorder) -> _Recorder:
        """The recorder, which is counted in the metrics and closed with the database."""
        self._background.add(recorder)
        self._gone.keep(recorder)
        return recorder

    def rolling_up(self, *, every: timedelta | float = DEFAULT_ROLL_UP_EVERY) -> BackgroundRollUp:
        """Makes a task that calls `maintenance.roll_up` again and again. Entering `async with` starts it.

        Several processes may run one; they share the work. Within an event loop one roll-up of a
        `SessionDatabase` runs at a time.

        Args:
            every: The pause after each roll-up (±50 %), a timedelta or seconds, more than 0.

        Raises:
            ConfigurationError: `every` is not such a duration.
        """
        background = BackgroundRollUp(self._roll_up_alone, every)
        self._background.add(background)
        return background

    async def _roll_up_alone(self) -> RollUpReport:
        async with self._home.enter_loop().roll_up_lock:
            return await self.maintenance.roll_up()

    def bind(self, host: AsyncConnection | AsyncSession, *, savepoints: bool = True) -> SessionRoles:
        """The roles inside the host's transaction, reads as well as writes.

        The host commits or rolls back; the roles never do. A failed call is not repeated. The first call raises
        `TransactionConflictError` if the transaction is not READ COMMITTED. Calls of several tasks wait for each other.
        A call that is cancelled while the database works on it ends the transaction, and the host must roll it back.

        Args:
            host: The host's connection or session.
            savepoints: Whether each call runs in a savepoint, so that the host's transaction survives an error of the
                database. Values that the library itself refuses never reach the database.

        Raises:
            ConfigurationError: `host` is neither an `AsyncConnection` nor an `AsyncSession`.
        """
        if not isinstance(host, AsyncConnection | AsyncSession):
            raise ConfigurationError(f"bind: got {host!r}, expected an AsyncConnection or an AsyncSession")
        return self.roles_on(self._home.bound_execution(host, savepoints=savepoints))

    def roles_on(self, execution: Execution) -> SessionRoles:
        """The roles on another execution."""
        return self._roles_with(execution, execution)

    @property
    def administration(self) -> SchemaAdministration:
        """What an operator does with the schema: revisions, rights of roles, row-level security."""
        return SchemaAdministration(self._home.patient_engine, self._settings)

    async def migrate(
        self,
        *,
        connection: AsyncConnection | None = None,
        notes: bool | None = None,
        on_progress: Callable[[str], object] | None = None,
    ) -> None:
        """Migrates the schema to this version's revision; does nothing if it is already there.

        If several processes migrate at once, one of them does it and the others wait. No writer waits for longer than
        half a second: the migration gives up a lock that it does not get and tries again, for more than a minute. An
        index that is missing is built beside the writers.

        Args:
            connection: The host's connection: the migration is part of its transaction, and the host sets the
                `lock_timeout`. None: the migration runs in its own transaction and is committed.
            notes: Whether every transaction that changes sessions sends a note, for `listening`. None: as it is; a new
                schema sends none. Notes have a price: see `docs/how-to/live.md`.
            on_progress: Called with a sentence each time that the locks are not free, and for each index that is
                built. Not called with a `connection`.

        Raises:
            ConfigurationError: The database refuses the user, the user may not create the schema, the encoding of the
                database is not UTF8, or the host's engine has connections of another event loop.
            TransactionConflictError: A long transaction of somebody else kept a lock; nothing was changed.
            DatabaseUnavailableError: The database cannot be reached or lost the connection.
        """
        await self._home.migrate(connection=connection, notes=notes, on_progress=on_progress)

    async def diagnose(
        self, *, full: bool = False, spool: str | Path | None = None, role: str | None = None
    ) -> DoctorReport:
        """Looks at the server, the schema, the role and the data, and says what to do. Changes nothing.

        Each look is bounded, except with `full`. A look that the role may not take is a finding.

        Args:
            full: Whether every total is compared with the ledger, as `maintenance.reconcile` does; otherwise those of a
                random stretch of at most 500 sessions.
            spool: The directory of a spool to look at; None: the default one, where there is one.
            role: What the role that is connected does, as `worker`: its rights are compared with those it needs. None:
                they are not.

        Raises:
            InvalidValueError: `role` is none of those of `administration.check_role`.
            ConfigurationError: The database refuses the user.
            DatabaseUnavailableError: The database cannot be reached or lost the connection.
        """
        kind = None if role is None else role_of(role)
        try:
            return await self._doctor().diagnose(full=full, spool=None if spool is None else Path(spool), role=kind)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    async def measure(self) -> DatabaseFigures:
        """The figures that a monitor watches: what waits for a roll-up, what is unpriced, drift of a sample.

        Raises:
            SchemaError: The schema is not migrated, or does not serve this version.
            ConfigurationError: The database refuses the user or the access.
            DatabaseUnavailableError: The database cannot be reached or lost the connection.
        """
        try:
            return await self._doctor().measure()
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    def metrics(
        self, *, max_age: timedelta | float = DEFAULT_MAX_AGE, spool: str | Path | None = None
    ) -> DatabaseMetrics:
        """The metrics of this database and of its recorders, for Prometheus and OpenTelemetry. Asks nothing yet.

        Args:
            max_age: How old the figures of the database may be, a timedelta or seconds above 0. They are read again
                when they are older and somebody asks.
            spool: The directory of a spool to watch; None: none is.

        Raises:
            ConfigurationError: `max_age` is no such duration.
        """
        recorders = RecorderSums(self._background, self._gone)
        return DatabaseMetrics(self.measure, recorders, max_age, None if spool is None else Path(spool))

    def _doctor(self) -> Doctor:
        return Doctor(self._home.pool_execution(), self._settings, self._prices)

    async def check(self) -> list[str]:
        """Checks that the schema of the database has everything that this version uses. Changes nothing.

        Returns:
            Advice on optional parts that the schema lacks, one sentence each; empty if it has all of them.

        Raises:
            SchemaError: The schema is not migrated, lacks something, or is newer and does not serve this version. The
                message names what is missing and the command that mends it.
            ConfigurationError: The database refuses the user or the access, its encoding is not UTF8, or the host's
                engine has connections of another event loop, changes our values, or has another isolation level.
            DatabaseUnavailableError: The database cannot be reached, lost the connection, or did not answer in time.
        """
        return await self._home.check()

    def listening(self) -> AbstractAsyncContextManager[Notes]:
        """Listens for notes of changed sessions on one connection beside the pool, until the block is left.

        `await notes.next()` waits, and returns the ids of the owners and datasets whose sessions transactions have
        changed since; None means that they may be anybody's. A note says nothing else: read what the viewer may see.

        Raises:
            ConfigurationError: On entering: the database sends no notes (`migrate(notes=True)` has it send them), or a
                pooler stands before it. `next`: the notes were switched off.
            DatabaseUnavailableError: On entering: the database cannot be reached. `next`: the connection is lost, so
                notes may have been missed.

        Example:
            async with db.listening() as notes:
                while True:
                    print(await notes.next())
        """
        return listening(self.engine, self._home.schema)

    async def migration_sql(self, since: str = "base") -> str:
        """The SQL that migrates a database, for operators who run it themselves. Opens no connection.

        Args:
            since: The revision that the database is at; `base` is an empty one.

        Raises:
            SchemaError: This version does not know the revision.
        """
        return await migrations.offline_sql(self._home.schema, since)


def _payload_policy(settings: Settings, redact: Redact | None) -> PayloadPolicy:
    check_callable("redact", redact)
    return PayloadPolicy(settings.payload_limit_bytes, settings.payload_when_larger, redact)


def _url_of(url: str | URL | None, settings: Settings) -> str | URL:
    """The URL; None: that of the settings."""
    if url is not None:
        return url
    if settings.database_url is None:
        raise ConfigurationError(
            "no database: pass a URL (postgresql://…), set SESSION_LIFECYCLE_DATABASE_URL, "
            "or start an embedded Postgres with SessionDatabase.embedded()"
        )
    return settings.database_url.get_secret_value()
