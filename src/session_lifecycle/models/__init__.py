"""The values that callers pass in, and the values that calls return: frozen Pydantic models, one module per noun."""

from session_lifecycle.models.annotations import SessionAnnotation
from session_lifecycle.models.budgets import Budget, BudgetUse, Reservation, ReservationOutcome
from session_lifecycle.models.items import Item, Receipt
from session_lifecycle.models.maintenance import (
    ErasureReceipt,
    Mismatch,
    PruneReport,
    ReconcileReport,
    RepriceReport,
    RollUpReport,
)
from session_lifecycle.models.messages import Message, MessageRole
from session_lifecycle.models.pages import TOTAL_BOUND
from session_lifecycle.models.prices import PriceOverride
from session_lifecycle.models.reports import (
    CostByAgentRow,
    CostByModelRow,
    CostByUserAgentRow,
    CostByUserRow,
    SessionStats,
    Spend,
    TokenClasses,
    TokensByClass,
    UsageFigures,
    UsagePoint,
    UsageReport,
    UsageRow,
)
from session_lifecycle.models.run_details import Lineage, RunDetail, RunEvent, RunPage
from session_lifecycle.models.run_filters import RunFilters
from session_lifecycle.models.run_telemetry import (
    Durations,
    RunDurations,
    SessionDurations,
    TelemetryKey,
    TelemetrySummary,
)
from session_lifecycle.models.runs import ActivityOutcome, Run, RunStatus, Step
from session_lifecycle.models.session_details import Action, RecentActivity, SessionDetail, Thread, ThreadPage
from session_lifecycle.models.session_filters import SessionListFilters, SessionListPage
from session_lifecycle.models.sessions import (
    EffectiveStatus,
    End,
    EndOutcome,
    FamilyFigures,
    ReopenOutcome,
    SessionChanges,
    SessionFigures,
    SessionRecord,
    SessionRowWithStatus,
    SessionStatus,
    Touch,
    TouchOutcome,
)
from session_lifecycle.models.summaries import SessionSummary, SummaryFilters, SummaryPage
from session_lifecycle.models.transfer import ExportBatch, ImportReport, RefusedRow, TableReport
from session_lifecycle.models.usage import UsageEvent, UsageOutcome, UsageReceipt
from session_lifecycle.models.usage_filters import LedgerEvent, UsageEventFilters, UsageEventPage, UsageFilters
from session_lifecycle.models.viewer import Viewer

__all__ = [
    "TOTAL_BOUND",
    "Action",
    "ActivityOutcome",
    "Budget",
    "BudgetUse",
    "CostByAgentRow",
    "CostByModelRow",
    "CostByUserAgentRow",
    "CostByUserRow",
    "Durations",
    "EffectiveStatus",
    "End",
    "EndOutcome",
    "ErasureReceipt",
    "ExportBatch",
    "FamilyFigures",
    "ImportReport",
    "Item",
    "LedgerEvent",
    "Lineage",
    "Message",
    "MessageRole",
    "Mismatch",
    "PriceOverride",
    "PruneReport",
    "Receipt",
    "RecentActivity",
    "ReconcileReport",
    "RefusedRow",
    "ReopenOutcome",
    "RepriceReport",
    "Reservation",
    "ReservationOutcome",
    "RollUpReport",
    "Run",
    "RunDetail",
    "RunDurations",
    "RunEvent",
    "RunFilters",
    "RunPage",
    "RunStatus",
    "SessionAnnotation",
    "SessionChanges",
    "SessionDetail",
    "SessionDurations",
    "SessionFigures",
    "SessionListFilters",
    "SessionListPage",
    "SessionRecord",
    "SessionRowWithStatus",
    "SessionStats",
    "SessionStatus",
    "SessionSummary",
    "Spend",
    "Step",
    "SummaryFilters",
    "SummaryPage",
    "TableReport",
    "TelemetryKey",
    "TelemetrySummary",
    "Thread",
    "ThreadPage",
    "TokenClasses",
    "TokensByClass",
    "Touch",
    "TouchOutcome",
    "UsageEvent",
    "UsageEventFilters",
    "UsageEventPage",
    "UsageFigures",
    "UsageFilters",
    "UsageOutcome",
    "UsagePoint",
    "UsageReceipt",
    "UsageReport",
    "UsageRow",
    "Viewer",
]
