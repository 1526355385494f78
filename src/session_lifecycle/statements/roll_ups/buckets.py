"""The buckets of the roll-ups, and the buckets that cover a window."""

from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    Interval,
    Select,
    Text,
    and_,
    case,
    column,
    func,
    literal,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import array

from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, Moment

ORIGIN: ColumnElement[Any] = literal_column("timestamptz '2000-01-01 00:00:00+00'")


def _binned(length: ColumnElement[Any], moment: Moment) -> Moment:
    return func.date_bin(length, moment, ORIGIN, type_=TIMESTAMPTZ)


class BucketLength(NamedTuple):
    """A length of buckets."""

    name: str
    """The name of the level."""
    hours: int

    @property
    def interval(self) -> ColumnElement[Any]:
        """The length in hours, because a day in the connection's time zone may have 23 or 25 hours."""
        return literal_column(f"interval '{self.hours} hours'", Interval)

    def begin(self, moment: Moment) -> Moment:
        """The begin of the bucket that holds a moment; the begin of infinity is infinity."""
        return _binned(self.interval, moment)

    def nearest(self, moment: Moment) -> Moment:
        """The begin of a bucket that is nearest to the moment, before or after it."""
        return self.begin(moment + literal_column(f"interval '{self.hours * 30} minutes'"))


def begin_of_minute(moment: Moment) -> Moment:
    """The begin of the minute that holds a moment; the begin of infinity is infinity."""
    return _binned(literal_column("interval '1 minute'"), moment)


# From the shortest to the longest, each six times as long as the one before.
BUCKET_LENGTHS = (
    BucketLength("hour", 1),
    BucketLength("6 hours", 6),
    BucketLength("36 hours", 36),
    BucketLength("9 days", 216),
    BucketLength("54 days", 1296),
    BucketLength("324 days", 7776),
)
LONGEST = BUCKET_LENGTHS[-1]


class WindowCover(NamedTuple):
    """Bucket families, and the parts that cover a window on the last activity for each of them.

    Each part has the columns of the family, and `since` and `until`.
    """

    whole: CTE
    """The window, cut to whole buckets of the shortest length that is kept there. A family without one has no row."""
    stretches: CTE
    """Stretches of buckets of one length, with `level`, and with their own sign. Together they add up to `whole`."""
    edges: CTE
    """The rest of the window, at both of its ends."""


def cover_window(family: FromClause, since: Moment | None, until: Moment | None) -> WindowCover:
    """The cover of the window for each of these families. A window that ends before it begins is empty.

    Args:
        family: The families, with `family, user_id, dataset_id, sign`.
        since: The begin of the window; None is an open end.
        until: Its end; None is an open end.
    """
    begins = literal_column("'-infinity'::timestamptz", TIMESTAMPTZ) if since is None else since
    ends = literal_column("'infinity'::timestamptz", TIMESTAMPTZ) if until is None else until
    has_buckets = _keeps(family, LONGEST).label("has_buckets")
    given = select(*family.c, begins.label("since"), ends.label("until"), has_buckets).where(begins < ends)
    window = _computed(given, "window")
    if since is None and until is None:
        # No bucket is cut: the longest ones hold all sessions of a family, or it has none.
        every = [window.c[name] for name in (*family.c.keys(), "since", "until")]
        whole = select(*every).where(window.c.has_buckets).cte("whole")
        longest = select(*whole.c, literal(LONGEST.name, Text).label("level")).cte("stretches")
        return WindowCover(whole, longest, select(*every).where(~window.c.has_buckets).cte("edges"))
    # The shortest buckets that are kept at both ends. No bucket is cut at an open end.
    low = LONGEST.interval if since is None else _shortest(window, window.c.since)
    high = LONGEST.interval if until is None else _shortest(window, window.c.until)
    cut = _computed(select(*window.c, low.label("low"), high.label("high")), "cut")
    begin, end = _binned(cut.c.low, cut.c.since), _binned(cut.c.high, cut.c.until)
    first = case((begin == cut.c.since, begin), else_=begin + cut.c.low)
    # Where no whole bucket is inside, the first edge is the whole window. Elsewhere an edge goes to the nearest bucket:
    # rows beyond the end of the window are subtracted.
    has_whole = and_(cut.c.has_buckets, first < end)
    nearest_first, nearest_last = (
        _binned(length, moment + length.op("/")(literal_column("2")))
        for length, moment in ((cut.c.low, cut.c.since), (cut.c.high, cut.c.until))
    )
    inside = _computed(
        select(
            *(cut.c[column.name] for column in family.c),
            cut.c.since,
            cut.c.until,
            case((has_whole, nearest_first), else_=cut.c.until).label("first"),
            case((has_whole, nearest_last), else_=cut.c.until).label("last"),
        ),
        "inside",
    )
    whole = _part(inside, inside.c.first, inside.c.last).cte("whole")
    edges = [_step(inside, inside.c.since, inside.c.first), _step(inside, inside.c.last, inside.c.until)]
    return WindowCover(whole, _stretches(whole), union_all(*edges).cte("edges"))


def _computed(rows: Select[*tuple[Any, ...]], name: str) -> CTE:
    """The rows as a part of the statement. OFFSET 0 keeps Postgres from computing a column at each use of it."""
    return rows.offset(literal_column("0")).cte(name)


def _shortest(window: CTE, moment: Moment) -> ColumnElement[Any]:
    """The length of the shortest buckets that the family keeps around the moment; the longest where it keeps none.

    Siblings, the six parts of one bucket, are kept all or not at all (`levels` in `alembic/functions/`).
    """
    ways: list[tuple[ColumnElement[bool], ColumnElement[Any]]] = [(~window.c.has_buckets, LONGEST.interval)]
    for above, length in pairwise(BUCKET_LENGTHS[::-1]):
        begin = above.begin(moment)
        end = begin + above.interval
        bucket = tables.roll_ups.starts_at
        ways.append((~_keeps(window, length, bucket >= begin, bucket < end), above.interval))
    return case(*ways, else_=BUCKET_LENGTHS[0].interval)


def _keeps(families: FromClause, length: BucketLength, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    # Postgres would read all buckets of the length once for an EXISTS. It looks up the row of a subquery.
    bucket = select(literal(1, Integer)).where(
        tables.roll_ups.family == families.c.family,
        tables.roll_ups.user_id == families.c.user_id,
        tables.roll_ups.dataset_id == families.c.dataset_id,
        tables.roll_ups.level == length.name,
        *conditions,
    )
    return bucket.limit(literal_column("1")).scalar_subquery().is_not(None)


def _stretches(whole: CTE) -> CTE:
    # The stretches are the steps of a walk from one end of the window to the other: to the nearest begin of the next
    # longer buckets, on by the longest ones, and down again. A step back has the sign -1: its buckets are subtracted.
    # So each end reads at most three buckets of each length. No step is by buckets that are not kept: an end at which
    # longer ones are the shortest is the begin of one already.
    walk = _computed(select(*whole.c, whole.c.since.label("up_0"), whole.c.until.label("down_0")), "walk_0")
    for number, length in enumerate(BUCKET_LENGTHS[1:], 1):
        nearest = (length.nearest(walk.c[f"{way}_{number - 1}"]).label(f"{way}_{number}") for way in ("up", "down"))
        walk = _computed(select(*walk.c, *nearest), f"walk_{number}")
    numbers, names = range(len(BUCKET_LENGTHS)), [length.name for length in BUCKET_LENGTHS]
    moments = [walk.c[f"{way}_{number}"] for way, each in (("up", numbers), ("down", numbers[::-1])) for number in each]
    levels = literal([*names, *reversed(names[:-1])], ARRAY(Text))
    columns = (column("level", Text), column("since", TIMESTAMPTZ), column("until", TIMESTAMPTZ))
    step = func.unnest(levels, array(moments[:-1]), array(moments[1:])).table_valued(*columns, name="step")
    steps = step.render_derived()
    return _step(walk, steps.c.since, steps.c.until, steps.c.level, beside=steps).cte("stretches")


def _step(
    window: CTE, begin: Moment, end: Moment, *more: ColumnElement[Any], beside: FromClause | None = None
) -> Select[*tuple[Any, ...]]:
    """The time between two moments; a step back has the opposite sign."""
    sign = window.c.sign * case((begin < end, literal(1, Integer)), else_=literal(-1, Integer))
    part = _part(window, func.least(begin, end), func.greatest(begin, end), *more, sign=sign)
    return part if beside is None else part.select_from(window.join(beside, true()))


def _part(
    window: CTE, since: Moment, until: Moment, *more: ColumnElement[Any], sign: ColumnElement[int] | None = None
) -> Select[*tuple[Any, ...]]:
    columns = [window.c[name] for name in ("family", "user_id", "dataset_id")]
    signed = window.c.sign if sign is None else sign
    ends = (since.label("since"), until.label("until"))
    return select(*columns, signed.label("sign"), *ends, *more).where(since < until)
