"""`UsageEvent`, which goes in; its outcome and its receipt, which come out."""

from decimal import Decimal
from enum import StrEnum
from typing import Literal, Self

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

    A higher revision that is itself late changes nothing.
    """
    NOTHING = "nothing"
    """The event has nothing to record (rule R03). Nothing was written."""


# The names that sources use for the parts of the input.
PROVIDERS_NAMES = {
    "cache_read_tokens": ("cache_read_input", "input_cached", "prompt_cached"),
    "cache_write_tokens": ("cache_creation_input",),
}


class UsageEvent(Value):
    """Tokens and cost of one model response. `record` takes it.

    `tokens_in` includes `cache_read_tokens` and `cache_write_tokens`; `tokens_out` includes `reasoning_tokens`.
    OpenTelemetry's GenAI conventions define them so (https://opentelemetry.io/docs/specs/semconv/gen-ai/).
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
    """Where `idempotency_key` is unique: in the session, or in all sessions of the user."""
    touch: Flag = True
    """Whether this usage counts as activity of the session."""
    measured: Flag = True
    """False: the source gave no usage for this response."""
    details: TokenDetails = Field(default_factory=dict)
    """Further token counts by the source's own names. The ledger keeps them; no total counts them.

    Where `cache_read_tokens` is not given, it is the greatest of `cache_read_input`, `input_cached` and
    `prompt_cached`. Where `cache_write_tokens` is not given, it is `cache_creation_input`.
    """

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.details:
            # Two names of one part count the same tokens, so the greatest counts and not their sum.
            for part, names in PROVIDERS_NAMES.items():
                if part not in self.model_fields_set:
                    object.__setattr__(self, part, max(self.details.get(name, 0) for name in names))
        if self.cache_read_tokens + self.cache_write_tokens > self.tokens_in:
            part = "cache_read_tokens" if self.cache_read_tokens > self.tokens_in else "cache_write_tokens"
            raise inconsistent(
                part, f"cache_read_tokens and cache_write_tokens that are together at most tokens_in ({self.tokens_in})"
            )
        if self.reasoning_tokens > self.tokens_out:
            raise inconsistent("reasoning_tokens", f"at most tokens_out ({self.tokens_out})")
        if not self.measured and (self.has_tokens or self.cost_usd):
            raise inconsistent("measured", "true, because tokens or a cost are given")
        if self.revision and self.idempotency_key is None:
            raise inconsistent("revision", "0, or an idempotency_key beside it")
        return self

    @property
    def has_tokens(self) -> bool:
        """Whether any token was used. `tokens_in` and `tokens_out` include all other token counts."""
        return bool(self.tokens_in or self.tokens_out)

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to record (rule R03)."""
        return not (self.is_measurement or self.errored or self.model)

    @property
    def is_measurement(self) -> bool:
        """Whether the event has usage, and not only a model or an error. Only then is it in the totals by model."""
        return bool(self.has_tokens or self.cost_usd or not self.measured)


class UsageReceipt(Value):
    """The receipt of a usage event: its outcome, and the session's totals after the call.

    `accumulate_usage` and `record` return it. Money is USD.
    """

    outcome: UsageOutcome
    cost_usd: Decimal | None
    """The cost of this event; None where the event is unpriced or unmeasured."""
    session_tokens_in: int
    session_tokens_out: int
    session_cost_usd: Decimal
