"""Sessions and their usage: the protocols hosts type against, and the one implementation.

A call becomes values of `models`, those become a statement of `statements`, and `execution` runs it.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, Protocol, cast
from uuid import UUID

from session_lifecycle.batches import Writable, is_repeatable, parameters
from session_lifecycle.cursors import read_cursor, write_cursor
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.execution import Execution
from session_lifecycle.models import (
    TOTAL_BOUND,
    CostByModelRow,
    End,
    EndOutcome,
    Item,
    Receipt,
    ReopenOutcome,
    SessionListFilters,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    SessionStatus,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageOutcome,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.models.items import Reopen
from session_lifecycle.models.reads import OneSession, Window
from session_lifecycle.pricing import PriceCatalogue
from session_lifecycle.statements import costs, recording, sessions, stats

AVERAGE_DECIMALS = Decimal("1e-10")


class SessionWriter(Protocol):
    """What an agent runtime's hook needs.

    Every call is one transaction and one round trip, safe to repeat where it says so. Each raises `InvalidValueError`
    for a value it refuses (nothing is written then), `SchemaError` when the database is not migrated,
    `DatabaseUnavailableError` and `TransactionConflictError` when repeating did not help.
    """

    async def ensure_and_touch_session(
        self,
        session_id: str,
        user_id: UUID,
        dataset_id: UUID | None = None,
        *,
        agent_name: str | None = None,
        at: datetime | None = None,
    ) -> TouchOutcome:
        """Creates the session, or notes a sign of life of a running one. Idempotent.

        Args:
            session_id: Any text of 1..512 characters that is not only whitespace.
            user_id: The owner. The same session id under two users is two sessions.
            dataset_id: What the session may be shared through; kept if the session has none yet.
            agent_name: Kept if the session has none yet.
            at: When it happened, aware and at most five minutes ahead of the database. None: now, by its clock.
        """
        ...

    async def accumulate_usage(
        self,
        session_id: str,
        user_id: UUID,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | None = None,
        errored: bool = False,
        *,
        provider: str | None = None,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        idempotency_key: str | None = None,
        at: datetime | None = None,
    ) -> UsageReceipt:
        """Counts the usage of one model response: ledger, session and model together, or not at all.

        Args:
            session_id: Created, running, when it does not exist.
            user_id: The owner.
            model: The model's name, as the response gave it.
            tokens_in: All input, cache reads and writes included.
            tokens_out: All output, reasoning included.
            cost_usd: USD; a float is taken by its shortest decimal form. None: priced from the catalogue.
            errored: Whether the call failed; adds one to the session's errors.
            provider: The provider's name, where the model's does not tell.
            cache_read_tokens: The part of `tokens_in` read from a cache.
            cache_write_tokens: The part of `tokens_in` written to a cache.
            reasoning_tokens: The part of `tokens_out` spent on reasoning.
            idempotency_key: Names this response within the session. With it the call can be repeated safely, and is
                after a lost connection; without it, it is not.
            at: When it happened; None: now, by the database's clock.
        """
        ...

    async def end_session(
        self, session_id: str, user_id: UUID, status: SessionStatus, *, at: datetime | None = None
    ) -> EndOutcome:
        """Ends a running session as `completed` or `failed`; the first end wins. Idempotent."""
        ...

    async def reopen_session(self, session_id: str, user_id: UUID, *, at: datetime | None = None) -> ReopenOutcome:
        """Makes an ended session running and active again, its totals kept. Idempotent."""
        ...

    async def record(self, items: Sequence[Item]) -> list[Receipt]:
        """Any mix of items over any sessions and users, in one transaction, as if they had come one after another.

        Returns one receipt per item, in order: `TouchOutcome`, `UsageReceipt` or `EndOutcome`. Repeated after a lost
        connection only when every usage event has an idempotency key.
        """
        ...


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


class SqlAlchemySessionLifecycleDb:
    """`SessionLifecycleDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, prices: PriceCatalogue, abandon_after: timedelta) -> None:
        self._execution = execution
        self._prices = prices
        self._abandon_after = abandon_after
        self._record = recording.record(execution.schema)

    async def ensure_and_touch_session(
        self,
        session_id: str,
        user_id: UUID,
        dataset_id: UUID | None = None,
        *,
        agent_name: str | None = None,
        at: datetime | None = None,
    ) -> TouchOutcome:
        """See `SessionWriter`."""
        item = Touch.of_call(
            session_id=session_id, user_id=user_id, dataset_id=dataset_id, agent_name=agent_name, at=at
        )
        return cast("TouchOutcome", await self._record_one(item))

    async def accumulate_usage(
        self,
        session_id: str,
        user_id: UUID,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | None = None,
        errored: bool = False,
        *,
        provider: str | None = None,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        idempotency_key: str | None = None,
        at: datetime | None = None,
    ) -> UsageReceipt:
        """See `SessionWriter`."""
        item = UsageEvent.of_call(
            session_id=session_id,
            user_id=user_id,
            model=model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=cost_usd,
            errored=errored,
            provider=provider,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            reasoning_tokens=reasoning_tokens,
            idempotency_key=idempotency_key,
            at=at,
        )
        return cast("UsageReceipt", await self._record_one(item))

    async def end_session(
        self, session_id: str, user_id: UUID, status: SessionStatus, *, at: datetime | None = None
    ) -> EndOutcome:
        """See `SessionWriter`."""
        item = End.of_call(session_id=session_id, user_id=user_id, status=status, at=at)
        return cast("EndOutcome", await self._record_one(item))

    async def reopen_session(self, session_id: str, user_id: UUID, *, at: datetime | None = None) -> ReopenOutcome:
        """See `SessionWriter`."""
        reopened = Reopen.of_call(session_id=session_id, user_id=user_id, at=at)
        [row] = await self._write([reopened])
        return ReopenOutcome(row.outcome)

    async def record(self, items: Sequence[Item]) -> list[Receipt]:
        """See `SessionWriter`."""
        if isinstance(items, str | bytes) or not isinstance(items, Sequence):
            raise InvalidValueError("items", items, "a sequence of Touch, UsageEvent and End")
        for position, item in enumerate(items):
            if not isinstance(item, Touch | UsageEvent | End):
                raise InvalidValueError(f"items.{position}", item, "a Touch, UsageEvent or End")
        if not items:
            return []
        return [_receipt(item, row) for item, row in zip(items, await self._write(items), strict=True)]

    async def _record_one(self, item: Item) -> Receipt:
        [row] = await self._write([item])
        return _receipt(item, row)

    async def _write(self, items: Sequence[Writable]) -> list[recording.Written]:
        """What became of each item, in order."""
        written = await parameters(items, self._prices)
        rows = await self._execution.write(self._record, written, repeatable=all(map(is_repeatable, items)))
        answers = sorted(recording.Written(*row) for row in rows)
        if answers[0].outcome == recording.FUTURE:
            position = next(position for position, item in enumerate(items) if item.at == written["latest_at"])
            field = "at" if len(items) == 1 else f"items.{position}.at"
            raise InvalidValueError(field, items[position].at, "at most five minutes ahead of the database's clock")
        return answers

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
        statement = sessions.get_session(
            wanted.session_id,
            Viewer.of_caller(viewer, permitted_dataset_ids),
            prefer_other_owner=wanted.prefer_other_owner,
            owner_id=wanted.owner_id,
            abandon_after=self._abandon_after,
        )
        rows = await self._execution.fetch(statement)
        return _session_row(rows[0]) if rows else None

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        """See `SessionLifecycleDb`."""
        if not isinstance(filters, SessionListFilters):
            raise InvalidValueError("filters", filters, "a SessionListFilters")
        position = None if filters.cursor is None else read_cursor(filters.cursor, filters)
        rows = await self._execution.fetch(sessions.list_sessions(filters, position, self._abandon_after))
        found = [row for row in rows if row.record_user_id is not None]
        page, has_more = found[: filters.limit], len(found) > filters.limit
        total = rows[0].total
        is_bound = filters.total == "bounded" and total > TOTAL_BOUND
        return SessionListPage(
            sessions=[_session_row(row) for row in page],
            total=TOTAL_BOUND if is_bound else total,
            total_is_lower_bound=is_bound,
            limit=filters.limit,
            offset=filters.offset,
            has_more=has_more,
            next_cursor=write_cursor(page[-1], rows[0].as_of, filters) if has_more else None,
        )

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
        rows = await self._execution.fetch(
            stats.aggregate_stats(asker, window.since, window.until, self._abandon_after)
        )
        figures = dict(rows[0]._mapping)  # noqa: SLF001 - the public name of a row's mapping
        count = figures["sessions"]
        agent_time_s: Decimal = figures.pop("agent_time_s")
        judged = figures["completed"] + figures["failed"] + figures["abandoned"]
        figures["tokens_in"], figures["tokens_out"] = int(figures["tokens_in"]), int(figures["tokens_out"])
        return SessionStats(
            **figures,
            avg_spend_per_session_usd=_average(figures["total_spend_usd"], count),
            agent_time_s=float(agent_time_s),
            avg_session_s=float(agent_time_s / count) if count else 0.0,
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
        rows = await self._execution.fetch(costs.cost_by_model(asker, window.since, window.until))
        return [CostByModelRow(**row._mapping) for row in rows]  # noqa: SLF001 - the public name of a row's mapping


def _receipt(item: Item, row: recording.Written) -> Receipt:
    match item:
        case Touch():
            return TouchOutcome(row.outcome)
        case End():
            return EndOutcome(row.outcome)
        case UsageEvent():
            return UsageReceipt(
                outcome=UsageOutcome(row.outcome),
                cost_usd=row.cost_usd,
                session_tokens_in=row.session_tokens_in,
                session_tokens_out=row.session_tokens_out,
                session_cost_usd=row.session_cost_usd,
            )


def _session_row(row: Any) -> SessionRowWithStatus:
    record = SessionRecord(**{name: getattr(row, f"record_{name}") for name in SessionRecord.model_fields})
    return SessionRowWithStatus(record=record, effective_status=row.effective_status)


def _average(total: Decimal, count: int) -> Decimal:
    if not count:
        return Decimal(0)
    with localcontext() as context:
        # Enough digits that the only rounding is the last one.
        context.prec = len(total.as_tuple().digits) + 40
        return (total / count).quantize(AVERAGE_DECIMALS, rounding=ROUND_HALF_EVEN)
