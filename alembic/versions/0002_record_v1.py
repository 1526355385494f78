"""The functions that write: `record_v1` and the four steps it is made of.

The steps of one write must be taken under one lock, each seeing what the step before it found; a function does that in
one round trip, with a fresh snapshot per step. A changed function is a new function under the next number, so that the
version before goes on working while hosts are upgraded one by one.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent.parent / "functions"
# In the order in which they need each other.
FUNCTIONS = {
    "lock_session_v1": "uuid, text",
    "touch_session_v1": "jsonb, timestamptz",
    "accumulate_usage_v1": "jsonb, timestamptz",
    "end_session_v1": "jsonb, timestamptz",
    "reopen_session_v1": "jsonb, timestamptz",
    "record_v1": "jsonb",
}


def quoted_schema() -> str:
    return '"{}"'.format(op.get_context().version_table_schema.replace('"', '""'))


def as_text(sql: str) -> sa.TextClause:
    """The SQL as it stands: a colon in it begins no parameter."""
    return sa.text(sql.replace(":", "\\:"))


def upgrade() -> None:
    schema = quoted_schema()
    tag = "$body$"
    while tag in schema:
        tag = f"{tag[:-1]}_$"
    for name in FUNCTIONS:
        source = (FOLDER / f"{name}.sql").read_text("utf-8")
        op.execute(as_text(source.replace("$body$", tag).replace("{schema}", schema)))


def downgrade() -> None:
    schema = quoted_schema()
    for name, arguments in reversed(FUNCTIONS.items()):
        op.execute(as_text(f"DROP FUNCTION {schema}.{name}({arguments})"))
