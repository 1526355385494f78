"""The contract suite, run against every way in: our engine, the host's, its transactions, a recorder, a pooler."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, SessionLifecycleDb, SessionRecorder, Settings
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.testing import TemplateServer
from support.contract import A, SessionLifecycleContract
from support.pgbouncer import pgbouncer

__all__ = ["pgbouncer"]

ODD_SCHEMA = 'odd "name"; %s :x'

HostTransaction = Callable[[], AbstractAsyncContextManager[AsyncConnection | AsyncSession]]


class InHostTransactions:
    """Makes each call in a transaction of its own, which the host commits."""

    def __init__(self, db: SessionDatabase, begin: HostTransaction, *, savepoints: bool) -> None:
        self._db = db
        self._begin = begin
        self._savepoints = savepoints

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **more: Any) -> Any:
            async with self._begin() as host:
                bound = self._db.bind(host, savepoints=self._savepoints)
                return await getattr(bound.lifecycle, name)(*arguments, **more)

        return call


class Recorded:
    """Writes through a recorder and reads directly."""

    def __init__(self, lifecycle: SessionLifecycleDb, recorder: SessionRecorder) -> None:
        self._ways = (recorder, lifecycle)

    def __getattr__(self, name: str) -> Any:
        return getattr(next(way for way in self._ways if hasattr(way, name)), name)


class TestDirect(SessionLifecycleContract):
    @pytest.fixture
    def lifecycle(self, session_database: SessionDatabase) -> SessionLifecycleDb:
        return session_database.lifecycle


class TestOnThePrimaryBesideAReplicaThatIsAway(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(self, session_database_url: str) -> AsyncIterator[SessionLifecycleDb]:
        async with SessionDatabase.connect(session_database_url, read_url="postgresql://u@127.0.0.1:1/x") as db:
            yield db.primary.lifecycle


@pytest.mark.parametrize("savepoints", [True, False], ids=["savepoints", "plain"])
class TestInAHostsConnection(SessionLifecycleContract):
    @pytest.fixture
    def lifecycle(self, session_database: SessionDatabase, savepoints: bool) -> SessionLifecycleDb:
        bound = InHostTransactions(session_database, session_database.engine.begin, savepoints=savepoints)
        return cast("SessionLifecycleDb", bound)


class TestInAHostsSession(SessionLifecycleContract):
    @pytest.fixture
    def lifecycle(self, session_database: SessionDatabase) -> SessionLifecycleDb:
        sessions = async_sessionmaker(session_database.engine)
        return cast("SessionLifecycleDb", InHostTransactions(session_database, sessions.begin, savepoints=True))


class TestOnAHostsEngineInASchemaOfAnyName(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(self, session_database_url: str) -> AsyncIterator[SessionLifecycleDb]:
        engine = create_async_engine(asyncpg_url(session_database_url), isolation_level="SERIALIZABLE")
        db = SessionDatabase.from_engine(engine, schema=ODD_SCHEMA)
        await db.migrate()
        yield db.lifecycle
        await engine.dispose()


class TestBehindPgbouncer(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(
        self, session_database_url: str, pgbouncer: Callable[[str], str]
    ) -> AsyncIterator[SessionLifecycleDb]:
        async with SessionDatabase.connect(pgbouncer(session_database_url), pgbouncer=True) as db:
            yield db.lifecycle


class TestInAHostsConnectionBehindPgbouncer(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(
        self, session_database_url: str, pgbouncer: Callable[[str], str]
    ) -> AsyncIterator[SessionLifecycleDb]:
        url = asyncpg_url(pgbouncer(session_database_url))
        engine = create_async_engine(url, connect_args={"statement_cache_size": 0})
        db = SessionDatabase.from_engine(engine)
        yield cast("SessionLifecycleDb", InHostTransactions(db, engine.begin, savepoints=True))
        await engine.dispose()


async def test_a_database_is_migrated_through_pgbouncer(
    session_template_server: TemplateServer, pgbouncer: Callable[[str], str]
) -> None:
    name = f"through_pgbouncer_{os.getpid()}"
    await session_template_server.run(f'CREATE DATABASE "{name}"')
    try:
        async with SessionDatabase.connect(pgbouncer(session_template_server.url_of(name)), pgbouncer=True) as db:
            await db.migrate()
            await db.check()
    finally:
        await session_template_server.drop(name)


async def test_a_call_over_its_timeout_raises_at_once_behind_pgbouncer(
    session_database: SessionDatabase, session_database_url: str, pgbouncer: Callable[[str], str]
) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    settings = Settings(statement_timeout_seconds=0.3, application_name="behind")
    async with (
        session_database.engine.begin() as holder,
        SessionDatabase.connect(pgbouncer(session_database_url), settings=settings, pgbouncer=True) as db,
    ):
        names = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'behind'"
        await db.check()
        assert (await holder.exec_driver_sql(names)).scalar_one() == 1
        await holder.exec_driver_sql("SELECT 1 FROM session_lifecycle.session_records FOR UPDATE")
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailableError):
            await db.lifecycle.ensure_and_touch_session("s", A)
        # Six retries would have taken six times as long.
        assert time.monotonic() - began < 1.5


class TestThroughARecorder(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(self, session_database: SessionDatabase) -> AsyncIterator[SessionLifecycleDb]:
        async with session_database.recorder() as recorder:
            yield cast("SessionLifecycleDb", Recorded(session_database.lifecycle, recorder))


async def test_the_connection_used_last_is_used_next(session_database: SessionDatabase) -> None:
    async def backend(pause_seconds: float = 0) -> int:
        async with session_database.engine.connect() as connection:
            pid: int = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
            await asyncio.sleep(pause_seconds)
            return pid

    together = await asyncio.gather(*(backend(0.1) for _ in range(4)))
    assert len(set(together)) == 4
    assert len({await backend() for _ in range(8)}) == 1
