"""The baseline and one additive revision more, beside live writers and a long reader.

The command of the next release migrates. It is this one, with a folder that has one revision more, and with the column
and the index of that revision.
"""

import asyncio
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg

from migration.test_beside_writers import LONGEST_WAIT_SECONDS, reading_for_long, writing
from migration.test_versions_side_by_side import Older
from session_lifecycle import SessionDatabase, SessionListFilters
from session_lifecycle.postgres.function_files import directory
from session_lifecycle.postgres.schema_check import HEAD
from session_lifecycle.settings import DEFAULT_SCHEMA
from support.commands import environment

USER = UUID(int=1)
NEXT = f"{int(HEAD) + 1:04}"
REVISION = f'''
"""A column, a table, and an index that is built beside the writers."""

import sqlalchemy as sa
from alembic import op

from session_lifecycle.postgres.migrations import index_beside_writers

revision = "{NEXT}"
down_revision = "{HEAD}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    op.add_column("session_records", sa.Column("mood", sa.Text), schema=schema)
    op.create_table("session_moods", sa.Column("mood", sa.Text, primary_key=True), schema=schema)
    index_beside_writers(f'CREATE INDEX CONCURRENTLY ix_session_records_mood ON "{{schema}}".session_records (mood)')


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    op.drop_table("session_moods", schema=schema)
    op.drop_column("session_records", "mood", schema=schema)
'''
NEXT_RELEASE = f"""
import sys
from pathlib import Path
from sqlalchemy import Column, Index, Text
from session_lifecycle.cli import main
from session_lifecycle.entities import SessionRecordEntity
from session_lifecycle.postgres import migrations, schema_check
folder = Path(sys.argv.pop(1))
migrations.directory = lambda: folder
for module in (migrations, schema_check):
    module.REVISIONS, module.HEAD = ({HEAD!r}, {NEXT!r}), {NEXT!r}
table = SessionRecordEntity.__table__
table.append_column(Column("mood", Text))
Index("ix_session_records_mood", table.c.mood)
main()
"""


def make(folder: Path) -> None:
    """The revisions of the next release."""
    if not folder.exists():
        shutil.copytree(directory(), folder)
        (folder / "versions" / f"{NEXT}_more.py").write_text(REVISION)


@asynccontextmanager
async def next_release(folder: Path, *arguments: str) -> AsyncGenerator["asyncio.subprocess.Process"]:
    await asyncio.to_thread(make, folder)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NEXT_RELEASE, str(folder), *arguments,
        env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def output(process: "asyncio.subprocess.Process") -> str:
    async with asyncio.timeout(120):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def test_R20_one_revision_more_beside_live_writers_and_a_long_reader(empty_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "alembic"
    at = ("--database-url", empty_url)
    async with SessionDatabase.connect(empty_url) as db:
        await db.migrate()
        async with writing(empty_url) as writer, Older(empty_url, DEFAULT_SCHEMA) as running:
            assert await running.work() > 0
            async with next_release(folder, "db", "upgrade", *at) as upgrading:
                async with reading_for_long(empty_url):
                    # The reader has all tables, so the revision cannot get its lock.
                    await asyncio.sleep(LONGEST_WAIT_SECONDS * 2)
                    assert upgrading.returncode is None
                    before = writer.writes
                    await running.work()
                    async with Older(empty_url, DEFAULT_SCHEMA) as restarted:
                        await restarted.work()
                    assert writer.writes > before
                said = await output(upgrading)
            assert "did not get its locks, and writers go on" in said
            assert "builds index ix_session_records_mood beside the writers" in said
            assert "The schema is up to date." in said
            before = writer.writes
            await running.work()
            async with Older(empty_url, DEFAULT_SCHEMA) as restarted:
                await restarted.work()
            await asyncio.sleep(0.2)
            assert writer.writes > before
        assert writer.longest_seconds < LONGEST_WAIT_SECONDS
        assert (await db.maintenance.reconcile()).mismatch_count == 0
        page = await db.lifecycle.list_session_rows(SessionListFilters(user_id=USER))
        # Each write of the writer, its first one, and the five of the processes.
        assert sum(one.record.tokens_in for one in page.sessions) in {writer.writes + 6, writer.writes + 7}
    async with next_release(folder, "db", "history", *at) as listing:
        assert f"{NEXT} applied: A column, a table, and an index" in await output(listing)
    async with next_release(folder, "db", "downgrade", HEAD, "--yes", *at) as going_back:
        assert f"at revision {HEAD}" in await output(going_back)
    async with SessionDatabase.connect(empty_url) as db:
        await db.check()


async def test_R20_an_upgrade_that_is_killed_while_it_builds_an_index_is_continued(
    empty_url: str, tmp_path: Path
) -> None:
    folder, at = tmp_path / "alembic", ("--database-url", empty_url)
    async with SessionDatabase.connect(empty_url) as db:
        await db.migrate()
        await db.lifecycle.accumulate_usage("s", USER, "m", 1)
        writer = await asyncpg.connect(empty_url)
        async with writer.transaction():
            # An open write, which the build of the index waits for and the column does not: it touches another table.
            await writer.execute(
                "INSERT INTO session_lifecycle.session_tombstones (user_id) VALUES (gen_random_uuid())"
            )
            await writer.execute("SAVEPOINT one")
            async with next_release(folder, "db", "upgrade", *at) as upgrading:
                assert upgrading.stdout is not None
                async with asyncio.timeout(60):
                    while b"builds index" not in await upgrading.stdout.readline():
                        pass
                upgrading.kill()
                await upgrading.wait()
        await writer.close()
        # The schema is at the new revision, without a usable index. The library of before works on.
        await db.check()
        await db.lifecycle.accumulate_usage("s", USER, "m", 1)
        async with next_release(folder, "db", "check", *at) as checking:
            said, _ = await checking.communicate()
            assert checking.returncode == 1
            assert b"lacks index ix_session_records_mood: run `session-lifecycle db upgrade`" in said
        async with next_release(folder, "db", "upgrade", *at) as upgrading:
            await output(upgrading)
        async with db.engine.connect() as connection:
            index = "'session_lifecycle.ix_session_records_mood'::regclass"
            valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = {index}"
            assert (await connection.exec_driver_sql(valid)).scalar_one() is True


async def test_the_printed_sql_of_a_revision_builds_its_index_beside_the_writers(
    empty_url: str, tmp_path: Path
) -> None:
    folder, at = tmp_path / "alembic", ("--database-url", empty_url)
    async with SessionDatabase.connect(empty_url) as db:
        await db.migrate()
    async with next_release(folder, "db", "sql", "--from", HEAD) as printing:
        sql = await output(printing)
    statements = [one.strip() for one in sql.split(";") if one.strip()]
    [index] = [number for number, one in enumerate(statements) if "CREATE INDEX CONCURRENTLY" in one]
    assert statements[index - 1] == "COMMIT"
    connection = await asyncpg.connect(empty_url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()
    async with next_release(folder, "db", "check", *at) as checking:
        await output(checking)
