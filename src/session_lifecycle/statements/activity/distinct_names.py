"""The distinct names that runs and sessions have: models, clients, agents. They are sorted as Python sorts text."""

from typing import Any

from sqlalchemy import Select, SelectBase, Text, bindparam, func, select

from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import CLIENT, ENDED, RECORDED, RUNS_AND_SESSIONS
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import LIMIT, kept
from session_lifecycle.statements.shared.model_names import begins_with
from session_lifecycle.statements.shared.visibility import ViewerShape, visible, visible_run

# Each binds the viewer and `limit`.


@kept
def list_models(viewer: ViewerShape, *, has_prefix: bool) -> Select[*tuple[Any, ...]]:
    """The models of ended runs, where their name begins with the prefix: each in one of its spellings.

    Binds the `ends_of_prefix` as `prefix` and `prefix_end`.
    """
    named = _names_of_runs(tables.runs.model, viewer).where(ENDED, tables.runs.model.is_not(None))
    if has_prefix:
        ends = bindparam("prefix", type_=Text), bindparam("prefix_end", type_=Text)
        named = named.where(begins_with(tables.runs.model, *ends))
    names = named.subquery("named")
    spelling = func.min(names.c.name).label("name")
    return select(spelling).group_by(func.lower(names.c.name)).order_by(spelling).limit(LIMIT)


@kept
def list_clients(viewer: ViewerShape) -> Select[*tuple[Any, ...]]:
    """The clients of ended runs."""
    return _distinct(_names_of_runs(CLIENT, viewer).where(ENDED))


@kept
def list_agents(viewer: ViewerShape) -> Select[*tuple[Any, ...]]:
    """The agents of sessions and of runs."""
    of_sessions = select(tables.sessions.agent_name.collate("C")).where(
        visible(viewer), tables.sessions.agent_name.is_not(None)
    )
    return _distinct(
        _names_of_runs(tables.runs.agent_name, viewer).where(tables.runs.agent_name.is_not(None)).union_all(of_sessions)
    )


def _names_of_runs(name: Column, viewer: ViewerShape) -> Select[*tuple[Any, ...]]:
    return select(name.label("name")).select_from(RUNS_AND_SESSIONS).where(visible_run(viewer), RECORDED)


def _distinct(names: SelectBase) -> Select[*tuple[Any, ...]]:
    named = names.subquery("named")
    return select(named.c.name).distinct().order_by(named.c.name).limit(LIMIT)
