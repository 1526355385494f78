"""Deleting, emptying and anonymising sessions, for maintenance."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent.parent / "functions"
# In the order in which they need each other.
ADDED = {
    "lock_idle_sessions_v1": "jsonb, timestamptz",
    "delete_activity_v1": "uuid[], text[]",
    "delete_unnamed_runs_v1": "uuid[], text[], timestamptz",
    "delete_sessions_v1": "jsonb, timestamptz",
    "delete_waiting_runs_v1": "jsonb, timestamptz",
    "empty_sessions_v1": "jsonb, timestamptz",
    "anonymise_sessions_v1": "jsonb, uuid",
}


def quoted_schema() -> str:
    return '"{}"'.format(op.get_context().version_table_schema.replace('"', '""'))


def as_text(sql: str) -> sa.TextClause:
    """The SQL as it stands: a colon in it begins no parameter."""
    return sa.text(sql.replace(":", "\\:"))


def create(functions: dict[str, str]) -> None:
    schema = quoted_schema()
    tag = "$body$"
    while tag in schema:
        tag = f"{tag[:-1]}_$"
    for name in functions:
        source = (FOLDER / f"{name}.sql").read_text("utf-8")
        op.execute(as_text(source.replace("$body$", tag).replace("{schema}", schema)))


def drop(functions: dict[str, str]) -> None:
    for name, arguments in reversed(functions.items()):
        op.execute(as_text(f"DROP FUNCTION {quoted_schema()}.{name}({arguments})"))


def upgrade() -> None:
    create(ADDED)


def downgrade() -> None:
    drop(ADDED)
