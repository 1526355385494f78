"""A shorter way to write plain batches: a key that is held is found by the error it causes.

The functions of the version before stay, for its hosts call them until they are upgraded.
"""

import sqlalchemy as sa
from alembic import op

from session_lifecycle.migrations import create_function_sql, quoted

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# In the order in which they need each other.
ADDED = {
    "record_plain_v2": "jsonb, timestamptz",
    "record_v4": "jsonb, jsonb, timestamptz, boolean",
}


def upgrade() -> None:
    for name in ADDED:
        op.execute(sa.text(create_function_sql(name, op.get_context().version_table_schema)))


def downgrade() -> None:
    schema = quoted(op.get_context().version_table_schema).replace(":", "\\:")
    for name, arguments in reversed(ADDED.items()):
        op.execute(sa.text(f"DROP FUNCTION {schema}.{name}({arguments})"))
