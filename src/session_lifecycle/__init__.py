"""The truth about AI-agent sessions, kept in Postgres: who ran what, is it still alive, what did it use and cost."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from session_lifecycle._version import __version__ as __version__

if TYPE_CHECKING:
    from session_lifecycle.activity import SessionActivityDb
    from session_lifecycle.budgets import SessionBudgetsDb
    from session_lifecycle.database import SessionDatabase
    from session_lifecycle.errors import (
        BudgetExceededError,
        ConfigurationError,
        DatabaseUnavailableError,
        InvalidValueError,
        PartlyWrittenError,
        RecorderClosedError,
        RecorderFullError,
        SchemaError,
        SessionLifecycleError,
        SpoolError,
        SpoolFullError,
        TransactionConflictError,
    )
    from session_lifecycle.maintenance.role import SessionMaintenanceDb
    from session_lifecycle.models import (
        ActivityOutcome,
        End,
        EndOutcome,
        Message,
        ReopenOutcome,
        Run,
        RunFilters,
        SessionListFilters,
        SessionStatus,
        Step,
        SummaryFilters,
        Touch,
        TouchOutcome,
        UsageEvent,
        UsageOutcome,
        UsageReceipt,
        Viewer,
    )
    from session_lifecycle.reports import SessionReportsDb
    from session_lifecycle.repository import SessionLifecycleDb
    from session_lifecycle.settings import Settings
    from session_lifecycle.writing.protocol import SessionWriter
    from session_lifecycle.writing.recorder import SessionRecorder
    from session_lifecycle.writing.run_block import current_run
    from session_lifecycle.writing.session_block import current_session
    from session_lifecycle.writing.spool import Spool
    from session_lifecycle.writing.traced import traced


__all__ = [
    "ActivityOutcome",
    "BudgetExceededError",
    "ConfigurationError",
    "DatabaseUnavailableError",
    "End",
    "EndOutcome",
    "InvalidValueError",
    "Message",
    "PartlyWrittenError",
    "RecorderClosedError",
    "RecorderFullError",
    "ReopenOutcome",
    "Run",
    "RunFilters",
    "SchemaError",
    "SessionActivityDb",
    "SessionBudgetsDb",
    "SessionDatabase",
    "SessionLifecycleDb",
    "SessionLifecycleError",
    "SessionListFilters",
    "SessionMaintenanceDb",
    "SessionRecorder",
    "SessionReportsDb",
    "SessionStatus",
    "SessionWriter",
    "Settings",
    "Spool",
    "SpoolError",
    "SpoolFullError",
    "Step",
    "SummaryFilters",
    "Touch",
    "TouchOutcome",
    "TransactionConflictError",
    "UsageEvent",
    "UsageOutcome",
    "UsageReceipt",
    "Viewer",
    "current_run",
    "current_session",
    "traced",
]

# Loaded on first use (PEP 562): a hook that only needs the errors must start in milliseconds.
_HOMES = {
    "ActivityOutcome": "models",
    "BudgetExceededError": "errors",
    "ConfigurationError": "errors",
    "DatabaseUnavailableError": "errors",
    "End": "models",
    "EndOutcome": "models",
    "InvalidValueError": "errors",
    "Message": "models",
    "PartlyWrittenError": "errors",
    "RecorderClosedError": "errors",
    "RecorderFullError": "errors",
    "ReopenOutcome": "models",
    "Run": "models",
    "RunFilters": "models",
    "SchemaError": "errors",
    "SessionActivityDb": "activity",
    "SessionBudgetsDb": "budgets",
    "SessionDatabase": "database",
    "SessionLifecycleDb": "repository",
    "SessionLifecycleError": "errors",
    "SessionListFilters": "models",
    "SessionMaintenanceDb": "maintenance.role",
    "SessionRecorder": "writing.recorder",
    "SessionReportsDb": "reports",
    "SessionStatus": "models",
    "SessionWriter": "writing.protocol",
    "Settings": "settings",
    "Spool": "writing.spool",
    "SpoolError": "errors",
    "SpoolFullError": "errors",
    "Step": "models",
    "SummaryFilters": "models",
    "Touch": "models",
    "TouchOutcome": "models",
    "TransactionConflictError": "errors",
    "UsageEvent": "models",
    "UsageOutcome": "models",
    "UsageReceipt": "models",
    "Viewer": "models",
    "current_run": "writing.run_block",
    "current_session": "writing.session_block",
    "traced": "writing.traced",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
