"""What is asked about sessions, and what comes back."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from session_lifecycle.models.fields import Flag, Id, Moment, SessionId, Text, Value
from session_lifecycle.models.items import SessionStatus
from session_lifecycle.models.pages import Page, PageFilters

SESSION_ORDERS = ("last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out")
"""The columns a page of sessions can be ordered by (rule R13)."""
DEFAULT_SESSION_ORDER = SESSION_ORDERS[0]


class EffectiveStatus(StrEnum):
    """The status as it is read: `abandoned` is a running session idle for longer than the threshold (rule R12)."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"


class SessionFilters(PageFilters):
    """What every page of sessions is asked. The window is `[since, until)` on `last_activity_at`."""

    status_filter: EffectiveStatus | None = None
    order_by: Text = DEFAULT_SESSION_ORDER

    @property
    def order_column(self) -> str:
        """The column the page is ordered by: an unknown one falls back to `last_activity_at` (rule R13)."""
        return self.order_by if self.order_by in SESSION_ORDERS else DEFAULT_SESSION_ORDER

    def question(self) -> dict[str, Any]:
        """See `PageFilters`."""
        return super().question() | {"order_by": self.order_column}


class SessionListFilters(SessionFilters):
    """What `list_session_rows` is asked. An unknown `order_by` falls back to `last_activity_at`."""


class OneSession(Value):
    """What `get_session_row` is asked, beside who asks."""

    session_id: SessionId
    prefer_other_owner: Flag = False
    owner_id: Id | None = None


class Window(Value):
    """A window of time, `[since, until)`."""

    since: Moment | None = None
    until: Moment | None = None


class SessionRecord(Value):
    """A session as stored. Times are UTC, money is USD."""

    session_id: str
    user_id: UUID
    dataset_id: UUID | None
    status: SessionStatus
    started_at: datetime
    last_activity_at: datetime
    ended_at: datetime | None
    tokens_in: int
    tokens_out: int
    cost_usd: Decimal
    error_count: int
    last_model: str | None
    agent_name: str | None
    title: str | None
    metadata: dict[str, Any]
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int
    unmeasured_events: int
    late_events: int
    late_cost_usd: Decimal


class SessionRowWithStatus(Value):
    """A session and its effective status when it was read."""

    record: SessionRecord
    effective_status: EffectiveStatus

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the reference's twelve keys, then ours, `effective_status` last.

        Ids are text, times ISO 8601 with `+00:00`, money is a float; the value itself keeps `Decimal`.
        """
        return {
            **{name: _ready_for_json(value) for name, value in self.record},
            "effective_status": self.effective_status.value,
        }


def _ready_for_json(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case Decimal():
            return float(value)
        case StrEnum():
            return value.value
        case _:
            return value


class SessionListPage(Page):
    """A page of sessions."""

    sessions: list[SessionRowWithStatus]


class SessionStats(Value):
    """Figures over all sessions a viewer sees in a window, by effective status (rule R16). Money is USD."""

    sessions: int
    total_spend_usd: Decimal
    avg_spend_per_session_usd: Decimal
    """Rounded half-even to 10 decimals; 0 without sessions."""
    tokens_in: int
    tokens_out: int
    tokens_total: int
    """Input and output together."""
    agent_time_s: float
    """The sum of all durations, each `max(0, (ended_at or last_activity_at) - started_at)`."""
    avg_session_s: float
    success_rate: float
    """completed / (completed + failed + abandoned); 1.0 when there are none."""
    completed: int
    failed: int
    abandoned: int
    running: int
    unpriced_events: int
    unmeasured_events: int
    late_events: int
    late_cost_usd: Decimal


class CostByModelRow(Value):
    """What one model cost over all sessions a viewer sees in a window. Money is USD."""

    model: str
    """`unknown` for usage that named none."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    unpriced_events: int
