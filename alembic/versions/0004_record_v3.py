"""Writing plain batches by one short statement: `record_v3`, in the place of `record_v2`.

Upgrade the hosts together with the schema.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent.parent / "functions"
REMOVED = {"record_v2": "jsonb, timestamptz"}
# In the order in which they need each other.
ADDED = {"record_plain_v1": "jsonb, timestamptz", "record_v3": "jsonb, timestamptz, boolean"}


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
    drop(REMOVED)
    create(ADDED)


def downgrade() -> None:
    drop(ADDED)
    create(REMOVED)
