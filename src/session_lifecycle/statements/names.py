"""What runs and sessions name: models, clients, agents. Each once, sorted as Python sorts."""

from typing import Any

from sqlalchemy import Select, SelectBase, select

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.models import Viewer
from session_lifecycle.statements.json_values import Column
from session_lifecycle.statements.run_figures import CLIENT, ENDED, RECORDED, RUNS_AND_SESSIONS
from session_lifecycle.statements.visibility import visible, visible_run


def list_models(viewer: Viewer, prefix: str) -> Select[*tuple[Any, ...]]:
    """The models of ended runs that begin with the prefix."""
    return _sorted(_named_by_runs(R.model, viewer).where(ENDED, R.model.startswith(prefix, autoescape=True)))


def list_clients(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    """The clients of ended runs."""
    return _sorted(_named_by_runs(CLIENT, viewer).where(ENDED))


def list_agents(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    """The agents of sessions and of runs."""
    of_sessions = select(S.agent_name.collate("C")).where(visible(viewer), S.agent_name.is_not(None))
    return _sorted(_named_by_runs(R.agent_name, viewer).where(R.agent_name.is_not(None)).union_all(of_sessions))


def _named_by_runs(name: Column, viewer: Viewer) -> Select[*tuple[Any, ...]]:
    return select(name.label("name")).select_from(RUNS_AND_SESSIONS).where(visible_run(viewer), RECORDED)


def _sorted(names: SelectBase) -> Select[*tuple[Any, ...]]:
    named = names.subquery("named")
    return select(named.c.name).distinct().order_by(named.c.name)
