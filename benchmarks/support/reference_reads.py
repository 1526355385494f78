"""How the reference reads: an ORM session for each call, whole entities, and sums that Python folds.

Its tables, indexes and statements are as it has them: an index on each of some columns, money in floats, and no second
column that decides ties of an order.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Text,
    and_,
    case,
    func,
    insert,
    or_,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from session_lifecycle import Viewer
from session_lifecycle.entities import SessionModelUsageEntity, SessionRecordEntity
from session_lifecycle.models import EffectiveStatus
from support.reference import ABANDON_AFTER, PAGE


class Base(DeclarativeBase):
    """The reference's tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        str: Text,
        int: Integer,
        float: Float,
    }


class Record(Base):
    """A session and its totals."""

    __tablename__ = "reference_sessions"
    session_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)
    dataset_id: Mapped[UUID | None] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(index=True)
    started_at: Mapped[datetime]
    last_activity_at: Mapped[datetime] = mapped_column(index=True)
    ended_at: Mapped[datetime | None]
    tokens_in: Mapped[int]
    tokens_out: Mapped[int]
    cost_usd: Mapped[float]
    error_count: Mapped[int]
    last_model: Mapped[str | None]


class ModelUsage(Base):
    """The totals of one model in one session."""

    __tablename__ = "reference_session_models"
    session_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    tokens_in: Mapped[int]
    tokens_out: Mapped[int]
    cost_usd: Mapped[float]


async def fill(engine: AsyncEngine) -> None:
    """Makes the reference's tables anew, with the sessions of ours."""
    copies = {Record: SessionRecordEntity, ModelUsage: SessionModelUsageEntity}
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        for copy, entity in copies.items():
            names = [column.name for column in copy.__table__.columns]
            ours = select(*(entity.__table__.columns[name] for name in names))
            await connection.execute(insert(copy).from_select(names, ours))
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM ANALYZE"))


TOKENS = (Record.tokens_in, Record.tokens_out)


class Reference:
    """The reference's calls. Each opens an ORM session."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], viewer: Viewer) -> None:
        self._sessions = sessions
        self._viewer = viewer

    def _visible(self) -> ColumnElement[bool]:
        own = Record.user_id == self._viewer.user_id
        datasets = self._viewer.permitted_dataset_ids
        return or_(own, Record.dataset_id.in_(datasets)) if datasets else own

    def _status(self) -> ColumnElement[str]:
        cut = datetime.now(UTC) - ABANDON_AFTER
        return case((and_(Record.status == "running", Record.last_activity_at < cut), "abandoned"), else_=Record.status)

    async def one(self, session_id: str) -> Any:
        """The key of the first session with this id that is found."""
        found = select(Record).where(and_(Record.session_id == session_id, self._visible()))
        async with self._sessions() as session:
            records = list((await session.execute(found)).scalars().all())
            return (records[0].user_id, records[0].session_id) if records else None

    async def page(self, order_by: str, offset: int, status: str | None) -> tuple[list[Any], int]:
        """The order values of a page, and the exact total."""
        effective = self._status()
        chosen = [self._visible(), *([] if status is None else [effective == status])]
        column = getattr(Record, order_by)
        rows = select(Record, effective.label("effective_status")).where(*chosen)
        async with self._sessions() as session:
            total = (await session.execute(select(func.count()).select_from(Record).where(*chosen))).scalar_one()
            page = (await session.execute(rows.order_by(column.desc()).limit(PAGE).offset(offset))).all()
            return [getattr(record, order_by) for record, _ in page], total

    async def stats(self, since: datetime | None) -> Sequence[Any]:
        """Sums, counts by status, and the times of every session, which Python adds up."""
        chosen = [self._visible(), *([] if since is None else [Record.last_activity_at >= since])]
        zero_or_sum = (func.coalesce(func.sum(column), 0) for column in (Record.cost_usd, *TOKENS))
        sums = select(func.count(), *zero_or_sum).where(*chosen)
        status = self._status().label("effective")
        statuses = select(status, func.count()).where(*chosen).group_by("effective")
        times = select(Record.started_at, Record.ended_at, Record.last_activity_at).where(*chosen)
        async with self._sessions() as session:
            count, *totals = (await session.execute(sums)).one()
            agent_time_s = 0.0
            for started_at, ended_at, last_activity_at in (await session.execute(times)).all():
                agent_time_s += max(0.0, ((ended_at or last_activity_at) - started_at).total_seconds())
            by_status = {row[0]: row[1] for row in (await session.execute(statuses)).all()}
        counts = [by_status.get(one.value, 0) for one in EffectiveStatus]
        return [count, *totals, agent_time_s, *counts]

    async def costs(self, since: datetime | None) -> Sequence[Any]:
        """The sessions and the cost of each model, most expensive first."""
        cost, *tokens = (func.sum(getattr(ModelUsage, name)) for name in ("cost_usd", "tokens_in", "tokens_out"))
        of_session = and_(ModelUsage.session_id == Record.session_id, ModelUsage.user_id == Record.user_id)
        sessions = func.count(func.distinct(ModelUsage.session_id))
        found = (
            select(ModelUsage.model, sessions, *(func.coalesce(one, 0) for one in (cost, *tokens)))
            .join(Record, of_session)
            .where(self._visible(), *([] if since is None else [Record.last_activity_at >= since]))
            .group_by(ModelUsage.model)
            .order_by(cost.desc())
        )
        async with self._sessions() as session:
            rows = (await session.execute(found)).all()
            return [(model or "unknown", *figures) for model, *figures in rows]
