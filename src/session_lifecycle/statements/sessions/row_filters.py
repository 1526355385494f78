"""The filters of sessions that no index serves, as conditions on a row."""

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, exists, func

from session_lifecycle.models.session_filters import SessionFilters
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.keys import equal_where_given, same_run, same_session

TOOL = "tool"
"""The kind of a step that is a tool call."""


def conditions_on_rows(filters: SessionFilters) -> list[ColumnElement[bool]]:
    """The conditions of the filters that `SessionFilters.reads_rows` speaks of."""
    sessions = tables.sessions
    conditions: list[ColumnElement[bool]] = []
    if filters.session_id_prefix is not None:
        conditions.append(func.starts_with(sessions.session_id, filters.session_id_prefix))
    if filters.excluded_session_id_prefix is not None:
        conditions.append(~func.starts_with(sessions.session_id, filters.excluded_session_id_prefix))
    if filters.agent_names:
        conditions.append(sessions.agent_name.in_(filters.agent_names))
    if filters.without_dataset:
        conditions.append(sessions.dataset_id.is_(None))
    conditions += _between(sessions.cost_usd, filters.min_cost_usd, filters.max_cost_usd)
    conditions += _between(sessions.tokens_in + sessions.tokens_out, filters.min_tokens, filters.max_tokens)
    conditions += _between(sessions.error_count, filters.min_errors, filters.max_errors)
    lasted = func.greatest(
        func.coalesce(sessions.ended_at, sessions.last_activity_at) - sessions.started_at, timedelta(0)
    )
    conditions += _between(lasted, _length(filters.min_duration_s), _length(filters.max_duration_s))
    if filters.metadata:
        conditions.append(sessions.session_metadata.contains(filters.metadata))
    if filters.tags:
        conditions.append(sessions.tags.contains(filters.tags))
    if filters.tool is not None:
        calls_it = (tables.steps.kind == TOOL, tables.steps.name == filters.tool)
        of_session = (same_session(tables.runs, sessions), tables.runs.started_at.is_not(None))
        conditions.append(exists().where(*of_session, same_run(tables.steps, tables.runs), *calls_it))
    annotated = _of_annotation(filters)
    if annotated:
        conditions.append(exists().where(same_session(tables.annotations, sessions), *annotated))
    return conditions


def _of_annotation(filters: SessionFilters) -> list[ColumnElement[bool]]:
    return [
        *equal_where_given(
            (tables.annotations.name, filters.annotation),
            (tables.annotations.label, filters.annotation_label),
            (tables.annotations.annotator, filters.annotator),
        ),
        *_between(tables.annotations.score, filters.min_score, filters.max_score),
    ]


def _between(column: Column, least: Any, most: Any) -> list[ColumnElement[bool]]:
    """Conditions that a column is in these bounds, both inclusive; a bound that is None adds no condition."""
    return [*([] if least is None else [column >= least]), *([] if most is None else [column <= most])]


def _length(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
