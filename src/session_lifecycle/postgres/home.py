"""SchemaHome: a schema on the server where it is. Runs its statements there, migrates it and checks it."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Self

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from session_lifecycle.postgres import migrations
from session_lifecycle.postgres.bound_execution import BoundExecution
from session_lifecycle.postgres.engines import DEADLINE_MARGIN_SECONDS, Engines
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.host_engines import check_encoding
from session_lifecycle.postgres.pool_execution import PoolExecution
from session_lifecycle.postgres.row_level_security import viewer_signer
from session_lifecycle.postgres.server import InLoop, Server
from session_lifecycle.settings import Settings, settings_of


class SchemaHome:
    """A schema on a server. It may move to another server, as a bucket does.

    Attributes:
        server: The server where the schema is now.
        settings: The settings, with the name of the schema.
        schema: The name of the schema.
    """

    def __init__(self, server: Server, settings: Settings) -> None:
        """Opens no connection."""
        self.server = server
        self.settings = settings
        self.schema = settings.database_schema
        self._sign = viewer_signer(settings)
        self._engines: Engines | None = None
        self._pool: PoolExecution | None = None

    @property
    def engines(self) -> Engines:
        """The engines of the server, for this schema.

        Raises:
            ConfigurationError: The embedded server is not running.
        """
        if self._engines is None:
            self._engines = self.server.engines_of(self.schema)
        return self._engines

    def move_to(self, server: Server) -> None:
        """Goes on in the schema of the same name on another server."""
        self.server = server
        self._engines = self._pool = None

    def beside(self, schema: str) -> Self:
        """The home of another schema on the same server.

        Raises:
            ConfigurationError: The name is no name of a schema.
        """
        return type(self)(self.server, settings_of(self.settings, schema))

    def enter_loop(self) -> InLoop:
        """Has what the running event loop uses closed when the loop shuts down."""
        return self.server.enter_loop()

    def pool_execution(self) -> PoolExecution:
        """Runs statements where the schema is now.

        Raises:
            ConfigurationError: The embedded server is not running.
        """
        # All roles share one, so the schema is checked once and each statement compiled once.
        if self._pool is None:
            self._pool = self._execution_on(self.engines)
        return self._pool

    def replica_execution(self) -> PoolExecution | None:
        """Runs reads on the replica of the server; None: it has none."""
        engines = self.server.read_engines
        return None if engines is None else self._execution_on(engines, is_for_reads=True)

    def _execution_on(self, engines: Engines, *, is_for_reads: bool = False) -> PoolExecution:
        timeout = self.settings.statement_timeout_seconds if engines.is_own else None
        return PoolExecution(
            engines,
            self.schema,
            self.settings.retries,
            repeat_within_seconds=None if timeout is None else timeout + DEADLINE_MARGIN_SECONDS,
            is_for_reads=is_for_reads,
            sign=self._sign,
        )

    def bound_execution(self, host: AsyncConnection | AsyncSession, *, savepoints: bool) -> BoundExecution:
        """Runs statements in the host's transaction."""
        return BoundExecution(host, self.schema, savepoints=savepoints, sign=self._sign)

    @asynccontextmanager
    async def patient_engine(self) -> AsyncGenerator[AsyncEngine]:
        """An engine whose client waits for as long as a migration takes. Its database has been looked at."""
        async with self.server.patient_engine() as engine:
            looking = engine.connect() if self.engines.is_own else self.pool_execution().connection()
            async with looking as connection:
                check_encoding(connection)
            yield engine

    async def migrate(
        self,
        *,
        connection: AsyncConnection | None = None,
        notes: bool | None = None,
        on_progress: Callable[[str], object] | None = None,
    ) -> None:
        """See `SessionDatabase.migrate`."""
        may_have_written = False
        try:
            if connection is not None:
                check_encoding(connection)
                await migrations.upgrade(connection, self.schema, notes=notes)
                return
            async with self.patient_engine() as engine:
                may_have_written = True
                await migrations.upgrade_on(engine, self.schema, on_progress, notes=notes)
        except DRIVER_FAILURES as error:
            raise_as_ours(error, may_have_written=may_have_written)

    async def check(self) -> list[str]:
        """See `SessionDatabase.check`."""
        try:
            return await self.pool_execution().check_everything()
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    async def close(self) -> None:
        """Closes the server. An embedded server that is started again has other engines."""
        try:
            await self.server.close()
        finally:
            self._engines = self._pool = None
