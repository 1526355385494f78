"""`db`: migrates the schema, checks it, and prints the SQL of the migrations."""

import sys

from session_lifecycle import SessionDatabase
from session_lifecycle.cli.options import DatabaseUrl, DataDir, Embedded, Schema, on_database, run_until_done
from session_lifecycle.cli.output import print_line, print_note


def upgrade(
    database_url: DatabaseUrl = None, data_dir: DataDir = None, embedded: Embedded = False, schema: Schema = None
) -> None:
    """Migrate the schema to the revision of this version."""

    async def work(db: SessionDatabase) -> None:
        await db.migrate()
        _report(await db.check())

    on_database(work, database_url, data_dir, schema, embedded=embedded)


def check(
    database_url: DatabaseUrl = None, data_dir: DataDir = None, embedded: Embedded = False, schema: Schema = None
) -> None:
    """Check that the schema has everything that this version uses. Exit with code 1 if not."""

    async def work(db: SessionDatabase) -> None:
        _report(await db.check())

    on_database(work, database_url, data_dir, schema, embedded=embedded)


def _report(advice: list[str]) -> None:
    print_line("The schema is up to date.")
    for sentence in advice:
        print_note(f"note: {sentence}")


def sql(schema: Schema = None) -> None:
    """Print the SQL that migrates an empty database."""

    async def work() -> None:
        # This opens no connection: the URL only names the kind of database.
        sys.stdout.write(await SessionDatabase.connect("postgresql://", schema=schema).migration_sql())

    run_until_done(work)
