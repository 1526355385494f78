"""Migrating a database that is in use: no writer waits for long, whatever the migration waits for."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionStatus, TransactionConflictError, UsageEvent
from session_lifecycle.entities import metadata
from session_lifecycle.postgres import short_locks
from session_lifecycle.postgres.schema_check import SEARCH_INDEX

USER = UUID(int=1)
LONGEST_WAIT_SECONDS = 2.0
TABLES = sorted(table.name for table in metadata.tables.values())
# Nobody writes where a unique index is missing.
INDEXES = [
    *sorted(str(index.name) for table in metadata.tables.values() for index in table.indexes if not index.unique),
    SEARCH_INDEX,
]


@asynccontextmanager
async def reading_for_long(url: str) -> AsyncGenerator[None]:
    """A transaction that has read all our tables and goes on."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            for table in TABLES:
                await connection.fetch(f"SELECT * FROM session_lifecycle.{table} LIMIT 1")
            yield
    finally:
        await connection.close()


class Writer:
    """Writes without a pause, and notes how long the longest write took."""

    def __init__(self, db: SessionDatabase) -> None:
        self.longest_seconds = 0.0
        self.writes = 0
        self._db = db

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            await self._db.lifecycle.accumulate_usage(f"s{self.writes % 7}", USER, "m", 1, cost_usd=1)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            self.writes += 1
            await asyncio.sleep(0.01)


@asynccontextmanager
async def writing(url: str) -> AsyncGenerator[Writer]:
    async with SessionDatabase.connect(url) as db:
        # The first write checks the schema, in which something will be missing.
        await db.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
        writer = Writer(db)
        task = asyncio.create_task(writer.run())
        try:
            yield writer
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()


async def run(db: SessionDatabase, sql: str) -> list[Any]:
    async with db.engine.begin() as connection:
        result = await connection.execute(text(sql))
        return list(result.scalars()) if result.returns_rows else []


LACKS = {
    "a disabled trigger": "ALTER TABLE session_lifecycle.session_records DISABLE TRIGGER leave_roll_ups",
    "all indexes": ";".join(f"DROP INDEX IF EXISTS session_lifecycle.{name}" for name in INDEXES),
    "an invalid index": """
        UPDATE pg_index SET indisvalid = false
        WHERE indexrelid = 'session_lifecycle.ix_session_records_session_id_activity_minute'::regclass
    """,
    "a function": "DROP FUNCTION session_lifecycle.anonymise_sessions_v1(jsonb, uuid)",
    "nothing": "SELECT 1",
}


@pytest.mark.parametrize("lack", LACKS)
async def test_X45_no_writer_waits_behind_a_migration_that_waits_for_a_reader(
    session_database_url: str, lack: str
) -> None:
    async with SessionDatabase.connect(session_database_url) as db:
        async with writing(session_database_url) as writer:
            async with db.engine.begin() as connection:
                for statement in LACKS[lack].split(";"):
                    await connection.exec_driver_sql(statement)
            async with reading_for_long(session_database_url):
                migrating = asyncio.create_task(db.migrate())
                await asyncio.wait([migrating], timeout=4)
                before = writer.writes
                await asyncio.sleep(LONGEST_WAIT_SECONDS)
                assert writer.writes > before
            await asyncio.wait_for(migrating, 60)
            await db.check()
        assert writer.writes > 10
        assert writer.longest_seconds < LONGEST_WAIT_SECONDS
        assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_X45_a_lock_that_is_never_let_go_is_an_error_and_changes_nothing(
    session_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_locks, "LOCK_ATTEMPTS", 2)
    async with SessionDatabase.connect(session_database_url) as db:
        await run(db, LACKS["a disabled trigger"])
        async with reading_for_long(session_database_url):
            with pytest.raises(TransactionConflictError, match="lock timeout"):
                await db.migrate()
        assert await run(db, "SELECT tgenabled FROM pg_trigger WHERE tgname = 'leave_roll_ups'") == [b"D"]
        assert await run(db, "SHOW lock_timeout") == ["0"]


async def test_X45_indexes_are_built_beside_writers_and_leave_no_setting_behind(session_database_url: str) -> None:
    async with SessionDatabase.connect(session_database_url) as db:
        settings = ("statement_timeout", "lock_timeout", "search_path")
        before = [await run(db, f"SHOW {name}") for name in settings]
        async with db.engine.begin() as connection:
            for statement in LACKS["all indexes"].split(";"):
                await connection.exec_driver_sql(statement)
        async with db.engine.connect() as host:
            # A writer's transaction that is open: an index built with a lock would wait for it, and all writers behind.
            await db.bind(host).lifecycle.accumulate_usage("open", USER, "m", 1, cost_usd=1)
            migrating = asyncio.create_task(db.migrate())
            await asyncio.sleep(1)
            await asyncio.wait_for(db.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1), 2)
            assert not migrating.done()
            await host.commit()
        await asyncio.wait_for(migrating, 60)
        await db.check()
        assert [await run(db, f"SHOW {name}") for name in settings] == before
        invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
        assert await run(db, invalid) == [0]


async def test_X45_two_processes_mend_at_once(session_database_url: str) -> None:
    async with (
        SessionDatabase.connect(session_database_url) as one,
        SessionDatabase.connect(session_database_url) as two,
    ):
        async with one.engine.begin() as connection:
            for statement in LACKS["all indexes"].split(";"):
                await connection.exec_driver_sql(statement)
        await asyncio.gather(one.migrate(), two.migrate())
        await one.check()


async def test_X45_no_writer_waits_for_the_lock_of_the_roll_ups(session_database: SessionDatabase) -> None:
    db = session_database
    event = UsageEvent(session_id="s", user_id=USER, model="m", tokens_in=1, cost_usd=1)
    await db.lifecycle.record([event])
    await db.lifecycle.end_session("s", USER, SessionStatus.COMPLETED)
    await db.maintenance.roll_up()
    async with db.engine.begin() as connection:
        await connection.execute(text("SELECT session_lifecycle.lock_roll_ups(true)"))
        compacting = asyncio.create_task(db.maintenance.roll_up())
        # The session leaves the roll-ups while somebody else has their lock.
        await asyncio.wait_for(db.lifecycle.reopen_session("s", USER), LONGEST_WAIT_SECONDS)
        await asyncio.wait_for(db.lifecycle.record([event]), LONGEST_WAIT_SECONDS)
        await asyncio.wait_for(db.maintenance.delete_session("s", USER), LONGEST_WAIT_SECONDS)
        assert not compacting.done()
    await compacting
    assert (await db.maintenance.reconcile()).mismatch_count == 0
