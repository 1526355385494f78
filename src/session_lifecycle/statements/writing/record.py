"""Writing items: calls of `record_v1`, a function in our schema that takes the items of one statement.

The function itself is in `alembic/functions/writing/`.
"""

from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import BigInteger, Boolean, Integer, Numeric, Select, Text, bindparam, column, select

from session_lifecycle.statements.shared.clock import TIMESTAMPTZ
from session_lifecycle.statements.shared.database_functions import database_function, json_parameter
from session_lifecycle.statements.shared.kept import kept

FUTURE = "future"
"""The outcome of an item whose time is too far ahead of the database's clock. The call wrote nothing then."""


class WriteResult(NamedTuple):
    """The result of one item: a row of `record`."""

    position: int
    outcome: str
    cost_usd: Decimal | None
    session_tokens_in: int
    session_tokens_out: int
    session_cost_usd: Decimal


@kept
def record(schema: str) -> Select[tuple[int, str, object, int, int, object]]:
    """One row per item of the bound `waves` and `activity`; or only the row of an item with the outcome `future`.

    `waves` and `activity` are JSON text: arrays of arrays of items. Where an item has several rows, the last one is its
    result. The bound `latest_at` is the latest time that any item has, or None where no item has a time. The bound
    `is_plain` says that the call has one wave and only plain items.
    """
    is_plain = bindparam("is_plain", type_=Boolean)
    waves, activity = (json_parameter(name) for name in ("waves", "activity"))
    latest_at = bindparam("latest_at", type_=TIMESTAMPTZ)
    receipts = database_function(schema, "record_v1", waves, activity, latest_at, is_plain).table_valued(
        column("item_position", Integer),
        column("outcome", Text),
        column("event_cost_usd", Numeric),
        column("session_tokens_in", BigInteger),
        column("session_tokens_out", BigInteger),
        column("session_cost_usd", Numeric),
        name="receipts",
    )
    return select(receipts)


@kept
def lock_items(schema: str) -> Select[bool]:
    """One row: false where the bound `latest_at` is too far ahead of the database's clock; else all locks are taken.

    A batch of several `record` statements takes its locks by this statement first, in the same transaction. `waves` and
    `activity` are those of the whole batch; fields with content may be left out.
    """
    waves, activity = (json_parameter(name) for name in ("waves", "activity"))
    latest_at = bindparam("latest_at", type_=TIMESTAMPTZ)
    return select(database_function(schema, "lock_items_v1", waves, activity, latest_at).cast(Boolean))
