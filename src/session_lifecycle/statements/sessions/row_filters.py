"""The filters of sessions that no index serves, as conditions on a row."""

from datetime import timedelta
from typing import Any, NamedTuple

from pydantic_core import to_json
from sqlalchemy import BigInteger, ColumnElement, Interval, Text, any_, exists, func
from sqlalchemy.dialects.postgresql import ARRAY

from session_lifecycle.models import EffectiveStatus
from session_lifecycle.models.session_filters import SessionFilters
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.database_functions import json_parameter
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import Given, bound_name, given
from session_lifecycle.statements.shared.keys import equal_where_given, same_run, same_session
from session_lifecycle.statements.shared.visibility import ViewerShape, shape_of_viewer

TOOL = "tool"
"""The kind of a step that is a tool call."""


class SessionFiltersShape(NamedTuple):
    """The part of the filters of sessions on which the text of a statement depends that reads sessions as rows."""

    viewer: ViewerShape
    status: EffectiveStatus | None
    without_dataset: bool
    given: Given
    abandon_after: timedelta


_AS_GIVEN = (
    "since",
    "until",
    "owner_id",
    "dataset_id",
    "agent_name",
    "session_id_prefix",
    "excluded_session_id_prefix",
    "min_cost_usd",
    "max_cost_usd",
    "min_tokens",
    "max_tokens",
    "min_errors",
    "max_errors",
    "tool",
    "annotation",
    "annotation_label",
    "annotator",
    "min_score",
    "max_score",
)
"""The filters whose values are bound as they are."""


def shape_of_session_filters(
    filters: SessionFilters, abandon_after: timedelta
) -> tuple[SessionFiltersShape, dict[str, Any]]:
    """The shape of the filters, and the parameters that statements of this shape bind."""
    viewer, of_viewer = shape_of_viewer(filters.asker)
    found, parameters = given(
        {
            **{name: getattr(filters, name) for name in _AS_GIVEN},
            "agent_names": list(filters.agent_names) or None,
            "min_duration": _length(filters.min_duration_s),
            "max_duration": _length(filters.max_duration_s),
            "metadata": to_json(filters.metadata).decode() if filters.metadata else None,
            "tags": to_json(filters.tags).decode() if filters.tags else None,
        }
    )
    shape = SessionFiltersShape(viewer, filters.wanted_status, filters.without_dataset, found, abandon_after)
    return shape, of_viewer | parameters


def conditions_on_rows(shape: SessionFiltersShape) -> list[ColumnElement[bool]]:
    """The conditions of the filters that `SessionFilters.reads_rows` speaks of."""
    sessions, found = tables.sessions, shape.given
    conditions: list[ColumnElement[bool]] = []
    prefix, excluded = (found.value(name, Text) for name in ("session_id_prefix", "excluded_session_id_prefix"))
    if prefix is not None:
        conditions.append(func.starts_with(sessions.session_id, prefix))
    if excluded is not None:
        conditions.append(~func.starts_with(sessions.session_id, excluded))
    agents = found.value("agent_names", ARRAY(Text))
    if agents is not None:
        conditions.append(sessions.agent_name == any_(agents))
    if shape.without_dataset:
        conditions.append(sessions.dataset_id.is_(None))
    conditions += _between(sessions.cost_usd, found.value("min_cost_usd"), found.value("max_cost_usd"))
    tokens, count = sessions.tokens_in + sessions.tokens_out, BigInteger
    conditions += _between(tokens, found.value("min_tokens", count), found.value("max_tokens", count))
    conditions += _between(sessions.error_count, found.value("min_errors", count), found.value("max_errors", count))
    lasted = func.greatest(
        func.coalesce(sessions.ended_at, sessions.last_activity_at) - sessions.started_at, timedelta(0)
    )
    conditions += _between(lasted, found.value("min_duration", Interval), found.value("max_duration", Interval))
    if "metadata" in found.names:
        conditions.append(sessions.session_metadata.contains(json_parameter(bound_name("metadata"))))
    if "tags" in found.names:
        conditions.append(sessions.tags.contains(json_parameter(bound_name("tags"))))
    tool = found.value("tool")
    if tool is not None:
        calls_it = (tables.steps.kind == TOOL, tables.steps.name == tool)
        of_session = (same_session(tables.runs, sessions), tables.runs.started_at.is_not(None))
        conditions.append(exists().where(*of_session, same_run(tables.steps, tables.runs), *calls_it))
    annotated = _of_annotation(found)
    if annotated:
        conditions.append(exists().where(same_session(tables.annotations, sessions), *annotated))
    return conditions


def _of_annotation(found: Given) -> list[ColumnElement[bool]]:
    return [
        *equal_where_given(
            (tables.annotations.name, found.value("annotation")),
            (tables.annotations.label, found.value("annotation_label")),
            (tables.annotations.annotator, found.value("annotator")),
        ),
        *_between(tables.annotations.score, found.value("min_score"), found.value("max_score")),
    ]


def _between(
    column: Column, least: ColumnElement[Any] | None, most: ColumnElement[Any] | None
) -> list[ColumnElement[bool]]:
    """Conditions that a column is in these bounds, both inclusive; a bound that is None adds no condition."""
    return [*([] if least is None else [column >= least]), *([] if most is None else [column <= most])]


def _length(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
