"""Sessions and their usage: the protocol hosts type against, and the one implementation.

A call makes values of `models` from its arguments, builds a statement of `statements` from the values, and runs the
statement with `postgres.execution`.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Protocol
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import (
    CostByModelRow,
    SessionListFilters,
    SessionListPage,
    SessionRowWithStatus,
    SessionStats,
    Viewer,
)
from session_lifecycle.models.session_filters import OneSession, Window
from session_lifecycle.pages import answered_page, read_position
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.statements.reports import costs
from session_lifecycle.statements.roll_ups import session_stats
from session_lifecycle.statements.sessions import listing, records
from session_lifecycle.statements.shared.visibility import scopes
from session_lifecycle.writing.calls import CallsAsItems
from session_lifecycle.writing.payload_policy import PayloadPolicy
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.protocol import SessionWriter

AVERAGE_DECIMALS = Decimal("1e-10")


class SessionLifecycleDb(SessionWriter, Protocol):
    """Writes sessions, and has the reads that every host needs.

    Each read is one statement, and so one snapshot. `get_session_row` reads the primary; the other reads may read a
    replica, which lags behind. A session that the viewer may not see is answered like one that does not exist.

    A read that fails for a passing reason is retried, except inside a host's transaction. Every read raises:

    - `InvalidValueError`: it refuses an argument.
    - `SchemaError`: the schema is not migrated, or does not serve this version.
    - `DatabaseUnavailableError`: the database cannot be reached or did not answer, also after the retries.
    - `TransactionConflictError`: the read lost conflicts with concurrent transactions, also after the retries; or the
      host's transaction is not READ COMMITTED.
    """

    async def get_session_row(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        prefer_other_owner: bool = False,
        *,
        owner_id: UUID | str | None = None,
    ) -> SessionRowWithStatus | None:
        """The session with this id and its effective status; None if there is none that the viewer may see.

        If several users have a session with this id, the viewer's own comes first, then one of the viewer's agents,
        then the most recently active one.

        Args:
            session_id: The session's id.
            viewer: The viewer, or the viewer's user id.
            permitted_dataset_ids: The datasets that a viewer given as a user id may read. Must be empty beside a
                `Viewer`, which has its own.
            prefer_other_owner: Whether a session that is not the viewer's own comes before the viewer's own.
            owner_id: Only the session of this owner; None: of any owner.

        Raises:
            InvalidValueError: An argument is refused.
        """
        ...

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        """A page of the sessions that match the filters; an empty page if there are none.

        The sessions are in the order of `order_by`, nulls last in both directions, ties by `(user_id, session_id)` in
        the same direction. An unknown `order_by` falls back to `last_activity_at`.

        Raises:
            InvalidValueError: `filters` is no `SessionListFilters`, or its cursor is not of a page under the same
                filters.
        """
        ...

    async def aggregate_stats(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> SessionStats:
        """Figures over all visible sessions that were last active in `[since, until)`. Money is USD.

        Without sessions every figure is zero, but for a `success_rate` of 1.0.

        Args:
            viewer: The viewer, or the viewer's user id.
            permitted_dataset_ids: The datasets that a viewer given as a user id may read. Must be empty beside a
                `Viewer`, which has its own.
            since: Last active at this time or later; None: no limit.
            until: Last active before this time; None: no limit.

        Raises:
            InvalidValueError: An argument is refused: `until` is before `since`, for example.
        """
        ...

    async def cost_by_model(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> list[CostByModelRow]:
        """The cost in USD of each model over the visible sessions that were last active in `[since, until)`.

        The most expensive model comes first, ties by name; empty if there is no usage. Usage without a model is
        `unknown`. The costs add up to `total_spend_usd` of the same window.

        Args:
            viewer: The viewer, or the viewer's user id.
            permitted_dataset_ids: The datasets that a viewer given as a user id may read. Must be empty beside a
                `Viewer`, which has its own.
            since: Last active at this time or later; None: no limit.
            until: Last active before this time; None: no limit.

        Raises:
            InvalidValueError: An argument is refused: `until` is before `since`, for example.
        """
        ...


class SqlAlchemySessionLifecycleDb(WritePipeline, CallsAsItems, SessionLifecycleDb):
    """`SessionLifecycleDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(
        self,
        primary: Execution,
        reading: Execution,
        prices: PriceCatalogue,
        payloads: PayloadPolicy,
        abandon_after: timedelta,
    ) -> None:
        super().__init__(primary, prices, payloads)
        self._primary = primary
        self._reading = reading
        self._abandon_after = abandon_after

    async def get_session_row(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        prefer_other_owner: bool = False,
        *,
        owner_id: UUID | str | None = None,
    ) -> SessionRowWithStatus | None:
        wanted = OneSession.of_call(session_id=session_id, prefer_other_owner=prefer_other_owner, owner_id=owner_id)
        session = records.preferred_session(
            wanted.session_id,
            Viewer.of_caller(viewer, permitted_dataset_ids),
            prefer_other_owner=wanted.prefer_other_owner,
            owner_id=wanted.owner_id,
        )
        rows = await self._primary.fetch(records.with_status(session, self._abandon_after))
        return records.row_of(rows[0]) if rows else None

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        if not isinstance(filters, SessionListFilters):
            raise InvalidValueError("filters", filters, "a SessionListFilters")
        order = records.ORDERS[filters.order_column]
        position = read_position(filters, order)
        rows = await self._reading.fetch(*listing.list_sessions(filters, position, self._abandon_after))
        page, of_page = answered_page(rows, order, filters)
        return SessionListPage(sessions=[records.row_of(row) for row in page], **of_page)

    async def aggregate_stats(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> SessionStats:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer, permitted_dataset_ids)
        seen = scopes(asker)
        parameters = {**seen.parameters(), **window.model_dump(), "abandon_after": self._abandon_after, "as_of": None}
        rows = await self._reading.fetch(session_stats.aggregate_stats(seen.kinds), parameters)
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
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> list[CostByModelRow]:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer, permitted_dataset_ids)
        seen = scopes(asker)
        parameters = {**seen.parameters(), **window.model_dump()}
        rows = await self._reading.fetch(costs.cost_by_model(seen.kinds), parameters)
        return [CostByModelRow(**row._mapping) for row in rows]


def _average(total: Decimal, count: int) -> Decimal:
    if not count:
        return Decimal(0)
    with localcontext() as context:
        # Enough digits that `quantize` is the only rounding that matters.
        context.prec = len(total.as_tuple().digits) + 40
        return (total / count).quantize(AVERAGE_DECIMALS, rounding=ROUND_HALF_EVEN)
