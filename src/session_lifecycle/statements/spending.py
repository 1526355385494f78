"""What was used and spent, by the time of use."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Numeric, Select, and_, func, not_, select

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionUsageEventEntity as E
from session_lifecycle.models import Viewer
from session_lifecycle.statements.reconciling import ADJUSTMENT
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import within


def spend(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """Exactly one row, zeros where nothing was used. What runs report beyond their events is cost, and no event."""
    counts = not_(E.late)
    is_event = and_(counts, E.key_scope != ADJUSTMENT)
    tokens = (E.tokens_in, E.tokens_out, E.cache_read_tokens, E.cache_write_tokens, E.reasoning_tokens)
    return (
        select(
            *(
                func.coalesce(func.sum(column).filter(counts), 0).cast(Numeric).label(column.key)
                for column in (E.cost_usd, *tokens)
            ),
            func.count().filter(is_event).cast(BigInteger).label("events"),
            func.count().filter(is_event, E.measured, E.cost_usd.is_(None)).cast(BigInteger).label("unpriced_events"),
            func.count().filter(E.late).cast(BigInteger).label("late_events"),
            func.coalesce(func.sum(E.cost_usd).filter(E.late), 0).cast(Numeric).label("late_cost_usd"),
        )
        .select_from(E)
        .join(S, and_(S.user_id == E.user_id, S.session_id == E.session_id))
        .where(visible(viewer), *within(E.at, since, until))
    )
