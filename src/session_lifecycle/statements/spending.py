"""What was used and spent, by the time of use."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Numeric, Select, and_, func, select

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionUsageEventEntity as E
from session_lifecycle.models import Viewer
from session_lifecycle.statements.ledger import COUNTS, IS_LATE, IS_MEASUREMENT, IS_UNPRICED, TOKENS
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import within


def spend(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """Exactly one row, zeros where nothing was used."""
    sums = [(column.key, column, COUNTS) for column in (E.cost_usd, *TOKENS)]
    counts = [("events", IS_MEASUREMENT), ("unpriced_events", IS_UNPRICED), ("late_events", IS_LATE)]
    return (
        select(
            *(
                func.coalesce(func.sum(column).filter(condition), 0).cast(Numeric).label(name)
                for name, column, condition in (*sums, ("late_cost_usd", E.cost_usd, IS_LATE))
            ),
            *(func.count().filter(condition).cast(BigInteger).label(name) for name, condition in counts),
        )
        .select_from(E)
        .join(S, and_(S.user_id == E.user_id, S.session_id == E.session_id))
        .where(visible(viewer), *within(E.at, since, until))
    )
