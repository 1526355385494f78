"""The ledger's columns and the rules for its events: which events each total counts, and how unknown names read."""

from sqlalchemy import ColumnElement, and_, not_, or_

from session_lifecycle.statements import tables

TOKEN_COLUMNS = (
    tables.usage_events.tokens_in,
    tables.usage_events.tokens_out,
    tables.usage_events.cache_read_tokens,
    tables.usage_events.cache_write_tokens,
    tables.usage_events.reasoning_tokens,
)
RUN_TOKEN_COLUMNS = tuple(column for column in TOKEN_COLUMNS if column is not tables.usage_events.reasoning_tokens)
"""The columns that a run has a total of, as `events_<column>`. A run has no total of its reasoning tokens."""

UNKNOWN_MODEL = "unknown"
"""How usage without a model reads in reports."""
UNKNOWN_PROVIDER = "unknown"
"""How usage without a provider reads in reports."""
UNKNOWN_AGENT = "unknown"
"""How a session or run without an agent reads in reports."""
UNKNOWN_DATASET = "unknown"
"""How usage of a session in no dataset reads in reports."""
UNKNOWN_CLIENT = "Unknown"
"""How a run without a client reads in reports, and how a filter names such runs."""

IS_LATE: ColumnElement[bool] = tables.usage_events.late.expression
"""The event was used after its session ended. Only the totals of late events count it."""
IS_NOT_LATE = not_(tables.usage_events.late)
IS_MEASUREMENT = and_(
    IS_NOT_LATE,
    or_(
        tables.usage_events.tokens_in > 0,
        tables.usage_events.tokens_out > 0,
        tables.usage_events.cost_usd > 0,
        tables.usage_events.plan_cost_usd > 0,
        tables.usage_events.parts.is_not(None),
        not_(tables.usage_events.measured),
    ),
)
"""The event counts for its model. Any other event only reports an error or names a model (rule R03)."""
IS_UNPRICED = and_(IS_NOT_LATE, tables.usage_events.measured, tables.usage_events.cost_usd.is_(None))
IS_UNMEASURED = and_(IS_NOT_LATE, not_(tables.usage_events.measured))
IS_PLAN = and_(IS_NOT_LATE, tables.usage_events.billing == "plan")
"""The event is under a plan: its tokens count, and its price is in no cost."""
IS_PLAN_UNPRICED = and_(IS_PLAN, tables.usage_events.measured, tables.usage_events.plan_cost_usd.is_(None))
IS_PARTIAL = and_(IS_NOT_LATE, tables.usage_events.partial)
IS_ADJUSTMENT = tables.usage_events.key_scope == "run"
"""The row adjusts a run's cost beyond its events."""
IS_OF_RUN = and_(IS_NOT_LATE, tables.usage_events.run_id.is_not(None), not_(IS_ADJUSTMENT))
"""The event belongs to a run. An adjustment does not."""
