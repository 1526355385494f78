"""`UsageEvent`, which goes in; its outcome and its receipt, which come out."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Literal, Self, TypedDict

from pydantic import Field, model_validator

from session_lifecycle.models.fields import (
    AwareTime,
    Cost,
    ExternalId,
    Flag,
    Id,
    Key,
    OptionalModel,
    OptionalName,
    Revision,
    SessionId,
    TokenDetails,
    Tokens,
    Value,
)
from session_lifecycle.models.refusals import inconsistent
from session_lifecycle.models.usage_classes import WHOLES, ServiceTier, excess


class UsageOutcome(StrEnum):
    """What recording a usage event did. Part of a `UsageReceipt`."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    """The event is counted already, with this key, revision and content. Nothing changed."""
    REPLACED = "replaced"
    """The event has a higher revision than the event with its key. It took the place of that event."""
    SUPERSEDED = "superseded"
    """A higher revision of this key is counted already. Nothing changed."""
    CONFLICT = "conflict"
    """This key and revision are counted already, with other content. Nothing changed."""
    FROZEN = "frozen"
    """The event happened after the session's end. The ledger keeps it as late; only the totals of late events count it.

    A higher revision that is itself late takes the place of a late event only.
    """
    NOTHING = "nothing"
    """The event has nothing to record (rule R03). Nothing was written."""


# The names that sources use for parts, in `details`.
SOURCES_NAMES = {
    "cache_read_tokens": ("cache_read_input", "input_cached", "prompt_cached"),
    "cache_write_tokens": ("cache_creation_input",),
    "cache_write_1h_tokens": ("ephemeral_1h_input_tokens",),
    "web_searches": ("web_search_requests",),
}


class UsageEvent(Value):
    """Tokens and cost of one model response. `record` takes it.

    `tokens_in` includes all parts of the input, and `tokens_out` all parts of the output. OpenTelemetry's GenAI
    conventions define them so (https://opentelemetry.io/docs/specs/semconv/gen-ai/). A part that is billed apart has a
    field of its own; `models.usage_classes.WHOLES` says which count each is a part of.
    """

    session_id: SessionId
    user_id: Id
    model: OptionalModel = None
    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    cost_usd: Cost | None = None
    """USD. None: the price comes from the catalogue; an event without a price there is unpriced."""
    errored: Flag = False
    provider: OptionalName = None
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    idempotency_key: Key | None = None
    at: AwareTime | None = None
    """The time of use; None: now, by the database's clock."""
    dataset_id: Id | None = None
    run_id: ExternalId | None = None
    """The id of its run. Where the run was given a session, the event goes to the run's session, whatever session it
    names. An event that is already counted in the session it names stays there."""
    revision: Revision = 0
    key_scope: Literal["session", "user"] = "session"
    """Where `idempotency_key` is unique: in the session, or in all sessions of the user.

    An event with a key of the user's scope and without a run belongs to the session that names the earliest time of its
    use: the copies in forks of a conversation are later. Of equal times the first recorded stays. An earlier copy that
    a higher revision or a larger count precedes moves nothing. A session that the event created and left stays, empty.
    """
    touch: Flag = True
    """Whether this usage counts as activity of the session."""
    measured: Flag = True
    """False: the source gave no usage for this response."""
    partial: Flag = False
    """Whether the counts are a lower bound: a stream was cut off, for example.

    A larger count with the same key takes the place of a lower bound, as a higher revision would, and so does a count
    that is no lower bound. More input is the larger count; of equal input more output.
    """
    kind: Literal["llm", "embedding"] = "llm"
    """The kind of the model call. It changes no price."""
    billing: Literal["api", "plan"] = "api"
    """`plan`: the use is under a subscription. Its tokens count, and its price is in no cost: it is summed apart."""
    service_tier: ServiceTier = "standard"
    """The tier that the response was billed in. A tier that the prices do not know makes the event unpriced."""
    cache_write_1h_tokens: Tokens = 0
    """The part of `cache_write_tokens` that the cache keeps for an hour."""
    audio_tokens_in: Tokens = 0
    cache_read_audio_tokens: Tokens = 0
    """The part of `cache_read_tokens` and of `audio_tokens_in` that is both."""
    image_tokens_in: Tokens = 0
    cache_read_image_tokens: Tokens = 0
    """The part of `cache_read_tokens` and of `image_tokens_in` that is both."""
    video_tokens_in: Tokens = 0
    audio_tokens_out: Tokens = 0
    image_tokens_out: Tokens = 0
    web_searches: Tokens = 0
    """The number of searches; they are no tokens."""
    details: TokenDetails = Field(default_factory=dict)
    """Further counts by the source's own names. The ledger keeps them; no total counts them.

    A part that is not given as a field is read from here: `cache_read_tokens` is the greatest of `cache_read_input`,
    `input_cached` and `prompt_cached`, `cache_write_tokens` is `cache_creation_input`, `cache_write_1h_tokens` is
    `ephemeral_1h_input_tokens`, and `web_searches` is `web_search_requests`.
    """

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.details:
            # Two names of one part count the same tokens, so the greatest counts and not their sum.
            for part, names in SOURCES_NAMES.items():
                if part not in self.model_fields_set:
                    object.__setattr__(self, part, max(self.details.get(name, 0) for name in names))
        # Most events have no rare part, and a sum tells whether the others fit.
        fits = self.cache_read_tokens + self.cache_write_tokens <= self.tokens_in
        fits = fits and self.reasoning_tokens <= self.tokens_out and not self.details
        fits = fits and _RARE_CLASSES.isdisjoint(self.model_fields_set)
        if not fits and (too_large := excess(vars(self))) is not None:
            raise inconsistent(*too_large)
        if not self.measured and (self.has_use or self.cost_usd):
            raise inconsistent("measured", "true, because tokens or a cost are given")
        if self.revision and self.idempotency_key is None:
            raise inconsistent("revision", "0, or an idempotency_key beside it")
        return self

    @property
    def has_use(self) -> bool:
        """Whether anything was used that has a price. `tokens_in` and `tokens_out` include all other token counts."""
        return bool(self.tokens_in or self.tokens_out or self.web_searches)

    @property
    def rare_parts(self) -> dict[str, int]:
        """The counts of the classes of use that are rare, by name, without zeros."""
        if not self.details and _RARE_CLASSES.isdisjoint(self.model_fields_set):
            return {}
        given = vars(self)
        return {name: count for name in RARE_CLASSES if (count := given[name])}

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to record (rule R03)."""
        return not (self.model or self.errored or self.is_measurement)

    @property
    def is_measurement(self) -> bool:
        """Whether the event has usage, and not only a model or an error. Only then is it in the totals by model."""
        return bool(self.has_use or self.cost_usd or not self.measured)


RARE_CLASSES = tuple(
    name
    for name in WHOLES
    if name not in {"tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"}
)
"""The classes of use that few events have. The ledger keeps their counts together, in `parts`."""
_RARE_CLASSES = frozenset(RARE_CLASSES)


class RareUse(TypedDict, total=False):
    """The fields of `UsageEvent` that few responses have. `accumulate_usage` takes them as keywords."""

    cache_write_1h_tokens: int
    audio_tokens_in: int
    cache_read_audio_tokens: int
    image_tokens_in: int
    cache_read_image_tokens: int
    video_tokens_in: int
    audio_tokens_out: int
    image_tokens_out: int
    web_searches: int
    service_tier: ServiceTier
    billing: Literal["api", "plan"]
    kind: Literal["llm", "embedding"]
    partial: bool


class EstimatedUse(RareUse, total=False):
    """The keywords of the calls that estimate usage, beside model, tokens and cost."""

    provider: str | None
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int


class UsageOptions(EstimatedUse, total=False):
    """The keywords of the calls that count usage. `SessionWriter.accumulate_usage` says what they mean."""

    idempotency_key: str | None
    at: datetime | None


class UsageReceipt(Value):
    """The receipt of a usage event: its outcome, and the session's totals after the call.

    `accumulate_usage` and `record` return it. Money is USD.
    """

    outcome: UsageOutcome
    cost_usd: Decimal | None
    """The cost of this event; under a plan, its price. None where the event is unpriced or unmeasured."""
    session_tokens_in: int
    session_tokens_out: int
    session_cost_usd: Decimal
