"""Statements for few sessions, which look for the visible ones among all.

To look up one scope after another, in one index or bucket after another, takes longer than to read a few pages as a
whole. Such a statement first looks at the size of its tables, and gives no row where they are larger than a bound. So
it never reads much, however fast the tables grow. The caller asks another statement then, at last the one for any
number of sessions.
"""

from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, Text, bindparam, case, func, literal, literal_column, select
from sqlalchemy.sql.util import ClauseAdapter

from session_lifecycle.entities import quoted
from session_lifecycle.statements import tables

PAGE_BYTES = 8192
PAGES_OF_A_STATEMENT, PAGES_OF_A_SCOPE = 30, 4
"""As many pages are read in the time that the statement for any number of sessions takes, and takes for one more scope,
where the question is short.
"""
SizedTable = type[tables.sessions | tables.model_usage | tables.rolled_up_sessions]


class Bound(NamedTuple):
    """Up to which size of its tables a statement for few sessions is the shorter way."""

    most_bytes: int
    most_bytes_if_never: int
    """Where no session is rolled up. It is higher for a question to which the other statement reads all sessions there.
    """

    def is_within(self, other: "Bound") -> bool:
        """Whether tables that exceed the other bound exceed this one."""
        return self.most_bytes <= other.most_bytes and self.most_bytes_if_never <= other.most_bytes_if_never


def bound(scopes: int, *, times: int = 1, times_if_never: int | None = None) -> Bound:
    """The bound for a question.

    Args:
        scopes: The number of the scopes in which the other statement would look.
        times: How many times longer a scope takes it than for the shortest question.
        times_if_never: The same, where no session is rolled up; None: as many.
    """
    by_times = (times, times if times_if_never is None else times_if_never)
    return Bound(*(PAGE_BYTES * (PAGES_OF_A_STATEMENT + one * PAGES_OF_A_SCOPE * scopes) for one in by_times))


def are_few(*read: SizedTable) -> ColumnElement[bool]:
    """Whether each of the tables that a statement reads is within the bound. Binds `few_parameters`.

    On Citus it is false: Citus keeps the rows in other tables, and the table of this name is empty.
    """
    largest = func.greatest(*map(size_bytes, read), type_=BigInteger)
    never = size_bytes(tables.rolled_up_sessions) == literal(0, BigInteger)
    most, most_if_never = (bindparam(name, type_=BigInteger) for name in ("most_bytes", "most_bytes_if_never"))
    is_within = largest.between(literal(1, BigInteger), case((never, most_if_never), else_=most))
    # A subquery, so that Postgres asks before it reads anything.
    return select(is_within).scalar_subquery()


def size_bytes(table: SizedTable) -> ColumnElement[int]:
    """The size of a table, as Postgres knows it without reading the table. Binds `quoted_schema`."""
    name = bindparam("quoted_schema", type_=Text) + literal(f".{table.__tablename__}", Text)
    return func.pg_relation_size(func.to_regclass(name), type_=BigInteger)


def of_sample(sessions: Select[*tuple[Any, ...]], percent: int) -> Select[*tuple[Any, ...]]:
    """The same statement on so many in a hundred of the pages of `session_records`, taken at random."""
    sample = tables.sessions.__table__.tablesample(func.system(literal_column(str(percent))), "sample")
    return ClauseAdapter(sample).traverse(sessions)


def few_parameters(schema: str, bound: Bound) -> dict[str, Any]:
    """The parameters that `are_few` binds."""
    return {"quoted_schema": quoted(schema), **bound._asdict()}
