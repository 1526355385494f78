"""Deleting, emptying and anonymising: calls of the functions in our schema, with one batch of keys per call.

The functions themselves are in `alembic/functions/deleting/`.
"""

from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, column, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import Uuid

from session_lifecycle.statements.shared.clock import TIMESTAMPTZ
from session_lifecycle.statements.shared.database_functions import database_function, json_parameter
from session_lifecycle.statements.shared.kept import kept

DeletedRow = Select[*tuple[Any, ...]]


class Deleted(NamedTuple):
    """The numbers of rows that one call deleted, emptied or anonymised, and the keys of the sessions it looked at."""

    sessions: int
    runs: int
    steps: int
    messages: int
    events: int
    model_rows: int
    session_keys: list[dict[str, str]] | None

    def counts(self) -> dict[str, int]:
        """The numbers of rows, by their names."""
        return {name: value for name, value in self._asdict().items() if name != "session_keys"}


@kept
def delete_sessions(schema: str) -> DeletedRow:
    """Deletes the sessions of the bound `keys`, a JSON array as text, with everything that belongs to them.

    Where the bound `idle_before` is not null, the call deletes only sessions that were last active before it, and
    leaves out sessions that a writer has locked.
    """
    return _call(schema, "delete_sessions_v1", _idle_before())


@kept
def delete_runs_outside_sessions(schema: str) -> DeletedRow:
    """Deletes the runs of the bound `keys` that are outside a session. `idle_before` works as in `delete_sessions`."""
    return _call(schema, "delete_waiting_runs_v1", _idle_before())


@kept
def empty_sessions(schema: str) -> DeletedRow:
    """Deletes the messages and empties the payloads of the bound `keys` that are older than the bound `older_than`."""
    return _call(schema, "empty_sessions_v1", bindparam("older_than", type_=TIMESTAMPTZ))


@kept
def anonymise_sessions(schema: str) -> DeletedRow:
    """Moves the sessions of the bound `keys` to the bound user `pseudonym`, each with a new random id."""
    return _call(schema, "anonymise_sessions_v1", bindparam("pseudonym", type_=Uuid))


def _idle_before() -> ColumnElement[Any]:
    return bindparam("idle_before", type_=TIMESTAMPTZ)


def _call(schema: str, name: str, argument: ColumnElement[Any]) -> DeletedRow:
    *counts, keys = Deleted._fields
    columns: list[Any] = [column(field, BigInteger) for field in counts]
    return select(
        database_function(schema, name, json_parameter("keys"), argument).table_valued(
            *columns, column(keys, JSONB), name="deleted"
        )
    )
