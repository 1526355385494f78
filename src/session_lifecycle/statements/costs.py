"""What each model cost (rule R17), each agent and each user."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Numeric, Select, and_, case, func, literal, or_, select, tuple_

from session_lifecycle.entities import SessionModelUsageEntity as M
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import Viewer
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import active_within

UNKNOWN_MODEL = "unknown"
UNKNOWN_AGENT = "unknown"


def cost_by_model(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """One row per model, most expensive first, ties by name. A model whose every event was revised away has none."""
    model = case((M.model == "", literal(UNKNOWN_MODEL)), else_=M.model).label("model")
    cost = func.sum(M.cost_usd).cast(Numeric)
    tokens = [
        func.sum(column).cast(Numeric).label(column.key)
        for column in (M.tokens_in, M.tokens_out, M.cache_read_tokens, M.cache_write_tokens, M.reasoning_tokens)
    ]
    events = [func.sum(column).cast(BigInteger).label(column.key) for column in (M.events, M.unpriced_events)]
    return (
        select(
            model,
            # Both a model named "unknown" and no model read as unknown; a session with both is one.
            func.count(tuple_(M.user_id, M.session_id).distinct()).label("session_count"),
            cost.label("cost_usd"),
            *tokens,
            *events,
        )
        .select_from(M)
        .join(S, and_(S.user_id == M.user_id, S.session_id == M.session_id))
        .where(
            visible(viewer),
            *active_within(since, until),
            or_(M.events > 0, M.tokens_in > 0, M.tokens_out > 0, M.cost_usd > 0),
        )
        .group_by(model)
        .order_by(cost.desc(), model)
    )


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
