"""What is written to a session, and what the writer is told."""

from decimal import Decimal
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from session_lifecycle.models.activity import ActivityOutcome, Message, Run, Step
from session_lifecycle.models.fields import (
    Cost,
    ExternalId,
    Flag,
    Id,
    JsonObject,
    Key,
    Moment,
    OptionalModel,
    OptionalName,
    OptionalTitle,
    Revision,
    SessionId,
    TokenDetails,
    Tokens,
    Value,
    inconsistent,
)


class SessionStatus(StrEnum):
    """The stored status. `completed` and `failed` are terminal."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class TouchOutcome(StrEnum):
    """What touching did."""

    CREATED = "created"
    TOUCHED = "touched"
    TERMINAL = "terminal"
    """The session has ended and was left as it is."""


class UsageOutcome(StrEnum):
    """What became of a usage event."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    """This key, revision and content are counted already."""
    REPLACED = "replaced"
    """A higher revision took the place of what its key held."""
    SUPERSEDED = "superseded"
    """A higher revision of this key is counted already."""
    CONFLICT = "conflict"
    """This key and revision are counted with other content."""
    FROZEN = "frozen"
    """It happened after the session's end: kept in the ledger as late, in no total."""
    NOTHING = "nothing"
    """There was nothing to record."""


class EndOutcome(StrEnum):
    """What ending did."""

    ENDED = "ended"
    ALREADY_ENDED = "already_ended"
    UNKNOWN = "unknown"


class ReopenOutcome(StrEnum):
    """What reopening did."""

    REOPENED = "reopened"
    ALREADY_RUNNING = "already_running"
    UNKNOWN = "unknown"


# What sources call the parts of the input.
PROVIDERS_NAMES = {
    "cache_read_tokens": ("cache_read_input", "input_cached", "prompt_cached"),
    "cache_write_tokens": ("cache_creation_input",),
}


class Touch(Value):
    """A sign of life. `None` and missing fields leave what the session has; nothing here replaces a value."""

    session_id: SessionId
    user_id: Id
    dataset_id: Id | None = None
    agent_name: OptionalName = None
    at: Moment | None = None
    """When it happened; None: now, by the database's clock."""
    title: OptionalTitle = None
    metadata: JsonObject = Field(default_factory=dict)
    """Keys the session does not have yet are added."""


class UsageEvent(Value):
    """Tokens and cost of one model response.

    `tokens_in` includes `cache_read_tokens` and `cache_write_tokens`, `tokens_out` includes `reasoning_tokens`, as
    OpenTelemetry's GenAI conventions have it (https://opentelemetry.io/docs/specs/semconv/gen-ai/).
    """

    session_id: SessionId
    user_id: Id
    model: OptionalModel = None
    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    cost_usd: Cost | None = None
    """USD; None: priced from the catalogue, or unpriced."""
    errored: Flag = False
    provider: OptionalName = None
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    idempotency_key: Key | None = None
    at: Moment | None = None
    """When it happened; None: now, by the database's clock."""
    dataset_id: Id | None = None
    run_id: ExternalId | None = None
    """Its run. Where that was given a session, the event is of that one, whichever it names itself."""
    revision: Revision = 0
    key_scope: Literal["session", "user"] = "session"
    touch: Flag = True
    """Whether this usage counts as activity."""
    measured: Flag = True
    """False: the source gave no usage for this response."""
    details: TokenDetails = Field(default_factory=dict)
    """Further token counts by the source's own names; kept, not added up.

    `cache_read_input`, `input_cached` and `prompt_cached` are taken for `cache_read_tokens` where that is not given,
    `cache_creation_input` for `cache_write_tokens`.
    """

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.details:
            # Said once, as a detail; said twice, they are the same tokens.
            for part, names in PROVIDERS_NAMES.items():
                if part not in self.model_fields_set:
                    object.__setattr__(self, part, max(self.details.get(name, 0) for name in names))
        if self.cache_read_tokens + self.cache_write_tokens > self.tokens_in:
            part = "cache_read_tokens" if self.cache_read_tokens > self.tokens_in else "cache_write_tokens"
            raise inconsistent(part, f"with its sibling at most the {self.tokens_in} of tokens_in")
        if self.reasoning_tokens > self.tokens_out:
            raise inconsistent("reasoning_tokens", f"at most the {self.tokens_out} of tokens_out")
        if not self.measured and (self.has_tokens or self.cost_usd):
            raise inconsistent("measured", "true where tokens or a cost are given")
        if self.revision and self.idempotency_key is None:
            raise inconsistent("revision", "0 without an idempotency_key")
        return self

    @property
    def has_tokens(self) -> bool:
        """Whether any token was used; the parts are inside the two wholes."""
        return bool(self.tokens_in or self.tokens_out)

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to record (rule R03)."""
        return not (self.is_measurement or self.errored or self.model)

    @property
    def is_measurement(self) -> bool:
        """Whether it is about usage, rather than a model or an error alone; only then it has a per-model row."""
        return bool(self.has_tokens or self.cost_usd or not self.measured)


class End(Value):
    """The end of a session, as `completed` or `failed`."""

    session_id: SessionId
    user_id: Id
    status: Literal[SessionStatus.COMPLETED, SessionStatus.FAILED]
    at: Moment | None = None
    """When it ended; None: now, by the database's clock."""


class Reopen(Value):
    """The reopening of an ended session."""

    session_id: SessionId
    user_id: Id
    at: Moment | None = None


class UsageReceipt(Value):
    """What became of a usage event, and the session's running totals after it."""

    outcome: UsageOutcome
    cost_usd: Decimal | None
    """Of this event; None when it is unpriced or unmeasured."""
    session_tokens_in: int
    session_tokens_out: int
    session_cost_usd: Decimal


Item = Touch | UsageEvent | End | Run | Step | Message
Receipt = TouchOutcome | UsageReceipt | EndOutcome | ActivityOutcome
