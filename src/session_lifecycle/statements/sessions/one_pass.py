"""A page and its total by one pass over the sessions.

To read the sessions once for a page and again for its total takes most of the time where no index has the order. And to
keep the first rows of all takes as long as to read them, where each row comes before those that were read already. So
one aggregate counts the rows, and gathers those that can be on the page.
"""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, func, literal_column, null
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.sql.util import ClauseAdapter
from sqlalchemy.types import UserDefinedType

from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.kept import OFFSET
from session_lifecycle.statements.shared.paging import ROW_LIMIT, Order, PageShape

SAMPLED_PERCENT = 5
"""So much of the table gives a bound for the rows of a page."""
MOST_ROWS_OF_A_BOUND = 512
"""A page that ends further behind has no bound: hardly a sample has so many rows."""


class _Tid(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tid"


ROW_ADDRESS: ColumnElement[str] = literal_column("ctid", _Tid)
"""Where a row version of the only table of a FROM is. It holds within one statement."""


def in_one_pass(chosen: Select[*tuple[Any, ...]], order: Order, of_page: PageShape) -> Select[*tuple[Any, ...]]:
    """One row: the `total` of the chosen sessions, and the `addresses` of the first ones in their order.

    All sessions up to the end of the page are among the addresses, from the bound position on.
    """
    position = [order.after(is_null=of_page.position_is_null, descending=of_page.descending)]
    conditions = position if of_page.has_position else []
    if of_page.most_rows is not None and of_page.most_rows <= MOST_ROWS_OF_A_BOUND:
        bound = _bound(chosen.where(*conditions), order, of_page)
        column = order.column
        # No bound is null, and so is a value: nulls come last.
        is_within = column >= bound if of_page.descending else column <= bound
        conditions = [*conditions, func.coalesce(is_within, True)]
    ordered = aggregate_order_by(ROW_ADDRESS, *order.terms(descending=of_page.descending))
    addresses = func.array_agg(ordered, type_=ARRAY(_Tid))
    return chosen.with_only_columns(
        (null().cast(BigInteger) if of_page.total == "none" else func.count()).label("total"),
        (addresses.filter(*conditions) if conditions else addresses).label("addresses"),
        maintain_column_froms=True,
    )


def _bound(chosen: Select[*tuple[Any, ...]], order: Order, of_page: PageShape) -> ColumnElement[Any]:
    """A value of the order column that no row of the page comes after; null where a sample has too few rows."""
    term = order.terms(descending=of_page.descending)[0]
    last = chosen.with_only_columns(order.column, maintain_column_froms=True).order_by(term)
    last = last.offset(OFFSET + ROW_LIMIT - 1).limit(literal_column("1"))
    sample = tables.sessions.__table__.tablesample(func.system(literal_column(str(SAMPLED_PERCENT))), "sample")
    return ClauseAdapter(sample).traverse(last).scalar_subquery()
