"""The totals that few sessions have: how they are added up, and how they are read.

A row keeps them as one object of numbers by name, without zeros; null where there are none. So a class of use that is
rare costs nothing where it is not used, and a new one needs no column.
"""

import json
from collections.abc import Collection
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Integer, SQLColumnExpression, Text, case, cast, func, literal, literal_column
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from session_lifecycle.statements.shared.database_functions import SumTotals

FURTHER_TOTALS = "further_totals"
"""The name of the column, and of the figure."""
_NOTHING: ColumnElement[Any] = literal_column("'{}'::jsonb[]", ARRAY(JSONB))


def summed(
    totals: SQLColumnExpression[Any], *conditions: ColumnElement[bool], sign: ColumnElement[Any] | None = None
) -> ColumnElement[Any]:
    """An aggregate: the sum over rows, or with the sign -1 its negative. Null where no row has further totals."""
    of_rows = func.array_agg(totals, type_=ARRAY(JSONB)).filter(totals.is_not(None), *conditions)
    added: ColumnElement[Any] = SumTotals(of_rows, _NOTHING)
    if sign is not None:
        taken = SumTotals(_NOTHING, of_rows)
        added = case((sign == literal(1, Integer), added), else_=taken)
    # The function is not called where there is nothing to add up.
    return case((of_rows.is_not(None), added))


def as_text(totals: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """The column as JSON text, so that its numbers are read exactly."""
    return cast(totals, Text).label(FURTHER_TOTALS)


def parsed(text: str | None, names: Collection[str]) -> dict[str, Any]:
    """The totals of these names, from `as_text`. Names that this version of the library does not know are left out."""
    if text is None:
        return {}
    found = json.loads(text, parse_float=Decimal)
    return {
        name: Decimal(value) if name.endswith("_usd") else int(value) for name, value in found.items() if name in names
    }
