"""The statuses of a session; `Touch`, `End` and `Reopen`, which go in; outcomes, record and row, which come out."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from session_lifecycle.models.fields import (
    AwareTime,
    Id,
    OptionalName,
    OptionalTitle,
    SessionId,
    Value,
    one_of,
)
from session_lifecycle.models.json_payloads import JsonObject


class SessionStatus(StrEnum):
    """The stored status of a session. `completed` and `failed` are terminal."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


EndStatus = Annotated[
    SessionStatus | Literal["completed", "failed"], one_of([SessionStatus.COMPLETED, SessionStatus.FAILED])
]
"""A status that a session can end with, as member or text. A value holds the member."""


class TouchOutcome(StrEnum):
    """What a touch did. `ensure_and_touch_session` and `record` return it."""

    CREATED = "created"
    TOUCHED = "touched"
    TERMINAL = "terminal"
    """The session has ended. The touch changed nothing."""


class EndOutcome(StrEnum):
    """What ending a session did. `end_session` and `record` return it."""

    ENDED = "ended"
    ALREADY_ENDED = "already_ended"
    """The session had an end already. The first end stays."""
    UNKNOWN = "unknown"
    """The user has no session with this id."""


class ReopenOutcome(StrEnum):
    """What reopening a session did. `reopen_session` returns it."""

    REOPENED = "reopened"
    ALREADY_RUNNING = "already_running"
    """The session has not ended. Nothing changed."""
    UNKNOWN = "unknown"
    """The user has no session with this id."""


class Touch(Value):
    """A sign of life of a session. `record` takes it.

    A touch creates the session, or moves its last activity forward. It fills `dataset_id`, `agent_name`, `title` and
    metadata keys that the session does not have yet, and replaces none. A field that is None changes nothing.
    """

    session_id: SessionId
    user_id: Id
    dataset_id: Id | None = None
    agent_name: OptionalName = None
    at: AwareTime | None = None
    """When it happened; None: now, by the database's clock."""
    title: OptionalTitle = None
    metadata: JsonObject = Field(default_factory=dict)
    """Keys that the session does not have yet are added."""


class End(Value):
    """The end of a session, as `completed` or `failed`. `record` takes it."""

    session_id: SessionId
    user_id: Id
    status: EndStatus
    at: AwareTime | None = None
    """When it ended; None: now, by the database's clock."""


class Reopen(Value):
    """The arguments of `reopen_session`."""

    session_id: SessionId
    user_id: Id
    at: AwareTime | None = None
    """When it happened; None: now, by the database's clock."""


class EffectiveStatus(StrEnum):
    """The status of a session when it is read. Computed at each read, never stored (rule R12).

    It is the stored status, or `abandoned` for a running session that is idle for longer than `abandon_after`.
    """

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"


StatusFilter = Annotated[
    EffectiveStatus | Literal["running", "completed", "failed", "abandoned"], one_of(list(EffectiveStatus))
]
"""An effective status that a list can be narrowed to, as member or text. A value holds the member."""


class SessionRecord(Value):
    """A session as it is stored, with its totals. Part of what reads return. Times are UTC, money is USD."""

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
    """A session and its effective status at the read. `get_session_row` and `list_session_rows` return it."""

    record: SessionRecord
    effective_status: EffectiveStatus

    def to_dict(self) -> dict[str, Any]:
        """A dict ready for JSON: the reference's twelve keys, then ours, `effective_status` last.

        Ids are text, times are ISO 8601 with `+00:00`, and money is a float. The value itself keeps `Decimal`.
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
