"""The buckets of the roll-ups, and the buckets that cover a window."""

from collections.abc import Sequence
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
    case,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    union_all,
)

from session_lifecycle.models import SessionStatus
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


class GroupWindow(NamedTuple):
    """A window on the last activity of the sessions with one of some stored statuses."""

    label: str | None
    """The label of its figures; None: each stored status is the label of its own."""
    statuses: Sequence[SessionStatus]
    since: Moment | None
    until: Moment | None
    """The ends; None is an open end."""


class WindowCover(NamedTuple):
    """Bucket families and group windows, and the parts that cover them.

    Each part has the columns of the family, and `label, statuses, since, until`.
    """

    whole: CTE
    """The windows, cut to whole buckets of the shortest length that is kept there. A window without one has no row."""
    stretches: CTE
    """Stretches of buckets of one length, with `level`, and with their own sign. Together they add up to `whole`."""
    edges: CTE
    """The rest of the windows, at both of their ends."""


def cover_windows(family: FromClause, windows: Sequence[GroupWindow]) -> WindowCover:
    """The cover of each of these windows for each of these families. A window that ends before it begins is empty."""
    given = union_all(*map(_row_of, windows)).subquery("given")
    pairs = select(*family.c, *given.c).join_from(family, given, true()).where(given.c.since < given.c.until)
    outer = _computed(pairs, "windows")
    # The shortest buckets that are kept at both ends.
    low, high = _shortest(outer, outer.c.since), _shortest(outer, outer.c.until)
    ends = _computed(select(*outer.c, low.label("low"), high.label("high")), "ends")
    begin, end = _binned(ends.c.low, ends.c.since), _binned(ends.c.high, ends.c.until)
    first = case((begin == ends.c.since, begin), else_=begin + ends.c.low)
    # Where no whole bucket is inside, the comparison is false or null, and the first edge is the whole window.
    # Elsewhere an edge goes to the nearest bucket: rows beyond the end of the window are subtracted.
    has_whole = first < end
    nearest_first, nearest_last = (
        _binned(length, moment + length.op("/")(literal_column("2")))
        for length, moment in ((ends.c.low, ends.c.since), (ends.c.high, ends.c.until))
    )
    inside = _computed(
        select(
            *(ends.c[name] for name in [column.name for column in outer.c]),
            case((has_whole, nearest_first), else_=ends.c.until).label("first"),
            case((has_whole, nearest_last), else_=ends.c.until).label("last"),
        ),
        "inside",
    )
    whole = _part(inside, inside.c.first, inside.c.last).cte("whole")
    edges = [_step(inside, inside.c.since, inside.c.first), _step(inside, inside.c.last, inside.c.until)]
    return WindowCover(whole, _stretches(whole), union_all(*edges).cte("edges"))


def _computed(rows: Select[*tuple[Any, ...]], name: str) -> CTE:
    """The rows as a part of the statement. OFFSET 0 keeps Postgres from computing a column at each use of it."""
    return rows.offset(literal_column("0")).cte(name)


def _row_of(window: GroupWindow) -> Select[*tuple[Any, ...]]:
    label = null().cast(Text) if window.label is None else literal(window.label, Text)
    statuses = literal([status.value for status in window.statuses], ARRAY(Text))
    since = literal_column("'-infinity'::timestamptz", TIMESTAMPTZ) if window.since is None else window.since
    until = literal_column("'infinity'::timestamptz", TIMESTAMPTZ) if window.until is None else window.until
    return select(label.label("label"), statuses.label("statuses"), since.label("since"), until.label("until"))


def _shortest(windows: CTE, moment: Moment) -> ColumnElement[Any]:
    """The length of the shortest buckets that the family keeps around the moment; null where it keeps none.

    Siblings, the six parts of one bucket, are kept all or not at all (`levels` in `alembic/functions/`).
    """
    ways: list[tuple[ColumnElement[bool], ColumnElement[Any]]] = [(~_keeps(windows, LONGEST), null().cast(Interval))]
    for above, length in pairwise(BUCKET_LENGTHS[::-1]):
        begin = above.begin(moment)
        end = begin + above.interval
        bucket = tables.roll_ups.starts_at
        ways.append((~_keeps(windows, length, bucket >= begin, bucket < end), above.interval))
    return case(*ways, else_=BUCKET_LENGTHS[0].interval)


def _keeps(windows: CTE, length: BucketLength, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    # Postgres would read all buckets of the length once for an EXISTS. It looks up the row of a subquery.
    bucket = select(literal(1, Integer)).where(
        tables.roll_ups.family == windows.c.family,
        tables.roll_ups.user_id == windows.c.user_id,
        tables.roll_ups.dataset_id == windows.c.dataset_id,
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
    steps = zip([*names, *reversed(names[:-1])], pairwise(moments), strict=True)
    return union_all(
        *(_step(walk, begin, end, literal(name, Text).label("level")) for name, (begin, end) in steps)
    ).cte("stretches")


def _step(windows: CTE, begin: Moment, end: Moment, *more: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    """The time between two moments; a step back has the opposite sign."""
    sign = windows.c.sign * case((begin < end, literal(1, Integer)), else_=literal(-1, Integer))
    return _part(windows, func.least(begin, end), func.greatest(begin, end), *more, sign=sign)


def _part(
    windows: CTE, since: Moment, until: Moment, *more: ColumnElement[Any], sign: ColumnElement[int] | None = None
) -> Select[*tuple[Any, ...]]:
    kept = ("family", "user_id", "dataset_id", "label", "statuses")
    columns = [windows.c[name] for name in kept]
    signed = windows.c.sign if sign is None else sign
    ends = (since.label("since"), until.label("until"))
    return select(*columns, signed.label("sign"), *ends, *more).where(since < until)
