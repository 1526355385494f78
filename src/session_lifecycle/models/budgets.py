"""Budgets: `Budget`, which goes in and comes out; their figures, and the answer of a reservation."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args
from uuid import UUID

from pydantic import BeforeValidator, Field, Strict, TypeAdapter, ValidationError, model_validator

from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.models.fields import (
    Cost,
    Id,
    Key,
    OptionalName,
    OptionalSessionId,
    SessionId,
    Text,
    Value,
)
from session_lifecycle.models.refusals import inconsistent, refused
from session_lifecycle.models.reports import time_zone

MOST_BUDGETS = 1_000
"""The most budgets of one list."""
MOST_LIMIT_TOKENS = 10**15
LONGEST_WINDOW = timedelta(days=3_660)
LONGEST_LEASE = timedelta(days=7)
DEFAULT_LEASE = timedelta(minutes=15)
"""How long an attempt may be open, too."""

Calendar = Literal["hour", "day", "week", "month"]
CALENDARS: tuple[Calendar, ...] = get_args(Calendar)

_DURATION = TypeAdapter(timedelta)


def _window(value: Any) -> Any:
    if isinstance(value, str):
        if value == "total" or value in CALENDARS:
            return value
        try:  # a duration in ISO 8601, as JSON has it
            value = _DURATION.validate_python(value)
        except ValidationError:
            raise refused("budget_window", limit=LONGEST_WINDOW.days) from None
    if not isinstance(value, timedelta) or not timedelta(0) < value <= LONGEST_WINDOW:
        raise refused("budget_window", limit=LONGEST_WINDOW.days)
    return value


def _zone_name(value: Any) -> str:
    return str(time_zone(value))


BudgetWindow = Literal["total", "hour", "day", "week", "month"] | timedelta
BudgetId = Annotated[Text, Field(min_length=1, max_length=200)]


class Budget(Value):
    """A limit on what sessions use in a window. `set_budget` takes it.

    It counts the usage of the sessions that have every user, session, agent and dataset that it names, by the time of
    use. Usage from after the end of a session counts too. Usage under a plan counts in tokens, and not in USD.
    """

    budget_id: BudgetId
    """The caller's own id."""
    user_id: Id | None = None
    session_id: OptionalSessionId = None
    """A session of `user_id`."""
    agent_name: OptionalName = None
    """The agent of the session, as `dataset_id` is the dataset of the session."""
    dataset_id: Id | None = None
    limit_usd: Cost | None = None
    """USD. What reaches the limit exactly is within it."""
    limit_tokens: Annotated[int, Strict(), Field(ge=0, le=MOST_LIMIT_TOKENS)] | None = None
    """Tokens in and out together."""
    window: Annotated[BudgetWindow, BeforeValidator(_window)] = "total"
    """`total`: all time. `hour`, `day`, `week` (from Monday) and `month`: the current one, by the clocks of the time
    zone. A timedelta: so long, up to now."""
    timezone: Annotated[str, BeforeValidator(_zone_name)] = "UTC"
    """The name of an IANA time zone."""
    on_unpriced: Literal["refuse", "admit"] = "refuse"
    """What a limit in USD does with a call whose price is not known: it refuses the call, or admits it as long as
    something is left, and reserves 0 USD for it."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.user_id is None and self.agent_name is None and self.dataset_id is None:
            raise inconsistent("user_id", "a user, or an agent_name or a dataset_id in its place")
        if self.session_id is not None and self.user_id is None:
            raise inconsistent("user_id", "the user of the session_id")
        if self.limit_usd is None and self.limit_tokens is None:
            raise inconsistent("limit_usd", "a limit, or limit_tokens in its place")
        return self


class BudgetUse(Value):
    """A budget and what is used of it. `get_budget`, `would_exceed` and a `Reservation` return it."""

    budget: Budget
    since: datetime | None
    """When the window began, UTC; None for all time."""
    spent_usd: Decimal
    """USD, by the ledger, in the window. Events without a price count 0."""
    spent_tokens: int
    reserved_usd: Decimal
    """USD that calls in flight have reserved; without those of the call that asks."""
    reserved_tokens: int
    unpriced_events: int
    """The number of events in the window whose price is not known."""
    unmeasured_events: int
    """The number of events in the window whose source gave no usage."""
    over_usd: Decimal | None
    """USD by which the call would pass the limit; None where the limit holds. 0: the limit is used up, and the call
    does not say how much it needs."""
    over_tokens: int | None
    """The same in tokens."""
    over_unpriced: bool
    """Whether the budget refuses the call because its price is not known."""


class ReservationOutcome(StrEnum):
    """What `reserve` did. Part of a `Reservation`."""

    RESERVED = "reserved"
    UNLIMITED = "unlimited"
    """No budget counts the call, so nothing was reserved."""
    RECORDED = "recorded"
    """The ledger has an event with this key, so nothing was reserved."""
    REFUSED = "refused"
    """The call would exceed a budget. Nothing was reserved."""


class Reservation(Value):
    """The answer of `reserve`: whether the model may be called."""

    session_id: str
    user_id: UUID
    idempotency_key: str
    key_scope: str
    outcome: ReservationOutcome
    cost_usd: Decimal | None
    """USD that the call was counted with; None where it gave no figures, and where its price is not known."""
    tokens: int | None
    """Tokens that the call was counted with; None where it gave none."""
    expires_at: datetime | None
    """When the lease ends, UTC; None where nothing was reserved."""
    refused_by: list[BudgetUse]
    """The budgets that refuse the call, by their ids; empty where it is admitted."""

    @property
    def admitted(self) -> bool:
        """Whether the model may be called."""
        return self.outcome is not ReservationOutcome.REFUSED

    def raise_if_refused(self) -> None:
        """Raises `BudgetExceededError` where a budget refuses the call; does nothing where it is admitted."""
        if not self.admitted:
            raise exceeded(self.refused_by)


def exceeded(uses: Sequence[BudgetUse]) -> BudgetExceededError:
    """The error for a call that these budgets refuse."""
    return BudgetExceededError([one.budget.budget_id for one in uses], "; ".join(map(_reason, uses)))


def _reason(use: BudgetUse) -> str:
    reasons: Sequence[str] = [
        *([] if use.over_usd is None else [f"would be exceeded by {use.over_usd} USD"]),
        *([] if use.over_tokens is None else [f"would be exceeded by {use.over_tokens} tokens"]),
        *(["refuses a call whose price is not known"] if use.over_unpriced else []),
    ]
    return f"budget {use.budget.budget_id!r} {' and '.join(reasons)}"


class OneBudget(Value):
    """The argument of `get_budget` and `delete_budget`."""

    budget_id: BudgetId


class BudgetList(Value):
    """The arguments of `list_budgets`, without the viewer."""

    limit: Annotated[int, Strict(), Field(ge=1, le=MOST_BUDGETS)] = 100
    after: BudgetId | None = None


class Reserving(Value):
    """The arguments of `reserve` beyond those of a usage event and of a touch."""

    idempotency_key: Key
    lease: Annotated[timedelta, Strict(), Field(gt=timedelta(0), le=LONGEST_LEASE)] = DEFAULT_LEASE


class Releasing(Value):
    """The arguments of `release`."""

    session_id: SessionId
    user_id: Id
    idempotency_key: Key
    key_scope: Literal["session", "user"] = "session"
