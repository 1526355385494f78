"""Deleting, emptying and anonymising: calls of the functions in our schema that do it, a batch of keys each.

What the functions do is in `alembic/functions/`.
"""

from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, DateTime, Select, Text, bindparam, cast, column, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import Uuid

from session_lifecycle.statements.functions import own_function

DeletedRow = Select[int, int, int, int, int, int]


class Deleted(NamedTuple):
    """How many rows one call deleted, emptied or made anonymous."""

    sessions: int
    runs: int
    steps: int
    messages: int
    events: int
    model_rows: int


def delete_sessions(schema: str) -> DeletedRow:
    """Deletes the sessions of the bound `keys`, a JSON array as text, with all that is theirs.

    With the bound `idle_before` only those last active before it, and none that a writer is at.
    """
    return _call(schema, "delete_sessions_v1", _idle_before())


def delete_waiting_runs(schema: str) -> DeletedRow:
    """Deletes the runs of the bound `keys` that are in no session; `idle_before` as in `delete_sessions`."""
    return _call(schema, "delete_waiting_runs_v1", _idle_before())


def empty_sessions(schema: str) -> DeletedRow:
    """Deletes the messages of the sessions of the bound `keys`, and empties their payloads; `idle_before` is needed."""
    return _call(schema, "empty_sessions_v1", _idle_before())


def anonymise_sessions(schema: str) -> DeletedRow:
    """Gives the sessions of the bound `keys` to the bound `pseudonym`, each under a random id."""
    return _call(schema, "anonymise_sessions_v1", bindparam("pseudonym", type_=Uuid))


def _idle_before() -> ColumnElement[Any]:
    return bindparam("idle_before", type_=DateTime(timezone=True))


def _call(schema: str, name: str, argument: ColumnElement[Any]) -> DeletedRow:
    keys = cast(bindparam("keys", type_=Text), JSONB)
    columns = [column(field, BigInteger) for field in Deleted._fields]
    return select(own_function(schema, name, keys, argument).table_valued(*columns, name="deleted"))
