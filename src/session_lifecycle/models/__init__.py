"""The values that go in and come out: frozen Pydantic models, by noun."""

from session_lifecycle.models.items import (
    End,
    EndOutcome,
    Item,
    Receipt,
    ReopenOutcome,
    SessionStatus,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageOutcome,
    UsageReceipt,
)
from session_lifecycle.models.maintenance import RepriceReport
from session_lifecycle.models.reads import (
    TOTAL_BOUND,
    CostByModelRow,
    EffectiveStatus,
    SessionListFilters,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
)
from session_lifecycle.models.viewer import Viewer

__all__ = [
    "TOTAL_BOUND",
    "CostByModelRow",
    "EffectiveStatus",
    "End",
    "EndOutcome",
    "Item",
    "Receipt",
    "ReopenOutcome",
    "RepriceReport",
    "SessionListFilters",
    "SessionListPage",
    "SessionRecord",
    "SessionRowWithStatus",
    "SessionStats",
    "SessionStatus",
    "Touch",
    "TouchOutcome",
    "UsageEvent",
    "UsageOutcome",
    "UsageReceipt",
    "Viewer",
]
