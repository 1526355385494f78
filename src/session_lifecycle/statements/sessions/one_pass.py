"""A page and its total by one pass over the sessions, where no index has the order.

To read all sessions for the page and again for its total is most of what such a page takes. And to sort them, or to
keep the first ones while reading, takes longer than to read them: in a table that grows, each session comes before all
that were read already. So one aggregate counts the sessions, and sorts those only that can be on the page.
"""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, func, literal, literal_column, null, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.types import UserDefinedType

from session_lifecycle.statements.shared.few import of_sample
from session_lifecycle.statements.shared.kept import OFFSET, unknown
from session_lifecycle.statements.shared.paging import ROW_LIMIT, Order, PageShape

SAMPLED_PERCENT = 10
"""How much of the table is read first, for a bound of what can be on the page."""
MOST_ROWS_OF_A_BOUND = 512
"""A page that ends further behind has no bound: hardly a sample has so many rows."""


class _Tid(UserDefinedType[str]):
    """The type of `ctid`. SQLAlchemy has none."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tid"


ROW_ADDRESS: ColumnElement[str] = literal_column("ctid", _Tid)
"""Where a row is, of the only table in FROM that has rows of its own. It holds within one statement."""
MOST_ADDRESSES = 2**30
"""A place in an array is a number of 32 bits, and no array has so many."""


def in_one_pass(chosen: Select[*tuple[Any, ...]], order: Order, of_page: PageShape) -> Select[*tuple[Any, ...]]:
    """One row. `total` counts the chosen sessions. `addresses` says where those of the page are, in their order."""
    conditions: list[ColumnElement[bool]] = []
    if of_page.has_position:
        conditions.append(order.after(is_null=of_page.position_is_null, descending=of_page.descending))
    if of_page.most_rows is not None and of_page.most_rows <= MOST_ROWS_OF_A_BOUND:
        bound, columns = _bound(chosen.where(*conditions), order, of_page), tuple_(order.column, *order.key)
        is_within = columns >= bound if of_page.descending else columns <= bound
        # Null where there is no bound. A session without a value comes last, and is sorted with the others.
        conditions.append(func.coalesce(is_within, True))
    addresses = func.array_agg(
        aggregate_order_by(ROW_ADDRESS, *order.terms(descending=of_page.descending)), type_=ARRAY(_Tid)
    )
    found = chosen.with_only_columns(
        (null().cast(BigInteger) if of_page.total == "none" else func.count()).label("total"),
        (addresses.filter(*conditions) if conditions else addresses).label("addresses"),
        maintain_column_froms=True,
    ).subquery("candidates")
    offset = func.least(OFFSET, literal(MOST_ADDRESSES, BigInteger), type_=BigInteger)
    return select(found.c.total, found.c.addresses[offset + 1 : offset + ROW_LIMIT].label("addresses"))


def _bound(chosen: Select[*tuple[Any, ...]], order: Order, of_page: PageShape) -> ColumnElement[Any]:
    """A position that no session of the page comes after; null where the sample has fewer sessions than the page needs.

    As many sampled sessions as the page needs do not come after it, and so no fewer of all.
    """
    positions = chosen.with_only_columns(*order.position(), maintain_column_froms=True)
    ordered = positions.order_by(*order.terms(descending=of_page.descending))
    last_needed = ordered.offset(unknown(OFFSET + ROW_LIMIT - 1)).limit(literal_column("1"))
    return of_sample(last_needed, SAMPLED_PERCENT).scalar_subquery()
