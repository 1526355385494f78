"""The figures that reports return: stats, spend, cost rows, usage points. `Series` has a time series' arguments."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, model_validator

from session_lifecycle.models.fields import AwareTime, Value
from session_lifecycle.models.refusals import inconsistent, refuse_empty_window, refused


class SessionStats(Value):
    """Figures over the sessions that a viewer sees, last active in a window (rule R16).

    `aggregate_stats` returns it. Money is USD. `completed`, `failed`, `abandoned` and `running` count sessions by their
    effective status.
    """

    sessions: int
    total_spend_usd: Decimal
    avg_spend_per_session_usd: Decimal
    """USD, rounded half-even to 10 decimals; 0 without sessions."""
    tokens_in: int
    tokens_out: int
    tokens_total: int
    """`tokens_in + tokens_out`."""
    agent_time_s: float
    """Seconds: the sum of the durations of all sessions, each `max(0, (ended_at or last_activity_at) - started_at)`."""
    avg_session_s: float
    """Seconds; 0 without sessions."""
    success_rate: float
    """`completed / (completed + failed + abandoned)`; 1.0 where all three are 0."""
    completed: int
    failed: int
    abandoned: int
    running: int
    unpriced_events: int
    unmeasured_events: int
    late_events: int
    late_cost_usd: Decimal


class CostByModelRow(Value):
    """What one model cost in the sessions that a viewer sees, last active in a window.

    `cost_by_model` returns a list of it. Money is USD.
    """

    model: str
    """The model; `unknown` for usage without a model."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    unpriced_events: int


MOST_BUCKETS = 10_000
"""The most buckets of one series."""


def _time_zone(value: Any) -> Any:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise refused("time_zone") from None


class Series(Value):
    """The arguments of `usage_timeseries`, without the viewer."""

    since: AwareTime
    until: AwareTime
    bucket: Literal["hour", "day", "week", "month"] = "day"
    timezone: Annotated[ZoneInfo, BeforeValidator(_time_zone)] = ZoneInfo("UTC")
    group_by: Literal["model", "agent", "user", "dataset"] | None = None

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        refuse_empty_window(self.since, self.until)
        shortest = {"hour": timedelta(hours=1), "day": timedelta(hours=23), "week": timedelta(days=6, hours=23)}
        if (self.until - self.since) / shortest.get(self.bucket, timedelta(days=28)) > MOST_BUCKETS:
            raise inconsistent("bucket", f"a longer bucket or a shorter window: at most {MOST_BUCKETS:,} buckets")
        return self

    def boundaries(self) -> list[datetime]:
        """The ordered beginnings of the buckets and the end of the last bucket, UTC; empty for an empty window.

        Hours, days, weeks (from Monday) and months begin by the clocks of the time zone. A day on which the clocks are
        changed by an hour has 23 or 25 hours.
        """
        if self.since == self.until:
            return []
        found = [self._begin(self.since)]
        while found[-1] < self.until:
            found.append(self._next(found[-1]))
        return found

    def _begin(self, moment: datetime) -> datetime:
        local = moment.astimezone(self.timezone)
        if self.bucket == "hour":
            # Computed in absolute time, because an hour that the clocks show twice is two buckets.
            return moment - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        midnight = datetime(local.year, local.month, local.day, tzinfo=self.timezone)
        if self.bucket == "week":
            midnight -= timedelta(days=local.weekday())
        if self.bucket == "month":
            midnight = midnight.replace(day=1)
        return midnight.astimezone(UTC)

    def _next(self, beginning: datetime) -> datetime:
        if self.bucket == "hour":
            later = beginning + timedelta(hours=1)
            # Where the clocks are changed by less than an hour, one hour later is not a full hour.
            return later + timedelta(minutes=-later.astimezone(self.timezone).minute % 60)
        # Twelve hours after midnight is still the same day, also where the clocks change at night.
        noon = beginning.astimezone(self.timezone) + timedelta(hours=12)
        return self._begin(noon + timedelta(days={"day": 1, "week": 7, "month": 31}[self.bucket]))


class UsagePoint(Value):
    """Tokens and cost of one bucket of a series, by the time of use. `usage_timeseries` returns a list of it."""

    starts_at: datetime
    """The beginning, UTC. The first bucket may begin before the window; usage from before the window is not counted."""
    ends_at: datetime
    """The end, UTC. The last bucket may end after the window; usage from after the window is not counted."""
    group: str | None
    """The model, agent, user or dataset; `unknown` for usage without one. None without `group_by`."""
    cost_usd: Decimal
    """USD."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    unpriced_events: int


class Spend(Value):
    """Tokens and cost of a window, by the time of use. `spend` returns it."""

    cost_usd: Decimal
    """USD."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    """The number of events, as `cost_by_model` counts them: without late events, with the adjustments for what runs
    reported beyond their events."""
    unpriced_events: int
    late_events: int
    """The number of events from after the end of their session. No other figure but `late_cost_usd` counts them."""
    late_cost_usd: Decimal
    """USD."""


class TokenClasses(Value):
    """Tokens by class. Part of `TokensByClass`.

    The first three classes add up to `tokens_in`, the next two to `tokens_out`.
    """

    uncached_input_tokens: int
    """Input tokens that were neither read from a cache nor written to one."""
    cache_read_tokens: int
    cache_write_tokens: int
    visible_output_tokens: int
    """Output tokens that are not reasoning."""
    reasoning_tokens: int
    tokens_in: int
    tokens_out: int


class TokensByClass(TokenClasses):
    """Tokens used in a window by class: of all models together, and of each model. `tokens_by_class` returns it."""

    by_model: dict[str, TokenClasses]
    """Most tokens first, ties by name. Usage without a model is `unknown`. A model without tokens is left out."""


class CostByAgentRow(Value):
    """What the sessions of one agent cost, of the sessions that a viewer sees, last active in a window.

    `cost_by_agent` returns a list of it. Money is USD.
    """

    agent_name: str
    """The agent; `unknown` for sessions without an agent."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int


class CostByUserRow(Value):
    """What the sessions of one user cost, of the sessions that a viewer sees, last active in a window.

    `cost_by_user` returns a list of it. Money is USD.
    """

    user_id: UUID
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int
