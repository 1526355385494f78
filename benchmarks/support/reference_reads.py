"""How the reference reads: an ORM session for each call, whole entities, and sums that Python folds."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Index,
    Numeric,
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
    """The reference's tables, as far as reads need them."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True)}


class Record(Base):
    """A session and its totals."""

    __tablename__ = "reference_sessions"
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(Text, primary_key=True)
    dataset_id: Mapped[UUID | None]
    status: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime]
    last_activity_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Numeric)
    error_count: Mapped[int] = mapped_column(BigInteger)
    last_model: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index(None, "user_id", "last_activity_at"),
        Index(None, "dataset_id", "last_activity_at"),
        Index(None, "session_id"),
    )


class ModelUsage(Base):
    """The totals of one model in one session."""

    __tablename__ = "reference_session_models"
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Numeric)


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
        """The key of the session with this id."""
        is_own = Record.user_id == self._viewer.user_id
        found = select(Record).where(Record.session_id == session_id, self._visible()).order_by(is_own.desc()).limit(1)
        async with self._sessions() as session:
            record = (await session.execute(found)).scalars().first()
            return None if record is None else (record.user_id, record.session_id)

    async def page(self, order_by: str, offset: int, status: str | None) -> Any:
        """The keys of a page, and the exact total."""
        chosen = [self._visible(), *([] if status is None else [self._status() == status])]
        column = getattr(Record, order_by)
        page = select(Record).where(*chosen)
        page = page.order_by(column.desc(), Record.user_id.desc(), Record.session_id.desc()).limit(PAGE).offset(offset)
        async with self._sessions() as session:
            total = await session.scalar(select(func.count()).select_from(Record).where(*chosen))
            records = (await session.execute(page)).scalars().all()
            return [(one.user_id, one.session_id) for one in records], total

    async def stats(self, since: datetime | None) -> Sequence[Any]:
        """Sums, counts by status, and the times of every session, which Python adds up."""
        chosen = [self._visible(), *([] if since is None else [Record.last_activity_at >= since])]
        sums = select(
            func.count(), func.sum(Record.cost_usd), func.sum(Record.tokens_in), func.sum(Record.tokens_out)
        ).where(*chosen)
        status = self._status().label("status")
        statuses = select(status, func.count()).where(*chosen).group_by(status)
        times = select(Record.started_at, Record.ended_at, Record.last_activity_at).where(*chosen)
        async with self._sessions() as session:
            count, *totals = (await session.execute(sums)).one()
            by_status = {row[0]: row[1] for row in await session.execute(statuses)}
            agent_time = timedelta()
            for started_at, ended_at, last_activity_at in await session.execute(times):
                agent_time += max(timedelta(), (ended_at or last_activity_at) - started_at)
        counts = [by_status.get(one.value, 0) for one in EffectiveStatus]
        return [count, *(total or 0 for total in totals), agent_time.total_seconds(), *counts]

    async def costs(self, since: datetime | None) -> Sequence[Any]:
        """The sessions and the cost of each model, most expensive first."""
        model = case((ModelUsage.model == "", "unknown"), else_=ModelUsage.model).label("model")
        cost = func.sum(ModelUsage.cost_usd)
        of_session = and_(ModelUsage.user_id == Record.user_id, ModelUsage.session_id == Record.session_id)
        found = (
            select(model, func.count(), cost, func.sum(ModelUsage.tokens_in), func.sum(ModelUsage.tokens_out))
            .join(Record, of_session)
            .where(self._visible(), *([] if since is None else [Record.last_activity_at >= since]))
            .group_by(model)
            .order_by(cost.desc(), model)
        )
        async with self._sessions() as session:
            return [tuple(row) for row in await session.execute(found)]
