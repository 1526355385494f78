"""The functions that write: `record_v1`, the locks it takes and the waves it writes.

What is decided must be decided under the lock, by a snapshot from after it was taken; a function does that in one round
trip, with a fresh snapshot per statement. A changed function is a new function under the next number, so that the
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
    "lock_sessions_v1": "jsonb",
    "record_wave_v1": "jsonb, timestamptz",
    "use_v1": "jsonb, timestamptz",
    "touch_v1": "jsonb, timestamptz",
    "record_v1": "jsonb, timestamptz",
    "reprice_v1": "jsonb, uuid",
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
