"""SessionDatabase: opens and closes the database, migrates it, and hands out roles, recorders and session blocks."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self
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
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from session_lifecycle.postgres.engines import (
    DEADLINE_MARGIN_SECONDS,
    Engines,
    EnginesOfSchema,
    HostEngine,
    OwnEngines,
    asyncpg_url,
    check_engine,
    create_engine,
)
from session_lifecycle.postgres.execution import BoundExecution, Execution, PoolExecution
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.host_engines import check_encoding
from session_lifecycle.postgres.notes import Notes, listening
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.postgres.row_level_security import viewer_signer
from session_lifecycle.postgres.schema_check import check_everything
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.reports import SessionReportsDb
from session_lifecycle.repository import SessionLifecycleDb
from session_lifecycle.roles import SessionRoles
from session_lifecycle.settings import Settings, check_schema_name
from session_lifecycle.statements.shared.few import KnownSize
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


@dataclass
class _InLoop:
    """What a database has in one event loop."""

    at_end: AsyncGenerator[None]
    """Suspended. asyncio resumes it when the loop shuts down."""
    roll_up_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class _Lent(NamedTuple):
    """What the databases of several schemas on one server share."""

    engines: Engines
    make_engine: Callable[..., AsyncEngine] | None
    enter_loop: Callable[[], None]


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
        settings: Settings,
        prices: Sequence[PriceOverride],
        redact: Redact | None,
        *,
        start_server: Callable[[], Awaitable[EmbeddedPostgres]] | None = None,
    ) -> None:
        """Use `connect`, `embedded` or `from_engine` instead."""
        self._settings = settings
        self._prices = PriceCatalogue(prices)
        # Of this database, also for the roles in a host's transaction: a large one is not asked twice in each.
        self._size = KnownSize()
        self._payloads = PayloadPolicy(settings.payload_limit_bytes, settings.payload_when_larger, redact)
        self._sign = viewer_signer(settings)
        self._start_server = start_server
        self._server: EmbeddedPostgres | None = None
        self._engines: Engines | None = None
        self._read_engines: Engines | None = None
        self._make_engine: Callable[..., AsyncEngine] | None = None
        self._pool: PoolExecution | None = None
        self._on_primary: SessionRoles | None = None
        self._with_replica: SessionRoles | None = None
        self._background: WeakSet[SessionRecorder | SynchronousRecorder | BackgroundRollUp] = WeakSet()
        self._gone = RecorderCounts()
        self._in_loops: dict[asyncio.AbstractEventLoop, _InLoop] = {}
        # What another database lends this one, which is a bucket on the same server.
        self._lent: _Lent | None = None
        self._execution_of_bucket: Execution | None = None
        forget_in_child(self)

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
        settings = _settings(settings, schema)
        if url is None:
            if settings.database_url is None:
                raise ConfigurationError(
                    "no database: pass a URL (postgresql://…), set SESSION_LIFECYCLE_DATABASE_URL, "
                    "or start an embedded Postgres with SessionDatabase.embedded()"
                )
            url = settings.database_url.get_secret_value()
            if read_url is None and settings.read_database_url is not None:
                read_url = settings.read_database_url.get_secret_value()
        db = cls(settings, prices, redact)
        db._make_engine = partial(create_engine, asyncpg_url(url), settings, pgbouncer=pgbouncer)
        db._engines = db._own_engines(db._make_engine)
        if read_url is not None:
            make = partial(create_engine, asyncpg_url(read_url), settings, pgbouncer=pgbouncer)
            db._read_engines = db._own_engines(make)
        return db

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
        start_server = partial(EmbeddedPostgres.start, data_dir)
        return cls(_settings(settings, schema), prices, redact, start_server=start_server)

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
        check_engine("engine", engine)
        if read_engine is not None:
            check_engine("read_engine", read_engine)
        db = cls(_settings(settings, schema), prices, redact)
        db._engines = HostEngine(engine, db._settings.database_schema, db._enter_loop)
        if read_engine is not None:
            db._read_engines = HostEngine(read_engine, db._settings.database_schema, db._enter_loop)
        return db

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
        settings = _settings(settings, None)

        def server(at: str | None) -> SessionDatabase:
            if at is None and engine is not None:
                return cls.from_engine(engine, settings=settings, prices=prices, redact=redact)
            return cls.connect(
                url if at is None else at, pgbouncer=pgbouncer, settings=settings, prices=prices, redact=redact
            )

        return BucketDatabase(places, of, of_name, server, settings, is_on_hosts_engine=engine is not None)

    def home_of(self, schema: str | None) -> "SessionDatabase":
        """The database of one schema on this server, which shares its engines, recorders, prices and redaction."""
        home = copy.copy(self)
        home.enter_schema(schema)
        home.move_to(self)
        return home

    def enter_schema(self, schema: str | None) -> None:
        """Begins anew in this schema; None: that of the settings."""
        self._settings = _settings(self._settings, schema)
        self._pool = self._read_engines = self._on_primary = self._with_replica = None

    def lend(self) -> "_Lent":
        """What the databases of several schemas on this server share."""
        return _Lent(self._primary_engines(), self._make_engine, self._enter_loop)

    def move_to(self, server: "SessionDatabase") -> None:
        """Goes on in the same schema on another server."""
        self._lent = lent = server.lend()
        self._make_engine = lent.make_engine
        self._engines = EnginesOfSchema(lent.engines, self._settings.database_schema)
        self._pool = None

    def run_through(self, execution: Execution) -> None:
        """Has all roles and recorders run their statements through this execution."""
        self._execution_of_bucket = execution

    def _own_engines(self, make: Callable[[], AsyncEngine]) -> OwnEngines:
        return OwnEngines(make, self._settings.database_schema, self._enter_loop)

    async def __aenter__(self) -> Self:
        if self._start_server is not None and self._engines is None:
            self._server = await self._start_server()
            url = asyncpg_url(self._server.url)
            self._make_engine = partial(create_engine, url, self._settings, pgbouncer=False)
            self._engines = self._own_engines(self._make_engine)
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
        for one in list(self._background):
            await (asyncio.to_thread(one.close) if isinstance(one, SynchronousRecorder) else one.close())
        for engines in (self._engines, self._read_engines):
            if isinstance(engines, OwnEngines):
                await engines.close()
        if (here := self._in_loops.pop(asyncio.get_running_loop(), None)) is not None:
            await here.at_end.aclose()
        if self._server is not None:
            server, self._server = self._server, None
            self._engines = self._make_engine = self._pool = self._on_primary = None
            await server.stop()

    def _enter_loop(self) -> None:
        """Has the recorders and the pool of the running event loop closed when it shuts down."""
        if self._lent is not None:
            self._lent.enter_loop()
            return
        loop = asyncio.get_running_loop()
        if loop in self._in_loops:
            return
        for gone in [one for one in self._in_loops if one.is_closed()]:
            del self._in_loops[gone]
        at_end = self._close_at_end()
        # `asyncio.run` and `asyncio.Runner` close every asynchronous generator that was begun in their loop. This one
        # is begun without waiting: its first step ends at the `yield`.
        try:
            at_end.__anext__().send(None)
        except StopIteration:
            self._in_loops[loop] = _InLoop(at_end)

    async def _close_at_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            loop = asyncio.get_running_loop()
            for one in list(self._background):
                if not isinstance(one, SynchronousRecorder) and one.loop is loop:
                    await one.close()
            for engines in (self._engines, self._read_engines):
                if isinstance(engines, OwnEngines):
                    await engines.close_here()

    def forget_parent(self) -> object:
        """See `HasParents`: the parent's event loops are none of this process."""
        ours, self._in_loops = self._in_loops, {}
        return ours

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the primary: the host's for `from_engine`, else the database's own for this event loop.

        The connections of an own engine have `pg_catalog` as their search path, so a statement names its schema.

        Raises:
            ConfigurationError: The embedded server is not running, as outside `async with`; or the host's engine has
                connections of another event loop.
        """
        return self._primary_engines().engine

    def _primary_engines(self) -> Engines:
        if self._engines is None:
            raise ConfigurationError(
                "the embedded server is not running: use `async with SessionDatabase.embedded() as db`"
            )
        return self._engines

    def _execution(self) -> Execution:
        return self.pool_execution() if self._execution_of_bucket is None else self._execution_of_bucket

    def pool_execution(self) -> PoolExecution:
        """Runs statements where this database is at present."""
        # All roles share one, so the schema is checked once and each statement compiled once.
        if self._pool is None:
            self._pool = self._execution_on(self._primary_engines())
        return self._pool

    def _execution_on(self, engines: Engines, *, is_for_reads: bool = False) -> PoolExecution:
        settings = self._settings
        timeout = settings.statement_timeout_seconds if engines.is_own else None
        return PoolExecution(
            engines,
            settings.database_schema,
            settings.retries,
            repeat_within_seconds=None if timeout is None else timeout + DEADLINE_MARGIN_SECONDS,
            is_for_reads=is_for_reads,
            sign=self._sign,
        )

    def _roles_with(self, primary: Execution, reading: Execution) -> SessionRoles:
        return SessionRoles(primary, reading, self._prices, self._payloads, self._settings, self._size)

    def _roles(self) -> SessionRoles:
        if self._read_engines is None:
            return self.primary
        if self._with_replica is None:
            reading = self._execution_on(self._read_engines, is_for_reads=True)
            self._with_replica = self._roles_with(self._execution(), reading)
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
            ConfigurationError: `attempt_timeout` is no duration above 0, or the embedded server is not running.
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
                caller does not get the error: those that were submitted, and those of cancelled callers. It runs on the
                recorder's event loop, so it must not block; what it raises is logged.
            spool: Where `submit` and the quiet methods of session blocks put items, so that they are kept while the
                database is away, beyond `max_pending`, and after the end of the process. The recorder delivers them.
                Items are redacted before they are put there, on another thread, and again when they are delivered.
                None: they wait in memory.

        Raises:
            ConfigurationError: An argument is out of range, or the embedded server is not running.
        """
        recorder = SessionRecorder(
            WritePipeline(self._execution(), self._prices, self._payloads),
            max_batch=max_batch,
            max_delay=max_delay,
            max_pending=max_pending,
            on_full=on_full,
            give_up_after=give_up_after,
            drain_within=drain_within,
            on_lost=on_lost,
            on_start=self._enter_loop,
            spool=spool,
            budgets=self.budgets,
        )
        self._background.add(recorder)
        self._gone.keep(recorder)
        return recorder

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
        if not self._primary_engines().is_own:
            raise ConfigurationError(
                "synchronous_recorder: the database is on the host's engine, which belongs to the host's event loop; "
                "use SessionDatabase.connect, or `submit_threadsafe` of a recorder"
            )
        make = partial(
            SessionRecorder,
            max_batch=max_batch,
            max_delay=max_delay,
            max_pending=max_pending,
            on_full=on_full,
            give_up_after=give_up_after,
            drain_within=drain_within,
            on_lost=on_lost,
            on_start=self._enter_loop,
            spool=spool,
            budgets=self.budgets,
        )
        recorder = SynchronousRecorder(make(WritePipeline(self._execution(), self._prices, self._payloads)))
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
        self._enter_loop()
        async with self._in_loops[asyncio.get_running_loop()].roll_up_lock:
            return await self.maintenance.roll_up()

    def bind(self, host: AsyncConnection | AsyncSession, *, savepoints: bool = True) -> SessionRoles:
        """The roles inside the host's transaction, reads as well as writes.

        The host commits or rolls back; the roles never do. A failed call is not repeated. The first call raises
        `TransactionConflictError` if the transaction is not READ COMMITTED.

        Args:
            host: The host's connection or session.
            savepoints: Whether each call runs in a savepoint, so that the host's transaction survives an error of the
                database. Values that the library itself refuses never reach the database.

        Raises:
            ConfigurationError: `host` is neither an `AsyncConnection` nor an `AsyncSession`.
        """
        if not isinstance(host, AsyncConnection | AsyncSession):
            raise ConfigurationError(f"bind: got {host!r}, expected an AsyncConnection or an AsyncSession")
        return self.roles_on(
            BoundExecution(host, self._settings.database_schema, savepoints=savepoints, sign=self._sign)
        )

    def roles_on(self, execution: Execution) -> SessionRoles:
        """The roles on another execution."""
        return self._roles_with(execution, execution)

    @property
    def administration(self) -> SchemaAdministration:
        """What an operator does with the schema: revisions, rights of roles, row-level security."""
        return SchemaAdministration(self.patient_engine, self._settings)

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
        may_have_written = False
        try:
            if connection is not None:
                check_encoding(connection)
                await migrations.upgrade(connection, self._settings.database_schema, notes=notes)
                return
            async with self.patient_engine() as engine:
                may_have_written = True
                await migrations.upgrade_on(engine, self._settings.database_schema, on_progress, notes=notes)
        except DRIVER_FAILURES as error:
            raise_as_ours(error, may_have_written=may_have_written)

    @asynccontextmanager
    async def patient_engine(self) -> AsyncGenerator[AsyncEngine]:
        """An engine whose client waits for as long as a migration takes. Its database has been looked at."""
        if self._make_engine is None:
            async with self.pool_execution().connection() as connection:
                check_encoding(connection)
            yield self.engine
            return
        engine = self._make_engine(has_deadline=False)
        try:
            async with engine.connect() as connection:
                check_encoding(connection)
            yield engine
        finally:
            await engine.dispose()

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
        return Doctor(self.pool_execution(), self._settings, self._prices)

    async def check(self) -> list[str]:
        """Checks that the schema of the database has everything that this version uses. Changes nothing.

        Returns:
            Advice on optional parts that the schema lacks, one sentence each; empty if it has all of them.

        Raises:
            SchemaError: The schema is not migrated, lacks something, or is newer and does not serve this version. The
                message names what is missing and the command that mends it.
            ConfigurationError: The database refuses the user or the access, its encoding is not UTF8, or the host's
                engine has connections of another event loop.
            DatabaseUnavailableError: The database cannot be reached or lost the connection.
        """
        try:
            async with self.pool_execution().connection() as connection:
                check_encoding(connection)
                return await check_everything(connection, self._settings.database_schema)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

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
        return listening(self.engine, self._settings.database_schema)

    async def migration_sql(self, since: str = "base") -> str:
        """The SQL that migrates a database, for operators who run it themselves. Opens no connection.

        Args:
            since: The revision that the database is at; `base` is an empty one.

        Raises:
            SchemaError: This version does not know the revision.
        """
        return await migrations.offline_sql(self._settings.database_schema, since)


def _settings(settings: Settings | None, schema: str | None) -> Settings:
    settings = Settings.load() if settings is None else settings
    if schema is None:
        return settings
    try:
        return settings.model_copy(update={"database_schema": check_schema_name(schema)})
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"schema: got {schema!r}, expected the name of a Postgres schema: {error}") from error
