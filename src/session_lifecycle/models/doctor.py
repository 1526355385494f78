"""What `diagnose` and `measure` return: findings with what to do, and the figures that a monitor watches."""

from enum import StrEnum

from session_lifecycle.models.fields import Value


class Severity(StrEnum):
    """How urgent a finding is. A note needs no action."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(Value):
    """One thing that `diagnose` found."""

    check: str
    """What was looked at: a word that stays the same, as `schema` or `clock`."""
    severity: Severity
    says: str
    """What is wrong, one sentence."""
    do: str | None
    """What to do: a command, or a statement of SQL; None for a note that needs no action."""


class DatabaseFigures(Value):
    """Figures of a database that a monitor watches. Each costs a bounded read."""

    sessions_to_roll_up: int
    """Sessions that ended or were abandoned and are not rolled up; at most 10,000 are counted."""
    roll_up_lag_seconds: float
    """The time since the last activity of the oldest of them; 0.0 where there are none."""
    roll_up_changes: int
    """Changes that are not yet put into the roll-ups; at most 100,000 are counted."""
    unpriced_events: int
    """Usage events without a price, of all time."""
    unpriced_models: int
    """Models with such events."""
    drift_sample_sessions: int
    """Sessions whose totals were compared with the ledger: a random stretch of at most 500."""
    drift_sample_mismatches: int
    """Rows of that stretch with a wrong total."""
    idle_in_transaction_seconds: float
    """The age of the oldest transaction that waits for its client; 0.0 where there is none that this role sees."""


class DoctorReport(Value):
    """The result of `diagnose`."""

    library_version: str
    server_version: str
    """As the server tells it, without what follows the number."""
    revision: str | None
    """The revision of the schema; None where it is not migrated."""
    figures: DatabaseFigures | None
    """None where the schema does not serve this version, or the role may not read."""
    findings: tuple[Finding, ...]
    """The errors first, then the warnings, then the notes."""

    @property
    def needs_action(self) -> bool:
        """Whether there is an error or a warning."""
        return any(one.severity is not Severity.NOTE for one in self.findings)
