"""Pytest fixtures for hosts: a real, migrated, empty database for each test, cloned from a template.

Add `pytest_plugins = ["session_lifecycle.testing"]` to the top `conftest.py`, and ask for:

- `session_database`: a `SessionDatabase` on the test's own database;
- `session_database_url`: that database's URL, for a host's own engine;
- `session_clock`: the database's clock, to be advanced or frozen.

The server is the one `SESSION_LIFECYCLE_TEST_DATABASE_URL` names (its user creates and drops databases); else a
container of `SESSION_LIFECYCLE_TEST_IMAGE`, where testcontainers is installed and a Docker engine answers; else an
embedded one.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import URL, make_url

from session_lifecycle.database import SessionDatabase
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir

DEFAULT_IMAGE = "postgres:17-alpine"
DOCKER_SOCKET = Path("/var/run/docker.sock")
SHARED_MEMORY = Path("/dev") / "shm"
ROOM_BYTES = 2 * 1024**3

# The library asks `statement_timestamp()` for the time. In a test's database the search path finds this one first, so
# the clock can be moved without the library knowing of tests.
INSTALL_CLOCK = """
    CREATE SCHEMA session_lifecycle_clock;
    CREATE TABLE session_lifecycle_clock.setting (ahead interval NOT NULL, frozen_at timestamptz);
    INSERT INTO session_lifecycle_clock.setting VALUES ('0', NULL);
    CREATE FUNCTION session_lifecycle_clock.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS $$
        SELECT coalesce(frozen_at, pg_catalog.statement_timestamp() + ahead) FROM session_lifecycle_clock.setting
    $$;
"""


class SessionClock:
    """The clock of the test's database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def now(self) -> datetime:
        """What the library takes for now."""
        now: datetime = await self._ask("SELECT statement_timestamp()")
        return now

    async def advance(self, by: timedelta) -> None:
        """Moves the clock on, or back by a negative amount; a frozen clock stays frozen at its new time."""
        await self._ask("UPDATE session_lifecycle_clock.setting SET ahead = ahead + $1, frozen_at = frozen_at + $1", by)

    async def freeze(self, at: datetime | None = None) -> datetime:
        """Stops the clock at a moment, or now; returns it."""
        moment = at or await self.now()
        await self._ask("UPDATE session_lifecycle_clock.setting SET frozen_at = $1", moment)
        return moment

    async def run(self) -> None:
        """Lets the clock run as the server's does."""
        await self._ask("UPDATE session_lifecycle_clock.setting SET ahead = '0', frozen_at = NULL")

    async def _ask(self, sql: str, *arguments: Any) -> Any:
        connection = await asyncpg.connect(self._url)
        try:
            return await connection.fetchval(sql, *arguments)
        finally:
            await connection.close()


@dataclass(frozen=True)
class TemplateServer:
    """A server, and on it a migrated database that tests clone."""

    url: str
    template: str

    def url_of(self, database: str) -> str:
        """The URL of a database on this server, for asyncpg and for `SessionDatabase.connect`."""
        return self._parsed().set(database=database).render_as_string(hide_password=False)

    def _parsed(self) -> URL:
        return make_url(self.url).set(drivername="postgresql")

    async def run(self, *statements: str) -> None:
        """Runs statements outside a transaction, on the server's own database."""
        connection = await asyncpg.connect(self._parsed().render_as_string(hide_password=False))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def prepare(self) -> None:
        """Creates the template: migrated, with the clock that tests move."""
        await self.run(f'CREATE DATABASE "{self.template}"')
        async with SessionDatabase.connect(self.url_of(self.template)) as db:
            await db.migrate()
        connection = await asyncpg.connect(self.url_of(self.template))
        try:
            await connection.execute(INSTALL_CLOCK)
        finally:
            await connection.close()

    async def clone(self, database: str) -> None:
        """Creates an empty, migrated database."""
        await self.run(
            f'CREATE DATABASE "{database}" TEMPLATE "{self.template}"',
            f'ALTER DATABASE "{database}" SET search_path = session_lifecycle_clock, pg_catalog, public',
        )

    async def drop(self, database: str) -> None:
        """Drops a database, whoever is still connected."""
        await self.run(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


def folder_in_memory() -> Path | None:
    """The folder whose files are kept in memory; None where it has no room for all workers, or somebody chose another.

    A database is some three hundred files, and each test creates and drops one. That takes a hundredth of a second in
    memory, and a third on ext4, which leaves the inode of a deleted file for a minute and looks at all those each time.
    """
    if "TMPDIR" in os.environ or not SHARED_MEMORY.is_dir():
        return None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    has_room = shutil.disk_usage(SHARED_MEMORY).free >= workers * ROOM_BYTES
    return SHARED_MEMORY if has_room and os.access(SHARED_MEMORY, os.W_OK) else None


@contextmanager
def _embedded_server() -> Generator[str]:
    with temporary_data_dir(folder_in_memory()) as data_dir:
        server = asyncio.run(EmbeddedPostgres.start(data_dir, durable=False))
        try:
            yield server.url
        finally:
            asyncio.run(server.stop())


@contextmanager
def _container() -> Generator[str]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(os.environ.get("SESSION_LIFECYCLE_TEST_IMAGE", DEFAULT_IMAGE), driver=None)
    # In memory, for the same reason as an embedded one.
    container = container.with_env("PGDATA", "/memory/data").with_tmpfs_mount("/memory")
    with container as postgres:
        yield postgres.get_connection_url()


def docker_answers() -> bool:
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
    """The server of this test run, with its template; each parallel worker has its own template."""
    with ExitStack() as stack:
        server = TemplateServer(stack.enter_context(_server()), f"session_lifecycle_template_{os.getpid()}")
        asyncio.run(server.prepare())
        stack.callback(lambda: asyncio.run(server.drop(server.template)))
        yield server


_numbers = count(1)


@pytest_asyncio.fixture
async def session_database_url(session_template_server: TemplateServer) -> AsyncIterator[str]:
    """The URL of a migrated, empty database of this test's own; dropped when the test ends."""
    database = f"session_lifecycle_test_{os.getpid()}_{next(_numbers)}"
    await session_template_server.clone(database)
    try:
        yield session_template_server.url_of(database)
    finally:
        await session_template_server.drop(database)


@pytest_asyncio.fixture
async def session_database(session_database_url: str) -> AsyncIterator[SessionDatabase]:
    """A `SessionDatabase` on a migrated, empty database of this test's own."""
    async with SessionDatabase.connect(session_database_url) as db:
        yield db


@pytest.fixture
def session_clock(session_database_url: str) -> SessionClock:
    """The clock of this test's database."""
    return SessionClock(session_database_url)
