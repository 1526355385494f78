"""The truth about AI-agent sessions, kept in Postgres: who ran what, is it still alive, what did it use and cost."""

from session_lifecycle.database import BoundSessionDatabase, SessionDatabase
from session_lifecycle.entities import metadata
from session_lifecycle.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SchemaError,
    SessionLifecycleError,
    TransactionConflictError,
)
from session_lifecycle.handle import SessionHandle, current_session
from session_lifecycle.maintenance import SessionMaintenanceDb, SqlAlchemySessionMaintenanceDb
from session_lifecycle.migrations import include_object
from session_lifecycle.models import (
    ActivityOutcome,
    CostByModelRow,
    EffectiveStatus,
    End,
    EndOutcome,
    Item,
    Message,
    MessageRole,
    Receipt,
    ReopenOutcome,
    RepriceReport,
    Run,
    RunStatus,
    SessionListFilters,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    SessionStatus,
    Step,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageOutcome,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.pricing import PriceOverride
from session_lifecycle.recorder import SessionRecorder
from session_lifecycle.repository import SessionLifecycleDb, SqlAlchemySessionLifecycleDb
from session_lifecycle.settings import Settings
from session_lifecycle.telemetry import RecorderSnapshot
from session_lifecycle.writing import SessionWriter

__all__ = [
    "ActivityOutcome",
    "BoundSessionDatabase",
    "ConfigurationError",
    "CostByModelRow",
    "DatabaseUnavailableError",
    "EffectiveStatus",
    "End",
    "EndOutcome",
    "InvalidValueError",
    "Item",
    "Message",
    "MessageRole",
    "PriceOverride",
    "Receipt",
    "RecorderClosedError",
    "RecorderFullError",
    "RecorderSnapshot",
    "ReopenOutcome",
    "RepriceReport",
    "Run",
    "RunStatus",
    "SchemaError",
    "SessionDatabase",
    "SessionHandle",
    "SessionLifecycleDb",
    "SessionLifecycleError",
    "SessionListFilters",
    "SessionListPage",
    "SessionMaintenanceDb",
    "SessionRecord",
    "SessionRecorder",
    "SessionRowWithStatus",
    "SessionStats",
    "SessionStatus",
    "SessionWriter",
    "Settings",
    "SqlAlchemySessionLifecycleDb",
    "SqlAlchemySessionMaintenanceDb",
    "Step",
    "Touch",
    "TouchOutcome",
    "TransactionConflictError",
    "UsageEvent",
    "UsageOutcome",
    "UsageReceipt",
    "Viewer",
    "current_session",
    "include_object",
    "metadata",
]
