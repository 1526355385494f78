"""What counts in the ledger, and as what: said once for all that adds it up."""

from sqlalchemy import ColumnElement, and_, not_, or_

from session_lifecycle.entities import SessionUsageEventEntity as E

TOKENS = (E.tokens_in, E.tokens_out, E.cache_read_tokens, E.cache_write_tokens, E.reasoning_tokens)

IS_LATE: ColumnElement[bool] = E.late.expression
"""From after the end of its session: in no total but those of late events."""
COUNTS = not_(E.late)
IS_MEASUREMENT = and_(COUNTS, or_(E.tokens_in > 0, E.tokens_out > 0, E.cost_usd > 0, not_(E.measured)))
"""Counts as an event of its model; without, it told of an error or of a model only (rule R03)."""
IS_UNPRICED = and_(COUNTS, E.measured, E.cost_usd.is_(None))
IS_UNMEASURED = and_(COUNTS, not_(E.measured))
IS_OF_RUN = and_(COUNTS, E.run_id.is_not(None), E.key_scope != "run")
"""An event of a run, and not what the run reports beyond its events."""
