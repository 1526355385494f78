"""`SessionDatabase`, the front door: an engine, its migrations, and the roles that work on it."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from session_lifecycle import migrations
from session_lifecycle.activity import SessionActivityDb
from session_lifecycle.background import DEFAULT_ROLL_UP_EVERY, BackgroundRollUp
from session_lifecycle.embedded import EmbeddedPostgres
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.execution import (
    DATABASE_TROUBLE,
    BoundExecution,
    Execution,
    PoolExecution,
    check_schema,
    raise_ours,
)
from session_lifecycle.handle import SessionHandle
from session_lifecycle.maintenance import SessionMaintenanceDb
from session_lifecycle.models import RollUpReport
from session_lifecycle.payloads import PayloadPolicy, Redact
from session_lifecycle.pricing import PriceCatalogue, PriceOverride
from session_lifecycle.recorder import (
    DEFAULT_DRAIN_WITHIN,
    DEFAULT_GIVE_UP_AFTER,
    DEFAULT_MAX_BATCH,
    DEFAULT_MAX_PENDING,
    SessionRecorder,
)
from session_lifecycle.reports import SessionReportsDb
from session_lifecycle.repository import SessionLifecycleDb
from session_lifecycle.roles import SessionRoles
from session_lifecycle.settings import Settings, check_schema_name
from session_lifecycle.writing import ItemWriter

DRIVER = "postgresql+asyncpg"
# https://magicstack.github.io/asyncpg/current/api/index.html#connection
URL_OPTIONS = {"direct_tls", "gsslib", "host", "krbsrvname", "passfile", "port", "ssl", "target_session_attrs"}


class SessionDatabase:
    """Sessions in a Postgres database.

    Made by `connect`, `embedded` or `from_engine`, and closed by leaving `async with` or by `close()`.

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
        server: "_Server | None" = None,
    ) -> None:
        self._settings = settings
        self._prices = PriceCatalogue(prices)
        self._payloads = PayloadPolicy(settings.payload_limit_bytes, settings.payload_when_larger, redact)
        self._owned = owned
        self._server = server
        self._engine = engine
        self._read_engine = read_engine
        self._pool: PoolExecution | None = None
        self._on_primary: SessionRoles | None = None
        self._with_replica: SessionRoles | None = None
        self._at_work: WeakSet[SessionRecorder | BackgroundRollUp] = WeakSet()
        self._one_roll_up = asyncio.Lock()

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
        """A database at a URL, with an engine of our own. Opens nothing yet.

        Args:
            url: `postgresql://…` or `postgresql+asyncpg://…`; None: `SESSION_LIFECYCLE_DATABASE_URL`.
            read_url: Of a replica, for the reads that tolerate its lag, with an engine of our own as well. None: there
                is none; without `url` as well, `SESSION_LIFECYCLE_READ_DATABASE_URL` if it is set.
            schema: The Postgres schema of our tables; None: as the settings say.
            settings: Pool, timeouts, threshold; None: read from the environment now.
            prices: The host's own prices, which go before the catalogue's.
            redact: Given every item before anything of it is stored; returns what may be.
            pgbouncer: There is a pgbouncer in transaction mode on the way.

        Raises:
            ConfigurationError: No URL anywhere, or one of another database or driver.
        """
        settings = _settings(settings, schema)
        if url is None:
            if settings.database_url is None:
                raise ConfigurationError(
                    "no database: pass a URL (postgresql://…) or set SESSION_LIFECYCLE_DATABASE_URL; "
                    "SessionDatabase.embedded() starts a Postgres of its own"
                )
            url = settings.database_url.get_secret_value()
            if read_url is None and settings.read_database_url is not None:
                read_url = settings.read_database_url.get_secret_value()
        engine = _engine(asyncpg_url(url), settings, pgbouncer=pgbouncer)
        read_engine = None if read_url is None else _engine(asyncpg_url(read_url), settings, pgbouncer=pgbouncer)
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
        """A Postgres of our own, started on entering `async with` and stopped by its last user.

        Args:
            data_dir: Where its data is; None: one place per user of this machine.
            schema: The Postgres schema of our tables; None: as the settings say.
            settings: Pool, timeouts, threshold; None: read from the environment now.
            prices: The host's own prices, which go before the catalogue's.
            redact: Given every item before anything of it is stored; returns what may be.

        Raises:
            ConfigurationError: On entering, when there are no Postgres binaries, or the data is not for them.
        """
        return cls(None, _settings(settings, schema), prices, redact, owned=True, server=_Server(data_dir))

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
        """A database through the host's own engines, which keep their options and are never disposed by us.

        Writes outside the host's transactions run on the driver's own connection, which SQLAlchemy's events do not see.

        Args:
            engine: Of the database.
            read_engine: Of a replica, for the reads that tolerate its lag; None: there is none.
            schema: The Postgres schema of our tables; None: as the settings say.
            settings: Threshold, repeats, payloads; None: read from the environment now.
            prices: The host's own prices, which go before the catalogue's.
            redact: Given every item before anything of it is stored; returns what may be.

        Raises:
            ConfigurationError: An engine is not an `AsyncEngine` with asyncpg.
        """
        _check_engine("engine", engine)
        if read_engine is not None:
            _check_engine("read_engine", read_engine)
        return cls(engine, _settings(settings, schema), prices, redact, owned=False, read_engine=read_engine)

    async def __aenter__(self) -> Self:
        if self._server is not None and self._engine is None:
            self._engine = _engine(asyncpg_url(await self._server.start()), self._settings, pgbouncer=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes what is ours: what works in the background, our engines' pools, the embedded server.

        A host's engines are left alone.
        """
        for one in list(self._at_work):
            await one.close()
        for engine in (self._engine, self._read_engine):
            if self._owned and engine is not None:
                await engine.dispose()
        if self._server is not None:
            self._engine = self._pool = self._on_primary = None
            await self._server.stop()

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the database, ours or the host's; the replica's is another.

        Raises:
            ConfigurationError: The embedded server is not running: outside `async with`.
        """
        if self._engine is None:
            raise ConfigurationError(
                "the embedded server is not running: use `async with SessionDatabase.embedded() as db`"
            )
        return self._engine

    def _execution(self) -> PoolExecution:
        # One for all roles: it looks at the schema once, and keeps what it compiled.
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
        """Writing sessions, and reading them."""
        return self._roles().lifecycle

    @property
    def activity(self) -> SessionActivityDb:
        """Reading what happened in sessions: summaries, details, threads, runs, messages."""
        return self._roles().activity

    @property
    def reports(self) -> SessionReportsDb:
        """What was spent, by whom, on what tokens, and how long sessions and runs took."""
        return self._roles().reports

    @property
    def maintenance(self) -> SessionMaintenanceDb:
        """What an operator does."""
        return self._roles().maintenance

    @property
    def primary(self) -> SessionRoles:
        """The roles with every read on the primary: for reading what one has just written. Without a replica the same.

        Example:
            page = await db.primary.lifecycle.list_session_rows(filters)
        """
        if self._on_primary is None:
            self._on_primary = self._roles_with(self._execution(), self._execution())
        return self._on_primary

    def session(
        self, session_id: str, user_id: UUID, dataset_id: UUID | None = None, *, agent_name: str | None = None
    ) -> SessionHandle:
        """A session as a block of code: touched on entry, `completed` on leaving, `failed` by an exception.

        Args:
            session_id: The id.
            user_id: The owner.
            dataset_id: What the session may be shared through; kept if the session has none yet.
            agent_name: Kept if the session has none yet.
        """
        return SessionHandle(self.lifecycle, session_id, user_id, dataset_id, agent_name=agent_name)

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
        """A `SessionWriter` that writes what many callers give in few transactions; opened by `async with`.

        Args:
            max_batch: How many items one transaction may hold.
            max_delay: How long an item of a busy recorder waits for others to join it; a lone call never waits.
            max_pending: How many items may be taken in and not yet answered. This bounds its memory.
            on_full: What a call does then: `wait` for room, or `raise` RecorderFullError.
            give_up_after: After this long without the database, a call is told by DatabaseUnavailableError.
            drain_within: How long closing goes on writing.

        Raises:
            ConfigurationError: A bound is not one it can have.
        """
        recorder = SessionRecorder(
            ItemWriter(self._execution(), self._prices, self._payloads),
            max_batch=max_batch,
            max_delay=max_delay,
            max_pending=max_pending,
            on_full=on_full,
            give_up_after=give_up_after,
            drain_within=drain_within,
        )
        self._at_work.add(recorder)
        return recorder

    def rolling_up(self, *, every: timedelta | float = DEFAULT_ROLL_UP_EVERY) -> BackgroundRollUp:
        """`maintenance.roll_up` in the background, of this process and its event loop; opened by `async with`.

        Several processes may do so, and share the work. Within one, a call waits for the one before.

        Args:
            every: How long it pauses after each call, give or take a half; timedelta or seconds, more than nothing.

        Raises:
            ConfigurationError: `every` is not an interval.
        """
        rolling_up = BackgroundRollUp(self._roll_up_alone, every)
        self._at_work.add(rolling_up)
        return rolling_up

    async def _roll_up_alone(self) -> RollUpReport:
        async with self._one_roll_up:
            return await self.maintenance.roll_up()

    def bind(self, host: AsyncConnection | AsyncSession, *, savepoints: bool = True) -> SessionRoles:
        """The roles inside the host's transaction, their reads as well; it must be READ COMMITTED.

        It is never committed or rolled back by us, and nothing in it is repeated.

        Args:
            host: The host's connection or session.
            savepoints: Each call runs in a savepoint: the host's transaction survives what the database refuses.
                What we refuse ourselves never reaches the database either way.
        """
        if not isinstance(host, AsyncConnection | AsyncSession):
            raise ConfigurationError(f"bind: got {host!r}, expected an AsyncConnection or an AsyncSession")
        execution = BoundExecution(host, self._settings.database_schema, savepoints=savepoints)
        return self._roles_with(execution, execution)

    async def migrate(self, *, connection: AsyncConnection | None = None) -> None:
        """Brings the schema to this version's revision; does nothing where it already is.

        Of several processes at once one migrates and the others wait.

        Args:
            connection: The host's, whose transaction this is then part of; None: one of ours, committed.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        try:
            if connection is not None:
                await migrations.upgrade(connection, self._settings.database_schema)
                return
            async with self.engine.begin() as own:
                # Building an index may take longer than any statement of a request should.
                await own.exec_driver_sql("SET LOCAL statement_timeout = 0")
                await migrations.upgrade(own, self._settings.database_schema)
        except DATABASE_TROUBLE as error:
            raise_ours(error)

    async def check(self) -> None:
        """Looks whether the database's schema is the one this version works with.

        Raises:
            SchemaError: It is not migrated, or migrated further; names the command to run.
            DatabaseUnavailableError: The database cannot be reached.
        """
        try:
            async with self.engine.connect() as connection:
                await check_schema(connection, self._settings.database_schema)
        except DATABASE_TROUBLE as error:
            raise_ours(error)

    async def migration_sql(self) -> str:
        """The SQL that migrates an empty database, for those who run it themselves."""
        return await migrations.offline_sql(self._settings.database_schema)


class _Server:
    """The embedded server of one `SessionDatabase`, while it is entered."""

    def __init__(self, data_dir: str | Path | None) -> None:
        self._data_dir = data_dir
        self._running: EmbeddedPostgres | None = None

    async def start(self) -> str:
        self._running = await EmbeddedPostgres.start(self._data_dir)
        return self._running.url

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.stop()
            self._running = None


def asyncpg_url(url: str | URL) -> URL:
    """The URL with asyncpg as its driver.

    Raises:
        ConfigurationError: It is no URL, or of another database or driver.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        # Nothing of the URL is told, nor kept as a cause: a password with an unescaped @ or : may be read as anything.
        raise ConfigurationError(
            "the database URL cannot be read, expected postgresql://user:password@host/name "
            "with special characters of the password percent-encoded"
        ) from None
    if parsed.drivername not in {"postgresql", "postgres", DRIVER}:
        raise ConfigurationError(
            f"the database URL is for {parsed.drivername!r}, expected postgresql:// or {DRIVER}://: "
            f"{parsed.set(drivername=DRIVER).render_as_string(hide_password=True)}"
        )
    query = dict(parsed.query)
    if "sslmode" in query:  # libpq's name for what asyncpg calls ssl
        query["ssl"] = query.pop("sslmode")
    if unknown := sorted(set(query) - URL_OPTIONS):
        known = ", ".join(sorted({*URL_OPTIONS, "sslmode"}))
        raise ConfigurationError(
            f"the database URL has the option {unknown[0]!r}, expected none but {known}: "
            "the rest is for Settings, or for an engine of your own"
        )
    return parsed.set(drivername=DRIVER, query=query)


def _settings(settings: Settings | None, schema: str | None) -> Settings:
    settings = Settings.load() if settings is None else settings
    if schema is None:
        return settings
    try:
        return settings.model_copy(update={"database_schema": check_schema_name(schema)})
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"schema: got {schema!r}, expected the name of a Postgres schema: {error}") from error


def _check_engine(name: str, engine: object) -> None:
    if not isinstance(engine, AsyncEngine) or engine.dialect.driver != "asyncpg":
        raise ConfigurationError(f"{name}: got {engine!r}, expected an AsyncEngine of {DRIVER}://…")


def _engine(url: URL, settings: Settings, *, pgbouncer: bool) -> AsyncEngine:
    server_settings = {"application_name": settings.application_name}
    arguments: dict[str, object] = {"timeout": settings.connect_timeout_seconds, "server_settings": server_settings}
    timeout = settings.statement_timeout_seconds
    if pgbouncer:
        # A statement prepared on one connection of the pooler is unknown on the next.
        arguments["statement_cache_size"] = 0
        # It refuses a statement timeout; the client keeps it.
        arguments["command_timeout"] = timeout
    else:
        server_settings["statement_timeout"] = "0" if timeout is None else str(round(timeout * 1000))
        # Of a page Postgres expects more work than it is, and would compile for longer than the page takes.
        server_settings["jit"] = "off"
    return create_async_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout_seconds,
        # The connection used last is used next, as its backend still has at hand what it needs. By turns, every call of
        # a single caller would meet another one, and take half as long again.
        pool_use_lifo=True,
        connect_args=arguments,
    )
