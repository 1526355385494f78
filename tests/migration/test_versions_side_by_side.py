"""An older library goes on beside a newer schema, also when restarted, as long as the schema serves it (R20).

The newer schema is this version's and one additive revision more, made here.
"""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Self
from uuid import UUID

import pytest
from sqlalchemy import Connection

from session_lifecycle import SchemaError, SessionDatabase
from session_lifecycle.entities import quoted
from session_lifecycle.postgres.function_files import directory
from session_lifecycle.postgres.migrations import configuration
from session_lifecycle.postgres.schema_check import HEAD

USER = UUID(int=1)
ADDITIVE = '''
"""One revision more: a column, an index, and the next version of a function, whose inner function changes with it."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    quoted = '"' + schema.replace('"', '""') + '"'
    op.add_column("session_records", sa.Column("mood", sa.Text), schema=schema)
    op.create_index("ix_session_records_mood", "session_records", ["mood"], schema=schema)
    op.execute(sa.text(f"CREATE FUNCTION {{quoted}}.record_v2() RETURNS int LANGUAGE sql AS 'SELECT 2'"))
    op.execute(sa.text(f"ALTER FUNCTION {{quoted}}.oldest_served_version_v1() RENAME TO before"))
    op.execute(sa.text(
        f"CREATE FUNCTION {{quoted}}.oldest_served_version_v1() RETURNS text LANGUAGE sql AS $$SELECT '{served}'$$"
    ))


def downgrade() -> None:
    op.drop_column("session_records", "mood", schema=op.get_context().version_table_schema)
'''
# An older process: it works, and goes on after each line that it is given.
PROCESS = """
import asyncio, sys
from uuid import UUID
from session_lifecycle import SessionDatabase

async def main(url, schema):
    async with SessionDatabase.connect(url, schema=schema) as db:
        for line in sys.stdin:
            await db.migrate()
            await db.check()
            receipt = await db.lifecycle.accumulate_usage("s", UUID(int=1), "gpt-4o", 1, 1)
            print(receipt.session_tokens_in, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def upgrade_further(db: SessionDatabase, schema: str, folder: Path, *, served: str) -> None:
    """Migrates to the revision of a newer library."""
    shutil.copytree(directory(), folder)
    revision = f"{int(HEAD) + 1:04}"
    (folder / "versions" / f"{revision}_more.py").write_text(
        ADDITIVE.format(revision=revision, head=HEAD, served=served)
    )

    def run(connection: Connection) -> None:
        from alembic import command

        config = configuration(schema, connection=connection)
        config.set_main_option("script_location", str(folder))
        command.upgrade(config, "head")

    async with db.engine.begin() as connection:
        await connection.run_sync(run)


class Older:
    """A process of the older library."""

    def __init__(self, url: str, schema: str) -> None:
        self._arguments = (url, schema)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROCESS, *self._arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return self

    async def work(self) -> int:
        """The tokens of the session after one more use."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"go on\n")
        return int(await self._process.stdout.readline())

    async def __aexit__(self, *_error: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await self._process.wait() == 0


async def test_R20_an_older_library_goes_on_and_starts_again(empty_url: str, schema: str, tmp_path: Path) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db, Older(empty_url, schema) as running:
        assert await running.work() == 1
        await upgrade_further(db, schema, tmp_path / "alembic", served="0.1.0")
        assert await running.work() == 2
        async with Older(empty_url, schema) as restarted:
            assert await restarted.work() == 3
            assert await running.work() == 4
        async with db.engine.connect() as connection:
            found = await connection.exec_driver_sql(
                f"SELECT version_num FROM {quoted(schema)}.session_lifecycle_version"
            )
            assert found.scalars().all() == [f"{int(HEAD) + 1:04}"]
        assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_R20_a_schema_that_serves_later_versions_only_is_refused(
    empty_url: str, schema: str, tmp_path: Path
) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await upgrade_further(db, schema, tmp_path / "alembic", served="99.1")
        refused = (
            r"serves version 99\.1 and later; this is session-lifecycle .*: run `pip install --upgrade session-life"
        )
        for call in (db.check, db.migrate, lambda: db.lifecycle.ensure_and_touch_session("s", USER)):
            with pytest.raises(SchemaError, match=refused):
                await call()


async def test_R20_a_newer_schema_that_lost_what_this_version_uses_is_refused(
    empty_url: str, schema: str, tmp_path: Path
) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await upgrade_further(db, schema, tmp_path / "alembic", served="0.1.0")
        async with db.engine.begin() as connection:
            await connection.exec_driver_sql(f"DROP FUNCTION {quoted(schema)}.record_v1")
        with pytest.raises(
            SchemaError, match=r"lacks function record_v1\(.*db upgrade` of the newer session-lifecycle"
        ):
            await db.lifecycle.ensure_and_touch_session("s", USER)
