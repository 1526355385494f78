"""The filters of the ledger, of a page of its events and of a report, and the page of events that comes out."""

from datetime import datetime
from decimal import Decimal
from typing import Literal
from uuid import UUID

from pydantic import Field

from session_lifecycle.models.fields import (
    Id,
    OptionalExternalId,
    OptionalModel,
    OptionalName,
    OptionalSessionId,
    Value,
)
from session_lifecycle.models.pages import Page, PageFilters
from session_lifecycle.models.sessions import Tags
from session_lifecycle.models.usage_classes import ServiceTier


class UsageChoice(Value):
    """A choice of usage events. Base class of the filters that go in. An event must match every field that is not None,
    and its session must have all of the tags.

    `unknown` also chooses the events without a model, or without a provider.
    """

    session_id: OptionalSessionId = None
    run_id: OptionalExternalId = None
    model: OptionalModel = None
    """Compared without case."""
    provider: OptionalName = None
    """Compared with case, as is `client`."""
    client: OptionalName = None
    """The client of the event's run. `Unknown` also chooses the events without a run, or of a run without a client."""
    kind: Literal["llm", "embedding"] | None = None
    billing: Literal["api", "plan"] | None = None
    service_tier: ServiceTier | None = None
    tags: Tags = Field(default_factory=dict)
    """The event's session has these tags with these texts."""


class UsageFilters(UsageChoice):
    """The filters of the report `usage`."""

    owner_id: Id | None = None
    dataset_id: Id | None = None
    """The dataset of the event's session, as `agent_name` is the agent of the session."""
    agent_name: OptionalName = None


class UsageEventFilters(UsageChoice, PageFilters):
    """The argument of `list_usage_events`.

    `since` and `until` are a window `[since, until)` on the time of use. `owner_id` is the event's user. `dataset_id`
    and `agent_name` are those of the event's session.
    """


class LedgerEvent(Value):
    """One usage event, with everything that the ledger has of it. Part of a `UsageEventPage`."""

    user_id: UUID
    session_id: str
    event_id: UUID
    """The ledger's own id of the event; unique in the session."""
    at: datetime
    """The time of use, UTC."""
    recorded_at: datetime
    """When the event, or the revision that replaced it, was recorded, UTC. The events that one call records are one
    microsecond apart, in their order."""
    run_id: str | None
    model: str | None
    """As it was given."""
    provider: str | None
    kind: str
    billing: str
    service_tier: str
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal | None
    """USD, as the totals count it; 0 under a plan; None where the event is unpriced or unmeasured."""
    plan_cost_usd: Decimal | None
    """USD: the price of an event under a plan; None where it is unpriced, and for every other event."""
    given_cost_usd: Decimal | None
    """USD: the cost that the caller gave; None where the caller gave none."""
    price_source: str | None
    """Where the cost is from: `given`, or the entry of the price list. None where the event has no price."""
    unit_prices: dict[str, str] | None
    """The unit prices that the cost was computed with, as decimal texts, by the names of the price list. None where the
    cost was given, and without a price."""
    errored: bool
    measured: bool
    partial: bool
    """Whether the counts are a lower bound."""
    late: bool
    """Whether the event happened after the session's end. Only the totals of late events count it."""
    idempotency_key: str | None
    key_scope: str
    """Where the key is unique: `session` or `user`. `run`: the row adjusts the cost of a run that reported more than
    its events cost, and has no key."""
    revision: int
    details: dict[str, int]
    """Further counts by the source's own names. No total counts them."""
    cache_write_1h_tokens: int = 0
    audio_tokens_in: int = 0
    cache_read_audio_tokens: int = 0
    image_tokens_in: int = 0
    cache_read_image_tokens: int = 0
    video_tokens_in: int = 0
    audio_tokens_out: int = 0
    image_tokens_out: int = 0
    web_searches: int = 0
    """The number of searches; they are no tokens."""


class UsageEventPage(Page):
    """A page of the ledger. `list_usage_events` returns it."""

    events: list[LedgerEvent]
