"""Pages: a total order, the rows after a position in it, and the total beside them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    and_,
    func,
    literal,
    null,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.models.pages import TOTAL_BOUND, PageFilters

Attribute = InstrumentedAttribute[Any]


class Position(NamedTuple):
    """Where a page ended: the last row's order value and key, and the clock of the walk's first page."""

    value: Any
    key: tuple[Any, ...]
    as_of: datetime


class Order(NamedTuple):
    """By a column, nulls last both ways, ties by the key in the same direction."""

    column: Attribute
    key: tuple[Attribute, ...]
    index_column: Attribute | None = None
    """What an index has in the column's place; it never orders otherwise."""
    has_nulls: bool = False
    """Whether the column may be null in the rows that are ordered."""

    @property
    def kinds(self) -> tuple[type, ...]:
        """What the values of a position are in Python: of the column, then of the key."""
        return tuple(column.type.python_type for column in (self.column, *self.key))

    def position(self) -> list[ColumnElement[Any]]:
        """The values of a row's position, labelled by `position_names`."""
        columns = zip((self.column, *self.key), self.position_names, strict=True)
        return [column.label(name) for column, name in columns]

    @property
    def position_names(self) -> tuple[str, ...]:
        """What the values of a position are called in a row."""
        return tuple(f"position_{number}" for number in range(1 + len(self.key)))

    def terms(self, *, descending: bool) -> Sequence[ColumnElement[Any]]:
        """What to order by."""
        leading = [self.column] if self.index_column is None else [self.index_column, self.column]
        ordered = [term.desc() if descending else term.asc() for term in (*leading, *self.key)]
        if self.has_nulls:
            ordered[0] = ordered[0].nulls_last()
        return ordered

    def after(self, position: Position, *, descending: bool) -> ColumnElement[bool]:
        """The rows that come after a position."""
        if not self.has_nulls:
            # As one comparison of rows, which an index in this order can begin at.
            return _further((self.column, *self.key), (position.value, *position.key), descending=descending)
        further_key = _further(self.key, position.key, descending=descending)
        if position.value is None:
            return and_(self.column.is_(None), further_key)
        further = _further((self.column,), (position.value,), descending=descending)
        return or_(further, and_(self.column == position.value, further_key), self.column.is_(None))


def _further(columns: Sequence[Attribute], values: Sequence[Any], *, descending: bool) -> ColumnElement[bool]:
    there = tuple_(*columns)
    here = tuple_(*(literal(value, column.type) for column, value in zip(columns, values, strict=True)))
    return there < here if descending else there > here


def page(rows: Select[*tuple[Any, ...]], order: Order, filters: PageFilters, position: Position | None) -> CTE:
    """The rows of a page and one row more, each with its `place` in their order, and its position."""
    terms = order.terms(descending=filters.descending)
    place = func.row_number().over(order_by=terms).label("place")
    rows = rows.add_columns(place, *order.position()).order_by(*terms)
    if position is not None:
        rows = rows.where(order.after(position, descending=filters.descending))
    return rows.limit(filters.limit + 1).offset(filters.offset).cte("page")


def beside_total(
    rows: CTE, chosen: Select[*tuple[Any, ...]], filters: PageFilters, now: ColumnElement[datetime]
) -> Select[*tuple[Any, ...]]:
    """The rows of a page in their order, each with the total of all that were chosen, and the clock as `as_of`.

    All come from one statement and so from one snapshot (rule R18). An empty page is one row of nulls and those two.
    """
    figures = select(_total(chosen, filters).label("total"), now.label("as_of")).subquery("figures")
    return (
        select(figures.c.total, figures.c.as_of, *rows.c)
        .select_from(figures.outerjoin(rows, true()))
        .order_by(rows.c.place)
    )


def _total(chosen: Select[*tuple[Any, ...]], filters: PageFilters) -> ColumnElement[Any]:
    match filters.total:
        case "exact":
            counted = chosen.with_only_columns(func.count(), maintain_column_froms=True)
            return counted.scalar_subquery()
        case "bounded":
            bounded = chosen.limit(TOTAL_BOUND + 1).subquery("counted")
            return select(func.count()).select_from(bounded).scalar_subquery()
        case "none":
            return null().cast(BigInteger)
