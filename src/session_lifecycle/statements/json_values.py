"""Rows as JSON in a column: what belongs to a row comes with it, from the same statement and so the same snapshot.

The values of `models` are read from it. Money is text in it, because a JSON number would be read as a float.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Numeric, Text, cast, func, literal_column
from sqlalchemy.dialects.postgresql import JSON, aggregate_order_by
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.entities import Base
from session_lifecycle.models.fields import Value

Column = ColumnElement[Any] | InstrumentedAttribute[Any]


def fields_of(entity: type[Base], value: type[Value]) -> dict[str, Column]:
    """The columns of a table that a value has, by its fields."""
    columns = {**entity.__table__.columns}
    return {name: columns[name] for name in value.model_fields if name in columns}


def json_object(columns: Mapping[str, Column]) -> ColumnElement[Any]:
    """One object of the columns, by their names."""
    pairs: list[Column] = []
    for name, column in columns.items():
        exact = cast(column, Text) if isinstance(column.type, Numeric) else column
        # The name of a field of ours, and so safe as a literal.
        pairs += [literal_column(f"'{name}'"), exact]
    return func.json_build_object(*pairs, type_=JSON)


def json_array(rows: ColumnElement[Any], order: Sequence[Any]) -> ColumnElement[Any]:
    """All rows of a group in an order; null of none."""
    return func.json_agg(aggregate_order_by(rows, *order), type_=JSON)


def or_empty(array: ColumnElement[Any]) -> ColumnElement[Any]:
    """The array; an empty one in the place of null."""
    return func.coalesce(array, literal_column("'[]'::json"), type_=JSON)
