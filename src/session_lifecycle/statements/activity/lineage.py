"""The parent and the root of a run that a tool call started."""

from typing import Any

from sqlalchemy import Select, Text, Uuid, bindparam, func, select

from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.keys import same_run


@kept
def find_lineage() -> Select[*tuple[Any, ...]]:
    """At most one row: the run of the user's newest step with this tool call, and that run's root.

    Binds `user_id` and `tool_call_id`.
    """
    is_of_call = (
        tables.steps.user_id == bindparam("user_id", type_=Uuid),
        tables.steps.tool_call_id == bindparam("tool_call_id", type_=Text),
    )
    return (
        select(
            tables.steps.run_id.label("parent_run_id"),
            func.coalesce(tables.runs.root_run_id, tables.steps.run_id).label("root_run_id"),
        )
        .select_from(tables.steps)
        .outerjoin(tables.runs, same_run(tables.runs, tables.steps))
        .where(*is_of_call)
        .order_by(tables.steps.started_at.desc(), tables.steps.record_no.desc())
        .limit(1)
    )
