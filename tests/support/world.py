"""The people and datasets of the acceptance tables, and short verbs for the calls that the rows make."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text

from session_lifecycle import (
    SessionActivityDb,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    SummaryFilters,
    TouchOutcome,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.models import (
    Item,
    Receipt,
    SessionDetail,
    SessionRecord,
    SessionRowWithStatus,
    SessionSummary,
    ThreadPage,
)
from support.statements import Sent, noted
from support.usage import A, receipt_of

B, C, D1, D2 = (UUID(int=number) for number in range(2, 6))


@dataclass
class World:
    """A database, with short verbs for the calls."""

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

    async def detail(
        self, session_id: str = "s", viewer: Viewer | UUID = A, project: str | None = None
    ) -> SessionDetail:
        found = await self.activity.get_session_detail(session_id, viewer, project=project)
        assert found is not None
        return found

    async def threads(self, session_id: str = "s", viewer: Viewer | UUID = A, **page: Any) -> ThreadPage:
        found = await self.activity.list_threads(session_id, viewer, **page)
        assert found is not None
        return found

    async def summary(self, session_id: str = "s", viewer: Viewer | UUID = A, **filters: Any) -> SessionSummary:
        [found] = await self.summaries(viewer, session_id=session_id, **filters)
        return found

    async def touch(
        self, session_id: str = "s", user: UUID = A, dataset: UUID | None = None, **more: Any
    ) -> TouchOutcome:
        return await self.lifecycle.ensure_and_touch_session(session_id, user, dataset, **more)

    async def use(self, *arguments: Any, session_id: str = "s", user: UUID = A, **more: Any) -> UsageReceipt:
        return await self.lifecycle.accumulate_usage(session_id, user, *arguments, **more)

    async def event(self, **fields: Any) -> UsageReceipt:
        return await receipt_of(self.lifecycle, UsageEvent(**{"session_id": "s", "user_id": A, **fields}))

    async def found(self, session_id: str = "s", viewer: Viewer | UUID = A, **more: Any) -> SessionRowWithStatus:
        found = await self.lifecycle.get_session_row(session_id, viewer, **more)
        assert found is not None
        return found

    async def row(self, session_id: str = "s", user: UUID = A) -> SessionRecord:
        return (await self.found(session_id, user, owner_id=user)).record

    async def effective(self, session_id: str = "s", user: UUID = A) -> str:
        return (await self.found(session_id, user)).effective_status.value

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

    async def statements(self, call: Awaitable[Any]) -> list[Sent]:
        """The statements that a call executes, with their parameters."""
        async with noted(self.db) as sent:
            await call
        return sent

    async def plan(self, call: Awaitable[Any]) -> str:
        """The plan of a call's last statement; an earlier one is the check of the schema."""
        *_, (statement, bound) = await self.statements(call)
        async with self.db.engine.connect() as connection:
            lines = await connection.exec_driver_sql(f"EXPLAIN {statement}", tuple(bound))
            return "\n".join(lines.scalars())

    async def ledger(self) -> list[Any]:
        return await self.sql("SELECT * FROM session_lifecycle.session_usage_events ORDER BY recorded_at")

    async def counts(self) -> tuple[int, ...]:
        """The number of sessions, per-model rows and events of all users."""
        [row] = await self.sql(
            "SELECT (SELECT count(*) FROM session_lifecycle.session_records) a, "
            "(SELECT count(*) FROM session_lifecycle.session_model_usage) b, "
            "(SELECT count(*) FROM session_lifecycle.session_usage_events) c"
        )
        return tuple(row.values())
