"""What maintenance keeps of what it did."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, Text, text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Uuid

from session_lifecycle.entities.base import Base, Instant, Money, Zero


class SessionTombstoneEntity(Base):
    """A user who was erased and must not come back: what names them is refused."""

    __tablename__ = "session_tombstones"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    erased_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))


class SessionRepricingEntity(Base):
    """The audit of prices changed afterwards: one row per run, its figures written together with what it changed."""

    __tablename__ = "session_repricings"

    repricing_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    model: Mapped[str | None] = mapped_column(Text(collation="C"))
    since: Mapped[datetime | None] = mapped_column(Instant)
    until: Mapped[datetime | None] = mapped_column(Instant)
    began_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))
    last_written_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))
    events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cost_before_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
    cost_after_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
