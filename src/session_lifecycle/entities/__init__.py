"""The tables. They are never handed to a caller: what goes out are the values of `models`.

Every key but those of the sums and of repricings begins with `user_id`, so that the tables can be distributed by it.
There are no foreign keys between them: a child is only ever written under its session's row lock, and a check of the
parent would cost a lookup on every write.
"""

from session_lifecycle.entities.activity import SessionMessageEntity, SessionRunEntity, SessionStepEntity
from session_lifecycle.entities.base import Base, metadata
from session_lifecycle.entities.maintenance import SessionRepricingEntity, SessionTombstoneEntity
from session_lifecycle.entities.rollups import (
    RolledUpSessionEntity,
    SessionModelRollupChangeEntity,
    SessionModelRollupEntity,
    SessionRollupChangeEntity,
    SessionRollupEntity,
)
from session_lifecycle.entities.sessions import SessionModelUsageEntity, SessionRecordEntity, SessionUsageEventEntity

__all__ = [
    "Base",
    "RolledUpSessionEntity",
    "SessionMessageEntity",
    "SessionModelRollupChangeEntity",
    "SessionModelRollupEntity",
    "SessionModelUsageEntity",
    "SessionRecordEntity",
    "SessionRepricingEntity",
    "SessionRollupChangeEntity",
    "SessionRollupEntity",
    "SessionRunEntity",
    "SessionStepEntity",
    "SessionTombstoneEntity",
    "SessionUsageEventEntity",
    "metadata",
]
