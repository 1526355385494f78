"""The revisions: up and down on real rows, from every way in, beside a host's own migrations."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, MetaData, Table, text

from session_lifecycle import SessionDatabase, include_object, metadata, migrations
from session_lifecycle.testing import TemplateServer

ROOT = Path(__file__).parents[2]
ODD_SCHEMA = 'we"ird: %s $body$ Schema'
A = UUID(int=1)


@pytest_asyncio.fixture
async def empty_url(session_template_server: TemplateServer) -> AsyncIterator[str]:
    """The URL of a database with nothing in it."""
    name = f"empty_{os.getpid()}"
    await session_template_server.drop(name)
    await session_template_server.run(f"CREATE DATABASE {name}")
    try:
        yield session_template_server.url_of(name)
    finally:
        await session_template_server.drop(name)


async def migrate(db: SessionDatabase, schema: str, direction: Any, revision: str) -> None:
    async with db.engine.begin() as connection:
        await connection.run_sync(migrations.run, schema, direction, revision)


@pytest.mark.parametrize("schema", ["session_lifecycle", ODD_SCHEMA])
async def test_every_revision_goes_up_and_down_on_real_rows(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await db.lifecycle.accumulate_usage("s", A, "gpt-4o-mini", 1000, 500, idempotency_key="k")
        before = await db.lifecycle.get_session_row("s", A)
        for revision in reversed(migrations.REVISIONS[:-1]):
            await migrate(db, schema, "downgrade", revision)
        for revision in migrations.REVISIONS[1:]:
            await migrate(db, schema, "upgrade", revision)
        await db.check()
        assert await db.lifecycle.get_session_row("s", A) == before
        await migrate(db, schema, "downgrade", "base")
        await db.migrate()
        assert (await db.lifecycle.aggregate_stats(A)).sessions == 0


def differences(connection: Connection, target: MetaData, **options: Any) -> list[Any]:
    options = {"compare_type": True, "compare_server_default": True, "include_schemas": True, **options}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), target))


async def test_the_migrated_schema_is_what_the_entities_say(session_database: SessionDatabase) -> None:
    def ours(name: str | None, kind: str, _: Any) -> bool:
        return kind != "schema" or name == metadata.schema

    async with session_database.engine.connect() as connection:
        found = await connection.run_sync(
            differences, metadata, include_name=ours, version_table_schema=metadata.schema
        )
    assert found == []


async def test_constraints_are_named_by_convention(session_database: SessionDatabase) -> None:
    async with session_database.engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT conname, contype FROM pg_constraint WHERE connamespace = 'session_lifecycle'::regnamespace")
        )
        names = {(row.contype.decode(), row.conname) for row in rows if row.conname != "alembic_version_pkc"}
    declared = {constraint.name for table in metadata.tables.values() for constraint in table.constraints}
    assert {name for kind, name in names if kind in "pc"} == declared


async def test_autogenerate_of_a_host_leaves_our_tables_alone(session_database: SessionDatabase) -> None:
    host = MetaData()
    Table("things_of_the_host", host, Column("id", Integer, primary_key=True))
    async with session_database.engine.connect() as connection:
        found = await connection.run_sync(differences, host, include_object=include_object)
    clock_of_the_tests = ("remove_table", "setting")
    changes = {(change[0], change[1].name) for change in found} - {clock_of_the_tests}
    assert changes == {("add_table", "things_of_the_host")}


async def test_many_at_once_migrate_once(empty_url: str) -> None:
    async def one() -> None:
        async with SessionDatabase.connect(empty_url) as db:
            await db.migrate()
            await db.check()

    program = (
        "import asyncio, sys; from session_lifecycle import SessionDatabase\n"
        "async def main():\n"
        "    async with SessionDatabase.connect(sys.argv[1]) as db: await db.migrate()\n"
        "asyncio.run(main())"
    )
    others = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, empty_url, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    await asyncio.gather(one(), one())
    for other in others:
        _, said = await other.communicate()
        assert (other.returncode, said) == (0, b"")


async def test_a_hosts_rollback_takes_the_migration_back(empty_url: str) -> None:
    async with SessionDatabase.connect(empty_url) as db, db.engine.connect() as host:
        await db.migrate(connection=host)
        await host.rollback()
        assert (await host.execute(text("SELECT to_regnamespace('session_lifecycle')"))).scalar() is None


async def test_a_role_that_may_not_create_schemas_migrates_into_one_it_owns(
    session_template_server: TemplateServer, empty_url: str
) -> None:
    role = f"migrator_{os.getpid()}"
    await session_template_server.run(f"DROP ROLE IF EXISTS {role}", f"CREATE ROLE {role}")
    async with SessionDatabase.connect(empty_url) as db:
        async with db.engine.begin() as admin:
            await admin.execute(text(f"CREATE SCHEMA session_lifecycle AUTHORIZATION {role}"))
        async with db.engine.begin() as host:
            await host.execute(text(f"SET LOCAL ROLE {role}"))
            await db.migrate(connection=host)
        await db.check()
        async with db.engine.begin() as admin:
            await admin.execute(text("DROP SCHEMA session_lifecycle CASCADE"))
    await session_template_server.run(f"DROP ROLE {role}")


@pytest.mark.parametrize("schema", ["session_lifecycle", ODD_SCHEMA])
async def test_the_printed_sql_migrates(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        sql = await db.migration_sql()
        connection = await asyncpg.connect(empty_url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()
        await db.check()
        assert (await db.lifecycle.accumulate_usage("s", A, "m", 1)).outcome == "applied"


async def test_alembic_in_a_clone(empty_url: str) -> None:
    environment = os.environ | {"SESSION_LIFECYCLE_DATABASE_URL": empty_url}
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "alembic", "upgrade", "head", cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    _, said = await done.communicate()
    assert done.returncode == 0, said.decode()
    async with SessionDatabase.connect(empty_url) as db:
        await db.check()


def test_the_known_revisions_are_alembics() -> None:
    scripts = ScriptDirectory(str(migrations.directory()))
    assert [script.revision for script in scripts.walk_revisions()][::-1] == list(migrations.REVISIONS)
