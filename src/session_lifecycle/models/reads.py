"""What is asked about sessions, and what comes back."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import Field, Strict, model_validator

from session_lifecycle.models.fields import Flag, Id, Moment, OptionalName, SessionId, Text, Value, inconsistent
from session_lifecycle.models.items import SessionStatus
from session_lifecycle.models.viewer import Viewer

TOTAL_BOUND = 10_000
"""How far `total="bounded"` counts."""

MOST_OFFSET = 2**62


class EffectiveStatus(StrEnum):
    """The status as it is read: `abandoned` is a running session idle for longer than the threshold (rule R12)."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"


class SessionListFilters(Value):
    """What `list_session_rows` is asked.

    Who is asking is either `viewer`, or in the reference's shape `user_id` and `permitted_dataset_ids`. The window is
    `[since, until)` on `last_activity_at`. An unknown `order_by` falls back to `last_activity_at` (rule R13).
    """

    viewer: Viewer | None = None
    user_id: Id | None = None
    permitted_dataset_ids: tuple[Id, ...] = ()
    since: Moment | None = None
    until: Moment | None = None
    status_filter: EffectiveStatus | None = None
    limit: Annotated[int, Strict(), Field(ge=1, le=500)] = 50
    offset: Annotated[int, Strict(), Field(ge=0, le=MOST_OFFSET)] = 0
    order_by: Text = "last_activity_at"
    descending: Flag = True
    owner_id: Id | None = None
    dataset_id: Id | None = None
    agent_name: OptionalName = None
    cursor: Text | None = None
    """A page's `next_cursor`: the page after it, under the same filters. Not together with `offset`."""
    total: Literal["exact", "bounded", "none"] = "exact"

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.viewer is not None and (self.user_id is not None or self.permitted_dataset_ids):
            raise inconsistent("viewer", "none beside user_id and permitted_dataset_ids")
        if self.cursor is not None and self.offset:
            raise inconsistent("cursor", "none together with an offset")
        return self

    @property
    def asker(self) -> Viewer:
        """Who is asking, whichever shape it came in; one who sees nothing when nobody is named."""
        return self.viewer or Viewer(self.user_id, self.permitted_dataset_ids)


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


class SessionListPage(Value):
    """A page of sessions, its total and how to go on, all from one snapshot."""

    sessions: list[SessionRowWithStatus]
    total: int | None
    """Of all pages; None when it was not asked for."""
    limit: int
    offset: int
    has_more: bool
    next_cursor: str | None
    total_is_lower_bound: bool = False
    """`total="bounded"` stopped counting: there are at least `total`."""


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
