"""Sessions and their usage: the protocol hosts type against, and the one implementation.

A call becomes values of `models`, those become a statement of `statements`, and `execution` runs it.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, Protocol
from uuid import UUID

from session_lifecycle.batches import Writable
from session_lifecycle.cursors import answered_page, read_position
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.execution import Execution
from session_lifecycle.models import (
    CostByModelRow,
    SessionListFilters,
    SessionListPage,
    SessionRowWithStatus,
    SessionStats,
    Viewer,
)
from session_lifecycle.models.reads import OneSession, Window
from session_lifecycle.statements import costs, sessions, stats
from session_lifecycle.statements.recording import Written
from session_lifecycle.statements.scopes import scopes
from session_lifecycle.writing import ItemWriter, SessionWriter, WritesItems

AVERAGE_DECIMALS = Decimal("1e-10")


class SessionLifecycleDb(SessionWriter, Protocol):
    """Writing sessions, and the reads every host needs. Each read is one statement and so one snapshot."""

    async def get_session_row(
        self,
        session_id: str,
        viewer: Viewer | UUID,
        permitted_dataset_ids: Collection[UUID] = (),
        prefer_other_owner: bool = False,
        *,
        owner_id: UUID | None = None,
    ) -> SessionRowWithStatus | None:
        """The session with this id, or None when there is none the viewer may see.

        Of several: the viewer's own first, then their agents', then the most recently active.

        Args:
            session_id: The id.
            viewer: Who is asking, or their user id.
            permitted_dataset_ids: What a bare user id may read; not together with a `Viewer`.
            prefer_other_owner: Rather one that is not the viewer's own.
            owner_id: The one of this owner, and no other.
        """
        ...

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        """A page of the sessions the filters choose, in their order; empty when there are none."""
        ...

    async def aggregate_stats(
        self,
        viewer: Viewer | UUID,
        permitted_dataset_ids: Collection[UUID] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> SessionStats:
        """Figures over the visible sessions last active in `[since, until)`."""
        ...

    async def cost_by_model(
        self,
        viewer: Viewer | UUID,
        permitted_dataset_ids: Collection[UUID] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> list[CostByModelRow]:
        """What each model cost over the visible sessions last active in `[since, until)`, most expensive first.

        Ties go by name; usage without a model is `unknown`. The costs add up to `total_spend_usd` of the same window.
        """
        ...


class SqlAlchemySessionLifecycleDb(WritesItems):
    """`SessionLifecycleDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, primary: Execution, reading: Execution, writer: ItemWriter, abandon_after: timedelta) -> None:
        self._primary = primary
        self._reading = reading
        self._writer = writer
        self._abandon_after = abandon_after

    async def _write(self, items: Sequence[Writable]) -> list[Written]:
        return await self._writer.write(await self._writer.prepare(items))

    async def get_session_row(
        self,
        session_id: str,
        viewer: Viewer | UUID,
        permitted_dataset_ids: Collection[UUID] = (),
        prefer_other_owner: bool = False,
        *,
        owner_id: UUID | None = None,
    ) -> SessionRowWithStatus | None:
        """See `SessionLifecycleDb`."""
        wanted = OneSession.of_call(session_id=session_id, prefer_other_owner=prefer_other_owner, owner_id=owner_id)
        session = sessions.preferred_session(
            wanted.session_id,
            Viewer.of_caller(viewer, permitted_dataset_ids),
            prefer_other_owner=wanted.prefer_other_owner,
            owner_id=wanted.owner_id,
        )
        rows = await self._primary.fetch(sessions.with_status(session, self._abandon_after))
        return _session_row(rows[0]) if rows else None

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        """See `SessionLifecycleDb`."""
        if not isinstance(filters, SessionListFilters):
            raise InvalidValueError("filters", filters, "a SessionListFilters")
        order = sessions.order_of(filters.order_column)
        position = read_position(filters, order)
        rows = await self._reading.fetch(*sessions.list_sessions(filters, position, self._abandon_after))
        page, told = answered_page(rows, order, filters)
        return SessionListPage(sessions=[_session_row(row) for row in page], **told)

    async def aggregate_stats(
        self,
        viewer: Viewer | UUID,
        permitted_dataset_ids: Collection[UUID] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> SessionStats:
        """See `SessionLifecycleDb`."""
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer, permitted_dataset_ids)
        seen = scopes(asker)
        parameters = {**seen.parameters(), **window.model_dump(), "abandon_after": self._abandon_after, "as_of": None}
        rows = await self._reading.fetch(stats.aggregate_stats(seen.kinds), parameters)
        figures = dict(rows[0]._mapping)
        count = figures["sessions"]
        agent_time_us = int(figures.pop("agent_time_us"))
        judged = figures["completed"] + figures["failed"] + figures["abandoned"]
        figures["tokens_in"], figures["tokens_out"] = int(figures["tokens_in"]), int(figures["tokens_out"])
        return SessionStats(
            **figures,
            tokens_total=figures["tokens_in"] + figures["tokens_out"],
            avg_spend_per_session_usd=_average(figures["total_spend_usd"], count),
            agent_time_s=agent_time_us / 1_000_000,
            avg_session_s=agent_time_us / (1_000_000 * count) if count else 0.0,
            success_rate=figures["completed"] / judged if judged else 1.0,
        )

    async def cost_by_model(
        self,
        viewer: Viewer | UUID,
        permitted_dataset_ids: Collection[UUID] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> list[CostByModelRow]:
        """See `SessionLifecycleDb`."""
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer, permitted_dataset_ids)
        seen = scopes(asker)
        parameters = {**seen.parameters(), **window.model_dump()}
        rows = await self._reading.fetch(costs.cost_by_model(seen.kinds), parameters)
        return [CostByModelRow(**row._mapping) for row in rows]


def _session_row(row: Any) -> SessionRowWithStatus:
    return SessionRowWithStatus(record=sessions.record_of(row), effective_status=row.effective_status)


def _average(total: Decimal, count: int) -> Decimal:
    if not count:
        return Decimal(0)
    with localcontext() as context:
        # Enough digits that the only rounding is the last one.
        context.prec = len(total.as_tuple().digits) + 40
        return (total / count).quantize(AVERAGE_DECIMALS, rounding=ROUND_HALF_EVEN)
