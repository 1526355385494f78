"""The parent and the root of a run that a tool call started."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select

from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.keys import same_run


def find_lineage(user_id: UUID, tool_call_id: str) -> Select[*tuple[Any, ...]]:
    """At most one row: the run of the user's newest step with this tool call, and that run's root."""
    return (
        select(
            tables.steps.run_id.label("parent_run_id"),
            func.coalesce(tables.runs.root_run_id, tables.steps.run_id).label("root_run_id"),
        )
        .select_from(tables.steps)
        .outerjoin(tables.runs, same_run(tables.runs, tables.steps))
        .where(tables.steps.user_id == user_id, tables.steps.tool_call_id == tool_call_id)
        .order_by(tables.steps.started_at.desc(), tables.steps.record_no.desc())
        .limit(1)
    )
