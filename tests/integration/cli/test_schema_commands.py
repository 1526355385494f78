"""The commands of the schema as an operator runs them, each in a process of its own on a real Postgres."""

import asyncio
import json
import os
import re
import signal
from uuid import UUID

import asyncpg
import pytest

from session_lifecycle import SessionDatabase
from session_lifecycle.postgres.permissions import DatabaseRole, role_sql
from session_lifecycle.testing import TemplateServer
from support.command_line import ODD_SCHEMA, USER, ask, connected, in_schema
from support.commands import on_terminal, run, run_raw, running, succeed, without_database
from support.eventually import eventually
from support.roles import database_roles, grant, url_as

KEY = {"SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY": "a key that no other database has: 1234567890"}
VERSIONS = "SELECT count(*) FROM session_lifecycle.session_lifecycle_version"
SCHEMAS = pytest.mark.parametrize("schema", [None, ODD_SCHEMA], ids=["default", "odd"])
UP_TO_DATE = "The schema is up to date.\n"


async def schemas(url: str) -> list[str]:
    found: list[str] = await ask(
        url, "SELECT array_agg(nspname::text) FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$|public$)'"
    )
    return found


@SCHEMAS
async def test_a_database_is_checked_upgraded_and_checked(empty_url: str, schema: str | None) -> None:
    database = ["--database-url", empty_url, *in_schema(schema)]
    unmigrated = run("db", "check", *database)
    assert (unmigrated.returncode, unmigrated.stdout) == (1, "")
    assert "session-lifecycle db upgrade" in unmigrated.stderr
    for _ in range(2):
        assert succeed("db", "upgrade", *database) == UP_TO_DATE
    assert succeed("db", "check", *in_schema(schema), SESSION_LIFECYCLE_DATABASE_URL=empty_url) == UP_TO_DATE
    assert await schemas(empty_url) == [schema or "session_lifecycle"]


@SCHEMAS
async def test_the_sql_printed_without_a_database_migrates_an_empty_one(empty_url: str, schema: str | None) -> None:
    sql = succeed("db", "sql", *in_schema(schema), SESSION_LIFECYCLE_DATABASE_URL="postgresql://127.0.0.1:1/x")
    async with connected(empty_url) as connection:
        await connection.execute(sql)
    assert succeed("db", "check", "--database-url", empty_url, *in_schema(schema)) == UP_TO_DATE
    assert await schemas(empty_url) == [schema or "session_lifecycle"]


@SCHEMAS
def test_a_schema_goes_up_and_back_and_up_again(empty_url: str, schema: str | None) -> None:
    at = ["--database-url", empty_url, *(["--schema", schema] if schema else [])]
    before = run("db", "current", *at)
    assert (before.returncode, before.stdout) == (
        1,
        "The schema is not migrated; the newest of this version is 0001.\n",
    )
    assert succeed("db", "history", *at).startswith("0001 not applied: The schema as first released")
    succeed("db", "upgrade", *at)
    assert succeed("db", "current", *at) == "The schema is at revision 0001; the newest of this version is 0001.\n"
    assert json.loads(succeed("db", "current", "--json", *at))["applied"] == "0001"
    assert succeed("db", "history", *at).startswith("0001 applied: ")
    assert json.loads(succeed("db", "history", "--json", *at))["known"][0]["revision"] == "0001"
    refused = run("db", "downgrade", "0001", "--yes", *at)
    assert refused.returncode == 1
    assert "goes back to base: got '0001'" in refused.stderr
    unasked = run("db", "downgrade", "base", *at)
    assert (unasked.returncode, unasked.stderr) == (2, "error: there is no terminal to confirm on: give --yes\n")
    assert on_terminal("n\n", "db", "downgrade", "base", *at)[0] == 1
    succeed("db", "current", *at)
    assert succeed("db", "downgrade", "base", "--yes", *at).startswith("The schema is not migrated")
    again = run("db", "downgrade", "base", "--yes", *at)
    assert again.returncode == 1
    assert "at revision base, from which this version goes back to nothing" in again.stderr
    succeed("db", "upgrade", *at)
    succeed("db", "check", *at)


async def test_a_lost_version_table_is_stamped(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    await ask(session_database_url, "DELETE FROM session_lifecycle.session_lifecycle_version RETURNING 1")
    lost = run("db", "check", *at)
    assert lost.returncode == 1
    assert "is not migrated" in lost.stderr
    upgraded = run("db", "upgrade", *at)
    assert upgraded.returncode == 1
    assert "session-lifecycle db stamp" in upgraded.stderr
    assert run("db", "stamp", "0009", "--yes", *at).returncode == 2
    assert succeed("db", "stamp", "0001", "--yes", *at).startswith("The schema is at revision 0001")
    assert succeed("db", "check", *at) == "The schema is up to date.\n"
    assert await ask(session_database_url, VERSIONS) == 1
    succeed("db", "stamp", "base", "--yes", *at)
    assert await ask(session_database_url, VERSIONS) == 0


async def test_row_level_security_of_a_schema_that_lost_a_table_is_not_enabled_and_is_disabled(
    session_database_url: str,
) -> None:
    at = ("--database-url", session_database_url)
    succeed("db", "rls", "enable", *at, **KEY)
    await ask(session_database_url, "DROP TABLE session_lifecycle.session_annotations CASCADE")
    refused = run("db", "rls", "enable", *at, **KEY)
    assert refused.returncode == 1
    assert "lacks table session_annotations" in refused.stderr
    assert "restore the data from a backup" in refused.stderr
    succeed("db", "rls", "disable", "--yes", *at)
    assert not json.loads(succeed("db", "rls", "check", "--json", *at))["is_enabled"]


def test_row_level_security_of_a_schema_that_is_not_migrated_is_not_enabled(empty_url: str) -> None:
    refused = run("db", "rls", "enable", "--database-url", empty_url, **KEY)
    assert refused.returncode == 1
    assert refused.stderr == "error: schema 'session_lifecycle' is not migrated: run `session-lifecycle db upgrade`\n"


@pytest.mark.parametrize("versions", [["0002_of_a_newer_version"], ["0000_of_a_backup", "0001"]], ids=len)
async def test_R20_a_version_table_that_names_what_this_version_does_not_know_is_told(
    session_database_url: str, versions: list[str]
) -> None:
    async with connected(session_database_url) as connection:
        await connection.execute("DELETE FROM session_lifecycle.session_lifecycle_version")
        for version in versions:
            await connection.execute("INSERT INTO session_lifecycle.session_lifecycle_version VALUES ($1)", version)
    # A newer schema that serves this version is left as it is by an upgrade.
    commands: list[tuple[str, ...]] = [("stamp", "0001"), ("stamp", "base"), ("downgrade", "base"), ("upgrade",)]
    for command in commands[: 2 * len(versions)]:
        yes = () if command == ("upgrade",) else ("--yes",)
        refused = run("db", *command, *yes, "--database-url", session_database_url)
        assert (refused.returncode, refused.stdout) == (1, "")
        *_, error = refused.stderr.splitlines()
        assert error.startswith(
            "error: the table session_lifecycle_version of schema 'session_lifecycle' does not name"
        )
        assert versions[0] in error
    assert await ask(session_database_url, VERSIONS) == len(versions)


@pytest.mark.parametrize("revision", ["0001", "base"])
async def test_R20_a_version_table_with_an_empty_name_is_told(session_database_url: str, revision: str) -> None:
    async with connected(session_database_url) as connection:
        await connection.execute("UPDATE session_lifecycle.session_lifecycle_version SET version_num = ''")
    refused = run("db", "stamp", revision, "--yes", "--database-url", session_database_url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "a row of it names none, delete that row" in refused.stderr.splitlines()[-1]


def test_an_empty_schema_is_not_stamped(empty_url: str) -> None:
    refused = run("db", "stamp", "0001", "--yes", "--database-url", empty_url)
    assert refused.returncode == 1
    assert "session-lifecycle db upgrade` instead" in refused.stderr


def test_sql_begins_at_a_revision() -> None:
    whole, rest = succeed("db", "sql"), succeed("db", "sql", "--from", "0001")
    assert "CREATE TABLE session_lifecycle.session_records" in whole
    assert "CREATE TABLE" not in rest
    refused = run("db", "sql", "--from", "0009")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: revision: got '0009', expected one of this version: base, 0001\n",
    )


async def test_an_upgrade_tells_who_holds_the_lock_and_is_interrupted(session_database_url: str) -> None:
    disable = "ALTER TABLE session_lifecycle.session_records DISABLE TRIGGER leave_roll_ups"
    reader = await asyncpg.connect(session_database_url, server_settings={"application_name": "a long report"})
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.accumulate_usage("s", USER, "m", 1)
        async with db.engine.begin() as connection:
            await connection.exec_driver_sql(disable)
        async with reader.transaction():
            await reader.fetch("SELECT count(*) FROM session_lifecycle.session_records")
            with running("db", "upgrade", "--database-url", session_database_url) as process:
                assert process.stderr is not None
                assert (await asyncio.to_thread(process.stderr.readline)).startswith("database: ")
                told = await asyncio.to_thread(process.stderr.readline)
                assert re.match(
                    r"attempt 1 of 60 did not get its locks, and writers go on\. "
                    r"The oldest transaction is of process \d+ \('a long report'\), open for \d+ s\.",
                    told,
                )
                process.send_signal(signal.SIGTERM)
                _, said = process.communicate(timeout=30)
                assert process.returncode == 143
                assert "Traceback" not in without_database(said)
            # What the command leaves behind works.
            await db.lifecycle.accumulate_usage("s", USER, "m", 1)
        await reader.close()
    assert "The schema is up to date." in succeed("db", "upgrade", "--database-url", session_database_url)


def test_an_upgrade_that_fails_says_how_to_go_on() -> None:
    ran = run("db", "upgrade", "--database-url", "postgresql://me@127.0.0.1:1/x")
    assert ran.returncode == 1
    assert "The database works as before" in ran.stderr
    assert "db check` says what is missing" in ran.stderr


def test_roles_are_printed_without_a_database() -> None:
    everything = succeed("db", "roles", "--create", "--prefix", "app_", "--schema", ODD_SCHEMA)
    for role in DatabaseRole:
        assert f"CREATE ROLE app_{role} LOGIN;" in everything
    one = succeed("db", "roles", "--role", "reader")
    assert one == role_sql("session_lifecycle", DatabaseRole.READER, "sessions_reader") + "\n"
    refused = run("db", "roles", "--role", "king")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: role: got 'king', expected one of migrator, worker, roller, operator, reader\n",
    )


async def test_the_printed_roles_can_be_created(session_database_url: str) -> None:
    sql = succeed("db", "roles", "--create", "--prefix", f"made_{os.getpid()}_")
    async with SessionDatabase.connect(session_database_url) as db, db.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, asyncpg.Connection)
        async with driver.transaction() as _:
            await driver.execute(sql)
            assert await driver.fetchval("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'made\\_%'") >= len(
                DatabaseRole
            )
            for role in DatabaseRole:
                await driver.execute(f"DROP OWNED BY made_{os.getpid()}_{role}; DROP ROLE made_{os.getpid()}_{role}")


@pytest.mark.parametrize("role", [role for role in DatabaseRole if role is not DatabaseRole.MIGRATOR])
async def test_a_role_is_told_what_it_lacks_and_what_it_does_not_need(
    session_template_server: TemplateServer, session_database_url: str, role: DatabaseRole
) -> None:
    async with database_roles(session_template_server, role) as names:
        name = names[role]
        at = ("--database-url", url_as(session_database_url, name))
        try:
            async with SessionDatabase.connect(session_database_url) as owner:
                none = run("db", "roles", "--check", role, *at)
                assert none.returncode == 1
                assert "missing: USAGE on schema session_lifecycle\n" in none.stdout
                await grant(owner, role, name)
                assert succeed("db", "roles", "--check", role, *at) == (
                    f"Role {name} has what the role '{role}' needs, and nothing more.\n"
                )
                async with owner.engine.begin() as connection:
                    for change in (
                        f"GRANT TRUNCATE ON session_lifecycle.session_records TO {name}",
                        f"GRANT CREATE ON SCHEMA session_lifecycle TO {name}",
                        f"REVOKE SELECT ON session_lifecycle.session_lifecycle_version FROM {name}",
                    ):
                        await connection.exec_driver_sql(change)
            found = json.loads(run("db", "roles", "--check", role, "--json", *at).stdout)
            assert found["missing"] == ["SELECT on session_lifecycle_version"]
            assert found["excess"] == ["CREATE on schema session_lifecycle", "TRUNCATE on session_records"]
            said = run("db", "roles", "--check", role, *at).stderr
            [revoke] = re.findall(r"^to take away what is not needed: (.*)$", said, re.MULTILINE)
            assert f"REVOKE TRUNCATE ON session_lifecycle.session_records FROM {name}" in revoke
            async with SessionDatabase.connect(session_database_url) as owner, owner.engine.begin() as connection:
                for statement in revoke.split("; "):
                    await connection.exec_driver_sql(statement)
            assert json.loads(run("db", "roles", "--check", role, "--json", *at).stdout)["excess"] == []
        finally:
            await ask(session_database_url, f"DROP OWNED BY {name}")


def test_the_rights_of_a_role_are_compared_once_the_schema_is_migrated(empty_url: str) -> None:
    at = ("--database-url", empty_url)
    for command in (("db", "roles", "--check", "worker"), ("doctor", "--role", "worker")):
        ran = run(*command, *at)
        assert (ran.returncode, ran.stdout.count("missing")) == (1, 0)
        assert "schema 'session_lifecycle' is not migrated" in ran.stderr + ran.stdout
    succeed("db", "upgrade", *at)
    assert "not needed: SUPERUSER" in run("db", "roles", "--check", "worker", *at).stdout


def test_a_superuser_has_more_than_a_worker_needs(session_database_url: str) -> None:
    ran = run("db", "roles", "--check", "worker", "--database-url", session_database_url)
    assert ran.returncode == 1
    assert "not needed: SUPERUSER (an attribute of the role)\n" in ran.stdout
    # A superuser has every right, which says nothing.
    assert " on " not in ran.stdout
    own_role = "connect as a role of its own: session-lifecycle db roles --create --role worker"
    assert f"to take away what is not needed: {own_role}\n" in ran.stderr
    assert f"do: {own_role}\n" in run("doctor", "--role", "worker", "--database-url", session_database_url).stdout


async def test_R11_row_level_security_is_enabled_checked_and_disabled(
    session_template_server: TemplateServer, session_database_url: str
) -> None:
    at = ("--database-url", session_database_url)
    on = {**KEY, "SESSION_LIFECYCLE_ROW_LEVEL_SECURITY": "true"}
    async with database_roles(session_template_server, DatabaseRole.READER, DatabaseRole.WORKER) as names:
        reader, worker = names[DatabaseRole.READER], names[DatabaseRole.WORKER]
        try:
            async with SessionDatabase.connect(session_database_url) as owner:
                for role, name in names.items():
                    await grant(owner, role, name)
                await owner.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
            as_reader = ("--database-url", url_as(session_database_url, reader))
            without_key = run("db", "rls", "enable", *at)
            assert without_key.returncode == 1
            assert "set SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY" in without_key.stderr
            assert succeed("db", "rls", "check", *at).startswith("Row-level security is disabled.")
            assert succeed("db", "rls", "enable", *at, **KEY) == (
                f"Row-level security is enabled. Trusted roles: {worker}.\n"
            )
            unnamed = run("db", "rls", "check", *as_reader)
            assert unnamed.returncode == 1
            assert f"problem: role {reader} sees no row, as the setting row_level_security is off\n" in unnamed.stdout
            assert "sees the rows of the viewer only" in succeed("db", "rls", "check", *as_reader, **on)
            another_key = {**on, "SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY": "a key of another database: 1234567890"}
            refusal = "the viewer is not signed with the key of this database: compare row_level_security_key\n"
            for command in (("db", "rls", "check"), ("doctor",)):
                refused = run(*command, *as_reader, **another_key)
                assert refused.returncode == 1
                assert refusal in refused.stdout
            assert json.loads(succeed("stats", "--json", *as_reader))["sessions"] == 0
            assert json.loads(succeed("stats", "--json", *as_reader, **on))["sessions"] == 1
            assert json.loads(succeed("stats", "--json", "--user", str(UUID(int=2)), *as_reader, **on))["sessions"] == 0
            # Without trusted roles the worker would fail, and the check says so.
            json.loads(succeed("db", "rls", "enable", "--trusted", reader, "--json", *at, **KEY))
            shut_out = run("db", "rls", "check", *at)
            assert f"problem: roles that write and are not trusted, so they fail: {worker}\n" in shut_out.stdout
            printed = succeed("db", "rls", "sql", "--trusted", worker, **KEY)
            await ask(session_database_url, "SELECT 1")
            connection = await asyncpg.connect(session_database_url)
            await connection.execute(printed)
            await connection.close()
            assert json.loads(succeed("db", "rls", "check", "--json", *at))["trusted_roles"] == [worker]
            assert run("db", "rls", "disable", *at).returncode == 2
            assert succeed("db", "rls", "disable", "--yes", *at) == "Row-level security is disabled.\n"
            assert json.loads(succeed("stats", "--json", *as_reader))["sessions"] == 1
            succeed("db", "check", *at)
        finally:
            for name in names.values():
                await ask(session_database_url, f"DROP OWNED BY {name}")


async def test_a_killed_server_ends_a_command_with_a_message(session_database_url: str) -> None:
    """The backend of the command dies while it waits for the lock of migrations."""
    other = await asyncpg.connect(session_database_url)
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('session_lifecycle', 3))")
        with running("db", "upgrade", "--database-url", session_database_url) as process:
            waiting = """
                SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
            """
            killer = await asyncpg.connect(session_database_url)

            async def waits() -> bool:
                return await killer.fetchval(waiting) is not None

            await eventually(waits)
            await killer.execute(f"SELECT pg_terminate_backend(pid) FROM ({waiting}) waiting")
            _, said = await asyncio.to_thread(process.communicate, timeout=30)
            assert process.returncode == 1
            assert "error: the connection to the database was lost" in said
            assert "`session-lifecycle db check` says what is missing" in said
            await killer.close()
    await other.close()
    assert run_raw("db", "check", "--database-url", session_database_url).returncode == 0
