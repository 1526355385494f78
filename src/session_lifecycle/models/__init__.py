"""The values that go in and come out: frozen Pydantic models, by noun."""

from session_lifecycle.models.activity import ActivityOutcome, Message, MessageRole, Run, RunStatus, Step
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
from session_lifecycle.models.pages import TOTAL_BOUND
from session_lifecycle.models.reads import (
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
    "ActivityOutcome",
    "CostByModelRow",
    "EffectiveStatus",
    "End",
    "EndOutcome",
    "Item",
    "Message",
    "MessageRole",
    "Receipt",
    "ReopenOutcome",
    "RepriceReport",
    "Run",
    "RunStatus",
    "SessionListFilters",
    "SessionListPage",
    "SessionRecord",
    "SessionRowWithStatus",
    "SessionStats",
    "SessionStatus",
    "Step",
    "Touch",
    "TouchOutcome",
    "UsageEvent",
    "UsageOutcome",
    "UsageReceipt",
    "Viewer",
]
