"""The ways to run the migrations: from Python, from a clone's command line, as a script of SQL."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from session_lifecycle import SessionDatabase, SessionLifecycleError
from session_lifecycle.entities import quoted
from session_lifecycle.postgres.function_files import function_files
from session_lifecycle.testing import TemplateServer
from support.command_line import WAITING_FOR_LOCKS, connected, until

ROOT = Path(__file__).parents[2]
USER = UUID(int=1)

MIGRATE_TWICE = """
import asyncio, sys
from session_lifecycle import SessionDatabase

async def migrate():
    async with SessionDatabase.connect(sys.argv[1]) as db:
        await db.migrate()
        await db.check()

async def main():
    await asyncio.gather(migrate(), migrate())

asyncio.run(main())
"""


def alembic(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SESSION_")}
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def schemas(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$|public$)'"
        )
        return {row[0] for row in found}
    finally:
        await connection.close()


async def check_works(url: str, schema: str) -> None:
    """A schema that `check` accepts, and that can be written and read."""
    async with SessionDatabase.connect(url, schema=schema) as db:
        await db.check()
        await db.lifecycle.ensure_and_touch_session("s", USER)
        receipt = await db.lifecycle.accumulate_usage("s", USER, None, 3, 4)
        assert (receipt.outcome, receipt.session_tokens_in) == ("applied", 3)
        assert (await db.lifecycle.end_session("s", USER, "completed")) == "ended"
        assert (await db.lifecycle.reopen_session("s", USER)) == "reopened"


async def test_alembic_in_a_clone(empty_url: str, schema: str) -> None:
    names = {"SESSION_LIFECYCLE_DATABASE_URL": empty_url, "SESSION_LIFECYCLE_DATABASE_SCHEMA": schema}
    done = await asyncio.to_thread(alembic, "upgrade", "head", **names)
    assert done.returncode == 0, done.stderr
    assert await schemas(empty_url) == {schema}
    await check_works(empty_url, schema)


async def test_alembic_in_a_clone_prints_sql(empty_url: str, schema: str) -> None:
    done = await asyncio.to_thread(alembic, "upgrade", "head", "--sql", SESSION_LIFECYCLE_DATABASE_SCHEMA=schema)
    assert done.returncode == 0, done.stderr
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        assert done.stdout.strip() == (await db.migration_sql()).strip()
    await execute(empty_url, done.stdout)
    await check_works(empty_url, schema)


def test_alembic_in_a_clone_without_a_database() -> None:
    done = alembic("upgrade", "head")
    assert done.returncode != 0
    assert "no database to migrate: set SESSION_LIFECYCLE_DATABASE_URL" in done.stderr


async def test_sql_to_run_oneself(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await execute(empty_url, await db.migration_sql())
        await check_works(empty_url, schema)
        await db.migrate()
        await db.check()


async def test_sql_and_migrating_make_the_same_functions(empty_url: str, schema: str) -> None:
    other = "twin"
    async with (
        SessionDatabase.connect(empty_url, schema=schema) as db,
        SessionDatabase.connect(empty_url, schema=other) as migrated,
    ):
        await execute(empty_url, await db.migration_sql())
        await migrated.migrate()
    connection = await asyncpg.connect(empty_url)
    try:
        await connection.execute("SET search_path = ''")
        definitions = {
            name: [
                (row[0], row[1].replace(f"{row[2]}.", "…").replace(f"{quoted(name)}.", "…"))
                for row in await connection.fetch(
                    "SELECT proname, pg_get_functiondef(oid), quote_ident($2) FROM pg_proc "
                    "WHERE pronamespace = $1::text::regnamespace ORDER BY 1",
                    quoted(name),
                    name,
                )
            ]
            for name in (schema, other)
        }
    finally:
        await connection.close()
    # Where the schema's name has the mark in it, bodies are quoted by another one.
    assert [(name, body.replace("$body_$", "$body$")) for name, body in definitions[schema]] == definitions[other]
    assert {name for name, _ in definitions[other]} == function_files().keys()


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "fresh"])
async def test_rolled_back_with_the_host(empty_url: str, schema: str, begun: bool) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        async with db.engine.connect() as connection:
            if begun:
                await connection.exec_driver_sql("CREATE TABLE public.of_host (id int)")
            await db.migrate(connection=connection)
            await connection.rollback()
        assert await schemas(empty_url) == set()
        async with db.engine.begin() as connection:
            await db.migrate(connection=connection)
        await check_works(empty_url, schema)


async def test_many_at_once(empty_url: str) -> None:
    async def migrate() -> None:
        async with SessionDatabase.connect(empty_url) as db:
            await db.migrate()
            await db.check()

    async def process() -> None:
        running = await asyncio.create_subprocess_exec(sys.executable, "-c", MIGRATE_TWICE, empty_url)
        assert await running.wait() == 0

    await asyncio.gather(process(), process())
    await asyncio.gather(*(migrate() for _ in range(4)))


async def test_four_tasks_on_an_empty_database(empty_url: str) -> None:
    async def migrate() -> None:
        async with SessionDatabase.connect(empty_url) as db:
            await db.migrate()
            await db.check()

    await asyncio.gather(*(migrate() for _ in range(4)))


async def test_two_schemas_in_one_transaction_while_another_waits(empty_url: str) -> None:
    async with (
        asyncio.timeout(30),
        SessionDatabase.connect(empty_url, schema="one") as one,
        SessionDatabase.connect(empty_url, schema="two") as two,
        SessionDatabase.connect(empty_url, schema="one") as another,
    ):
        async with one.engine.begin() as host:
            await one.migrate(connection=host)
            waiting = asyncio.create_task(another.migrate())
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await two.migrate(connection=host)
        await waiting
        await one.check()
        await two.check()


async def test_a_role_that_may_not_create_schemas(
    session_template_server: TemplateServer, empty_url: str, schema: str
) -> None:
    role = f"migrator_{uuid4().hex}"
    url = make_url(empty_url).set(username=role, password="secret")
    await execute(empty_url, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        async with SessionDatabase.connect(url, schema=schema) as db:
            with pytest.raises(SessionLifecycleError, match="permission denied"):
                await db.migrate()
            await execute(
                empty_url,
                f"CREATE SCHEMA {quoted(schema)}; GRANT USAGE, CREATE ON SCHEMA {quoted(schema)} TO {role}",
            )
            await db.migrate()
            await db.check()
            assert (await db.lifecycle.ensure_and_touch_session("s", USER)) == "created"
    finally:
        await execute(empty_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_another_schema_of_the_database_is_migrated_at_the_same_time(empty_url: str) -> None:
    """A database has one pg_trgm. The second migration waits until the first has created it."""
    async with connected(empty_url) as other, connected(empty_url) as looking, SessionDatabase.connect(empty_url) as db:
        if not await looking.fetchval("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'"):
            pytest.skip("this server has no pg_trgm")
        async with other.transaction():
            await other.execute("CREATE EXTENSION pg_trgm SCHEMA public")
            migrating = asyncio.create_task(db.migrate())
            await until(looking, WAITING_FOR_LOCKS, 1)
        await migrating
        assert await db.check() == []
