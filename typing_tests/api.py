"""Type-checked, never run: what hosts write against the public names."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import assert_type
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from session_lifecycle import (
    CostByModelRow,
    End,
    EndOutcome,
    Item,
    Receipt,
    ReopenOutcome,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    SessionListPage,
    SessionRowWithStatus,
    SessionStats,
    SessionStatus,
    SessionWriter,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageReceipt,
    Viewer,
)


async def write(writer: SessionWriter, user: UUID, at: datetime) -> None:
    """Every write, in the reference's call shapes and ours."""
    assert_type(await writer.ensure_and_touch_session("s", user, None, agent_name="a", at=at), TouchOutcome)
    receipt = await writer.accumulate_usage("s", user, "gpt-4o", 100, 50, 0.012, False)
    assert_type(receipt, UsageReceipt)
    assert_type(receipt.cost_usd, Decimal | None)
    await writer.accumulate_usage("s", user, cost_usd=Decimal(1), idempotency_key="k")
    assert_type(await writer.end_session("s", user, SessionStatus.FAILED), EndOutcome)
    assert_type(await writer.reopen_session("s", user), ReopenOutcome)
    items: Sequence[Item] = [
        Touch(session_id="s", user_id=user),
        UsageEvent(session_id="s", user_id=user, tokens_in=1),
        End(session_id="s", user_id=user, status=SessionStatus.COMPLETED),
    ]
    assert_type(await writer.record(items), list[Receipt])


async def read(sessions: SessionLifecycleDb, user: UUID, since: datetime) -> None:
    """Every read, for a viewer and for a bare user id."""
    viewer = Viewer(user, [user], [user])
    assert_type(await sessions.get_session_row("s", user, [user], True), SessionRowWithStatus | None)
    assert_type(await sessions.get_session_row("s", viewer, owner_id=user), SessionRowWithStatus | None)
    page = await sessions.list_session_rows(SessionListFilters(viewer=viewer, since=since))
    assert_type(page, SessionListPage)
    assert_type(page.total, int | None)
    assert_type(await sessions.aggregate_stats(user, [user], since), SessionStats)
    assert_type(await sessions.cost_by_model(Viewer.auditor(), until=since), list[CostByModelRow])


async def ways_in(engine: AsyncEngine, connection: AsyncConnection, session: AsyncSession) -> None:
    """The front door; a role is both protocols."""
    db = SessionDatabase.from_engine(engine)
    reader: SessionLifecycleDb = db.lifecycle
    writer: SessionWriter = db.bind(connection).lifecycle
    async with SessionDatabase.connect("postgresql://h/x") as connected:
        assert_type(connected, SessionDatabase)
    del reader, writer, session
    await db.migrate(connection=connection)


class Narrowed:
    """A host's own wrapper, which is the protocol without inheriting it."""

    def __init__(self, inner: SessionWriter) -> None:
        self.ensure_and_touch_session = inner.ensure_and_touch_session
        self.accumulate_usage = inner.accumulate_usage
        self.end_session = inner.end_session
        self.reopen_session = inner.reopen_session
        self.record = inner.record


def wrap(inner: SessionWriter) -> SessionWriter:
    """The wrapper goes where the protocol is expected."""
    return Narrowed(inner)
