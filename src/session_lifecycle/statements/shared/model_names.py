"""Names of models, compared without case: names that differ in case only are one model."""

from sqlalchemy import ColumnElement, and_, func

from session_lifecycle.models.fields import MODEL_BYTES, model_key
from session_lifecycle.statements.shared.json_rows import Column

# A condition compares `lower` of a column in the collation "C", as the index on the models of runs has it. The other
# side is in lower case already: `lower` depends on the collation, and a bound text has another one than the column.

# Texts are compared byte by byte, and no character has greater bytes.
_AFTER_EVERY_NAME = "\U0010ffff" * (MODEL_BYTES // 4 + 1)


def is_model(column: Column, key: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether the column has the model with this key, in any spelling. The key is a `model_key`."""
    return func.lower(column) == key


def begins_with(column: Column, prefix: ColumnElement[str], end: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether the name of the model begins with this text, in any spelling. Takes the `ends_of_prefix`.

    An index serves the two ends also where the statement binds them. It would not serve a bound pattern.
    """
    return and_(func.lower(column) >= prefix, func.lower(column) < end)


def ends_of_prefix(prefix: str) -> tuple[str, str]:
    """The first text that begins with the prefix, and a text after every model whose name does, both without case."""
    key = model_key(prefix)
    return key, key + _AFTER_EVERY_NAME
