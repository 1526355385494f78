"""Pages: a total order, the rows after a position in it, and the total beside them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Label,
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
from session_lifecycle.statements.json_values import Column

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

    def terms(self, columns: Sequence[Column] | None = None, *, descending: bool) -> Sequence[ColumnElement[Any]]:
        """What to order by: its own columns, or what has their values."""
        ordered = [term.desc() if descending else term.asc() for term in columns or (self.column, *self.key)]
        if self.has_nulls:
            ordered[0] = ordered[0].nulls_last()
        return ordered

    def after(self, position: Position, *, descending: bool) -> ColumnElement[bool]:
        """The rows that come after a position."""
        columns, values = (self.column, *self.key), (position.value, *position.key)
        here = [literal(value, column.type) for column, value in zip(columns, values, strict=True)]
        if not self.has_nulls:
            # As one comparison of rows, which an index in this order can begin at.
            return further(columns, here, descending=descending)
        further_key = further(self.key, here[1:], descending=descending)
        if position.value is None:
            return and_(self.column.is_(None), further_key)
        further_value = further((self.column,), here[:1], descending=descending)
        return or_(further_value, and_(self.column == here[0], further_key), self.column.is_(None))


def further(there: Sequence[Column], here: Sequence[ColumnElement[Any]], *, descending: bool) -> ColumnElement[bool]:
    """What comes after something in an order of these columns, as one comparison of rows."""
    return tuple_(*there) < tuple_(*here) if descending else tuple_(*there) > tuple_(*here)


def page(rows: Select[*tuple[Any, ...]], order: Order, filters: PageFilters, position: Position | None) -> CTE:
    """The rows of a page and one row more, each with its `place` in their order, and its position."""
    rows = rows.add_columns(*order.position())
    if position is not None:
        rows = rows.where(order.after(position, descending=filters.descending))
    ordered = rows.order_by(*order.terms(descending=filters.descending))
    first = ordered.limit(filters.limit + 1).offset(filters.offset).subquery("first")
    return select(*first.c, place(first, order, descending=filters.descending)).cte("page")


def place(rows: FromClause, order: Order, *, descending: bool) -> Label[int]:
    """Where a row of a page is among them, by its position."""
    # Numbered are the rows of a page only: to number all there are, all would be sorted, and not just the first found.
    position = [rows.c[name] for name in order.position_names]
    return func.row_number().over(order_by=order.terms(position, descending=descending)).label("place")


def beside_total(rows: CTE, total: ColumnElement[Any], now: ColumnElement[datetime]) -> Select[*tuple[Any, ...]]:
    """The rows of a page in their order, each with the total, and the clock as `as_of`.

    All come from one statement and so from one snapshot (rule R18). An empty page is one row of nulls and those two.
    """
    figures = select(total.label("total"), now.label("as_of")).subquery("figures")
    return (
        select(figures.c.total, figures.c.as_of, *rows.c)
        .select_from(figures.outerjoin(rows, true()))
        .order_by(rows.c.place)
    )


def total(chosen: Select[*tuple[Any, ...]], filters: PageFilters) -> ColumnElement[Any]:
    """How many rows were chosen, as exactly as it is asked."""
    match filters.total:
        case "exact":
            counted = chosen.with_only_columns(func.count(), maintain_column_froms=True)
            return counted.scalar_subquery()
        case "bounded":
            bounded = chosen.limit(TOTAL_BOUND + 1).subquery("counted")
            return select(func.count()).select_from(bounded).scalar_subquery()
        case "none":
            return null().cast(BigInteger)
