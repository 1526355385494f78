"""Pytest fixtures for hosts: a real, migrated, empty database for each test, cloned from a template.

Add `pytest_plugins = ["session_lifecycle.testing"]` to the top `conftest.py`, and request:

- `session_database`: a `SessionDatabase` on the test's own database;
- `session_database_url`: the URL of that database, for the host's engine;
- `session_clock`: the clock of that database, which a test advances or freezes.

The server is the first of these:

1. the one that `SESSION_LIFECYCLE_TEST_DATABASE_URL` names (its user must be allowed to create databases);
2. a container of `SESSION_LIFECYCLE_TEST_IMAGE`, if testcontainers is installed and a Docker engine answers;
3. an embedded server.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import URL, make_url

from session_lifecycle.database import SessionDatabase
from session_lifecycle.postgres.embedded import EmbeddedPostgres, temporary_data_dir
from session_lifecycle.postgres.engines import SERVER_SETTINGS

DEFAULT_IMAGE = "postgres:17-alpine"
DOCKER_SOCKET = Path("/var/run/docker.sock")
SHARED_MEMORY = Path("/dev") / "shm"
GIB = 1024**3

# The library takes the time from `statement_timestamp()`. Its statements find this function first: on connections of
# its own by `CLOCK_PATH`, on others by the path of a test's database. Its database functions have a path of their own,
# which gets this schema in front. So a test can move the clock, and the library needs no code for tests.
CLOCK_PATH = "session_lifecycle_clock, pg_catalog, pg_temp"
INSTALL_CLOCK = """
    CREATE SCHEMA session_lifecycle_clock;
    CREATE TABLE session_lifecycle_clock.setting (ahead interval NOT NULL, frozen_at timestamptz);
    INSERT INTO session_lifecycle_clock.setting VALUES ('0', NULL);
    CREATE FUNCTION session_lifecycle_clock.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS $$
        SELECT coalesce(frozen_at, pg_catalog.statement_timestamp() + ahead) FROM session_lifecycle_clock.setting
    $$;
    GRANT USAGE ON SCHEMA session_lifecycle_clock TO PUBLIC;
    GRANT SELECT ON session_lifecycle_clock.setting TO PUBLIC;
    DO $$
    DECLARE
        of_ours regprocedure;
    BEGIN
        FOR of_ours IN
            SELECT oid FROM pg_proc
            WHERE pronamespace = 'session_lifecycle'::regnamespace AND prosrc LIKE '%statement_timestamp()%'
        LOOP
            EXECUTE format(
                'ALTER FUNCTION %s SET search_path = session_lifecycle_clock, pg_catalog, pg_temp', of_ours
            );
        END LOOP;
    END
    $$
"""


class SessionClock:
    """The clock of the test's database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def now(self) -> datetime:
        """The current time of the clock, UTC."""
        now: datetime = await self._ask("SELECT statement_timestamp()")
        return now

    async def advance(self, by: timedelta) -> None:
        """Moves the clock forward, or back if `by` is negative. A frozen clock stays frozen at its new time."""
        await self._ask("UPDATE session_lifecycle_clock.setting SET ahead = ahead + $1, frozen_at = frozen_at + $1", by)

    async def freeze(self, at: datetime | None = None) -> datetime:
        """Stops the clock at `at`, or at its current time, and returns that time."""
        moment = at or await self.now()
        await self._ask("UPDATE session_lifecycle_clock.setting SET frozen_at = $1", moment)
        return moment

    async def run(self) -> None:
        """Sets the clock to the server's time and lets it run."""
        await self._ask("UPDATE session_lifecycle_clock.setting SET ahead = '0', frozen_at = NULL")

    async def _ask(self, sql: str, *arguments: Any) -> Any:
        connection = await asyncpg.connect(self._url)
        try:
            return await connection.fetchval(sql, *arguments)
        finally:
            await connection.close()


class TemplateServer:
    """A server with a migrated template database, which is cloned for each test.

    Leave its `with` when the last test has ended.

    Attributes:
        url: The URL of a database on the server, whose user may create databases.
        template: The name of the template database.
    """

    def __init__(self, url: str, template: str) -> None:
        """Opens no connection yet."""
        self.url = url
        self.template = template
        # Each test has an event loop of its own. One connection serves all tests, so it lives in a loop in a thread.
        self._thread = ThreadPoolExecutor(1, "session-lifecycle-databases")
        self._loop = asyncio.Runner()
        self._connection: asyncpg.Connection | None = None
        self._strategy = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.submit(self._loop.run, self._close()).result()
        self._thread.submit(self._loop.close).result()
        self._thread.shutdown()

    def url_of(self, database: str) -> str:
        """The URL of a database on this server, for asyncpg and for `SessionDatabase.connect`."""
        return self._parsed().set(database=database).render_as_string(hide_password=False)

    def _parsed(self) -> URL:
        return make_url(self.url).set(drivername="postgresql")

    async def run(self, *statements: str) -> None:
        """Runs statements outside a transaction, on the database that `url` names."""
        await asyncio.wrap_future(self._thread.submit(self._loop.run, self._run(statements)))

    async def _run(self, statements: tuple[str, ...]) -> None:
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await asyncpg.connect(self._parsed().render_as_string(hide_password=False))
        for statement in statements:
            await connection.execute(statement)

    async def _close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def prepare(self) -> None:
        """Creates the template database: migrates it and installs the clock."""
        await self.run(f'CREATE DATABASE "{self.template}"')
        async with SessionDatabase.connect(self.url_of(self.template)) as db:
            await db.migrate()
        connection = await asyncpg.connect(self.url_of(self.template))
        try:
            await connection.execute(INSTALL_CLOCK)
            # Copying files takes half as long as logging each page, where the checkpoints around it wait for no disk.
            if await connection.fetchval("SHOW fsync") == "off":
                self._strategy = "STRATEGY file_copy"
        finally:
            await connection.close()

    async def clone(self, database: str) -> None:
        """Creates an empty, migrated database with the clock."""
        await self.run(
            f'CREATE DATABASE "{database}" TEMPLATE "{self.template}" {self._strategy}',
            f'ALTER DATABASE "{database}" SET search_path = session_lifecycle_clock, pg_catalog, public',
        )

    async def drop(self, database: str) -> None:
        """Drops a database, even if clients are still connected."""
        await self.run(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


def folder_in_memory() -> Path | None:
    """The folder whose files are kept in memory; None if it has no room for all test workers or `TMPDIR` is set.

    A database has about three hundred files, and each test creates and drops one. That takes a hundredth of a second in
    memory, and a third of a second on ext4: it keeps the inode of a deleted file for a minute and scans these inodes.
    """
    if "TMPDIR" in os.environ or not SHARED_MEMORY.is_dir():
        return None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # Few tests store much, so they seldom do it at the same time.
    has_room = shutil.disk_usage(SHARED_MEMORY).free >= (2 + workers) * GIB
    return SHARED_MEMORY if has_room and os.access(SHARED_MEMORY, os.W_OK) else None


@contextmanager
def _embedded_server() -> Generator[str]:
    with temporary_data_dir(folder_in_memory()) as data_dir:
        # With TCP: a host's tests may hand the URL to drivers and proxies that know no Unix socket.
        server = asyncio.run(EmbeddedPostgres.start(data_dir, durable=False, tcp=True))
        try:
            yield server.url
        finally:
            asyncio.run(server.stop())


@contextmanager
def _container() -> Generator[str]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(os.environ.get("SESSION_LIFECYCLE_TEST_IMAGE", DEFAULT_IMAGE), driver=None)
    # The data is in memory, for the reason given in `folder_in_memory`.
    container = container.with_env("PGDATA", "/memory/data").with_tmpfs_mount("/memory")
    with container as postgres:
        yield postgres.get_connection_url()


def docker_answers() -> bool:
    """Whether testcontainers is installed and a Docker engine answers."""
    if find_spec("testcontainers") is None or find_spec("docker") is None:
        return False
    if "DOCKER_HOST" not in os.environ and not DOCKER_SOCKET.exists():
        return False
    import docker
    from docker.errors import DockerException

    with suppress(DockerException):
        client = docker.from_env(timeout=5)
        try:
            return bool(client.ping())
        finally:
            client.close()
    return False


@contextmanager
def _named_server(url: str) -> Generator[str]:
    yield url


def _server() -> AbstractContextManager[str]:
    if url := os.environ.get("SESSION_LIFECYCLE_TEST_DATABASE_URL"):
        return _named_server(url)
    return _container() if docker_answers() else _embedded_server()


@pytest.fixture(scope="session")
def session_template_server() -> Iterator[TemplateServer]:
    """The server of this test run and its template database. Each parallel worker makes its own template."""
    with ExitStack() as stack:
        stack.callback(SERVER_SETTINGS.update, dict(SERVER_SETTINGS))
        SERVER_SETTINGS["search_path"] = CLOCK_PATH
        url = stack.enter_context(_server())
        server = stack.enter_context(TemplateServer(url, f"session_lifecycle_template_{os.getpid()}"))
        asyncio.run(server.prepare())
        stack.callback(lambda: asyncio.run(server.drop(server.template)))
        yield server


_numbers = count(1)


@pytest_asyncio.fixture
async def session_database_url(session_template_server: TemplateServer) -> AsyncIterator[str]:
    """The URL of the test's own migrated, empty database, which is dropped when the test ends."""
    database = f"session_lifecycle_test_{os.getpid()}_{next(_numbers)}"
    await session_template_server.clone(database)
    try:
        yield session_template_server.url_of(database)
    finally:
        await session_template_server.drop(database)


@pytest_asyncio.fixture
async def session_database(session_database_url: str) -> AsyncIterator[SessionDatabase]:
    """A `SessionDatabase` on the test's own migrated, empty database."""
    async with SessionDatabase.connect(session_database_url) as db:
        yield db


@pytest.fixture
def session_clock(session_database_url: str) -> SessionClock:
    """The clock of the test's own database."""
    return SessionClock(session_database_url)
