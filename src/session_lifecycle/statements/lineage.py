"""Where a run hangs that began with the result of a tool call."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, func, select

from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionStepEntity as T


def find_lineage(user_id: UUID, tool_call_id: str) -> Select[*tuple[Any, ...]]:
    """At most one row: the run of the user's newest step with this tool call, and that run's root."""
    return (
        select(T.run_id.label("parent_run_id"), func.coalesce(R.root_run_id, T.run_id).label("root_run_id"))
        .select_from(T)
        .outerjoin(R, and_(R.user_id == T.user_id, R.run_id == T.run_id))
        .where(T.user_id == user_id, T.tool_call_id == tool_call_id)
        .order_by(T.started_at.desc(), T.run_id.desc(), T.step_id.desc())
        .limit(1)
    )
