"""Stored rows: inserted for a test, counted, and read."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Table, func, select, text
from sqlalchemy.dialects.postgresql import insert

from session_lifecycle import SessionDatabase
from session_lifecycle.entities import metadata

TABLES = {
    "sessions": "session_records",
    "runs": "session_runs",
    "steps": "session_steps",
    "messages": "session_messages",
    "events": "session_usage_events",
    "model_rows": "session_model_usage",
}


def table(name: str) -> Table:
    return metadata.tables[f"session_lifecycle.{name}"]


async def store(db: SessionDatabase, name: str, *rows: dict[str, Any]) -> None:
    """Inserts rows; each row may have other columns."""
    async with db.engine.begin() as connection:
        for row in rows:
            await connection.execute(insert(table(name)).values(**row))


async def store_run(db: SessionDatabase, user_id: UUID, run_id: str, started_at: datetime | None, **more: Any) -> None:
    """Stores a run whose last activity is its start or its end."""
    seen = {"first_seen": started_at, "last_seen": more.get("ended_at") or started_at}
    row = {"user_id": user_id, "run_id": run_id, "root_run_id": run_id, "started_at": started_at, **seen, **more}
    await store(db, "session_runs", row)


async def store_step(db: SessionDatabase, user_id: UUID, run_id: str, step_id: str, at: datetime, **more: Any) -> None:
    """Stores a step, a task unless `kind` is given."""
    row = {"user_id": user_id, "run_id": run_id, "step_id": step_id, "kind": "task", "started_at": at, **more}
    await store(db, "session_steps", row)


async def store_message(db: SessionDatabase, user_id: UUID, session_id: str, content: str, **more: Any) -> None:
    """Stores a message, a user's prompt unless `role` is given."""
    row = {"user_id": user_id, "session_id": session_id, "message_id": content, "content": content, "role": "user"}
    await store(db, "session_messages", {**row, "content_folded": content, "created_at": func.now(), **more})


async def counts(db: SessionDatabase, **of: Any) -> dict[str, int]:
    """The number of rows of each table, or of its rows with these column values."""
    counted: dict[str, int] = {}
    async with db.engine.connect() as connection:
        for short, name in TABLES.items():
            chosen = (table(name).c[column] == value for column, value in of.items())
            statement = select(func.count()).select_from(table(name)).where(*chosen)
            counted[short] = (await connection.execute(statement)).scalar_one()
    return counted


async def ask(db: SessionDatabase, sql: str, **bound: Any) -> list[Any]:
    """The rows of a statement; its table names need no schema."""
    async with db.engine.begin() as connection:
        await connection.exec_driver_sql(
            "SET LOCAL search_path = session_lifecycle, session_lifecycle_clock, pg_catalog"
        )
        result = await connection.execute(text(sql), bound)
        return list(result.all()) if result.returns_rows else []


async def deadlocks(db: SessionDatabase) -> int:
    """The number of deadlocks in this database so far."""
    [(counted,)] = await ask(db, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(counted)


async def lock_waits(db: SessionDatabase, query: str = "") -> int:
    """The number of connections that wait for a lock, with a statement that contains `query`."""
    waits = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND strpos(query, :query) > 0
    """
    # A transaction keeps its first view of the activity, so each call has its own transaction.
    [(counted,)] = await ask(db, waits, query=query)
    return int(counted)


async def keep_buckets(db: SessionDatabase, *, density: float = 0) -> None:
    """Sets from how many sessions on there are short buckets; with 0 there are buckets of every length, however few."""
    await ask(
        db,
        "CREATE OR REPLACE FUNCTION session_lifecycle.density(of_family text) RETURNS numeric LANGUAGE sql IMMUTABLE "
        f"RETURN {density}::numeric",
    )
