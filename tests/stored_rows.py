"""Rows as they are stored: put there for a test, counted, and read."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert

from session_lifecycle import SessionDatabase, metadata

TABLES = {
    "sessions": "session_records",
    "runs": "session_runs",
    "steps": "session_steps",
    "messages": "session_messages",
    "events": "session_usage_events",
    "model_rows": "session_model_usage",
}


def table(name: str) -> Any:
    return metadata.tables[f"session_lifecycle.{name}"]


async def store(db: SessionDatabase, name: str, *rows: dict[str, Any]) -> None:
    """Inserts rows, each with its own columns."""
    async with db.engine.begin() as connection:
        for row in rows:
            await connection.execute(insert(table(name)).values(**row))


async def store_run(db: SessionDatabase, user_id: UUID, run_id: str, started_at: datetime | None, **more: Any) -> None:
    """A run that was seen last when it began or ended."""
    seen = {"first_seen": started_at, "last_seen": more.get("ended_at") or started_at}
    row = {"user_id": user_id, "run_id": run_id, "root_run_id": run_id, "started_at": started_at, **seen, **more}
    await store(db, "session_runs", row)


async def store_step(db: SessionDatabase, user_id: UUID, run_id: str, step_id: str, at: datetime, **more: Any) -> None:
    """A task, unless it is said to be something else."""
    row = {"user_id": user_id, "run_id": run_id, "step_id": step_id, "kind": "task", "started_at": at, **more}
    await store(db, "session_steps", row)


async def store_message(db: SessionDatabase, user_id: UUID, session_id: str, content: str, **more: Any) -> None:
    """A user's prompt, unless it is said to be something else."""
    row = {"user_id": user_id, "session_id": session_id, "message_id": content, "content": content, "role": "user"}
    await store(db, "session_messages", {**row, "content_folded": content, "created_at": func.now(), **more})


async def counts(db: SessionDatabase, **of: Any) -> dict[str, int]:
    """How many rows each table has, of all or of those with these values."""
    async with db.engine.connect() as connection:
        return {
            short: await connection.scalar(
                select(func.count())
                .select_from(table(name))
                .where(*(table(name).c[column] == value for column, value in of.items()))
            )
            for short, name in TABLES.items()
        }


async def ask(db: SessionDatabase, sql: str, **bound: Any) -> list[Any]:
    """The rows of a statement; its tables are looked up in our schema."""
    async with db.engine.begin() as connection:
        await connection.exec_driver_sql(
            "SET LOCAL search_path = session_lifecycle, session_lifecycle_clock, pg_catalog"
        )
        result = await connection.execute(text(sql), bound)
        return list(result.all()) if result.returns_rows else []
