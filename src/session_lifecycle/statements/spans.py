"""Spans of time, and the buckets of the roll-ups that fill them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Interval,
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
from session_lifecycle.statements.status import INSTANT, clock

Moment = ColumnElement[datetime]


class Level(NamedTuple):
    """A length of buckets."""

    name: str
    begin: Callable[[Moment], Moment]
    """When the bucket of a moment begins."""
    step: str
    """As long as a bucket or longer, shorter than two."""

    def next_begin(self, moment: Moment) -> Moment:
        """When the first bucket begins that begins at the moment or later."""
        begin = self.begin(moment)
        return case((begin == moment, moment), else_=self.begin(begin + literal_column(f"interval '{self.step}'")))


def _binned(length: str) -> Callable[[Moment], Moment]:
    width: ColumnElement[Any] = literal_column(f"interval '{length}'")
    origin: ColumnElement[Any] = literal_column("timestamptz '2000-01-01 00:00:00+00'")
    return lambda moment: func.date_bin(width, moment, origin, type_=INSTANT)


def _truncated(unit: str) -> Callable[[Moment], Moment]:
    return lambda moment: func.date_trunc(literal_column(f"'{unit}'"), moment, literal_column("'UTC'"), type_=INSTANT)


begin_of_minute = _binned("1 minute")
"""When the minute of a moment begins; infinity is its own."""
# Hours, since a day of the connection's time zone may have 23 or 25.
LEVELS = (
    Level("quarter_hour", _binned("15 minutes"), "15 minutes"),
    Level("day", _truncated("day"), "24 hours"),
    Level("month", _truncated("month"), "768 hours"),
)


def window() -> tuple[Moment, Moment]:
    """Where the window of the bound `since` and `until` begins and ends, endless where it is open."""
    begin = func.coalesce(bindparam("since", type_=INSTANT), literal_column("'-infinity'::timestamptz", INSTANT))
    end = func.coalesce(bindparam("until", type_=INSTANT), literal_column("'infinity'::timestamptz", INSTANT))
    return begin, end


def by_effective_status() -> dict[EffectiveStatus, Select[*tuple[Any, ...]]]:
    """The window on the last activity: of each effective status, the stored status and the span it comes down to.

    Binds `since`, `until`, `abandon_after` and, null for now, the clock `as_of`.
    """
    begin, end = window()
    now = func.coalesce(bindparam("as_of", type_=INSTANT), clock(), type_=INSTANT)
    cut = now - bindparam("abandon_after", type_=Interval())
    found = {
        EffectiveStatus.RUNNING: (SessionStatus.RUNNING, func.greatest(begin, cut), end),
        EffectiveStatus.COMPLETED: (SessionStatus.COMPLETED, begin, end),
        EffectiveStatus.FAILED: (SessionStatus.FAILED, begin, end),
        EffectiveStatus.ABANDONED: (SessionStatus.RUNNING, begin, func.least(end, cut)),
    }
    return {
        effective: span(literal(effective.value, Text), literal(stored.value, Text), first, last)
        for effective, (stored, first, last) in found.items()
    }


def span(
    label: ColumnElement[Any], status: ColumnElement[Any], since: Moment, until: Moment
) -> Select[*tuple[Any, ...]]:
    """One span, of sessions with this stored status; with a label to tell it from others."""
    return select(label.label("label"), status.label("status"), since.label("since"), until.label("until"))


class Filled(NamedTuple):
    """Spans, and what fills them without gap or overlap."""

    spans: CTE
    """`label, status, since, until`."""
    whole: CTE
    """The same, cut down to whole quarters of an hour."""
    pieces: CTE
    """`label, status, level, since, until`: runs of buckets, as long ones as can be."""
    edges: CTE
    """`label, status, since, until`: what is left at both ends."""


def filled(spans: CTE) -> Filled:
    """What fills these spans. One that ends before it begins is empty."""
    outer, insides, left = spans, [], []
    # What the buckets of one level leave at both ends is filled with those of the level before.
    for level in LEVELS:
        begin = func.least(level.next_begin(outer.c.since), outer.c.until)
        end = func.greatest(level.begin(outer.c.until), begin)
        inside = select(
            outer.c.label,
            outer.c.status,
            begin.label("since"),
            end.label("until"),
            outer.c.since.label("outer_since"),
            outer.c.until.label("outer_until"),
        ).cte(f"whole_{level.name}s")
        left.append((inside, ((inside.c.outer_since, inside.c.since), (inside.c.until, inside.c.outer_until))))
        insides.append(inside)
        outer = inside
    edges, *shorter = left
    runs = [
        _run(of, since, until, literal(level.name, Text).label("level"))
        for level, (of, ends) in zip(LEVELS, (*shorter, (outer, ((outer.c.since, outer.c.until),))), strict=True)
        for since, until in ends
    ]
    at_edges = [_run(edges[0], since, until) for since, until in edges[1]]
    return Filled(spans, insides[0], union_all(*runs).cte("pieces"), union_all(*at_edges).cte("edges"))


def _run(of: CTE, since: Moment, until: Moment, *more: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    columns = (of.c.label, of.c.status, since.label("since"), until.label("until"), *more)
    return select(*columns).where(since < until)
