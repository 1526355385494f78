"""Kept statements: each is built once for its shape, and binds other values each time it runs.

A function that builds a kept statement is given the shape alone, so that no value of one call is in it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple, ParamSpec, cast
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Select, Text, Uuid, bindparam, select
from sqlalchemy.types import NULLTYPE, TypeEngine

MOST_KEPT = 1000
"""How many statements of a function are kept. Building a statement takes longer than Postgres needs to run it."""

Arguments = ParamSpec("Arguments")
KeptStatement = Callable[[], Select[*tuple[Any, ...]]]
"""Builds the statement. For one shape it is always the same object, so its SQL is built once.

The statement itself is not kept: it takes a hundred times the memory of its SQL.
"""


def kept(build: Callable[Arguments, Select[*tuple[Any, ...]]]) -> Callable[Arguments, KeptStatement]:
    """Makes the function, which builds a statement for a shape, return the kept statement of the shape."""

    @lru_cache(maxsize=MOST_KEPT)
    @wraps(build)
    def keep(*args: Arguments.args, **kwargs: Arguments.kwargs) -> KeptStatement:
        return partial(build, *args, **kwargs)

    return cast("Callable[Arguments, KeptStatement]", keep)


# The values that several kept statements bind, by these names.
SESSION_ID: ColumnElement[str] = bindparam("session_id", type_=Text)
OWNER_ID: ColumnElement[UUID] = bindparam("owner_id", type_=Uuid)
LIMIT: ColumnElement[int] = bindparam("limit", type_=BigInteger)
OFFSET: ColumnElement[int] = bindparam("offset", type_=BigInteger)
STEPS_LIMIT: ColumnElement[int] = bindparam("steps_limit", type_=BigInteger)
STEPS_OFFSET: ColumnElement[int] = bindparam("steps_offset", type_=BigInteger)


def unknown(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """The bound value as a subquery, for a statement that reads as much whatever the value is.

    No plan knows the value of a subquery. For a value that it knows, Postgres often expects fewer rows than for any
    value. Then it does not keep a plan for all values, and makes a new one each time.
    """
    return select(value).scalar_subquery()


def once(value: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    """The value as a query of this name, which Postgres runs once however often the statement has it."""
    return select(select(value.label("value")).cte(name)).scalar_subquery()


class Given(NamedTuple):
    """The filters that a call gives. The text of a statement depends on their names, and binds their values."""

    names: frozenset[str] = frozenset()

    def value(self, name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]] = NULLTYPE) -> ColumnElement[Any] | None:
        """The bound value of a filter; None where it is not given.

        Args:
            name: The name of the filter.
            type_: The type of the value; by default that of the column which it is compared with.
        """
        return bindparam(bound_name(name), type_=type_) if name in self.names else None


def bound_name(name: str) -> str:
    """The name by which statements bind the value of a filter."""
    return f"given_{name}"


def given(values: Mapping[str, Any]) -> tuple[Given, dict[str, Any]]:
    """The filters whose value is not None, and the parameters that statements with these filters bind."""
    found = {name: value for name, value in values.items() if value is not None}
    return Given(frozenset(found)), {bound_name(name): value for name, value in found.items()}
