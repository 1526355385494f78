"""Roll-ups by year as well, so that figures over many years read hardly more rows than those over one.

What is kept of a session that is not rolled up does not stop `roll_up` any more.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent.parent / "functions"
ARGUMENTS = "jsonb, timestamptz"
OWNER = ("family", "user_id", "dataset_id")
# What tells the buckets of an owner, a level and a time apart, and their figures.
ROLLUPS = {
    "session_rollups": (
        "status",
        (
            "sessions",
            "cost_usd",
            "tokens_in",
            "tokens_out",
            "duration_us",
            "unpriced_events",
            "unmeasured_events",
            "late_events",
            "late_cost_usd",
        ),
    ),
    "session_model_rollups": (
        "model",
        (
            "sessions",
            "cost_usd",
            "tokens_in",
            "tokens_out",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "events",
            "unpriced_events",
        ),
    ),
}


def quoted_schema() -> str:
    return '"{}"'.format(op.get_context().version_table_schema.replace('"', '""'))


def as_text(sql: str) -> sa.TextClause:
    """The SQL as it stands: a colon in it begins no parameter."""
    return sa.text(sql.replace(":", "\\:"))


def create(name: str, *, replace: bool = False) -> None:
    schema = quoted_schema()
    tag = "$body$"
    while tag in schema:
        tag = f"{tag[:-1]}_$"
    source = (FOLDER / f"{name}.sql").read_text("utf-8").replace("$body$", tag).replace("{schema}", schema)
    op.execute(as_text(source.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION") if replace else source))


def drop(name: str) -> None:
    op.execute(as_text(f"DROP FUNCTION {quoted_schema()}.{name}({ARGUMENTS})"))


def lock_rollups() -> None:
    # Nobody puts changes into the roll-ups meanwhile; who appends one does not wait.
    op.execute(as_text(f"SELECT {quoted_schema()}.lock_rollups_v1()"))


def rollups(name: str) -> sa.TableClause:
    by, figures = ROLLUPS[name]
    columns = (*OWNER, "level", "starts_at", by, *figures)
    return sa.table(name, *map(sa.column, columns), schema=op.get_context().version_table_schema)


def add_years(name: str) -> None:
    table = rollups(name)
    by, figures = ROLLUPS[name]
    year = sa.func.date_trunc(sa.literal_column("'year'"), table.c.starts_at, sa.literal_column("'UTC'"))
    key = (*(table.c[one] for one in OWNER), year, table.c[by])
    sums = (sa.func.sum(table.c[figure]) for figure in figures)
    months = sa.select(*key, sa.literal_column("'year'"), *sums).where(table.c.level == sa.literal_column("'month'"))
    op.execute(table.insert().from_select([*OWNER, "starts_at", by, "level", *figures], months.group_by(*key)))


def upgrade() -> None:
    lock_rollups()
    # In place, as a function that hosts call never is: whoever puts changes into the roll-ups, the version before among
    # them, has to keep the years as well.
    create("rollup_levels_v1_with_years")
    for name in ROLLUPS:
        add_years(name)
    create("roll_up_sessions_v2")
    drop("roll_up_sessions_v1")


def downgrade() -> None:
    lock_rollups()
    create("roll_up_sessions_v1")
    drop("roll_up_sessions_v2")
    for name in ROLLUPS:
        table = rollups(name)
        op.execute(table.delete().where(table.c.level == sa.literal_column("'year'")))
    create("rollup_levels_v1", replace=True)
