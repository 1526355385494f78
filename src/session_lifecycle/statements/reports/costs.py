"""Cost by model (rule R17), by agent, by user, and by user and type of agent."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    Select,
    Text,
    bindparam,
    case,
    func,
    literal,
    null,
    select,
    true,
)

from session_lifecycle.models.sessions import CODING_AGENTS
from session_lifecycle.statements import tables
from session_lifecycle.statements.reports.few_costs import model_figures_of_few
from session_lifecycle.statements.roll_ups.totals import MODEL_FIGURES, model_figures
from session_lifecycle.statements.shared.few import are_few
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, as_text
from session_lifecycle.statements.shared.kept import LIMIT, kept
from session_lifecycle.statements.shared.ledger import TOKEN_COLUMNS, UNKNOWN_AGENT
from session_lifecycle.statements.shared.visibility import ScopeKinds, ViewerShape, visible
from session_lifecycle.statements.shared.window import Ends, StatusWindow, active_within, window


@kept
def cost_by_model(kinds: ScopeKinds, ends: Ends) -> Select[*tuple[Any, ...]]:
    """One row per model, most expensive first, ties by name. A model whose events were all revised away has no row.

    Binds the ends that are given, `row_limit` and the parameters of the scopes.
    """
    figures = model_figures(kinds, StatusWindow(None, *window(ends))).subquery("figures")
    return _most_expensive(figures, select(*_cost_columns(figures)))


@kept
def few_costs_by_model(viewer: ViewerShape, ends: Ends, *, looks_up: bool = False) -> Select[*tuple[Any, ...]]:
    """The rows of `cost_by_model`, by a statement for few sessions. Where there is none, one row of nulls.

    Binds the ends that are given, `row_limit`, and the parameters of the viewer and of `are_few`.

    Args:
        viewer: The shape of the viewer.
        ends: The ends of the window that are given.
        looks_up: See `model_figures_of_few`.
    """
    figures = model_figures_of_few(viewer.looking_at_all(), ends, looks_up=looks_up).subquery("figures")
    row = select(literal(1, Integer)).subquery("row")
    rows = select(*_cost_columns(figures)).select_from(row.outerjoin(figures, true()))
    return _most_expensive(figures, rows.where(are_few(tables.sessions, tables.model_usage)))


def _cost_columns(figures: FromClause) -> list[ColumnElement[Any]]:
    labels = {"key": "model", "sessions": "session_count"}
    columns = [figures.c[name].label(labels.get(name, name)) for name in ("key", *MODEL_FIGURES[:-1])]
    return [*columns, as_text(figures.c[FURTHER_TOTALS])]


def _most_expensive(figures: FromClause, rows: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    ordered = rows.order_by(figures.c.cost_usd.desc(), figures.c.key)
    return ordered.limit(bindparam("row_limit", type_=BigInteger))


# Each of the reports below binds the viewer, the ends that are given, and `limit`.


@kept
def cost_by_agent(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """One row per agent, most expensive first, ties by name."""
    return _cost_by(
        func.coalesce(tables.sessions.agent_name, UNKNOWN_AGENT).collate("C").label("agent_name"), viewer, ends
    )


@kept
def cost_by_user(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """One row per user, most expensive first, ties by id."""
    return _cost_by(tables.sessions.user_id.label("user_id"), viewer, ends)


@kept
def cost_by_user_agent(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """One row per user and type of agent, most expensive first, ties by id and then by type, null last."""
    return _cost_by(tables.sessions.user_id.label("user_id"), viewer, ends, _agent_type().label("agent_type"))


def _agent_type() -> ColumnElement[Any]:
    """The expression of `SessionRecord.agent_type`."""
    told = tables.sessions.session_metadata["agent_type"]
    of_prefix = case(
        *((func.starts_with(tables.sessions.session_id, f"{agent}-"), agent) for agent in CODING_AGENTS),
        else_=null(),
    )
    of_metadata = case((func.jsonb_typeof(told) == "string", func.nullif(told.astext, "")))
    return func.coalesce(of_metadata, tables.sessions.agent_name, of_prefix, type_=Text).collate("C")


def _cost_by(
    key: ColumnElement[Any],
    viewer: ViewerShape,
    ends: Ends,
    *further_keys: ColumnElement[Any],
) -> Select[*tuple[Any, ...]]:
    cost = func.sum(tables.sessions.cost_usd).cast(Numeric)
    tokens = [
        func.sum(getattr(tables.sessions, column.key)).cast(Numeric).label(column.key) for column in TOKEN_COLUMNS
    ]
    return (
        select(
            key,
            *further_keys,
            func.count().label("session_count"),
            cost.label("cost_usd"),
            *tokens,
            func.sum(tables.sessions.unpriced_events).cast(BigInteger).label("unpriced_events"),
        )
        .select_from(tables.sessions)
        .where(visible(viewer), *active_within(*window(ends)))
        .group_by(key, *further_keys)
        .order_by(cost.desc(), key, *further_keys)
        .limit(LIMIT)
    )
