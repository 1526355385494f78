"""A shorter way to write plain batches: a key that is held is found by the error it causes.

The functions of the version before stay, for its hosts call them until they are upgraded.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent.parent / "functions"
# In the order in which they need each other.
ADDED = {
    "record_plain_v2": "jsonb, timestamptz",
    "record_v4": "jsonb, jsonb, timestamptz, boolean",
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
    for name in ADDED:
        source = (FOLDER / f"{name}.sql").read_text("utf-8")
        op.execute(as_text(source.replace("$body$", tag).replace("{schema}", schema)))


def downgrade() -> None:
    for name, arguments in reversed(ADDED.items()):
        op.execute(as_text(f"DROP FUNCTION {quoted_schema()}.{name}({arguments})"))
