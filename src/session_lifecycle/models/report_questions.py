"""What a report is asked for: its dimensions, time zone, buckets and limits. `reports.py` has the answers."""

from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, Strict, model_validator

from session_lifecycle.models.fields import AwareTime, Key, Text, Value, storable
from session_lifecycle.models.refusals import inconsistent, refuse_empty_window, refused
from session_lifecycle.models.reports import FIGURES
from session_lifecycle.models.sessions import MOST_TAGS, TAG_CHARACTERS
from session_lifecycle.models.usage_filters import UsageFilters

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
