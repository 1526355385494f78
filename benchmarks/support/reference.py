"""What the library is compared with: the reference's tables and statements, and plain scans of our tables."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Numeric,
    Select,
    Text,
    and_,
    func,
    null,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from session_lifecycle import SessionListFilters, Viewer
from session_lifecycle.entities import SessionRecordEntity as Sessions
from session_lifecycle.models import EffectiveStatus, SessionRecord
from support.databases import COST_USD, TOKENS_IN, TOKENS_OUT

# How long a running session is idle before it counts as abandoned.
ABANDON_AFTER = timedelta(minutes=30)
PAGE = 50


# How the reference writes one usage


class Base(DeclarativeBase):
    """The reference's tables, as far as usage changes them."""


class ReferenceRecord(Base):
    """A session; each usage adds to its counters by UPDATE."""

    __tablename__ = "reference_records"
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(Text, primary_key=True)
    tokens_in: Mapped[int] = mapped_column(BigInteger, default=0)
    tokens_out: Mapped[int] = mapped_column(BigInteger, default=0)
    cost_usd: Mapped[float] = mapped_column(Numeric, default=0)
    last_model: Mapped[str | None]


class ReferenceModelUsage(Base):
    """A session's usage by model; each usage is an upsert."""

    __tablename__ = "reference_model_usage"
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[float] = mapped_column(Numeric)


async def reference_usage(sessions: async_sessionmaker[AsyncSession], user_id: UUID, session_id: str) -> None:
    """Records one usage by the reference's two statements in an ORM session, then commits."""
    record, usage = ReferenceRecord, ReferenceModelUsage
    async with sessions() as session:
        await session.execute(
            update(record)
            .where(record.user_id == user_id, record.session_id == session_id)
            .values(
                tokens_in=record.tokens_in + TOKENS_IN,
                tokens_out=record.tokens_out + TOKENS_OUT,
                cost_usd=record.cost_usd + COST_USD,
                last_model="gpt-4o",
            )
        )
        added = insert(usage).values(
            user_id=user_id,
            session_id=session_id,
            model="gpt-4o",
            tokens_in=TOKENS_IN,
            tokens_out=TOKENS_OUT,
            cost_usd=COST_USD,
        )
        await session.execute(
            added.on_conflict_do_update(
                index_elements=[usage.user_id, usage.session_id, usage.model],
                set_={
                    name: getattr(usage, name) + added.excluded[name]
                    for name in ("tokens_in", "tokens_out", "cost_usd")
                },
            )
        )
        await session.commit()


# How figures and pages are read without roll-ups


class Window(NamedTuple):
    """The window of the figures: without ends, or with each end inside a quarter of an hour."""

    since: datetime | None = None
    until: datetime | None = None


OPEN = Window()

# Reads all visible sessions, as the library did before it had roll-ups.
PLAIN_STATS = """
    SELECT count(*), sum(cost_usd), sum(late_cost_usd),
           sum(greatest(0, extract(epoch FROM coalesce(ended_at, last_activity_at) - started_at))),
           sum(tokens_in), sum(tokens_out), sum(unpriced_events), sum(unmeasured_events), sum(late_events),
           count(*) FILTER (WHERE status = 'completed'), count(*) FILTER (WHERE status = 'failed'),
           count(*) FILTER (
               WHERE status = 'running' AND last_activity_at < statement_timestamp() - interval '30 minutes'
           ),
           count(*) FILTER (
               WHERE status = 'running' AND last_activity_at >= statement_timestamp() - interval '30 minutes'
           )
    FROM session_lifecycle.session_records
    WHERE (user_id = :user OR dataset_id = ANY(:datasets)) {window}
"""
PLAIN_COSTS = """
    SELECT CASE WHEN m.model = '' THEN 'unknown' ELSE m.model END AS model,
           count(DISTINCT (m.user_id, m.session_id)), sum(m.cost_usd) AS cost_usd, sum(m.tokens_in), sum(m.tokens_out),
           sum(m.cache_read_tokens), sum(m.cache_write_tokens), sum(m.reasoning_tokens), sum(m.events),
           sum(m.unpriced_events)
    FROM session_lifecycle.session_model_usage m
    JOIN session_lifecycle.session_records s ON s.user_id = m.user_id AND s.session_id = m.session_id
    WHERE (s.user_id = :user OR s.dataset_id = ANY(:datasets)) {window}
        AND (m.events > 0 OR m.tokens_in > 0 OR m.tokens_out > 0 OR m.cost_usd > 0)
    GROUP BY 1
    ORDER BY 3 DESC, 1
"""
WITHIN = "AND last_activity_at >= :since AND last_activity_at < :until"
REFERENCE_QUERIES = (
    """
    SELECT count(*), sum(cost_usd), sum(tokens_in), sum(tokens_out)
    FROM session_lifecycle.session_records
    WHERE user_id = :user OR dataset_id = ANY(:datasets)
    """,
    """
    SELECT CASE WHEN status = 'running' AND last_activity_at < statement_timestamp() - interval '30 minutes'
                THEN 'abandoned' ELSE status END AS status, count(*)
    FROM session_lifecycle.session_records
    WHERE user_id = :user OR dataset_id = ANY(:datasets)
    GROUP BY 1
    """,
    """
    SELECT started_at, ended_at, last_activity_at
    FROM session_lifecycle.session_records
    WHERE user_id = :user OR dataset_id = ANY(:datasets)
    """,
)


class Plain:
    """Plain scans, on a connection of their own that plans each statement for its values: the scans at their best."""

    def __init__(self, connection: AsyncConnection, viewer: Viewer) -> None:
        self._connection = connection
        self._viewer = {"user": viewer.user_id, "datasets": list(viewer.permitted_dataset_ids)}

    async def rows(self, statement: str, window: Window = OPEN) -> Sequence[Any]:
        """The rows of a statement, for the viewer and the window."""
        windowed = statement.replace("{window}", "" if window == OPEN else WITHIN)
        values = {**self._viewer, **window._asdict()}
        named = {name: value for name, value in values.items() if f":{name}" in windowed}
        return (await self._connection.execute(text(windowed), named)).all()

    async def stats(self, window: Window) -> Sequence[Any]:
        """The figures over all visible sessions."""
        [row] = await self.rows(PLAIN_STATS, window)
        sessions, spent, late, agent_time_s, *others = row
        return [sessions, spent, late, float(agent_time_s), *others]

    async def costs(self, window: Window) -> Sequence[Any]:
        """The cost of each model."""
        return [tuple(row) for row in await self.rows(PLAIN_COSTS, window)]

    async def reference_stats(self) -> Sequence[Any]:
        """The figures as the reference reads them: SQL sums and counts, and Python adds the durations."""
        [totals] = await self.rows(REFERENCE_QUERIES[0])
        statuses = dict(map(tuple, await self.rows(REFERENCE_QUERIES[1])))
        agent_time = timedelta()
        for started_at, ended_at, last_activity_at in await self.rows(REFERENCE_QUERIES[2]):
            agent_time += max(timedelta(), (ended_at or last_activity_at) - started_at)
        return [*totals, agent_time.total_seconds(), *(statuses.get(status.value, 0) for status in EffectiveStatus)]

    async def page(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        """The keys of a page of the visible sessions, and the total if the statement counts it."""
        rows = (await self._connection.execute(statement)).all()
        return [(row.user_id, row.session_id) for row in rows[:PAGE]], rows[0].total if rows else None


def plain_page(viewer: Viewer, filters: SessionListFilters, after: SessionRecord | None) -> Select[*tuple[Any, ...]]:
    """The statement of a page and one row more, which has one condition with OR over owner and data sets."""
    visible = or_(Sessions.user_id == viewer.user_id, Sessions.dataset_id.in_(viewer.permitted_dataset_ids))
    column: Any = getattr(Sessions, filters.order_by)
    total = select(func.count()).where(visible).scalar_subquery() if filters.total == "exact" else null()
    order = (column.desc().nulls_last(), Sessions.user_id.desc(), Sessions.session_id.desc())
    page = select(*Sessions.__table__.columns, total.label("total")).where(visible).order_by(*order).limit(PAGE + 1)
    if after is not None:
        here = tuple_(getattr(after, filters.order_by), after.user_id, after.session_id)
        further = tuple_(column, Sessions.user_id, Sessions.session_id) < here
        page = page.where(or_(further, column.is_(None)) if filters.order_by == "ended_at" else further)
    return page if filters.wanted_status is None else page.where(plain_status(filters.wanted_status))


def plain_status(status: EffectiveStatus) -> ColumnElement[bool]:
    """The condition of an effective status."""
    cut = func.statement_timestamp() - ABANDON_AFTER
    if status is EffectiveStatus.ABANDONED:
        return and_(Sessions.status == "running", Sessions.last_activity_at < cut)
    if status is EffectiveStatus.RUNNING:
        return and_(Sessions.status == "running", Sessions.last_activity_at >= cut)
    return Sessions.status == status.value
