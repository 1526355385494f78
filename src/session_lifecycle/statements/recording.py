"""Writing: one call of `record_v1`, the function in our schema that takes any number of items in one transaction.

What the function does with them is in `alembic/functions/`.
"""

from sqlalchemy import BigInteger, Integer, Numeric, Select, Text, bindparam, column, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.functions import Function

FUTURE = "future"
"""The outcome that tells of an item too far ahead of the database's clock; nothing was written then."""


def record(schema: str) -> Select[tuple[int, str, object, int, int, object]]:
    """One row per item of the bound `items`, a JSON array, in order; or the one row of the item that is `future`."""
    # SQLAlchemy fills a function's arguments in by `%`, so one in the schema's name is doubled.
    package = quoted_name(schema.replace("%", "%%"), quote=True)
    function: Function[object] = Function("record_v1", bindparam("items", type_=JSONB), packagenames=(package,))
    receipts = function.table_valued(
        column("item_position", Integer),
        column("outcome", Text),
        column("event_cost_usd", Numeric),
        column("session_tokens_in", BigInteger),
        column("session_tokens_out", BigInteger),
        column("session_cost_usd", Numeric),
        name="receipts",
    )
    return select(receipts)
