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
from session_lifecycle.models.maintenance import ErasureReceipt, Mismatch, PruneReport, ReconcileReport, RepriceReport
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
from session_lifecycle.models.reports import CostByAgentRow, CostByUserRow, Spend, TelemetryKey, TelemetrySummary
from session_lifecycle.models.viewer import Viewer

__all__ = [
    "TOTAL_BOUND",
    "ActivityOutcome",
    "CostByAgentRow",
    "CostByModelRow",
    "CostByUserRow",
    "EffectiveStatus",
    "End",
    "EndOutcome",
    "ErasureReceipt",
    "Item",
    "Message",
    "MessageRole",
    "Mismatch",
    "PruneReport",
    "Receipt",
    "ReconcileReport",
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
    "Spend",
    "Step",
    "TelemetryKey",
    "TelemetrySummary",
    "Touch",
    "TouchOutcome",
    "UsageEvent",
    "UsageOutcome",
    "UsageReceipt",
    "Viewer",
]
