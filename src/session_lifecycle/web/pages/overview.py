"""The overview: what was spent and used in a window, how sessions ended, how long runs took, beside the window before.

Spend and tokens are by the time of use, from the ledger. Sessions and how they ended are by their last activity; with a
filter, which that report does not take, they are the sessions that used something. A page makes 3 reads at once: 7
reports, one on runs for each of 12 parts of the window, and one on sessions for each of up to 120 buckets. Roll-ups
answer those, where else the session of each event would be looked up for its status. Over all time usage by model is
what the sessions' totals say, which is the same and needs no ledger, and runs are not counted: there are too many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import (
    EffectiveStatus,
    SessionStats,
    TelemetrySummary,
    UsageFigures,
    UsageFilters,
    UsageReport,
    UsageRow,
)
from session_lifecycle.models.reports import Bucket, Series, UsagePoint
from session_lifecycle.models.session_filters import Window
from session_lifecycle.web.filters import AskedPeriod, Period, asked_usage
from session_lifecycle.web.framework import APIRouter, Depends, Query, Response
from session_lifecycle.web.pages.problems import PageRoute
from session_lifecycle.web.pages.reads import Turns, at_once
from session_lifecycle.web.pages.visit import AskedVisit, Visit

router = APIRouter(route_class=PageRoute)

LATENCY_PARTS = 12
MOST_BUCKETS = 120
"""The most buckets whose sessions are counted one by one. In more of them, sessions are those that used something."""
MOST_GROUPS = 20
GROUPS = ("model", "agent", "user", "provider", "client", "dataset", "status")
_TAG = "tag:"
RANGES = ("24h", "7d", "30d", "all")
DEFAULT_RANGE: Literal["24h"] = "24h"
_HOURLY, _DAILY, _WEEKLY = timedelta(days=2), timedelta(days=92), timedelta(days=730)
_ENDED = (EffectiveStatus.COMPLETED, EffectiveStatus.FAILED, EffectiveStatus.ABANDONED)
_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
_NOTHING = Decimal(0)
_OF_RUNS = ("provider", "model", "client")
"""The filters that reports on runs take as well."""
_OF_MODELS = (
    "model", "cost_usd", "tokens_in", "tokens_out", "cache_read_tokens", "events", "unpriced_events", "partial_events",
    "plan_events", "plan_cost_usd",
)  # fmt: skip
_OF_STATS = (
    "tokens_in", "tokens_out", "unpriced_events", "unmeasured_events", "partial_events", "late_events", "late_cost_usd",
    "plan_events", "plan_cost_usd",
)  # fmt: skip
"""The fields of `Use` that the costs by model, and the statistics, have under the same name."""


Used = Sequence[UsagePoint | UsageRow]
"""Usage by bucket; of one bucket there may be several."""
Row = TypeVar("Row", UsagePoint, UsageRow, UsagePoint | UsageRow)


@dataclass(frozen=True)
class Endings:
    """How many sessions there were, by their effective status."""

    sessions: int
    by_status: Mapping[EffectiveStatus, int]

    @property
    def success_rate(self) -> float | None:
        """`completed / (completed + failed + abandoned)`; None where all three are 0."""
        judged = sum(self.by_status.get(status, 0) for status in _ENDED)
        return self.by_status.get(EffectiveStatus.COMPLETED, 0) / judged if judged else None


@dataclass(frozen=True)
class Point:
    """The figures of one bucket."""

    starts_at: datetime
    cost_usd: Decimal
    cost_before_usd: Decimal | None
    """What the window before cost in its bucket of the same place."""
    tokens_in: int
    tokens_out: int
    endings: Endings


class Sums(NamedTuple):
    """What was used in a bucket or a window."""

    cost_usd: Decimal
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Latency:
    """How long the runs took that ended in one part of the window."""

    starts_at: datetime
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True)
class Use:
    """What was used, of one model or in all; by the names that a report on usage has for it."""

    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    events: int
    unpriced_events: int
    partial_events: int
    plan_events: int
    plan_cost_usd: Decimal
    unmeasured_events: int = 0
    late_events: int = 0
    late_cost_usd: Decimal = _NOTHING
    cache_read_tokens: int = 0
    sessions: int = 0
    model: str | None = None


@dataclass(frozen=True)
class Groups:
    """The most expensive groups, and all usage."""

    rows: Sequence[UsageRow | Use]
    total: UsageFigures | Use
    has_more: bool


@router.get("/")
async def overview(
    visit: AskedVisit,
    asked: AskedPeriod,
    filters: Annotated[UsageFilters, Depends(asked_usage)],
    group_by: Annotated[
        str, Query(description=f"What the table is by: {', '.join(GROUPS)}, or `{_TAG}` and the name of a tag.")
    ] = "model",
) -> Response:
    """Figures of the window over time, compared with the window before, and by one dimension."""
    if group_by not in GROUPS and not group_by.startswith(_TAG):
        raise InvalidValueError("group_by", group_by, f"one of {', '.join(GROUPS)}, or {_TAG} and the name of a tag")
    period = _period(visit, asked)
    before = _window_before(period)
    read = _Reads(visit, filters)
    async with at_once() as group:
        now_task = group.create_task(read.over_time(period))
        then_task = group.create_task(read.use(before))
        grouped_task = group.create_task(read.groups(period, group_by))
        endings_task = group.create_task(read.endings(period))
        endings_before_task = group.create_task(read.endings(before))
        runs_task = group.create_task(read.runs(period))
        runs_before_task = group.create_task(read.runs(before))
        latency_task = group.create_task(read.latency(period))
    grouped, endings, runs = grouped_task.result(), endings_task.result(), runs_task.result()
    total = grouped.total
    names = await visit.names_of(
        row.user_id for row in grouped.rows if isinstance(row, UsageRow) and row.user_id is not None
    )
    return visit.answer(
        "overview.html",
        period=period,
        ranges=RANGES,
        filters=_given(filters),
        groups=GROUPS,
        group_by=group_by,
        bucket=_bucket(period),
        points=_points(_boundaries(period, visit), *now_task.result(), _boundaries(before, visit), then_task.result()),
        counts_use=read.counts_use(period),
        has_before=before is not None,
        before=None if before is None else _sum_of(then_task.result()),
        total=total,
        endings=endings,
        endings_before=endings_before_task.result(),
        runs=runs,
        runs_before=runs_before_task.result(),
        latency=latency_task.result(),
        rows=[(_name(row, group_by, names), _narrowed(visit, row, group_by), row) for row in grouped.rows],
        has_more=grouped.has_more,
        largest=max((row.cost_usd for row in grouped.rows), default=_NOTHING),
        statuses=list(EffectiveStatus),
        is_empty=not (endings.sessions or total.events or total.late_events or (runs and runs.runs_count)),
    )


def _period(visit: Visit, asked: Period) -> Period:
    """The window that the address names, with an end. Without one it is the last day: a page must open fast."""
    until = datetime.now(UTC)
    if asked.range is None:
        window = Window.of_call(since=asked.since, until=asked.until or until)
        return Period(None, window.since, window.until)
    if "range" not in visit.request.query_params:
        return Period(DEFAULT_RANGE, until - timedelta(hours=24), until)
    return Period(asked.range, asked.since, until)


def _window_before(period: Period) -> Period | None:
    """The window of the same length that ends where this one begins; None for all time, and before the year 1."""
    if period.since is None or period.until is None or period.until - period.since > period.since - _FIRST_MOMENT:
        return None
    return Period(None, period.since - (period.until - period.since), period.since)


def _bucket(period: Period) -> Bucket:
    length = timedelta.max if period.since is None or period.until is None else period.until - period.since
    lengths: list[tuple[timedelta, Bucket]] = [(_HOURLY, "hour"), (_DAILY, "day"), (_WEEKLY, "week")]
    for longest, bucket in lengths:
        if length <= longest:
            return bucket
    return "month"


class _Reads:
    """The reads of one page."""

    def __init__(self, visit: Visit, filters: UsageFilters) -> None:
        self._visit = visit
        self._db = visit.db
        self._viewer = visit.viewer
        self._zone = visit.zone.key
        self._filters = filters
        self._turns = Turns()

    async def _usage(self, period: Period, group_by: Sequence[str], order_by: str, limit: int = 10_000) -> UsageReport:
        return await self._turns.read(
            lambda: self._db.reports.usage(
                self._viewer,
                group_by=group_by,
                since=period.since,
                until=period.until,
                filters=self._filters,
                order_by=order_by,
                limit=limit,
                timezone=self._zone,
            )
        )

    def counts_use(self, period: Period) -> bool:
        """Whether the sessions of a bucket are those that used something in it."""
        return bool(_given(self._filters)) or len(_boundaries(period, self._visit)) > MOST_BUCKETS

    async def over_time(self, period: Period) -> tuple[Used, Mapping[datetime, Endings]]:
        """Usage in each bucket, and its sessions by status, by its beginning; nothing for all time."""
        if not self.counts_use(period):
            async with at_once() as group:
                used = group.create_task(self.use(period))
                endings = group.create_task(self._endings_over_time(period))
            return used.result(), endings.result()
        bucket = _bucket(period)
        report = await self._usage(period, [bucket, "status"], bucket)
        return report.rows, {starts_at: _endings_of(rows) for starts_at, rows in _by_bucket(report.rows).items()}

    async def use(self, period: Period | None) -> Used:
        """Usage in each bucket; nothing for all time."""
        if period is None or period.since is None or period.until is None:
            return []
        since, until, bucket = period.since, period.until, _bucket(period)
        if _given(self._filters):
            return (await self._usage(period, [bucket], bucket)).rows
        return await self._turns.read(
            lambda: self._db.reports.usage_timeseries(
                self._viewer, since=since, until=until, bucket=bucket, timezone=self._zone
            )
        )

    async def _endings_over_time(self, period: Period) -> Mapping[datetime, Endings]:
        ends = _boundaries(period, self._visit)
        # Outside of the window nothing is counted, as in all other figures.
        within = [min(max(end, period.since or end), period.until or end) for end in ends]
        async with at_once() as group:
            tasks = [group.create_task(self.endings(Period(None, *part))) for part in pairwise(within)]
        return {starts_at: task.result() for starts_at, task in zip(ends, tasks, strict=False)}

    async def groups(self, period: Period, group_by: str) -> Groups:
        """The most expensive groups."""
        if period.range == "all" and group_by == "model" and not _given(self._filters):
            return await self._models_of_all_time()
        report = await self._usage(period, [group_by], "cost_usd", MOST_GROUPS)
        return Groups(report.rows, report.total, report.has_more)

    async def _models_of_all_time(self) -> Groups:
        stats = await self._stats(None, None)
        models = await self._turns.read(lambda: self._db.lifecycle.cost_by_model(self._viewer))
        rows = [
            Use(
                **{name: getattr(row, name) for name in _OF_MODELS},
                sessions=row.session_count,
            )
            for row in models[:MOST_GROUPS]
        ]
        total = Use(
            **{name: getattr(stats, name) for name in _OF_STATS},
            cost_usd=stats.total_spend_usd,
            events=sum(row.events for row in models),
        )
        return Groups(rows, total, len(models) > MOST_GROUPS)

    async def _stats(self, since: datetime | None, until: datetime | None) -> SessionStats:
        return await self._turns.read(
            lambda: self._db.lifecycle.aggregate_stats(self._viewer, since=since, until=until)
        )

    async def endings(self, period: Period | None) -> Endings:
        """The sessions by status."""
        if period is None:
            return Endings(0, {})
        if _given(self._filters):
            report = await self._usage(period, ["status"], "sessions")
            return Endings(report.total.sessions, {row.status: row.sessions for row in report.rows if row.status})
        stats = await self._stats(period.since, period.until)
        running = stats.running - stats.waiting
        counts = (running, stats.waiting, stats.completed, stats.failed, stats.abandoned)
        return Endings(stats.sessions, dict(zip(EffectiveStatus, counts, strict=True)))

    async def runs(self, period: Period | None) -> TelemetrySummary | None:
        """Figures of the runs; None over all time, and where the filters are none that runs have."""
        of_runs = _given(self._filters)
        if period is None or period.since is None or of_runs.keys() - set(_OF_RUNS):
            return None
        return await self._turns.read(
            lambda: self._db.reports.telemetry(self._viewer, since=period.since, until=period.until, **of_runs)
        )

    async def latency(self, period: Period) -> list[Latency]:
        """How long runs took in each part of the window; empty for all time."""
        if period.since is None or period.until is None or period.since == period.until:
            return []
        length = (period.until - period.since) / LATENCY_PARTS
        ends = [period.since + number * length for number in range(LATENCY_PARTS)] + [period.until]
        async with at_once() as group:
            tasks = [group.create_task(self.runs(Period(None, *part))) for part in pairwise(ends)]
        return [
            Latency(starts_at, _seconds(one.duration_p50_ms), _seconds(one.duration_p95_ms))
            for starts_at, task in zip(ends, tasks, strict=False)
            if (one := task.result()) is not None
        ]


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1_000


def _given(filters: UsageFilters) -> dict[str, Any]:
    """The filters that are given, by name."""
    return {name: value for name, value in filters if value not in (None, {})}


def _boundaries(period: Period | None, visit: Visit) -> list[datetime]:
    """Where the buckets of a window begin, and where the last of them ends; empty for all time."""
    if period is None or period.since is None or period.until is None:
        return []
    return Series.of_call(
        since=period.since, until=period.until, bucket=_bucket(period), timezone=visit.zone
    ).boundaries()


def _points(
    ends: Sequence[datetime],
    now: Used,
    endings: Mapping[datetime, Endings],
    ends_before: Sequence[datetime],
    then: Used,
) -> list[Point]:
    """One point for each bucket of the window, also for those without usage."""
    used, used_before = _by_bucket(now), _by_bucket(then)
    # The two windows are equally long, but one may touch one bucket more: the last buckets are those of one place.
    starts = ends[:-1]
    starts_before = ends_before[:-1][-len(starts) :]
    missing: list[datetime | None] = [None] * (len(starts) - len(starts_before))
    points: list[Point] = []
    for starts_at, earlier in zip(starts, [*missing, *starts_before], strict=True):
        cost_usd, tokens_in, tokens_out = _sum_of(used.get(starts_at, []))
        cost_before_usd = None if earlier is None else _sum_of(used_before.get(earlier, [])).cost_usd
        found = endings.get(starts_at, Endings(0, {}))
        points.append(Point(starts_at, cost_usd, cost_before_usd, tokens_in, tokens_out, found))
    return points


def _by_bucket(rows: Sequence[Row]) -> dict[datetime, list[Row]]:
    found: dict[datetime, list[Row]] = {}
    for row in rows:
        if row.starts_at is not None:
            found.setdefault(row.starts_at, []).append(row)
    return found


def _sum_of(rows: Used) -> Sums:
    return Sums(
        sum((row.cost_usd for row in rows), _NOTHING),
        sum(row.tokens_in for row in rows),
        sum(row.tokens_out for row in rows),
    )


def _endings_of(rows: Sequence[UsageRow]) -> Endings:
    """A session has one status, so the rows of one bucket add up."""
    return Endings(sum(row.sessions for row in rows), {row.status: row.sessions for row in rows if row.status})


_FIELDS = {"agent": "agent_name", "user": "user_id", "dataset": "dataset_id"}
_FILTERS = {"agent": "agent_name", "user": "owner_id", "dataset": "dataset_id", "status": None}
"""The filter that chooses one group, by the dimension; None: no filter does."""


def _value(row: UsageRow | Use, group_by: str) -> Any:
    tag = group_by.removeprefix(_TAG)
    if isinstance(row, UsageRow) and tag != group_by:
        return row.tags.get(tag)
    return getattr(row, _FIELDS.get(group_by, group_by))


def _name(row: UsageRow | Use, group_by: str, names: Mapping[Any, str]) -> str:
    value = _value(row, group_by)
    if value is None:
        return "none"
    return names.get(value) or str(value)


def _narrowed(visit: Visit, row: UsageRow | Use, group_by: str) -> str | None:
    """The address of this page for one group alone; None where no filter chooses it."""
    value = _value(row, group_by)
    tag = group_by.removeprefix(_TAG)
    if value is None:
        return None
    if tag != group_by:
        return visit.address.listing(tags=[*visit.address.all("tags"), f"{tag}:{value}"])
    name = _FILTERS.get(group_by, group_by)
    if name is None or (group_by == "agent" and value == "unknown"):
        return None
    return visit.address.listing(**{name: value})
