"""The server and the database of a benchmark: started, migrated, seeded and made ready to be measured."""

import os
import platform
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionWriter, Settings
from session_lifecycle.postgres.embedded import EmbeddedPostgres, temporary_data_dir
from session_lifecycle.settings import DEFAULT_SCHEMA

# One writer's connections, as many as the reference and pgbench have.
SETTINGS = Settings(pool_size=16, max_overflow=0)
WAL_FILES = 20
TOKENS_IN, TOKENS_OUT, COST_USD = 120, 40, 0.012

# Sessions of `users` users, the first of which is `first_user`, each with one or two models. One session in
# `running_every` was never ended. The last activities lie evenly in the time `span` before `newest`.
IDLE_SESSIONS = """
    WITH given AS (
        SELECT CAST(:sessions AS integer) AS sessions, CAST(:users AS integer) AS users,
               CAST(:running_every AS integer) AS running_every, CAST(:first_user AS bigint) AS first_user,
               CAST(:newest AS timestamptz) AS newest, CAST(:span AS interval) AS span
    ),
    fleet AS MATERIALIZED (
        SELECT n, 'session-' || n AS session_id,
               lpad(to_hex(first_user + n % users), 32, '0')::uuid AS user_id,
               CASE WHEN n % 3 > 0 THEN lpad(to_hex(n % 47), 32, '0')::uuid END AS dataset_id,
               n % running_every = 0 AS runs, newest - n * (span / sessions) AS last_activity_at
        FROM given, generate_series(0, sessions - 1) n
    ),
    model_usage AS (
        INSERT INTO session_lifecycle.session_model_usage
            (user_id, session_id, model, tokens_in, tokens_out, cost_usd, events)
        SELECT user_id, session_id, 'm' || (n + 3 * part) % 7, 1200, 400, 0.0123, 5
        FROM fleet, generate_series(0, n % 2) part
    )
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, dataset_id, status, started_at, last_activity_at, ended_at, tokens_in, tokens_out,
         cost_usd)
    SELECT user_id, session_id, dataset_id, CASE WHEN runs THEN 'running' ELSE 'completed' END,
           last_activity_at - interval '20 minutes', last_activity_at, CASE WHEN NOT runs THEN last_activity_at END,
           1200 * (1 + n % 2), 400 * (1 + n % 2), 0.0123 * (1 + n % 2)
    FROM fleet
"""


@asynccontextmanager
async def running_server() -> AsyncGenerator[EmbeddedPostgres]:
    """A durable server of this run alone, deleted afterwards."""
    with temporary_data_dir() as data_dir:
        async with await EmbeddedPostgres.start(data_dir, tcp=True) as server:
            yield server


@asynccontextmanager
async def database(settings: Settings = SETTINGS) -> AsyncGenerator[tuple[EmbeddedPostgres, SessionDatabase]]:
    """A server of this run alone, and our migrated schema on it."""
    async with running_server() as server, SessionDatabase.connect(server.url, settings=settings) as db:
        await db.migrate()
        yield server, db


@asynccontextmanager
async def emptied_database(server: EmbeddedPostgres, settings: Settings) -> AsyncGenerator[SessionDatabase]:
    """Our migrated schema on this server, with nothing that an earlier question left in it."""
    async with SessionDatabase.connect(server.url, settings=settings) as db:
        await run(db, f"DROP SCHEMA IF EXISTS {DEFAULT_SCHEMA} CASCADE")
        await db.migrate()
        yield db


def machine(server: EmbeddedPostgres) -> str:
    """The versions and the cores that the figures of this run belong to."""
    return f"PostgreSQL {server.version}, CPython {platform.python_version()}, {os.cpu_count()} cores"


async def run(db: SessionDatabase, *statements: str, values: Mapping[str, object] | None = None) -> None:
    """Runs statements, each outside a transaction and with those of the values that it names."""
    async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for statement in statements:
            named = {name: value for name, value in (values or {}).items() if f":{name}" in statement}
            await connection.execute(text(statement), named)


async def scalar(db: SessionDatabase, statement: str, **values: object) -> Any:
    """The one value of a statement."""
    async with db.engine.connect() as connection:
        return await connection.scalar(text(statement), values)


async def seed(
    db: SessionDatabase,
    first_user: int,
    sessions: int,
    *,
    users: int = 1,
    running_every: int = 1,
    newest: timedelta = timedelta(days=1),
    span: timedelta = timedelta(days=540),
) -> None:
    """Adds sessions; their last activities lie evenly in a time of this span that ended `newest` ago."""
    values = {"first_user": first_user, "sessions": sessions, "users": users, "running_every": running_every}
    await run(db, IDLE_SESSIONS, values={**values, "newest": datetime.now(UTC) - newest, "span": span})


async def settle(db: SessionDatabase, tables: Iterable[str] = ()) -> None:
    """Removes dead rows, gathers statistics and writes all changed pages; of these tables of ours, or of all tables."""
    named = [f" {DEFAULT_SCHEMA}.{table}" for table in tables] or [""]
    await run(db, *(f"VACUUM ANALYZE{table}" for table in named), "CHECKPOINT")


async def age(db: SessionDatabase) -> None:
    """Makes the WAL files that a server has which has run for a while: all callers wait while a new one is made."""
    await run(db, f"ALTER SYSTEM SET min_wal_size = '{WAL_FILES * 16}MB'", "SELECT pg_reload_conf()")
    await run(db, *["SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal()"] * WAL_FILES)


async def recycle_wal(db: SessionDatabase) -> None:
    """Lets the next line write over the WAL files of the lines before it."""
    await run(db, "CHECKPOINT")


async def use(writer: SessionWriter, user_id: UUID, session_id: str, *, keyed: bool = True) -> None:
    """Records one usage, with a new key or without one."""
    key = uuid4().hex if keyed else None
    await writer.accumulate_usage(session_id, user_id, "gpt-4o", TOKENS_IN, TOKENS_OUT, COST_USD, idempotency_key=key)


async def counted(db: SessionDatabase, user_id: UUID) -> int:
    """How many usages the user's totals hold: a line whose totals are wrong has no speed."""
    return (await db.lifecycle.aggregate_stats(user_id)).tokens_in // TOKENS_IN
