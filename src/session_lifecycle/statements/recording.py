"""Writing: one call of `record_v4`, the function in our schema that takes any number of items in one transaction.

What the function does with them is in `alembic/functions/`.
"""

from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import BigInteger, Boolean, DateTime, Integer, Numeric, Select, Text, bindparam, cast, column, select
from sqlalchemy.dialects.postgresql import JSONB

from session_lifecycle.statements.functions import own_function

FUTURE = "future"
"""The outcome that tells of an item too far ahead of the database's clock; nothing was written then."""


class Written(NamedTuple):
    """What became of one item: a row of `record`."""

    position: int
    outcome: str
    cost_usd: Decimal | None
    session_tokens_in: int
    session_tokens_out: int
    session_cost_usd: Decimal


def record(schema: str) -> Select[tuple[int, str, object, int, int, object]]:
    """A row per item of the bound `waves` and `activity`, JSON arrays of arrays as text; or the one that is `future`.

    Of several rows of one item the last one holds. The bound `latest_at` is the latest time any item speaks of, None
    where none does; `is_plain` says that they are one wave of items that are plain.
    """
    is_plain = bindparam("is_plain", type_=Boolean)
    waves, activity = (cast(bindparam(name, type_=Text), JSONB) for name in ("waves", "activity"))
    latest_at = bindparam("latest_at", type_=DateTime(timezone=True))
    receipts = own_function(schema, "record_v4", waves, activity, latest_at, is_plain).table_valued(
        column("item_position", Integer),
        column("outcome", Text),
        column("event_cost_usd", Numeric),
        column("session_tokens_in", BigInteger),
        column("session_tokens_out", BigInteger),
        column("session_cost_usd", Numeric),
        name="receipts",
    )
    return select(receipts)
