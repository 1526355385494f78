"""Row-level security is a second wall behind R11: without a signed viewer, a role that reads sees no row."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import NamedTuple

import asyncpg
import pytest
import pytest_asyncio

from integration.postgres.test_read_replicas import READS
from session_lifecycle import (
    ConfigurationError,
    SessionDatabase,
    SessionLifecycleDb,
    SessionMaintenanceDb,
    Settings,
    Viewer,
)
from session_lifecycle.postgres import row_level_security as rls
from session_lifecycle.postgres.driver_statements import VIEWER_SETTING
from session_lifecycle.postgres.permissions import DatabaseRole
from session_lifecycle.testing import TemplateServer
from support.answers import USERS, VIEWERS, answers, fill
from support.commands import run
from support.contract import SessionLifecycleContract
from support.roles import database_roles, grant, url_as
from support.statements import noted
from support.stored_rows import keep_buckets

KEY = "a key that no other database has: 1234567890"
ON = Settings(row_level_security=True, row_level_security_key=KEY)
# Jobs, which look at every user, and a question of a runtime before it writes.
OF_OPERATORS_AND_WRITERS = {"prune_sessions", "prune_payloads", "reconcile", "reprice", "export", "would_exceed"}
READER, WORKER, ROLLER = DatabaseRole.READER, DatabaseRole.WORKER, DatabaseRole.ROLLER
OPERATOR = DatabaseRole.OPERATOR
MONTH = timedelta(days=30)
JOBS: dict[str, Callable[[SessionMaintenanceDb], Awaitable[object]]] = {
    "reprice": lambda jobs: jobs.reprice(dry_run=True),
    "roll_up": lambda jobs: jobs.roll_up(),
    "prune_sessions": lambda jobs: jobs.prune_sessions(MONTH, dry_run=True),
    "prune_payloads": lambda jobs: jobs.prune_payloads(MONTH),
    "delete_session": lambda jobs: jobs.delete_session("over", USERS[0]),
    "erase_user": lambda jobs: jobs.erase_user(USERS[0]),
    "reconcile": lambda jobs: jobs.reconcile(repair=True),
    "export": lambda jobs: anext(jobs.export("all")),
}


class Walled(NamedTuple):
    """A database with row-level security, and how its roles connect."""

    url: str
    worker_url: str
    reader_url: str
    reader: str


@pytest_asyncio.fixture
async def roles(session_template_server: TemplateServer) -> AsyncIterator[dict[DatabaseRole, str]]:
    async with database_roles(session_template_server, READER, WORKER, ROLLER, OPERATOR) as names:
        yield names


@pytest_asyncio.fixture
async def walled(roles: dict[DatabaseRole, str], session_database_url: str) -> Walled:
    async with SessionDatabase.connect(session_database_url, settings=ON) as owner:
        for role in (READER, WORKER, ROLLER):
            await grant(owner, role, roles[role])
        await keep_buckets(owner)
        report = await owner.administration.enable_row_level_security()
        assert report.trusted_roles == tuple(sorted((roles[WORKER], roles[ROLLER])))
        assert report.problems == ()
    worker, reader = (url_as(session_database_url, roles[role]) for role in (WORKER, READER))
    return Walled(session_database_url, worker, reader, roles[READER])


async def counted(connection: "asyncpg.Connection", condition: str = "true") -> dict[str, int]:
    found = {}
    for table in rls.TABLES:
        found[table] = await connection.fetchval(f"SELECT count(*) FROM session_lifecycle.{table} WHERE {condition}")
    return found


async def test_R11_a_raw_connection_of_a_reader_sees_no_row_by_any_statement(walled: Walled) -> None:
    await fill(walled.worker_url, walled.url)
    owner = await asyncpg.connect(walled.url)
    everything = await counted(owner)
    # A schema that is no bucket has none there, and a bucket's row is of nobody.
    assert {table for table, rows in everything.items() if not rows} == {"session_buckets"}
    await owner.close()
    reader = await asyncpg.connect(walled.reader_url)
    chance = random.Random(1)
    forged = [
        "",
        "x",
        rls.sign_viewer(b"another key of more than thirty-two characters", Viewer.auditor()),
        "0" * 64 + '{"owners": [], "all": true, "until": 99999999999}',
        rls.sign_viewer(KEY.encode(), Viewer(USERS[0]))[:64] + rls.sign_viewer(KEY.encode(), Viewer.auditor())[64:],
    ]
    shapes = [
        "SELECT count(*) FROM {0}",
        "SELECT count(*) FROM {0} a, {1} b",
        "SELECT count(*) FROM (SELECT * FROM {0} UNION ALL SELECT * FROM {0}) x",
        "WITH x AS MATERIALIZED (SELECT * FROM {0}) SELECT count(*) FROM x",
        "SELECT count(*) FROM {0} WHERE EXISTS (SELECT FROM {1})",
        "SELECT count(*) FROM {0} a RIGHT JOIN {1} b ON true",
        "SELECT count(DISTINCT x::text) FROM {0} x",
        "SELECT count(*) FROM {0} WHERE length(set_config('session_lifecycle.viewer', $${2}$$, false)) >= 0",
        "SELECT count(*) FROM {0} x WHERE 1 / length(x::text) >= 0",
        "SELECT count(*) FROM ONLY {0} TABLESAMPLE SYSTEM (100)",
        "SELECT count(*) FROM (SELECT * FROM {0} ORDER BY 1 LIMIT 5 OFFSET 0) x",
    ]
    seen, refused = 0, set()
    for _ in range(400):
        one, two = (f"session_lifecycle.{chance.choice(rls.TABLES)}" for _ in range(2))
        try:
            await reader.fetchval("SELECT set_config($1, $2, false)", VIEWER_SETTING, chance.choice(forged))
            seen += await reader.fetchval(chance.choice(shapes).format(one, two, chance.choice(forged)))
        except asyncpg.InsufficientPrivilegeError as error:
            refused.add(str(error))
    assert seen == 0
    assert refused == {"the viewer is not signed with the key of this database: compare row_level_security_key"}
    for escape in (
        "SET row_security = off; SELECT count(*) FROM session_lifecycle.session_records",
        "SET ROLE session_lifecycle",
        "ALTER TABLE session_lifecycle.session_records DISABLE ROW LEVEL SECURITY",
        "DROP POLICY session_lifecycle_viewer ON session_lifecycle.session_records",
        "SELECT * FROM session_lifecycle.session_viewer_key",
        "SELECT session_lifecycle.signed_viewer()",
        "COPY session_lifecycle.session_records TO PROGRAM 'cat'",
        "DELETE FROM session_lifecycle.session_records",
    ):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError)):
            await reader.execute(escape)
    statistics = "SELECT count(*) FROM pg_stats WHERE schemaname = 'session_lifecycle' AND attname = 'user_id'"
    owner = await asyncpg.connect(walled.url)
    await owner.execute("ANALYZE")
    assert await owner.fetchval(statistics) > 0
    assert await reader.fetchval(statistics) == 0
    # Not even where an operator grants all tables of the schema, the key among them.
    await owner.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA session_lifecycle TO {walled.reader}")
    await owner.close()
    assert await reader.fetch("SELECT * FROM session_lifecycle.session_viewer_key") == []
    await reader.close()


async def test_R11_each_viewer_sees_with_the_wall_what_they_see_without_it(walled: Walled) -> None:
    await fill(walled.worker_url, walled.url)
    async with (
        SessionDatabase.connect(walled.url) as owner,
        SessionDatabase.connect(walled.reader_url, settings=ON) as reader,
        SessionDatabase.connect(walled.reader_url) as unnamed,
    ):
        for viewer in VIEWERS:
            assert await answers(reader, viewer) == await answers(owner, viewer)
            # Inside a host's transaction, too, which has no viewer afterwards.
            async with reader.engine.begin() as host:
                bound = reader.bind(host)
                stats = await bound.lifecycle.aggregate_stats(viewer)
                assert stats == await owner.lifecycle.aggregate_stats(viewer)
                assert (await host.exec_driver_sql(f"SELECT current_setting('{VIEWER_SETTING}')")).scalar_one() == ""
        # A process that names no viewer sees nothing, and is told by the check.
        assert (await unnamed.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 0
        [problem] = (await unnamed.administration.check_row_level_security()).problems
        assert "row_level_security is off" in problem
        assert (await reader.administration.check_row_level_security()).problems == ()
        await owner.administration.disable_row_level_security()
        assert (await unnamed.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 12
        assert not (await owner.administration.check_row_level_security()).is_enabled


async def test_R11_another_key_and_an_old_signature_are_refused(
    walled: Walled, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(walled.worker_url, walled.url)
    wrong = Settings(row_level_security=True, row_level_security_key="x" * 32)
    async with SessionDatabase.connect(walled.reader_url, settings=wrong) as db:
        with pytest.raises(ConfigurationError, match="compare row_level_security_key"):
            await db.lifecycle.aggregate_stats(USERS[0])
    monkeypatch.setattr(rls, "TOKEN_SECONDS", -1)
    async with SessionDatabase.connect(walled.reader_url, settings=ON) as db:
        with pytest.raises(ConfigurationError, match="compare the clocks"):
            await db.lifecycle.aggregate_stats(USERS[0])
    with pytest.raises(ConfigurationError, match="SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY"):
        SessionDatabase.connect(walled.url, settings=Settings(row_level_security=True))


async def test_R11_a_read_names_its_viewer_in_the_same_round_trip_and_leaves_none(walled: Walled) -> None:
    await fill(walled.worker_url, walled.url)
    async with SessionDatabase.connect(walled.reader_url, settings=ON) as db:
        await db.lifecycle.aggregate_stats(USERS[0])
        async with noted(db) as sent:
            await db.lifecycle.aggregate_stats(USERS[0])
        assert len(sent) == 1
        async with db.engine.connect() as connection:
            asked = f"SELECT current_setting('{VIEWER_SETTING}', true)"
            assert (await connection.exec_driver_sql(asked)).scalar_one() in {None, ""}


async def test_R11_every_read_names_its_viewer(walled: Walled, monkeypatch: pytest.MonkeyPatch) -> None:
    """`READS` has every read of the roles; another test looks for new ones."""
    signed: list[Viewer] = []
    sign = rls.sign_viewer

    def noted(key: bytes, viewer: Viewer) -> str:
        signed.append(viewer)
        return sign(key, viewer)

    monkeypatch.setattr(rls, "sign_viewer", noted)
    await fill(walled.worker_url, walled.url)
    async with SessionDatabase.connect(walled.worker_url, read_url=walled.reader_url, settings=ON) as db:
        for name in READS.keys() - OF_OPERATORS_AND_WRITERS:
            signed.clear()
            await READS[name](db)
            assert signed == [Viewer(USERS[0])], name


async def test_R11_a_job_of_a_role_that_is_walled_in_is_refused(walled: Walled, roles: dict[DatabaseRole, str]) -> None:
    """It would find nothing, and say that all is erased, reconciled or exported."""
    # An import writes, and Postgres refuses that.
    assert JOBS.keys() == {name for name in dir(SessionMaintenanceDb) if name[0] != "_"} - {"import_export"}
    await fill(walled.worker_url, walled.url)
    async with SessionDatabase.connect(walled.url, settings=ON) as owner:
        await grant(owner, OPERATOR, roles[OPERATOR])  # after `db rls enable`, so it is not trusted
        for name in (roles[READER], roles[OPERATOR]):
            async with (
                SessionDatabase.connect(url_as(walled.url, name), settings=ON) as db,
                db.engine.begin() as host,
            ):
                for jobs in (db.maintenance, db.bind(host).maintenance):
                    for job, call in JOBS.items():
                        with pytest.raises(ConfigurationError, match=f"role '{name}' sees no row"):
                            pytest.fail(f"{job}: {await call(jobs)}")
        await owner.administration.enable_row_level_security()
        async with SessionDatabase.connect(url_as(walled.url, roles[OPERATOR]), settings=ON) as db:
            assert (await db.maintenance.reconcile()).sessions_looked_at == 12
            assert (await db.maintenance.erase_user(USERS[0])).sessions == 4
            assert await db.maintenance.delete_session("over", USERS[1])


async def test_R11_a_command_of_a_writer_that_is_not_trusted_tells_of_no_session(
    walled: Walled, roles: dict[DatabaseRole, str]
) -> None:
    """It finds no session, whether there is one or not, and says so."""
    await fill(walled.worker_url, walled.url)
    async with SessionDatabase.connect(walled.url, settings=ON) as owner:
        await owner.administration.enable_row_level_security(trusted_roles=[roles[ROLLER]])
    place = ("--user", str(USERS[0]), "--database-url", walled.worker_url)
    for command in (("end", "--status", "failed"), ("reopen",), ("update", "--title", "new")):
        said = []
        for session_id in ("over", "missing"):
            name, *options = command
            refused = run("sessions", name, session_id, *options, *place)
            assert refused.returncode == 1
            said.append(refused.stderr.splitlines()[-1])
        assert said[0] == said[1]
        assert said[0].startswith(f"error: role {roles[WORKER]} cannot change a session, as row-level security is on")


async def test_going_back_to_base_leaves_neither_a_policy_nor_a_key(walled: Walled) -> None:
    functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'session_lifecycle'::regnamespace"
    # The version table of Alembic stays, without a row.
    others = """
        SELECT count(*) FROM pg_class
        WHERE relnamespace = 'session_lifecycle'::regnamespace AND relname !~ 'session_lifecycle_version'
    """
    async with SessionDatabase.connect(walled.url) as owner:
        await owner.administration.downgrade("base")
        connection = await asyncpg.connect(walled.url)
        assert [await connection.fetchval(sql) for sql in (functions, others)] == [0, 0]
        await connection.close()
        await owner.migrate()
        await owner.check()
        assert not (await owner.administration.check_row_level_security()).is_enabled


def test_R11_every_table_has_a_condition() -> None:
    assert set(rls.CONDITIONS) == set(rls.TABLES)


class TestWithRowLevelSecurity(SessionLifecycleContract):
    """Writes as the worker and reads as the reader, who is walled in."""

    @pytest_asyncio.fixture
    async def lifecycle(self, walled: Walled) -> AsyncIterator[SessionLifecycleDb]:
        async with SessionDatabase.connect(walled.worker_url, read_url=walled.reader_url, settings=ON) as db:
            yield db.lifecycle
