"""The buckets of the roll-ups, and the buckets that cover a window."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import CTE, ColumnElement, Integer, Select, Text, case, func, literal, literal_column, select, union_all

from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, Moment
from session_lifecycle.statements.shared.window import StatusWindow


class BucketLength(NamedTuple):
    """A length of buckets, longer than the shortest one."""

    name: str
    begin: Callable[[Moment], Moment]
    """Returns the begin of the bucket that holds a moment; the begin of infinity is infinity."""
    half: str
    """About half of the length."""

    def nearest(self, moment: Moment) -> Moment:
        """The begin of a bucket that is nearest to the moment, before or after it."""
        return self.begin(moment + literal_column(f"interval '{self.half}'"))


def _binned(length: str) -> Callable[[Moment], Moment]:
    width: ColumnElement[Any] = literal_column(f"interval '{length}'")
    origin: ColumnElement[Any] = literal_column("timestamptz '2000-01-01 00:00:00+00'")
    return lambda moment: func.date_bin(width, moment, origin, type_=TIMESTAMPTZ)


def _truncated(unit: str) -> Callable[[Moment], Moment]:
    return lambda moment: func.date_trunc(
        literal_column(f"'{unit}'"), moment, literal_column("'UTC'"), type_=TIMESTAMPTZ
    )


begin_of_minute = _binned("1 minute")
"""Returns the begin of the minute that holds a moment; the begin of infinity is infinity."""
_begin_of_quarter_hour = _binned("15 minutes")
QUARTER_HOUR = "quarter_hour"
"""The name of the shortest bucket length."""
# The halves are in hours, because a day in the connection's time zone may have 23 or 25 hours.
BUCKET_LENGTHS = (
    BucketLength("day", _truncated("day"), "12 hours"),
    BucketLength("month", _truncated("month"), "360 hours"),
    BucketLength("year", _truncated("year"), "4380 hours"),
)


class WindowCover(NamedTuple):
    """Status windows and the parts that cover them. Each part has the columns `label, status, since, until`."""

    windows: CTE
    whole: CTE
    """The windows, cut to whole quarters of an hour. A window without a whole quarter has no row."""
    stretches: CTE
    """Stretches of buckets of one length, with `level` and `sign`. Together they add up to `whole`."""
    edges: CTE
    """The rest of the windows, at both of their ends."""


def cover_window(windows: Mapping[str, StatusWindow]) -> WindowCover:
    """The cover of these status windows, by their labels. A window that ends before it begins is empty."""
    outer = union_all(*(_labelled(label, window) for label, window in windows.items())).cte("windows")
    begin = _begin_of_quarter_hour(outer.c.since)
    after = begin + literal_column("interval '15 minutes'")
    first = func.least(case((begin == outer.c.since, begin), else_=after), outer.c.until)
    last = func.greatest(_begin_of_quarter_hour(outer.c.until), first)
    inside = select(*outer.c, first.label("first"), last.label("last")).cte("inside")
    edges = [_part(inside, inside.c.since, inside.c.first), _part(inside, inside.c.last, inside.c.until)]
    whole = _part(inside, inside.c.first, inside.c.last).cte("whole")
    return WindowCover(outer, whole, _stretches(whole), union_all(*edges).cte("edges"))


def _stretches(whole: CTE) -> CTE:
    # The stretches are the steps of a walk from one end of the window to the other: to the nearest day, month and year,
    # on by years, and down again. A step back has the sign -1: its buckets are subtracted. So each end reads at most
    # half a day of quarters, half a month of days and half a year of months.
    up: list[Moment] = [whole.c.since]
    down: list[Moment] = [whole.c.until]
    for length in BUCKET_LENGTHS:
        up.append(length.nearest(up[-1]))
        down.append(length.nearest(down[-1]))
    names = [QUARTER_HOUR, *(length.name for length in BUCKET_LENGTHS)]
    steps = zip([*names, *reversed(names[:-1])], pairwise([*up, *reversed(down)]), strict=True)
    return union_all(
        *(
            _part(
                whole,
                func.least(begin, end),
                func.greatest(begin, end),
                literal(name, Text).label("level"),
                case((begin < end, literal(1, Integer)), else_=literal(-1, Integer)).label("sign"),
            )
            for name, (begin, end) in steps
        )
    ).cte("stretches")


def _labelled(label: str, window: StatusWindow) -> Select[*tuple[Any, ...]]:
    status = None if window.status is None else window.status.value
    columns = (literal(label, Text).label("label"), literal(status, Text).label("status"))
    since = literal_column("'-infinity'::timestamptz", TIMESTAMPTZ) if window.since is None else window.since
    until = literal_column("'infinity'::timestamptz", TIMESTAMPTZ) if window.until is None else window.until
    return select(*columns, since.label("since"), until.label("until"))


def _part(windows: CTE, since: Moment, until: Moment, *more: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    columns = (windows.c.label, windows.c.status, since.label("since"), until.label("until"), *more)
    return select(*columns).where(since < until)
