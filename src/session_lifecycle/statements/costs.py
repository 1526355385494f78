"""What each model cost (rule R17), each agent and each user."""

from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Numeric, Select, func, select

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import Viewer
from session_lifecycle.statements.scopes import ScopeKinds
from session_lifecycle.statements.spans import Span, window
from session_lifecycle.statements.totals import MODEL_FIGURES, model_totals
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import active_within

UNKNOWN_AGENT = "unknown"


@cache
def cost_by_model(kinds: ScopeKinds) -> Select[*tuple[Any, ...]]:
    """One row per model, most expensive first, ties by name. A model whose every event was revised away has none.

    Binds the window, `since` and `until`, and what the scopes do.
    """
    found = model_totals(kinds, Span(None, *window())).subquery("found")
    told = {"key": "model", "sessions": "session_count"}
    columns = [found.c[name].label(told.get(name, name)) for name in ("key", *MODEL_FIGURES)]
    return select(*columns).order_by(found.c.cost_usd.desc(), found.c.key)


def cost_by_agent(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """One row per agent, most expensive first, ties by name."""
    return _cost_by(func.coalesce(S.agent_name, UNKNOWN_AGENT).collate("C").label("agent_name"), viewer, since, until)


def cost_by_user(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """One row per user, most expensive first, ties by id."""
    return _cost_by(S.user_id.label("user_id"), viewer, since, until)


def _cost_by(
    who: ColumnElement[Any], viewer: Viewer, since: datetime | None, until: datetime | None
) -> Select[*tuple[Any, ...]]:
    cost = func.sum(S.cost_usd).cast(Numeric)
    tokens = [
        func.sum(column).cast(Numeric).label(column.key)
        for column in (S.tokens_in, S.tokens_out, S.cache_read_tokens, S.cache_write_tokens, S.reasoning_tokens)
    ]
    return (
        select(
            who,
            func.count().label("session_count"),
            cost.label("cost_usd"),
            *tokens,
            func.sum(S.unpriced_events).cast(BigInteger).label("unpriced_events"),
        )
        .select_from(S)
        .where(visible(viewer), *active_within(since, until))
        .group_by(who)
        .order_by(cost.desc(), who)
    )
