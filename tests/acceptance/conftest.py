"""The people, the data sets and the short verbs of the acceptance tables."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text

from session_lifecycle import (
    Item,
    Receipt,
    SessionActivityDb,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    SessionRecord,
    SessionSummary,
    SummaryFilters,
    UsageEvent,
    Viewer,
)

A, B, C, D1, D2 = (UUID(int=number) for number in range(1, 6))


@dataclass
class World:
    """A database and the tables' verbs on it."""

    db: SessionDatabase
    a: UUID = field(default=A)
    b: UUID = field(default=B)
    c: UUID = field(default=C)
    d1: UUID = field(default=D1)
    d2: UUID = field(default=D2)

    @property
    def lifecycle(self) -> SessionLifecycleDb:
        return self.db.lifecycle

    @property
    def activity(self) -> SessionActivityDb:
        return self.db.activity

    async def record(self, *items: Item) -> list[Receipt]:
        return await self.lifecycle.record(items)

    async def summaries(self, viewer: Viewer | UUID = A, **filters: Any) -> list[SessionSummary]:
        viewer = Viewer(viewer) if isinstance(viewer, UUID) else viewer
        page = await self.activity.list_session_summaries(SummaryFilters(viewer=viewer, **filters))
        return page.sessions

    async def summarised(self, viewer: Viewer | UUID = A, **filters: Any) -> list[str]:
        return [summary.session_id for summary in await self.summaries(viewer, **filters)]

    async def summary(self, session_id: str = "s", viewer: Viewer | UUID = A, **filters: Any) -> SessionSummary:
        [found] = await self.summaries(viewer, session_id=session_id, **filters)
        return found

    async def touch(self, session_id: str = "s", user: UUID = A, dataset: UUID | None = None, **more: Any) -> Any:
        return await self.lifecycle.ensure_and_touch_session(session_id, user, dataset, **more)

    async def use(self, *arguments: Any, session_id: str = "s", user: UUID = A, **more: Any) -> Any:
        return await self.lifecycle.accumulate_usage(session_id, user, *arguments, **more)

    async def event(self, **fields: Any) -> Any:
        [receipt] = await self.lifecycle.record([UsageEvent(**{"session_id": "s", "user_id": A, **fields})])
        return receipt

    async def row(self, session_id: str = "s", user: UUID = A) -> SessionRecord:
        found = await self.lifecycle.get_session_row(session_id, user, owner_id=user)
        assert found is not None
        return found.record

    async def effective(self, session_id: str = "s", user: UUID = A) -> str:
        found = await self.lifecycle.get_session_row(session_id, user)
        assert found is not None
        return found.effective_status.value

    async def listed(self, viewer: Viewer | UUID = A, **filters: Any) -> list[str]:
        viewer = Viewer(viewer) if isinstance(viewer, UUID) else viewer
        page = await self.lifecycle.list_session_rows(SessionListFilters(viewer=viewer, **filters))
        return [row.record.session_id for row in page.sessions]

    async def models(self, viewer: Viewer | UUID = A) -> dict[str, tuple[int, int, Decimal]]:
        rows = await self.lifecycle.cost_by_model(viewer)
        return {row.model: (row.tokens_in, row.tokens_out, row.cost_usd) for row in rows}

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.db.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.mappings()) if result.returns_rows else []

    async def statements(self, call: Awaitable[Any]) -> list[tuple[str, tuple[Any, ...]]]:
        """What a call runs, with what it binds."""
        ran: list[tuple[str, tuple[Any, ...]]] = []

        def note(connection: Any, cursor: Any, statement: str, bound: Any, *context: Any) -> None:
            ran.append((statement, bound))

        event.listen(self.db.engine.sync_engine, "before_cursor_execute", note)
        try:
            await call
        finally:
            event.remove(self.db.engine.sync_engine, "before_cursor_execute", note)
        return ran

    async def plan(self, call: Awaitable[Any]) -> str:
        """How the database runs the statement of a call; what comes before is the look at the schema."""
        *_, (statement, bound) = await self.statements(call)
        async with self.db.engine.connect() as connection:
            lines = await connection.exec_driver_sql(f"EXPLAIN {statement}", bound)
            return "\n".join(lines.scalars())

    async def ledger(self) -> list[Any]:
        return await self.sql("SELECT * FROM session_lifecycle.session_usage_events ORDER BY recorded_at")

    async def counts(self) -> tuple[int, ...]:
        """How many sessions, per-model rows and events there are at all."""
        [row] = await self.sql(
            "SELECT (SELECT count(*) FROM session_lifecycle.session_records) a, "
            "(SELECT count(*) FROM session_lifecycle.session_model_usage) b, "
            "(SELECT count(*) FROM session_lifecycle.session_usage_events) c"
        )
        return tuple(row.values())


@pytest.fixture
def world(session_database: SessionDatabase) -> World:
    """An empty world."""
    return World(session_database)


@pytest.fixture
def refuses() -> Callable[..., Any]:
    """Expects an `InvalidValueError` about a field."""
    from session_lifecycle import InvalidValueError

    def expect(field_name: str) -> Any:
        return pytest.raises(InvalidValueError, match=rf"(^|\b){field_name}\b.*expected")

    return expect
