"""Names each table once: the name that every statement uses."""

from session_lifecycle.entities import (
    RolledUpSessionEntity,
    SessionAnnotationEntity,
    SessionBucketEntity,
    SessionBudgetEntity,
    SessionMessageEntity,
    SessionModelRollUpChangeEntity,
    SessionModelRollUpEntity,
    SessionModelUsageEntity,
    SessionRecordEntity,
    SessionRepricingEntity,
    SessionReservationEntity,
    SessionRollUpChangeEntity,
    SessionRollUpEntity,
    SessionRunEntity,
    SessionStepEntity,
    SessionTombstoneEntity,
    SessionUsageEventEntity,
)

sessions = SessionRecordEntity
annotations = SessionAnnotationEntity
model_usage = SessionModelUsageEntity
usage_events = SessionUsageEventEntity
runs = SessionRunEntity
steps = SessionStepEntity
messages = SessionMessageEntity
rolled_up_sessions = RolledUpSessionEntity
roll_ups = SessionRollUpEntity
roll_up_changes = SessionRollUpChangeEntity
model_roll_ups = SessionModelRollUpEntity
model_roll_up_changes = SessionModelRollUpChangeEntity
budgets = SessionBudgetEntity
reservations = SessionReservationEntity
tombstones = SessionTombstoneEntity
repricings = SessionRepricingEntity
buckets = SessionBucketEntity
