"""Calls of the functions in our schema."""

from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, Text, bindparam, cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.functions import Function, FunctionElement

from session_lifecycle.statements import tables


def database_function(schema: str, name: str, *arguments: SQLColumnExpression[Any]) -> Function[Any]:
    """A call of the function with this name in our schema."""
    # SQLAlchemy inserts a function's arguments with `%`, so each `%` in the schema's name is doubled.
    package = quoted_name(schema.replace("%", "%%"), quote=True)
    return Function(name, *arguments, packagenames=(package,))


def json_parameter(name: str) -> ColumnElement[Any]:
    """The bound parameter of this name: JSON text, as a `jsonb` argument of a database function."""
    return cast(bindparam(name, type_=Text), JSONB)


class _OwnFunction(FunctionElement[Any]):
    """A function in the schema that our tables have where the statement runs, with a class of its own."""


@compiles(_OwnFunction)
def _compile_own_function(element: _OwnFunction, compiler: Any, **options: Any) -> str:
    # The schema is translated as that of a table is, so one compiled statement serves databases with other schemas.
    preparer = compiler.preparer
    schema = preparer.quote_schema(preparer.schema_for_object(tables.sessions.__table__))
    arguments = ", ".join(compiler.process(argument, **options) for argument in element.clauses)
    return f"{schema}.{element.name}({arguments})"


class SumTotals(_OwnFunction):
    """The sum of further totals, from an array of those to add and an array of those to subtract."""

    name = "sum_totals_v1"
    type = JSONB()
    inherit_cache = True


class EventTotals(_OwnFunction):
    """What an event adds to further totals."""

    name = "event_totals_v1"
    type = JSONB()
    inherit_cache = True
