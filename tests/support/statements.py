"""The statements that a call sends, as the driver sends them."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import event

from session_lifecycle import SessionDatabase

Sent = tuple[str, Sequence[Any]]
"""A statement, and its values."""


@asynccontextmanager
async def noted(db: SessionDatabase) -> AsyncGenerator[list[Sent]]:
    """The statements that the connections of the engine send meanwhile."""
    sent: list[Sent] = []
    connections: set[Any] = set()

    def by_sqlalchemy(connection: Any, cursor: Any, statement: str, values: Sequence[Any], *context: Any) -> None:
        sent.append((statement, values))

    def by_us(logged: Any) -> None:
        # SQLAlchemy begins and ends transactions, and the driver looks up types, without JIT.
        is_ours = not logged.query.startswith(("BEGIN", "COMMIT", "ROLLBACK"))
        if is_ours and not any(text in logged.query for text in ("typeinfo_tree", "set_config('jit'")):
            sent.append((logged.query, logged.args))

    def listen(pooled: Any, *_: Any) -> None:
        # The driver does not log what SQLAlchemy sends, which prepares each statement itself.
        pooled.driver_connection.add_query_logger(by_us)
        connections.add(pooled.driver_connection)

    engine = db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", by_sqlalchemy)
    event.listen(engine, "checkout", listen)
    try:
        yield sent
        await asyncio.sleep(0)  # asyncpg calls its loggers in the next turn of the event loop
    finally:
        event.remove(engine, "checkout", listen)
        event.remove(engine, "before_cursor_execute", by_sqlalchemy)
        for connection in connections:
            if not connection.is_closed():
                connection.remove_query_logger(by_us)


def in_sql(value: Any) -> str:
    """A value as a literal that Postgres reads as any type."""
    if value is None:
        return "NULL"
    if isinstance(value, list | tuple):
        parts = ("NULL" if part is None else json.dumps(str(part), ensure_ascii=False) for part in value)
        value = "{" + ",".join(parts) + "}"
    if isinstance(value, timedelta):
        value = f"{value.total_seconds()} s"
    return "'" + str(value).replace("'", "''") + "'"
