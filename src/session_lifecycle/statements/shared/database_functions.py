"""Calls of the functions in our schema."""

from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, Text, bindparam, cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.functions import Function


def database_function(schema: str, name: str, *arguments: SQLColumnExpression[Any]) -> Function[Any]:
    """A call of the function with this name in our schema."""
    # SQLAlchemy inserts a function's arguments with `%`, so each `%` in the schema's name is doubled.
    package = quoted_name(schema.replace("%", "%%"), quote=True)
    return Function(name, *arguments, packagenames=(package,))


def json_parameter(name: str) -> ColumnElement[Any]:
    """The bound parameter of this name: JSON text, as a `jsonb` argument of a database function."""
    return cast(bindparam(name, type_=Text), JSONB)
