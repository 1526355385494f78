"""Spans of time, and the buckets of the roll-ups that fill them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    select,
    union_all,
)

from session_lifecycle.models import EffectiveStatus, SessionStatus
from session_lifecycle.statements.status import INSTANT, abandoned_before, clock

Moment = ColumnElement[datetime]


class Level(NamedTuple):
    """A length of buckets above the shortest."""

    name: str
    begin: Callable[[Moment], Moment]
    """When the bucket of a moment begins; infinity is its own."""
    half: str
    """About half as long as a bucket."""

    def nearest(self, moment: Moment) -> Moment:
        """When the bucket begins that begins nearest to the moment, before it or after it."""
        return self.begin(moment + literal_column(f"interval '{self.half}'"))


def _binned(length: str) -> Callable[[Moment], Moment]:
    width: ColumnElement[Any] = literal_column(f"interval '{length}'")
    origin: ColumnElement[Any] = literal_column("timestamptz '2000-01-01 00:00:00+00'")
    return lambda moment: func.date_bin(width, moment, origin, type_=INSTANT)


def _truncated(unit: str) -> Callable[[Moment], Moment]:
    return lambda moment: func.date_trunc(literal_column(f"'{unit}'"), moment, literal_column("'UTC'"), type_=INSTANT)


begin_of_minute = _binned("1 minute")
"""When the minute of a moment begins; infinity is its own."""
_begin_of_quarter_hour = _binned("15 minutes")
QUARTER_HOUR = "quarter_hour"
"""The shortest buckets."""
# Hours, since a day of the connection's time zone may have 23 or 25.
LEVELS = (
    Level("day", _truncated("day"), "12 hours"),
    Level("month", _truncated("month"), "360 hours"),
    Level("year", _truncated("year"), "4380 hours"),
)


class Span(NamedTuple):
    """Sessions by their last activity, of one stored status or of any."""

    status: SessionStatus | None
    since: Moment
    until: Moment


def window() -> tuple[Moment, Moment]:
    """Where the window of the bound `since` and `until` begins and ends, endless where it is open."""
    begin = func.coalesce(bindparam("since", type_=INSTANT), literal_column("'-infinity'::timestamptz", INSTANT))
    end = func.coalesce(bindparam("until", type_=INSTANT), literal_column("'infinity'::timestamptz", INSTANT))
    return begin, end


def by_effective_status() -> dict[str, Span]:
    """The window on the last activity: what it comes down to for each effective status.

    Binds `since`, `until`, `abandon_after` and, null for now, the clock `as_of`.
    """
    begin, end = window()
    now = func.coalesce(bindparam("as_of", type_=INSTANT), clock(), type_=INSTANT)
    cut = abandoned_before(None, now)
    return {
        EffectiveStatus.RUNNING.value: Span(SessionStatus.RUNNING, func.greatest(begin, cut), end),
        EffectiveStatus.COMPLETED.value: Span(SessionStatus.COMPLETED, begin, end),
        EffectiveStatus.FAILED.value: Span(SessionStatus.FAILED, begin, end),
        EffectiveStatus.ABANDONED.value: Span(SessionStatus.RUNNING, begin, func.least(end, cut)),
    }


class Filled(NamedTuple):
    """Spans, and what fills them; each `label, status, since, until`, by the label of the span."""

    spans: CTE
    whole: CTE
    """The same, cut down to whole quarters of an hour; not there where there is none."""
    runs: CTE
    """Runs of buckets, with their `level` and `sign`, that add up to `whole`."""
    edges: CTE
    """What is left at both ends."""


def filled(spans: Mapping[str, Span]) -> Filled:
    """What fills these spans, by their labels. One that ends before it begins is empty."""
    outer = union_all(*(_labelled(label, span) for label, span in spans.items())).cte("spans")
    begin = _begin_of_quarter_hour(outer.c.since)
    after = begin + literal_column("interval '15 minutes'")
    first = func.least(case((begin == outer.c.since, begin), else_=after), outer.c.until)
    last = func.greatest(_begin_of_quarter_hour(outer.c.until), first)
    inside = select(*outer.c, first.label("first"), last.label("last")).cte("inside")
    edges = [_run(inside, inside.c.since, inside.c.first), _run(inside, inside.c.last, inside.c.until)]
    whole = _run(inside, inside.c.first, inside.c.last).cte("whole")
    return Filled(outer, whole, _runs(whole), union_all(*edges).cte("edges"))


def _runs(whole: CTE) -> CTE:
    # A walk from one end to the other: to the nearest day, month and year, on by years, and down again. Where it goes
    # back, what was too much is taken away: so at an end no more is read than half a day of quarters, half a month of
    # days and half a year of months.
    up: list[Moment] = [whole.c.since]
    down: list[Moment] = [whole.c.until]
    for level in LEVELS:
        up.append(level.nearest(up[-1]))
        down.append(level.nearest(down[-1]))
    names = [QUARTER_HOUR, *(level.name for level in LEVELS)]
    steps = zip([*names, *reversed(names[:-1])], pairwise([*up, *reversed(down)]), strict=True)
    return union_all(
        *(
            _run(
                whole,
                func.least(here, there),
                func.greatest(here, there),
                literal(name, Text).label("level"),
                case((here < there, literal(1, Integer)), else_=literal(-1, Integer)).label("sign"),
            )
            for name, (here, there) in steps
        )
    ).cte("runs")


def _labelled(label: str, span: Span) -> Select[*tuple[Any, ...]]:
    status = None if span.status is None else span.status.value
    columns = (literal(label, Text).label("label"), literal(status, Text).label("status"))
    return select(*columns, span.since.label("since"), span.until.label("until"))


def _run(of: CTE, since: Moment, until: Moment, *more: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    columns = (of.c.label, of.c.status, since.label("since"), until.label("until"), *more)
    return select(*columns).where(since < until)
