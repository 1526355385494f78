"""What is asked of reports, and what they say. Money is USD; durations are in the unit of their name."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from session_lifecycle.models.fields import Moment, OptionalModel, OptionalName, Value, inconsistent
from session_lifecycle.models.reads import EffectiveStatus

MOST_BUCKETS = 10_000
"""Of one series."""


def _time_zone(value: Any) -> Any:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise PydanticCustomError("time_zone", "the name of an IANA time zone, such as Europe/Berlin") from None


class Series(Value):
    """What `usage_timeseries` is asked, beside who asks."""

    since: Moment
    until: Moment
    bucket: Literal["hour", "day", "week", "month"] = "day"
    timezone: Annotated[ZoneInfo, BeforeValidator(_time_zone)] = ZoneInfo("UTC")
    group_by: Literal["model", "agent", "user", "dataset"] | None = None

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        if self.until < self.since:
            raise inconsistent("until", "a time that is not before since")
        shortest = {"hour": timedelta(hours=1), "day": timedelta(hours=23), "week": timedelta(days=6, hours=23)}
        if (self.until - self.since) / shortest.get(self.bucket, timedelta(days=28)) > MOST_BUCKETS:
            raise inconsistent("bucket", f"one of which the window has at most {MOST_BUCKETS}")
        return self

    def boundaries(self) -> list[datetime]:
        """Where the buckets begin, in UTC, and where the last one ends; none for an empty window.

        Hours, midnights, Mondays and firsts of the month are those of the time zone's clocks; a day that it sets them
        on has 23 or 25 hours.
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
            # In absolute time: an hour that the clocks show twice is two buckets.
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
            # Only where the clocks are set by less than an hour is that no full hour.
            return later + timedelta(minutes=-later.astimezone(self.timezone).minute % 60)
        # Noon is on the same day whatever the clocks do at night.
        noon = beginning.astimezone(self.timezone) + timedelta(hours=12)
        return self._begin(noon + timedelta(days={"day": 1, "week": 7, "month": 31}[self.bucket]))


class UsagePoint(Value):
    """What was used and spent within one bucket of a series, by the time of use."""

    starts_at: datetime
    """Where the bucket begins, UTC; the first one's may be before the window, of which nothing else is counted."""
    ends_at: datetime
    group: str | None
    """The model, agent, user or data set; `unknown` for what names none. None where nothing was grouped."""
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    unpriced_events: int


class TelemetryFilters(Value):
    """What `telemetry` is asked, beside who asks."""

    provider: OptionalName = None
    model: OptionalModel = None
    client: OptionalName = None
    since: Moment | None = None
    until: Moment | None = None


class TelemetrySummary(Value):
    """Figures over the runs a viewer sees that ended in a window."""

    runs_count: int
    users_count: int
    duration_p50_ms: float | None
    """Percentiles of the runs' durations, interpolated between two; None without runs."""
    duration_p90_ms: float | None
    duration_p95_ms: float | None
    duration_p99_ms: float | None
    tokens_in: int
    """What their events used, by any model."""
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    tool_calls_injected: int
    """Their tool calls whose tool a proxy put into the request."""
    tool_calls_failed: int
    """The injected ones that failed."""
    tool_calls_not_injected: int
    prompts_count: int
    """Messages of users that belong to one of them."""


class TelemetryKey(Value):
    """What runs can be told apart by."""

    provider: str | None
    model: str | None
    client: str
    """`Unknown` for a run that named none."""


class Spend(Value):
    """What was used and spent within a window, by the time of use."""

    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    """As in cost by model: late ones are not among them, what runs report beyond their events is."""
    unpriced_events: int
    late_events: int
    """Events from after the end of their session, in no other figure."""
    late_cost_usd: Decimal


class TokenClasses(Value):
    """Tokens by what they are: the first three make up the input, the next two the output."""

    uncached_input_tokens: int
    """The input that was neither read from a cache nor written to one."""
    cache_read_tokens: int
    cache_write_tokens: int
    visible_output_tokens: int
    """The output that is not reasoning."""
    reasoning_tokens: int
    tokens_in: int
    tokens_out: int


class TokensByClass(TokenClasses):
    """What was used within a window by class, of all models together and of each."""

    by_model: dict[str, TokenClasses]
    """Most tokens first, ties by name; `unknown` for usage that named none. Who used no tokens is not in it."""


class Durations(Value):
    """How long sessions or runs took."""

    count: int
    p50_s: float | None
    """Percentiles in seconds, interpolated between two durations, to the microsecond; None where there are none."""
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None


class SessionDurations(Durations):
    """How long sessions took, of all and by effective status."""

    by_status: dict[EffectiveStatus, Durations]
    """Each status is in it."""


class RunDurations(Durations):
    """How long runs took, of all and by agent."""

    by_agent: dict[str, Durations]
    """Most runs first, ties by name; `unknown` for runs that named none."""


class CostByAgentRow(Value):
    """What the sessions of one agent cost, of all sessions a viewer sees in a window."""

    agent_name: str
    """`unknown` for sessions that named none."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int


class CostByUserRow(Value):
    """What the sessions of one user cost, of all sessions a viewer sees in a window."""

    user_id: UUID
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int
