"""SessionDatabase: opens and closes the database, migrates it, and hands out roles, recorders and session blocks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from uuid import UUID
from weakref import WeakSet

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from session_lifecycle.activity import SessionActivityDb
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.maintenance.background import DEFAULT_ROLL_UP_EVERY, BackgroundRollUp
from session_lifecycle.maintenance.role import SessionMaintenanceDb
from session_lifecycle.models import RollUpReport
from session_lifecycle.models.prices import PriceOverride
from session_lifecycle.postgres import migrations
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from session_lifecycle.postgres.engines import asyncpg_url, check_engine, create_engine
from session_lifecycle.postgres.execution import BoundExecution, Execution, PoolExecution
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.schema_check import check_everything
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.reports import SessionReportsDb
from session_lifecycle.repository import SessionLifecycleDb
from session_lifecycle.roles import SessionRoles
from session_lifecycle.settings import Settings, check_schema_name
from session_lifecycle.writing.payload_policy import PayloadPolicy, Redact
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.recorder import (
    DEFAULT_DRAIN_WITHIN,
    DEFAULT_GIVE_UP_AFTER,
    DEFAULT_MAX_BATCH,
    DEFAULT_MAX_PENDING,
    SessionRecorder,
)
from session_lifecycle.writing.session_block import SessionBlock


class SessionDatabase:
    """The sessions of one Postgres schema.

    Made by `connect`, `embedded` or `from_engine`. Leaving `async with` closes it, as does `close()`. Each call runs in
    its own transaction; `bind` runs calls in the host's transaction.

    Example:
        async with SessionDatabase.connect("postgresql://me@localhost/app") as db:
            await db.migrate()
            await db.lifecycle.accumulate_usage("s-1", user_id, "gpt-4o", 120, 40)
    """

    def __init__(
        self,
        engine: AsyncEngine | None,
        settings: Settings,
        prices: Sequence[PriceOverride],
        redact: Redact | None,
        *,
        owned: bool,
        read_engine: AsyncEngine | None = None,
        start_server: Callable[[], Awaitable[EmbeddedPostgres]] | None = None,
    ) -> None:
        """Use `connect`, `embedded` or `from_engine` instead."""
        self._settings = settings
        self._prices = PriceCatalogue(prices)
        self._payloads = PayloadPolicy(settings.payload_limit_bytes, settings.payload_when_larger, redact)
        self._owned = owned
        self._start_server = start_server
        self._server: EmbeddedPostgres | None = None
        self._engine = engine
        self._read_engine = read_engine
        self._pool: PoolExecution | None = None
        self._on_primary: SessionRoles | None = None
        self._with_replica: SessionRoles | None = None
        self._background: WeakSet[SessionRecorder | BackgroundRollUp] = WeakSet()
        self._roll_up_lock = asyncio.Lock()

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
        engine = create_engine(asyncpg_url(url), settings, pgbouncer=pgbouncer)
        read_engine = None if read_url is None else create_engine(asyncpg_url(read_url), settings, pgbouncer=pgbouncer)
        return cls(engine, settings, prices, redact, owned=True, read_engine=read_engine)

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
        return cls(None, _settings(settings, schema), prices, redact, owned=True, start_server=start_server)

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
        return cls(engine, _settings(settings, schema), prices, redact, owned=False, read_engine=read_engine)

    async def __aenter__(self) -> Self:
        if self._start_server is not None and self._engine is None:
            self._server = await self._start_server()
            self._engine = create_engine(asyncpg_url(self._server.url), self._settings, pgbouncer=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the recorders, the background roll-ups, the database's own engines and the embedded server.

        Recorders write their pending items first, for at most `drain_within`. A second call does nothing. The host's
        engines stay open.

        Raises:
            DatabaseUnavailableError: The embedded server could not be stopped.
        """
        for one in list(self._background):
            await one.close()
        for engine in (self._engine, self._read_engine):
            if self._owned and engine is not None:
                await engine.dispose()
        if self._server is not None:
            server, self._server = self._server, None
            self._engine = self._pool = self._on_primary = None
            await server.stop()

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the primary: the host's for `from_engine`, else the database's own.

        Raises:
            ConfigurationError: The embedded server is not running, as outside `async with`.
        """
        if self._engine is None:
            raise ConfigurationError(
                "the embedded server is not running: use `async with SessionDatabase.embedded() as db`"
            )
        return self._engine

    def _execution(self) -> PoolExecution:
        # All roles share one, so the schema is checked once and each statement compiled once.
        if self._pool is None:
            self._pool = self._execution_on(self.engine)
        return self._pool

    def _execution_on(self, engine: AsyncEngine) -> PoolExecution:
        return PoolExecution(engine, self._settings.database_schema, self._settings.retries)

    def _roles_with(self, primary: Execution, reading: Execution) -> SessionRoles:
        return SessionRoles(primary, reading, self._prices, self._payloads, self._settings)

    def _roles(self) -> SessionRoles:
        if self._read_engine is None:
            return self.primary
        if self._with_replica is None:
            self._with_replica = self._roles_with(self._execution(), self._execution_on(self._read_engine))
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
        self, session_id: str, user_id: UUID, dataset_id: UUID | None = None, *, agent_name: str | None = None
    ) -> SessionBlock:
        """A session block: entering touches the session, leaving ends it: `completed`, or `failed` on an exception.

        The touch and the end are two calls, each in its own transaction. Entering raises what
        `ensure_and_touch_session` raises.

        Args:
            session_id: The session's id.
            user_id: The session's owner.
            dataset_id: The dataset through which the session may be shared; stored if the session has none yet.
            agent_name: The agent's name; stored if the session has none yet.
        """
        return SessionBlock(self.lifecycle, session_id, user_id, dataset_id, agent_name=agent_name)

    def recorder(
        self,
        *,
        max_batch: int = DEFAULT_MAX_BATCH,
        max_delay: timedelta | float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        on_full: Literal["wait", "raise"] = "wait",
        give_up_after: timedelta | float = DEFAULT_GIVE_UP_AFTER,
        drain_within: timedelta | float = DEFAULT_DRAIN_WITHIN,
    ) -> SessionRecorder:
        """Makes a `SessionWriter` that writes the items of many callers in few transactions.

        Enter it with `async with`. Durations are timedeltas or seconds.

        Args:
            max_batch: The most items of one transaction.
            max_delay: How long a call to a busy recorder waits for other calls to join it; a lone call never waits.
            max_pending: The most items that may be accepted and not yet written. This bounds the recorder's memory.
            on_full: What a call does at `max_pending`: `wait` for room, or `raise` RecorderFullError.
            give_up_after: How long a call is retried without the database before it raises DatabaseUnavailableError.
            drain_within: How long `close` goes on writing pending items.

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
        )
        self._background.add(recorder)
        return recorder

    def rolling_up(self, *, every: timedelta | float = DEFAULT_ROLL_UP_EVERY) -> BackgroundRollUp:
        """Makes a task that calls `maintenance.roll_up` again and again. Entering `async with` starts it.

        Several processes may run one; they share the work. Within a `SessionDatabase` one roll-up runs at a time.

        Args:
            every: The pause after each roll-up (±50 %), a timedelta or seconds, more than 0.

        Raises:
            ConfigurationError: `every` is not such a duration.
        """
        background = BackgroundRollUp(self._roll_up_alone, every)
        self._background.add(background)
        return background

    async def _roll_up_alone(self) -> RollUpReport:
        async with self._roll_up_lock:
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
        execution = BoundExecution(host, self._settings.database_schema, savepoints=savepoints)
        return self._roles_with(execution, execution)

    async def migrate(self, *, connection: AsyncConnection | None = None) -> None:
        """Migrates the schema to this version's revision; does nothing if it is already there.

        If several processes migrate at once, one of them does it and the others wait.

        Args:
            connection: The host's connection: the migration is part of its transaction. None: the migration runs in its
                own transaction and is committed.

        Raises:
            ConfigurationError: The database refuses the user, or the user may not create the schema.
            DatabaseUnavailableError: The database cannot be reached or lost the connection.
        """
        try:
            if connection is not None:
                await migrations.upgrade(connection, self._settings.database_schema)
                return
            async with self.engine.begin() as own:
                # Building an index may take longer than the statement timeout, which is for requests.
                await own.exec_driver_sql("SET LOCAL statement_timeout = 0")
                await migrations.upgrade(own, self._settings.database_schema)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    async def check(self) -> list[str]:
        """Checks that the schema of the database has everything that this version uses. Changes nothing.

        Returns:
            Advice on optional parts that the schema lacks, one sentence each; empty if it has all of them.

        Raises:
            SchemaError: The schema is not migrated, lacks something, or is newer and does not serve this version. The
                message names what is missing and the command that mends it.
            ConfigurationError: The database refuses the user or the access.
            DatabaseUnavailableError: The database cannot be reached or lost the connection.
        """
        try:
            async with self.engine.connect() as connection:
                return await check_everything(connection, self._settings.database_schema)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    async def migration_sql(self) -> str:
        """The SQL that migrates an empty database, for operators who run it themselves. Opens no connection."""
        return await migrations.offline_sql(self._settings.database_schema)


def _settings(settings: Settings | None, schema: str | None) -> Settings:
    settings = Settings.load() if settings is None else settings
    if schema is None:
        return settings
    try:
        return settings.model_copy(update={"database_schema": check_schema_name(schema)})
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"schema: got {schema!r}, expected the name of a Postgres schema: {error}") from error
