"""Names of models, compared without case: names that differ in case only are one model."""

from sqlalchemy import ColumnElement, func, literal

from session_lifecycle.models.fields import model_key
from session_lifecycle.statements.shared.json_rows import Column

# A condition compares `lower` of a column in the collation "C", as the index on the models of runs has it. The other
# side is in lower case already: `lower` depends on the collation, and a bound text has another one than the column.


def is_model(column: Column, name: str) -> ColumnElement[bool]:
    """Whether the column has this model, in any spelling."""
    return func.lower(column) == literal(model_key(name))


def begins_with(column: Column, prefix: str) -> ColumnElement[bool]:
    """Whether the name of the model begins with this text, in any spelling."""
    return func.lower(column).startswith(model_key(prefix), autoescape=True)
