"""The statuses of a session; `Touch`, `End` and `Reopen`, which go in; outcomes, record and row, which come out.

`SessionChanges` are the fields that `update_session` replaces. `SessionFigures` are a session's figures and those of
its descendants.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypedDict
from uuid import UUID

from pydantic import BeforeValidator, Field, model_validator

from session_lifecycle.models.fields import (
    AwareTime,
    Flag,
    Id,
    OptionalName,
    OptionalSessionId,
    OptionalTitle,
    SessionId,
    Text,
    Value,
    one_of,
)
from session_lifecycle.models.json_payloads import JsonObject
from session_lifecycle.models.refusals import inconsistent


class SessionStatus(StrEnum):
    """The stored status of a session. `completed` and `failed` are terminal."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


EndStatus = Annotated[
    SessionStatus | Literal["completed", "failed"], one_of([SessionStatus.COMPLETED, SessionStatus.FAILED])
]
"""A status that a session can end with, as member or text. A value holds the member."""


MOST_TAGS = 64
TAG_CHARACTERS = 100
"""The most characters of a tag's name."""
Tags = Annotated[
    dict[Annotated[Text, Field(min_length=1, max_length=TAG_CHARACTERS)], Annotated[Text, Field(max_length=200)]],
    BeforeValidator(lambda value: {} if value is None else value),
    Field(max_length=MOST_TAGS),
]
"""Short texts by name, for filters: a customer, a version, a feature."""


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

    A touch creates the session, or moves its last activity forward. It fills `dataset_id`, `agent_name`, `title`,
    `parent_session_id`, and the keys of metadata and tags that the session does not have yet. It replaces none;
    `update_session` does. A field that is None changes nothing.
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
    tags: Tags = Field(default_factory=dict)
    """Keys that the session does not have yet are added. At most 64 of them, with texts of at most 200 characters."""
    parent_session_id: OptionalSessionId = None
    """The session that started this one, of the same user. It need not exist yet. A parent that descends from the
    session is refused.
    """
    waiting: Flag = False
    """Whether the session waits for somebody from now on, until its next activity of any kind.

    Activity at the time of the touch or before it does not end the waiting, except that of a later item of the same
    `record` without a time.
    """

    @model_validator(mode="after")
    def _is_not_its_own_parent(self) -> Self:
        refuse_own_parent(self.session_id, self.parent_session_id)
        return self


class End(Value):
    """The end of a session, as `completed` or `failed`. `record` takes it."""

    session_id: SessionId
    user_id: Id
    status: EndStatus
    at: AwareTime | None = None
    """When it ended; None: now, by the database's clock."""
    reason: OptionalTitle = None
    """Why it ended, at most 1,000 characters. It is stored as `end_reason` with the end that wins."""


class Reopen(Value):
    """The arguments of `reopen_session`."""

    session_id: SessionId
    user_id: Id
    at: AwareTime | None = None
    """When it happened; None: now, by the database's clock."""


class SessionChanges(TypedDict, total=False):
    """The fields that `update_session` replaces. None empties a field. A field that is not given stays."""

    title: str | None
    metadata: Mapping[str, Any] | None
    tags: Mapping[str, str] | None
    dataset_id: UUID | str | None
    """None: the session is shared through no dataset any more."""
    agent_name: str | None
    parent_session_id: str | None


class SessionUpdate(Value):
    """The arguments of `update_session`. `model_fields_set` says which fields are given."""

    session_id: SessionId
    user_id: Id
    title: OptionalTitle = None
    metadata: JsonObject = Field(default_factory=dict)
    tags: Tags = Field(default_factory=dict)
    dataset_id: Id | None = None
    agent_name: OptionalName = None
    parent_session_id: OptionalSessionId = None

    @model_validator(mode="after")
    def _is_not_its_own_parent(self) -> Self:
        refuse_own_parent(self.session_id, self.parent_session_id)
        return self


def refuse_own_parent(session_id: str, parent_session_id: str | None) -> None:
    """Raises the refusal of a session that is its own parent."""
    if parent_session_id == session_id:
        raise inconsistent("parent_session_id", "the id of another session")


class EffectiveStatus(StrEnum):
    """The status of a session when it is read. Computed at each read, never stored (rule R12).

    It is the stored status, except for a running session: `waiting` where it waits for somebody, else `abandoned` where
    it is idle for longer than `abandon_after`.
    """

    RUNNING = "running"
    WAITING = "waiting"
    """A touch with `waiting=True` marked the session, and nothing happened since. It is never `abandoned`."""
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"


StatusFilter = Annotated[
    EffectiveStatus | Literal["running", "waiting", "completed", "failed", "abandoned"], one_of(list(EffectiveStatus))
]
"""An effective status that a list can be narrowed to, as member or text. A value holds the member."""


CODING_AGENTS = ("claude-code", "codex")
"""The types of agents that the ids of sessions begin with, followed by a hyphen."""


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
    tags: dict[str, str] = Field(default_factory=dict)
    parent_session_id: str | None = None
    end_reason: str | None = None
    """Why the session ended; None where nobody said so, and for a session that runs."""
    partial_events: int = 0
    """The number of events whose counts are a lower bound."""
    plan_events: int = 0
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int = 0
    plan_tokens_out: int = 0
    plan_cost_usd: Decimal = Decimal(0)
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int = 0
    cache_write_1h_tokens: int = 0
    audio_tokens_in: int = 0
    cache_read_audio_tokens: int = 0
    image_tokens_in: int = 0
    cache_read_image_tokens: int = 0
    video_tokens_in: int = 0
    audio_tokens_out: int = 0
    image_tokens_out: int = 0
    web_searches: int = 0

    @property
    def agent_type(self) -> str | None:
        """The type of the session's agent; None where nothing says so.

        It is the text under `agent_type` in the metadata, else the agent's name, else the coding agent whose prefix the
        session's id has.
        """
        told = self.metadata.get("agent_type")
        if isinstance(told, str) and told:
            return told
        if self.agent_name is not None:
            return self.agent_name
        return next((agent for agent in CODING_AGENTS if self.session_id.startswith(f"{agent}-")), None)


class SessionFigures(Value):
    """Sums over sessions. Part of `FamilyFigures`. Money is USD."""

    sessions: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    error_count: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int
    unmeasured_events: int
    late_events: int
    late_cost_usd: Decimal
    partial_events: int = 0
    """The number of events whose counts are a lower bound."""
    plan_events: int = 0
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int = 0
    plan_tokens_out: int = 0
    plan_cost_usd: Decimal = Decimal(0)
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int = 0


class FamilyFigures(Value):
    """The figures of a session, alone and with its descendants. `get_family_figures` returns it."""

    own: SessionFigures
    with_descendants: SessionFigures
    """The session and all visible sessions whose `parent_session_id` leads to it, each counted once."""


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
