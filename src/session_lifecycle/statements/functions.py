"""The functions of our schema, as SQLAlchemy calls them."""

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.functions import Function


def own_function(schema: str, name: str, *arguments: ColumnElement[Any]) -> Function[Any]:
    """A call of the function of this name in our schema."""
    # SQLAlchemy fills a function's arguments in by `%`, so one in the schema's name is doubled.
    package = quoted_name(schema.replace("%", "%%"), quote=True)
    return Function(name, *arguments, packagenames=(package,))
