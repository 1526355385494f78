"""Rows as JSON in a column: the parts of a row come from the same statement, and so from the same snapshot.

The values of `models` are read from this JSON. Money is text in it, because a reader would turn a JSON number into a
float.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Numeric, Text, cast, func, literal_column
from sqlalchemy.dialects.postgresql import JSON, aggregate_order_by
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.entities import Base
from session_lifecycle.models.fields import Value

Column = ColumnElement[Any] | InstrumentedAttribute[Any]


def fields_of(entity: type[Base], value: type[Value]) -> dict[str, Column]:
    """The columns of a table that are also fields of a value, by field name."""
    columns = {**entity.__table__.columns}
    return {name: columns[name] for name in value.model_fields if name in columns}


def json_object(columns: Mapping[str, Column]) -> ColumnElement[Any]:
    """One JSON object with these columns, by name."""
    pairs: list[Column] = []
    for name, column in columns.items():
        exact = cast(column, Text) if isinstance(column.type, Numeric) else column
        # The name is a field of ours and never a caller's text, so it is safe as a literal.
        pairs += [literal_column(f"'{name}'"), exact]
    return func.json_build_object(*pairs, type_=JSON)


def json_array(rows: ColumnElement[Any], order: Sequence[Any]) -> ColumnElement[Any]:
    """A JSON array of all rows of a group, in this order; null for a group without rows."""
    return func.json_agg(aggregate_order_by(rows, *order), type_=JSON)


def read_json(text: str | None) -> Any:
    """The value of a column that a statement returns as JSON text; None for null."""
    if text is None:
        return None
    # Most objects are empty, and a parser takes as long for each as all other columns of its row take.
    return {} if text == "{}" else json.loads(text)


def or_empty(array: ColumnElement[Any]) -> ColumnElement[Any]:
    """The JSON array, or an empty one where it is null."""
    return func.coalesce(array, literal_column("'[]'::json"), type_=JSON)
