"""Conditions by which rows of two tables belong to the same session or run, and conditions from optional filters."""

from typing import Any

from sqlalchemy import ColumnElement, and_
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.json_rows import Column

Columns = ReadOnlyColumnCollection[str, Any]
"""The columns of a subquery or CTE, under the names they have in its table."""
WithSession = type[
    tables.sessions
    | tables.rolled_up_sessions
    | tables.annotations
    | tables.model_usage
    | tables.usage_events
    | tables.runs
    | tables.messages
]
"""A table whose rows name a session by `user_id, session_id`."""


def same_session(one: WithSession | Columns, other: WithSession | Columns) -> ColumnElement[bool]:
    """Whether two rows belong to the same session."""
    return and_(one.user_id == other.user_id, one.session_id == other.session_id)


def same_run(
    one: type[tables.runs | tables.steps] | Columns, other: type[tables.runs | tables.steps] | Columns
) -> ColumnElement[bool]:
    """Whether two rows belong to the same run."""
    return and_(one.user_id == other.user_id, one.run_id == other.run_id)


def equal_where_given(*filters: tuple[Column, Any]) -> list[ColumnElement[bool]]:
    """One condition `column = value` for each filter whose value is not None."""
    return [column == value for column, value in filters if value is not None]
