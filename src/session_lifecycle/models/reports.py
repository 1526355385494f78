"""The figures that reports return: stats, spend, cost rows, usage. `Series` and `UsageQuestion` are arguments."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, Strict, model_validator

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.fields import AwareTime, Key, Text, Value, storable
from session_lifecycle.models.refusals import inconsistent, refuse_empty_window, refused
from session_lifecycle.models.sessions import MOST_TAGS, TAG_CHARACTERS, EffectiveStatus
from session_lifecycle.models.usage_filters import UsageFilters


class SessionStats(Value):
    """Figures over the sessions that a viewer sees, last active in a window (rule R16).

    `aggregate_stats` returns it. Money is USD. `completed`, `failed`, `abandoned`, `running` and `waiting` count
    sessions by their effective status.
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
    """Those that wait are among them."""
    waiting: int
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


class CostByModelRow(Value):
    """What one model cost in the sessions that a viewer sees, last active in a window.

    `cost_by_model` returns a list of it. Money is USD.
    """

    model: str
    """The model, in a spelling that was given; `unknown` for usage without a model.

    Names that differ in case or in outer spaces only are one model.
    """
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    unpriced_events: int
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


MOST_BUCKETS = 10_000
"""The most buckets of one series, and of one report."""
MOST_POINTS = 50_000
"""The most points of one series."""
MOST_ROWS = 10_000
"""The highest limit of one report."""
MOST_DETAILS = 64
"""The most names of details of one report."""
MOST_DIMENSIONS = MOST_TAGS
"""The most dimensions of one report: as many as a session may have tags."""

Bucket = Literal["hour", "day", "week", "month"]
OwnDimension = Literal[
    "model",
    "provider",
    "agent",
    "user",
    "dataset",
    "client",
    "kind",
    "billing",
    "service_tier",
    "session",
    "run",
    "status",
    "hour",
    "day",
    "week",
    "month",
]
"""What every report can be grouped by."""
OF_TAG = "tag:"
Dimension: TypeAlias = OwnDimension | str
"""What a report can be grouped by: one of `OwnDimension`, or `tag:` and the name of a tag."""
BUCKETS: tuple[Bucket, ...] = get_args(Bucket)


def time_zone(value: Any) -> Any:
    """The time zone of this name. For a validator of a field."""
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise refused("time_zone") from None


TimeZone = Annotated[ZoneInfo, BeforeValidator(time_zone)]


def _dimension(value: Any) -> str:
    if isinstance(value, str):
        name = value.removeprefix(OF_TAG)
        if value in get_args(OwnDimension) or (name != value and 0 < len(name) <= TAG_CHARACTERS):
            return storable(value)
    raise refused("literal_error", expected=", ".join((*get_args(OwnDimension), f"{OF_TAG}<name>")))


def _refuse_many_buckets(field: str, bucket: str, window: timedelta) -> None:
    """Raises the refusal of a window that may have too many buckets."""
    shortest = {"hour": timedelta(hours=1), "day": timedelta(hours=23), "week": timedelta(days=6, hours=23)}
    if window / shortest.get(bucket, timedelta(days=28)) > MOST_BUCKETS:
        raise inconsistent(field, f"a longer bucket or a shorter window: at most {MOST_BUCKETS:,} buckets")


class Series(Value):
    """The arguments of `usage_timeseries`, without the viewer."""

    since: AwareTime
    until: AwareTime
    bucket: Bucket = "day"
    timezone: TimeZone = ZoneInfo("UTC")
    group_by: Literal["model", "agent", "user", "dataset"] | None = None

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        refuse_empty_window(self.since, self.until)
        _refuse_many_buckets("bucket", self.bucket, self.until - self.since)
        return self

    def boundaries(self) -> list[datetime]:
        """The ordered beginnings of the buckets and the end of the last bucket, UTC; empty for an empty window.

        Hours, days, weeks (from Monday) and months begin by the clocks of the time zone. A day on which the clocks are
        changed by an hour has 23 or 25 hours.

        Raises:
            InvalidValueError: The first or the last bucket is not within the years that a datetime can have.
        """
        if self.since == self.until:
            return []
        found: list[datetime] = []
        try:
            found.append(self._begin(self.since))
            while found[-1] < self.until:
                found.append(self._next(found[-1]))
        except OverflowError:
            field = "until" if found else "since"
            expected = (
                f"a time whose whole {self.bucket} is between the years 1 and 9999, by the clocks of {self.timezone}"
            )
            raise InvalidValueError(field, getattr(self, field), expected) from None
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


class UsageFigures(Value):
    """Figures over usage events, by the time of use. Part of a `UsageReport`. Money is USD."""

    cost_usd: Decimal
    """USD; without the price of usage under a plan."""
    events: int
    """The number of events that used something, without late events, with the adjustments for what runs reported beyond
    their events."""
    sessions: int
    """The number of sessions with such an event. A session may be in several groups, and counts once in the total."""
    runs: int
    """The number of runs with such an event. A run may be in several groups, and counts once in the total."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cache_write_1h_tokens: int
    audio_tokens_in: int
    cache_read_audio_tokens: int
    image_tokens_in: int
    cache_read_image_tokens: int
    video_tokens_in: int
    audio_tokens_out: int
    image_tokens_out: int
    web_searches: int
    """The number of searches; they are no tokens."""
    unpriced_events: int
    unmeasured_events: int
    partial_events: int
    """The number of events whose counts are a lower bound."""
    late_events: int
    """The number of events from after the end of their session. No other figure but `late_cost_usd` counts them."""
    late_cost_usd: Decimal
    """USD."""
    plan_events: int
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int
    plan_tokens_out: int
    plan_cost_usd: Decimal
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int
    details: dict[str, int] = Field(default_factory=dict)
    """The sum of each detail that was asked for, without late events; 0 where no event has it."""


FIGURES = tuple(name for name in UsageFigures.model_fields if name != "details")
"""The figures that a report can be ordered by."""


class UsageRow(UsageFigures):
    """The figures of one group of a report. Part of a `UsageReport`.

    The fields of the dimensions in `group_by` say which group; all other fields that say so are None, and tags that
    are not in `group_by` are left out.
    """

    model: str | None = None
    """In a spelling that was given: names that differ in case or in outer spaces only are one model. `unknown` for
    usage without a model."""
    provider: str | None = None
    """As it was given; `unknown` for usage without a provider."""
    agent_name: str | None = None
    """The agent of the session; `unknown` for a session without an agent."""
    user_id: UUID | None = None
    """The owner of the session; grouped by user, session or run."""
    dataset_id: UUID | None = None
    """The dataset of the session; None also for sessions in no dataset."""
    client: str | None = None
    """The client of the event's run; `Unknown` for usage without a run, or of a run without a client."""
    kind: str | None = None
    billing: str | None = None
    service_tier: str | None = None
    session_id: str | None = None
    run_id: str | None = None
    """The event's run; None also for usage without a run."""
    status: EffectiveStatus | None = None
    """The effective status of the session."""
    tags: dict[str, str | None] = Field(default_factory=dict)
    """The tags of the session that `group_by` names, by name; None for a session without the tag."""
    starts_at: datetime | None = None
    """The beginning of the hour, day, week or month, UTC. It may lie before the window; usage from before the window is
    not counted."""
    ends_at: datetime | None = None
    """The end, UTC. It may lie after the window."""


class UsageReport(Value):
    """Usage in groups, by the time of use. `usage` returns it."""

    rows: list[UsageRow]
    """One row per group with usage, in the order that was asked for; without `group_by` one row with all usage."""
    total: UsageFigures
    """The figures over all groups, also over those beyond the limit, from the same snapshot. The rows of all groups add
    up to it; sessions and runs may not, because one can be in several groups."""
    has_more: bool
    """Whether there are more groups than the limit."""


class UsageQuestion(Value):
    """The arguments of `usage`, without the viewer."""

    group_by: Annotated[
        tuple[Annotated[Dimension, BeforeValidator(_dimension)], ...], Field(max_length=MOST_DIMENSIONS)
    ] = ()
    since: AwareTime | None = None
    until: AwareTime | None = None
    timezone: TimeZone = ZoneInfo("UTC")
    filters: UsageFilters = Field(default_factory=UsageFilters)
    order_by: Text = "cost_usd"
    limit: Annotated[int, Strict(), Field(ge=1, le=MOST_ROWS)] = 1000
    details: Annotated[tuple[Key, ...], Field(max_length=MOST_DETAILS)] = ()

    @property
    def bucket(self) -> Bucket | None:
        """The dimension of time; None: none is asked for."""
        return next((bucket for bucket in BUCKETS if bucket in self.group_by), None)

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of the tags that are dimensions, in their order."""
        return tuple(one.removeprefix(OF_TAG) for one in self.group_by if one.startswith(OF_TAG))

    @cached_property
    def boundaries(self) -> list[datetime]:
        """The boundaries of the buckets, as `Series` has them; empty without a dimension of time."""
        if self.bucket is None or self.since is None or self.until is None:
            return []
        return Series(since=self.since, until=self.until, bucket=self.bucket, timezone=self.timezone).boundaries()

    @model_validator(mode="after")
    def _is_one_question(self) -> Self:
        refuse_empty_window(self.since, self.until)
        if len(set(self.group_by)) < len(self.group_by):
            raise inconsistent("group_by", "each dimension once")
        if len(set(BUCKETS).intersection(self.group_by)) > 1:
            raise inconsistent("group_by", f"at most one of {', '.join(BUCKETS)}")
        if self.order_by not in (*FIGURES, *self.group_by):
            raise inconsistent("order_by", "a figure of the report, or one of group_by")
        if self.bucket is not None:
            if self.since is None or self.until is None:
                field = "since" if self.since is None else "until"
                raise inconsistent(field, f"a time, because the report is grouped by {self.bucket}")
            _refuse_many_buckets("group_by", self.bucket, self.until - self.since)
        return self


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
    partial_events: int = 0
    """The number of events whose counts are a lower bound."""
    plan_events: int = 0
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int = 0
    plan_tokens_out: int = 0
    plan_cost_usd: Decimal = Decimal(0)
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int = 0


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


class CostByUserAgentRow(Value):
    """What the sessions of one user with one type of agent cost, of the sessions that a viewer sees, last active in a
    window.

    `cost_by_user_agent` returns a list of it. Money is USD.
    """

    user_id: UUID
    agent_type: str | None
    """See `SessionRecord.agent_type`."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int
