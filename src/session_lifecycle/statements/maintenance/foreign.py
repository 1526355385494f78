"""Rows of other systems' tables, as JSON: whatever the types of their columns are, JSON tells what stands in them."""

from typing import Any

from sqlalchemy import Select, Text, cast, column, func, literal_column, select, table
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.types import NullType

REFERENCE_TABLES = ("session_records", "session_model_usage")
SPEND_LOGS = "LiteLLM_SpendLogs"


def _row(name: str) -> Any:
    """A row of the table of this alias as JSON. A float has its shortest decimal form there."""
    return func.to_jsonb(literal_column(name))


def reference_sessions(schema: str) -> Select[*tuple[Any, ...]]:
    """The reference's sessions in the order of their keys, each with its models, as texts of JSON."""
    sessions = table(REFERENCE_TABLES[0], column("user_id"), column("session_id"), schema=schema).alias("s")
    columns = (column("user_id", NullType()), column("session_id", NullType()), column("model", Text()))
    models = table(REFERENCE_TABLES[1], *columns, schema=schema).alias("m")
    of_session = (
        select(cast(func.jsonb_agg(aggregate_order_by(_row("m"), models.c.model)), Text))
        .where(models.c.user_id == sessions.c.user_id, models.c.session_id == sessions.c.session_id)
        .correlate(sessions)
        .scalar_subquery()
    )
    return (
        select(cast(_row("s"), Text), of_session)
        .select_from(sessions)
        .order_by(sessions.c.session_id, sessions.c.user_id)
    )


def spend_logs(schema: str) -> Select[str]:
    """The rows of LiteLLM's spend logs, the oldest first, as texts of JSON."""
    logs = table(SPEND_LOGS, column("startTime"), column("request_id"), schema=schema).alias("l")
    return select(cast(_row("l"), Text)).select_from(logs).order_by(logs.c.startTime, logs.c.request_id)
