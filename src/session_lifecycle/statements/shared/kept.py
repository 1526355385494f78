"""Kept statements: each is built once for its shape, and binds other values each time it runs.

A function that builds a kept statement is given the shape alone, so that no value of one call is in it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Text, Uuid, bindparam
from sqlalchemy.types import NULLTYPE, TypeEngine

MOST_KEPT = 1000
"""How many statements a function keeps. Building a statement takes longer than Postgres needs to run it."""

Arguments = ParamSpec("Arguments")
Built = TypeVar("Built")


def kept(build: Callable[Arguments, Built]) -> Callable[Arguments, Built]:
    """Keeps what the function built for each shape."""
    return cast("Callable[Arguments, Built]", lru_cache(maxsize=MOST_KEPT)(build))


# The values that several kept statements bind, by these names.
SESSION_ID: ColumnElement[str] = bindparam("session_id", type_=Text)
OWNER_ID: ColumnElement[UUID] = bindparam("owner_id", type_=Uuid)
LIMIT: ColumnElement[int] = bindparam("limit", type_=BigInteger)
OFFSET: ColumnElement[int] = bindparam("offset", type_=BigInteger)


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
