"""Pages: a total order, the rows after a position in it, and the page's total beside its rows."""

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
    bindparam,
    case,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.models.pages import TOTAL_BOUND, PageFilters, Total
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import OFFSET

Attribute = InstrumentedAttribute[Any]


class Position(NamedTuple):
    """Where a page ended: the last row's order value and key, and the clock of the walk's first page."""

    value: Any
    key: tuple[Any, ...]
    as_of: datetime


ROW_LIMIT: ColumnElement[int] = bindparam("row_limit", type_=BigInteger)
"""The most rows of a page, and one row more."""
MOST_ROWS_OF_A_SHAPE = (64, 512, 4_096, 32_768, 262_144)


class PageShape(NamedTuple):
    """What the text of a page's statement depends on, beside its rows and their order."""

    descending: bool
    has_position: bool
    """Whether the page continues after the bound position."""
    position_is_null: bool
    """Whether that position has null in the order column."""
    most_rows: int | None
    """No fewer than the rows up to the end of the page, of a few numbers; None: more than all of these numbers."""
    total: Total


def shape_of_page(filters: PageFilters, position: Position | None) -> tuple[PageShape, dict[str, Any]]:
    """The shape of a page, and the parameters that statements of this shape bind."""
    rows_needed = filters.offset + filters.limit + 1
    shape = PageShape(
        filters.descending,
        position is not None,
        position is not None and position.value is None,
        next((most for most in MOST_ROWS_OF_A_SHAPE if rows_needed <= most), None),
        filters.total,
    )
    values = () if position is None else (position.value, *position.key)
    parameters = {
        "row_limit": filters.limit + 1,
        "offset": filters.offset,
        "as_of": None if position is None else position.as_of,
        **{_after(number): value for number, value in enumerate(values)},
    }
    return shape, parameters


def _after(number: int) -> str:
    """The name by which statements bind a value of the position."""
    return f"after_{number}"


class Order(NamedTuple):
    """A total order: by a column, with nulls last in both directions, and ties by the key in the same direction."""

    column: Column
    key: tuple[Attribute, ...]
    has_nulls: bool = False
    """Whether the column may be null in the ordered rows."""
    row_names: tuple[str, ...] = ()
    """The names of the position's values in a row, where the row has them as columns of its own."""

    @property
    def kinds(self) -> tuple[type, ...]:
        """The Python types of a position's values: of the column first, then of the key."""
        return tuple(column.type.python_type for column in (self.column, *self.key))

    def position(self) -> list[ColumnElement[Any]]:
        """The values of a row's position, labelled by `labels`."""
        columns = zip((self.column, *self.key), self.labels, strict=True)
        return [column.label(name) for column, name in columns]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a position's values in a statement."""
        return tuple(f"position_{number}" for number in range(1 + len(self.key)))

    @property
    def position_names(self) -> tuple[str, ...]:
        """The names of a position's values in a row."""
        return self.row_names or self.labels

    def terms(self, columns: Sequence[Column] | None = None, *, descending: bool) -> Sequence[ColumnElement[Any]]:
        """The terms of ORDER BY: on the order's own columns, or on the given columns, which have the same values."""
        ordered = [term.desc() if descending else term.asc() for term in columns or (self.column, *self.key)]
        if self.has_nulls:
            ordered[0] = ordered[0].nulls_last()
        return ordered

    @property
    def bound_position(self) -> Sequence[ColumnElement[Any]]:
        """The values of the bound position."""
        columns = enumerate((self.column, *self.key))
        return [bindparam(_after(number), type_=column.type) for number, column in columns]

    def after(self, *, is_null: bool, descending: bool) -> ColumnElement[bool]:
        """Whether a row comes after the bound position, which has null in the order column where `is_null`."""
        columns = (self.column, *self.key)
        value, *key = self.bound_position
        if not self.has_nulls:
            # One comparison of rows, because an index in this order can begin at it.
            return comes_after(columns, (value, *key), descending=descending)
        has_later_key = comes_after(self.key, key, descending=descending)
        if is_null:
            return and_(self.column.is_(None), has_later_key)
        has_later_value = comes_after((self.column,), (value,), descending=descending)
        return or_(has_later_value, and_(self.column == value, has_later_key), self.column.is_(None))


def comes_after(
    columns: Sequence[Column], position: Sequence[ColumnElement[Any]], *, descending: bool
) -> ColumnElement[bool]:
    """Whether these columns come after the position in their order, as one comparison of rows."""
    return tuple_(*columns) < tuple_(*position) if descending else tuple_(*columns) > tuple_(*position)


def after_key(key: Sequence[Attribute], values: Sequence[Any]) -> ColumnElement[bool]:
    """Whether a row comes after the row with these values, in the ascending order of the key."""
    return comes_after(key, literals(key, values), descending=False)


def literals(columns: Sequence[Column], values: Sequence[Any]) -> list[ColumnElement[Any]]:
    """The values, each bound with the type of its column."""
    return [literal(value, column.type) for column, value in zip(columns, values, strict=True)]


def page(rows: Select[*tuple[Any, ...]], order: Order, shape: PageShape, name: str = "page") -> CTE:
    """The rows of a page and one row more, each with its position and its `place` in their order."""
    first = first_rows(rows, order, shape).subquery("first")
    return select(*first.c, place(first, order, descending=shape.descending)).cte(name)


def first_rows(rows: Select[*tuple[Any, ...]], order: Order, shape: PageShape) -> Select[*tuple[Any, ...]]:
    """The rows of a page and one row more, each with its position."""
    rows = rows.add_columns(*order.position())
    if shape.has_position:
        rows = rows.where(order.after(is_null=shape.position_is_null, descending=shape.descending))
    ordered = rows.order_by(*order.terms(descending=shape.descending))
    if shape.most_rows is not None:
        # A plan for any limit expects a tenth of all rows, and may then read and sort them all. So the text has a limit
        # that the planner knows, too. Postgres still stops at the bound one.
        known = ordered.limit(literal_column(str(shape.most_rows))).subquery("known")
        position = [known.c[name] for name in order.labels]
        ordered = select(*known.c).order_by(*order.terms(position, descending=shape.descending))
    return ordered.limit(ROW_LIMIT).offset(OFFSET)


def place(rows: FromClause, order: Order, *, descending: bool) -> Label[int]:
    """The number of a row among the rows of a page, by its position."""
    # Only the rows of a page are numbered. Numbering all rows would sort all of them, and not just the first ones.
    position = [rows.c[name] for name in order.labels]
    return func.row_number().over(order_by=order.terms(position, descending=descending)).label("place")


def beside_total(rows: CTE, total: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    """The rows of a page in their order. The first is followed by the `total` and by the clock as `as_of`.

    Rows and total come from one statement and so from one snapshot (rule R18). An empty page is one row: the total, the
    clock, and nulls.
    """
    figures = select(total.label("total"), clock().label("as_of")).subquery("figures")
    return (
        select(*rows.c, *on_first_row(rows.c.place, figures.c.total, figures.c.as_of))
        .select_from(figures.outerjoin(rows, true()))
        .order_by(rows.c.place)
    )


def on_first_row(place: ColumnElement[int], *columns: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    """The columns, null on all rows but the first of a page: a time takes the driver longer than any other value."""
    is_first = func.coalesce(place, literal(1, BigInteger)) == literal(1, BigInteger)
    return [case((is_first, column)).label(column.key) for column in columns]


def total(chosen: Select[*tuple[Any, ...]], how: Total) -> ColumnElement[Any]:
    """The number of chosen rows, as exact as `how` demands; null for `none`."""
    match how:
        case "exact":
            counted = chosen.with_only_columns(func.count(), maintain_column_froms=True)
            return counted.scalar_subquery()
        case "bounded":
            bounded = chosen.limit(TOTAL_BOUND + 1).subquery("counted")
            return select(func.count()).select_from(bounded).scalar_subquery()
        case "none":
            return null().cast(BigInteger)
