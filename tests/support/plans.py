"""Databases with many sessions, and the plans by which Postgres answers what the library asks of them."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionListFilters, Viewer
from session_lifecycle.models import RunFilters, UsageEventFilters
from session_lifecycle.testing import TemplateServer
from support.statements import in_sql, noted
from support.stored_rows import keep_buckets

ME = UUID(int=1)
SOMEBODY = UUID(int=(1 << 64) + 1)
DATASETS = [UUID(int=(2 << 64) + number) for number in range(20)]
VIEWER = Viewer(ME, DATASETS)
SESSIONS = 12_000
LIMIT = 10
SCOPES, STATUSES, TEMPERATURES = 1 + len(DATASETS), 3, 2
# A page from each scope and kind of table, the next session of each status, and the records of the page itself.
A_PAGE = SCOPES * TEMPERATURES * (LIMIT + 1 + STATUSES) + LIMIT + 1
BEGIN = datetime.now(UTC) - timedelta(days=200)
ROLLED_UP, NEVER = "rolled up", "never rolled up"

# A third are the viewer's own, half of these in a dataset too; the rest belong to many users, each in a dataset.
SEED = """
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, dataset_id, agent_name, status, started_at, last_activity_at, ended_at, tokens_in,
         tokens_out, cost_usd)
    SELECT CASE WHEN n % 3 = 0 THEN '00000000-0000-0000-0000-000000000001'
                ELSE '00000000-0000-0001-0000-' || lpad((n % 60)::text, 12, '0') END::uuid,
           's' || n,
           CASE WHEN n % 6 > 0 THEN ('00000000-0000-0002-0000-' || lpad(to_hex(n % 20), 12, '0'))::uuid END,
           'agent ' || n % 5, s.status, s.began, s.began + n % 1000 * interval '1 s',
           CASE WHEN s.status <> 'running' THEN s.began + n % 1000 * interval '1 s' END, n % 5000, n % 700,
           n % 977 * 0.0001
    FROM generate_series(1, :sessions) n,
         LATERAL (VALUES (
             (ARRAY['completed', 'completed', 'failed', 'running'])[1 + n % 4],
             timestamptz '2000-01-01' + (:begin - timestamptz '2000-01-01') + (n * 7919 % :sessions) * interval '10 min'
         )) s (status, began)
"""
SESSIONS_OF_A_COST = 1 + SESSIONS // 977
SEED_MODELS = """
    INSERT INTO session_lifecycle.session_model_usage
        (user_id, session_id, model, tokens_in, tokens_out, cost_usd, events)
    SELECT user_id, session_id, 'model ' || right(session_id, 1), tokens_in, tokens_out, cost_usd, 1
    FROM session_lifecycle.session_records
"""
WAITING = 429
# Of the running sessions every seventh waits, and as many waited once.
WAIT = """
    UPDATE session_lifecycle.session_records
    SET waiting_since = last_activity_at - CASE WHEN n.n % 28 = 3 THEN interval '0' ELSE interval '1 s' END
    FROM generate_series(3, 12000, 4) n (n)
    WHERE session_id = 's' || n.n AND n.n % 28 IN (3, 7)
"""
SEED_RUNS = """
    INSERT INTO session_lifecycle.session_runs (user_id, run_id, session_id, model, started_at, ended_at)
    SELECT user_id, session_id, session_id, 'Model ' || right(session_id, 2), started_at, started_at
    FROM session_lifecycle.session_records
"""
# One run has many steps, every other run has two.
STEPS = 10_000
SEED_STEPS = """
    INSERT INTO session_lifecycle.session_steps (user_id, run_id, step_id, kind, seq, started_at, ended_at, output)
    SELECT r.user_id, r.run_id, n::text, 'tool', n, r.started_at + n % 100 * interval '1 s', r.ended_at,
           to_jsonb(repeat('x', 200))
    FROM session_lifecycle.session_runs r
    CROSS JOIN LATERAL generate_series(1, CASE WHEN r.run_id = 's6' THEN :steps ELSE 2 END) n
"""
# Two months of events, written in the order of time.
EVENTS = 60_000
SEED_EVENTS = """
    INSERT INTO session_lifecycle.session_usage_events
        (user_id, session_id, event_id, at, model, tokens_in, tokens_out, cost_usd)
    SELECT s.user_id, s.session_id, lpad(to_hex(n), 32, '0')::uuid, CAST(:begin AS timestamptz) + n * interval '90 s',
           'm', 10, 1, 0.01
    FROM generate_series(1, :events) n
    JOIN session_lifecycle.session_records s ON s.session_id = 's' || 1 + n % :sessions
    ORDER BY n
"""


@contextmanager
def databases_of_many(server: TemplateServer) -> Iterator[dict[str, str]]:
    """The URLs of two databases with the same sessions: one rolled up, one never rolled up."""
    names = {state: f"{server.template}_{number}" for number, state in enumerate((ROLLED_UP, NEVER))}

    async def seed() -> None:
        for state, name in names.items():
            await server.clone(name)
            async with SessionDatabase.connect(server.url_of(name)) as db:
                async with db.engine.begin() as connection:
                    await connection.execute(text(SEED), {"sessions": SESSIONS, "begin": BEGIN})
                    await connection.execute(text(SEED_MODELS))
                    await connection.execute(text(SEED_RUNS))
                    await connection.execute(text(SEED_STEPS), {"steps": STEPS})
                    await connection.execute(
                        text(SEED_EVENTS), {"sessions": SESSIONS, "begin": BEGIN, "events": EVENTS}
                    )
                    if state == NEVER:
                        await connection.execute(text(WAIT))
                if state == ROLLED_UP:
                    # So few sessions have hardly any bucket otherwise.
                    await keep_buckets(db, density=8)
                    await db.maintenance.roll_up()
            connection = await asyncpg.connect(server.url_of(name))
            # For statistics, and for the visibility map that index-only scans need.
            await connection.execute("VACUUM ANALYZE")
            await connection.close()

    async def drop() -> None:
        for name in names.values():
            await server.drop(name)

    asyncio.run(seed())
    yield {state: server.url_of(name) for state, name in names.items()}
    asyncio.run(drop())


async def execute(url: str, *statements: str) -> None:
    """Runs statements, each outside a transaction and with those values of a seed that it names."""
    values = {"sessions": SESSIONS, "begin": BEGIN}
    async with SessionDatabase.connect(url) as db:
        autocommit = db.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with autocommit.connect() as connection:
            for one in statements:
                await connection.execute(text(one), {name: values[name] for name in values if f":{name}" in one})


@asynccontextmanager
async def seeded(server: TemplateServer, name: str, *statements: str) -> AsyncGenerator[str]:
    """The URL of another database, in which these statements ran; it is dropped afterwards."""
    database = f"{server.template}_{name}"
    await server.clone(database)
    try:
        await execute(server.url_of(database), *statements)
        yield server.url_of(database)
    finally:
        await server.drop(database)


@dataclass
class Plan:
    """The executed plan of a statement."""

    indexes: set[str] = field(default_factory=set)
    conditions: dict[str, str] = field(default_factory=dict)
    """The condition of each index scan."""
    sequential: set[str] = field(default_factory=set)
    rows_read: int = 0
    """Rows read from all tables, with the rows that a filter then removed."""
    rows_of: Counter[str] = field(default_factory=Counter)
    """Rows read from each table."""
    buffers: int = 0
    """Pages read by the whole statement."""

    def take(self, node: dict[str, Any]) -> None:
        """Adds a node and its children."""
        if "Relation Name" in node or node["Node Type"] == "Bitmap Index Scan":
            loops = node["Actual Loops"]
            removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            if loops and "Index Name" in node:
                self.indexes.add(node["Index Name"])
                self.conditions[node["Index Name"]] = node.get("Index Cond", "")
            if loops and node["Node Type"] == "Seq Scan":
                self.sequential.add(node["Relation Name"])
            rows = round((node["Actual Rows"] + removed) * loops)
            self.rows_read += rows
            self.rows_of[node.get("Relation Name", "")] += rows
        for child in node.get("Plans", ()):
            self.take(child)


Ask = Callable[[SessionDatabase], Awaitable[Any]]


GENERIC, CHOSEN = "force_generic_plan", "auto"
EXECUTIONS = 6
"""After five plans for the values at hand, Postgres decides whether it keeps one for all values."""


async def plan_of(url: str, ask: Ask, mode: str = GENERIC, *, with_text: str = "") -> Plan:
    """The executed plan of one statement of a call: the last one that has this text.

    It is the plan for all values, or with CHOSEN the one that Postgres chooses after it ran the statement a few times.
    """
    async with SessionDatabase.connect(url) as db:
        await db.check()
        async with noted(db) as sent:
            await ask(db)
        statement, values = [one for one in sent if with_text in one[0]][-1]
        async with db.engine.connect() as connection:
            await connection.exec_driver_sql(f"SET LOCAL plan_cache_mode = {mode}")
            await connection.exec_driver_sql(f"PREPARE asked AS {statement}")
            given = f"({', '.join(map(in_sql, values))})" if values else ""
            for _ in range(EXECUTIONS if mode == CHOSEN else 0):
                await connection.exec_driver_sql(f"EXECUTE asked{given}")
            answer = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked{given}")
            answered = answer.scalar_one()
            await connection.exec_driver_sql("DEALLOCATE asked")
    [explained] = json.loads(answered) if isinstance(answered, str) else answered
    top = explained["Plan"]
    plan = Plan(buffers=top["Shared Hit Blocks"] + top["Shared Read Blocks"])
    plan.take(top)
    return plan


def page(**filters: Any) -> Ask:
    """A call for a page, of VIEWER unless the filters name another viewer."""
    asked = SessionListFilters(**{"viewer": VIEWER, "limit": LIMIT, "total": "none", **filters})
    return lambda db: db.lifecycle.list_session_rows(asked)


def events(**filters: Any) -> Ask:
    """A call for a page of the ledger."""
    asked = UsageEventFilters(**{"limit": LIMIT, **filters})
    return lambda db: db.activity.list_usage_events(asked)


def runs(**filters: Any) -> Ask:
    """A call for a page of runs."""
    asked = RunFilters(**filters)
    return lambda db: db.activity.list_runs(asked)


def deep(**filters: Any) -> Ask:
    """A call for a page in the middle of a walk."""

    async def ask(db: SessionDatabase) -> None:
        asked = SessionListFilters(**{"viewer": VIEWER, "limit": LIMIT, "total": "none", **filters})
        middle = await db.lifecycle.list_session_rows(asked.model_copy(update={"offset": SESSIONS // 5}))
        assert middle.next_cursor is not None
        await db.lifecycle.list_session_rows(asked.model_copy(update={"cursor": middle.next_cursor}))

    return ask


def deep_of_waiting(**filters: Any) -> Ask:
    """A call for the second page of a walk."""

    async def ask(db: SessionDatabase) -> None:
        asked = SessionListFilters(**{"viewer": VIEWER, "limit": LIMIT, "total": "none", **filters})
        first = await db.lifecycle.list_session_rows(asked)
        assert first.next_cursor is not None
        await db.lifecycle.list_session_rows(asked.model_copy(update={"cursor": first.next_cursor}))

    return ask


def rolled_up(*scopes: str) -> set[str]:
    """The index of rolled-up sessions on these columns."""
    return {"_".join(("ix_rolled_up_sessions", *scopes))}


def not_rolled_up(*scopes: str) -> set[str]:
    """The index of the sessions not rolled up on these columns and activity."""
    return {"_".join(("ix_session_records", *scopes, "status_activity_minute"))}
