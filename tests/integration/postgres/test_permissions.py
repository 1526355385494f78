"""The rights that the page on permissions names are enough, and each is needed."""

import os
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from session_lifecycle import (
    ConfigurationError,
    End,
    Message,
    Run,
    SessionDatabase,
    SessionListFilters,
    SessionStatus,
    Step,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.entities import VERSION_TABLE, metadata
from session_lifecycle.models import Budget
from session_lifecycle.postgres.migrations import run
from session_lifecycle.postgres.permissions import GRANTS, DatabaseRole, role_sql
from session_lifecycle.testing import TemplateServer
from support.stored_rows import keep_buckets
from support.ways_of_reading import reading

PAGE = (Path(__file__).parents[3] / "docs/reference/permissions.md").read_text()
ROLES = tuple(f"sessions_{role}" for role in DatabaseRole)
TABLES = ("session_records", "session_model_usage", "session_usage_events")
ONE = Viewer.auditor()
USER = UUID(int=1)
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
WRITTEN = (*TABLES, "session_runs", "session_steps", "session_messages", "session_annotations")
CHANGES = ("session_roll_up_changes", "session_model_roll_up_changes")
ROLL_UPS = ("session_roll_ups", "session_model_roll_ups")

Roles = Callable[[str, str], tuple[str, list[str]]]


@pytest_asyncio.fixture
async def roles(session_template_server: TemplateServer) -> AsyncIterator[Roles]:
    """Maps a database's URL and a role to the URL of that role and the page's statements for it.

    Requested before any database, so that the databases, which hold the grants, are dropped before the roles.
    """
    names = {role: f"{role}_{os.getpid()}" for role in ROLES}
    for name in names.values():
        await session_template_server.run(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")

    def of(url: str, role: str) -> tuple[str, list[str]]:
        parsed = make_url(url)
        grants = [
            statement.replace(role, names[role]).replace('DATABASE "app"', f'DATABASE "{parsed.database}"')
            for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
            for statement in block.split(";")
            if role in statement
        ]
        assert grants
        user = parsed.set(username=names[role], password="x")
        return user.render_as_string(hide_password=False), grants

    yield of
    for name in names.values():
        await session_template_server.run(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_the_page_has_the_statements_of_the_command() -> None:
    blocks = re.findall(r"```sql\n(.*?)\n```", PAGE, re.DOTALL)
    of_code = [role_sql("session_lifecycle", role, f"sessions_{role}", database="app") for role in DatabaseRole]
    assert blocks == of_code


def test_every_table_has_rights_of_the_operator_and_of_the_reader() -> None:
    for role in (DatabaseRole.OPERATOR, DatabaseRole.READER):
        assert {table for _, tables in GRANTS[role] for table in tables} == {
            *(table.name for table in metadata.tables.values()),
            VERSION_TABLE,
        }


async def test_the_operator_makes_every_call_of_maintenance_and_does_not_migrate(
    roles: Roles, session_database: SessionDatabase, session_database_url: str
) -> None:
    url, grants = roles(session_database_url, "sessions_operator")
    await grant(session_database, grants)
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    async with SessionDatabase.connect(url) as db:
        await write_everything(db, db)
        await db.lifecycle.record([Touch(session_id="old", user_id=USER, at=long_ago)])
        await db.maintenance.roll_up()
        await db.maintenance.reprice()
        assert (await db.maintenance.reconcile(repair=True)).mismatch_count == 0
        assert (await db.maintenance.prune_payloads(timedelta(days=1))).messages == 1
        assert (await db.maintenance.prune_sessions(timedelta(days=1))).sessions == 3
        assert await db.maintenance.delete_session("s", USER)
        assert (await db.maintenance.erase_user(USER, tombstone=True)).tombstoned
        await db.budgets.set_budget(Budget(budget_id="more", user_id=UUID(int=2), limit_usd=2))
        assert await db.budgets.delete_budget("more")
        with pytest.raises(ConfigurationError, match="42501"):
            await db.administration.downgrade("base")


async def grant(db: SessionDatabase, statements: list[str]) -> None:
    async with db.engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def read_everything(db: SessionDatabase) -> int:
    assert await db.lifecycle.get_session_row("s", USER) is not None
    page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=ONE))
    sessions, tokens_in = await read_figures(db)
    assert page.total == sessions
    return tokens_in


async def read_figures(db: SessionDatabase) -> tuple[int, int]:
    """The number of sessions, and their tokens by model."""
    stats, costs = await db.lifecycle.aggregate_stats(ONE), await db.lifecycle.cost_by_model(ONE)
    return stats.sessions, sum(row.tokens_in for row in costs)


async def live(db: SessionDatabase, user: UUID = USER) -> None:
    """Records a session that has ended."""
    await db.lifecycle.record(
        [
            UsageEvent(session_id="over", user_id=user, model="m", tokens_in=1),
            End(session_id="over", user_id=user, status="completed"),
        ]
    )


async def write_everything(db: SessionDatabase, owner: SessionDatabase, user: UUID = USER) -> None:
    await live(db, user)
    await owner.maintenance.roll_up()
    await db.lifecycle.reopen_session("over", user)
    event = {"session_id": "s", "user_id": user, "model": "m", "idempotency_key": "k"}
    await db.lifecycle.record(
        [
            Touch(session_id="s", user_id=user),
            UsageEvent(**event, tokens_in=1),
            End(session_id="s", user_id=user, status="failed"),
        ]
    )
    await db.lifecycle.reopen_session("s", user)
    await db.lifecycle.update_session("s", user, parent_session_id="over")
    for score in (0, 1):
        await db.lifecycle.annotate_session("s", user, "quality", score=score)
    assert [one.score for one in await db.lifecycle.list_annotations("s", user)] == [1]
    assert await db.lifecycle.get_family_figures("over", user) is not None
    await db.lifecycle.record([UsageEvent(**event, tokens_in=2, revision=1)])
    await db.lifecycle.record([UsageEvent(**{**event, "idempotency_key": "u"}, tokens_in=3, key_scope="user")])
    await db.lifecycle.end_session("s", user, SessionStatus.COMPLETED)
    late = await db.lifecycle.accumulate_usage("s", user, "m", 1)
    assert late.outcome == "frozen"
    await owner.budgets.set_budget(Budget(budget_id=str(user), user_id=user, limit_usd=1))
    assert await db.budgets.get_budget(str(user), user) is not None
    for _ in range(2):
        assert (await db.budgets.reserve("s", user, cost_usd=1, idempotency_key="b")).outcome == "reserved"
    assert await db.budgets.release("s", user, "b")
    run = {"run_id": "r", "user_id": user, "started_at": STARTED}
    step = {"step_id": "step", "run_id": "r", "user_id": user, "kind": "task", "started_at": STARTED}
    message = {"message_id": "m", "user_id": user, "session_id": "s", "role": "user", "content": "hi"}
    await db.lifecycle.record([Run(**run, reported_cost_usd=1), Step(**step)])
    await db.lifecycle.record(
        [
            UsageEvent(
                session_id="r", user_id=user, model="m", tokens_in=0, tokens_out=0, cost_usd=2, run_id="r", touch=False
            )
        ]
    )
    await db.lifecycle.record([Run(**{**run, "run_id": "q"})])
    await db.lifecycle.record([Run(**{**run, "run_id": "q"}, session_id="t")])
    await db.lifecycle.record([Message(**message, created_at=STARTED)])
    await db.lifecycle.record([Step(**step, name="again"), Message(**message, created_at=STARTED, run_id="r")])


async def rows(db: SessionDatabase) -> int:
    async with db.engine.connect() as connection:
        counted = await connection.exec_driver_sql(
            " UNION ALL ".join(f"SELECT count(*) AS n FROM session_lifecycle.{table}" for table in TABLES)
        )
        return sum(counted.scalars())


async def test_the_worker_makes_every_call(
    roles: Roles, session_database: SessionDatabase, session_database_url: str
) -> None:
    url, grants = roles(session_database_url, "sessions_worker")
    await grant(session_database, [right for right in grants if "EXECUTE" not in right])
    async with SessionDatabase.connect(url) as db:
        await write_everything(db, session_database)
        assert await read_everything(db) == 6
        await db.check()
        # Whoever reserves cannot raise the limit.
        with pytest.raises(ConfigurationError, match="42501"):
            await db.budgets.set_budget(Budget(budget_id="more", user_id=USER, limit_usd=2))
        with pytest.raises(ConfigurationError, match="42501"):
            await db.budgets.delete_budget(str(USER))


async def test_the_worker_needs_each_of_its_rights(
    roles: Roles, session_database: SessionDatabase, session_database_url: str
) -> None:
    url, grants = roles(session_database_url, "sessions_worker")
    grants = [right for right in grants if "EXECUTE" not in right]
    role = make_url(url).username
    rights = [f"{right} ON session_lifecycle.{table}" for right in ("SELECT", "INSERT", "UPDATE") for table in WRITTEN]
    rights += [f"DELETE ON session_lifecycle.{table}" for table in TABLES]
    rights += [f"{right} ON session_lifecycle.rolled_up_sessions" for right in ("SELECT", "DELETE")]
    rights += [f"INSERT ON session_lifecycle.{table}" for table in CHANGES]
    rights += [f"SELECT ON session_lifecycle.{table}" for table in ("session_tombstones", "session_budgets")]
    rights += [
        f"{right} ON session_lifecycle.session_reservations" for right in ("SELECT", "INSERT", "UPDATE", "DELETE")
    ]
    rights += ["USAGE ON SCHEMA session_lifecycle", "SELECT ON session_lifecycle.session_lifecycle_version"]
    for number, right in enumerate(rights, 2):
        await grant(session_database, [*grants, f"REVOKE {right} FROM {role}"])
        async with SessionDatabase.connect(url) as db:
            with pytest.raises(ConfigurationError, match="42501"):
                await write_everything(db, session_database, UUID(int=number))
    for table in (*CHANGES, *ROLL_UPS):
        await grant(session_database, [*grants, f"REVOKE SELECT ON session_lifecycle.{table} FROM {role}"])
        # The statements for few sessions read no roll-ups.
        async with SessionDatabase.connect(url) as db:
            with reading("many"), pytest.raises(ConfigurationError, match="42501"):
                await read_figures(db)


async def test_the_worker_is_granted_the_rights_that_public_lost(
    roles: Roles, session_database: SessionDatabase, session_database_url: str
) -> None:
    url, grants = roles(session_database_url, "sessions_worker")
    taken = "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA session_lifecycle FROM PUBLIC"
    await grant(session_database, [taken, *(right for right in grants if "EXECUTE" not in right)])
    async with SessionDatabase.connect(url) as db:
        with pytest.raises(ConfigurationError, match="42501"):
            await write_everything(db, session_database)
        await grant(session_database, [right for right in grants if "EXECUTE" in right])
        await write_everything(db, session_database)


async def test_the_roller_rolls_up_and_needs_each_of_its_rights(
    roles: Roles, session_database: SessionDatabase, session_database_url: str
) -> None:
    url, grants = roles(session_database_url, "sessions_roller")
    role = make_url(url).username
    rights = [f"{right} ON session_lifecycle.session_records" for right in ("SELECT", "UPDATE")]
    rights += [f"SELECT ON session_lifecycle.{table}" for table in ("session_model_usage", "session_lifecycle_version")]
    rights += [f"{right} ON session_lifecycle.rolled_up_sessions" for right in ("SELECT", "INSERT")]
    rights += [f"{right} ON session_lifecycle.{table}" for right in ("SELECT", "INSERT", "DELETE") for table in CHANGES]
    for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        rights += [f"{right} ON session_lifecycle.{table}" for table in ROLL_UPS]
    rights += ["USAGE ON SCHEMA session_lifecycle"]
    await keep_buckets(session_database)
    for number, right in enumerate(rights):
        await live(session_database, UUID(int=number))
        await grant(session_database, [*grants, f"REVOKE {right} FROM {role}"])
        async with SessionDatabase.connect(url) as db:
            with pytest.raises(ConfigurationError, match="42501"):
                await db.maintenance.roll_up()
    await grant(session_database, grants)
    async with SessionDatabase.connect(url) as db:
        await db.maintenance.roll_up()
        async with session_database.engine.connect() as connection:
            counted = (
                "SELECT sum(sessions) FROM session_lifecycle.session_roll_ups WHERE family = 'all' AND level = '9 days'"
            )
            assert (await connection.exec_driver_sql(counted)).scalar_one() == len(rights)
        with pytest.raises(ConfigurationError, match="42501"):
            await db.lifecycle.ensure_and_touch_session("s", USER)


async def test_the_reader_makes_every_read_and_no_write(
    roles: Roles, session_database: SessionDatabase, session_database_url: str
) -> None:
    url, grants = roles(session_database_url, "sessions_reader")
    await grant(session_database, grants)
    await session_database.lifecycle.accumulate_usage("s", USER, "m", 1)
    before = await rows(session_database)
    async with SessionDatabase.connect(url) as db:
        await db.check()
        assert await read_everything(db) == 1
        for write in (
            db.lifecycle.ensure_and_touch_session("s", USER),
            db.lifecycle.ensure_and_touch_session("t", USER),
            db.lifecycle.accumulate_usage("s", USER, "m", 1),
            db.lifecycle.end_session("s", USER, SessionStatus.COMPLETED),
        ):
            with pytest.raises(ConfigurationError, match=r"refuses access: .*\(42501\)"):
                await write
        assert await read_everything(db) == 1
        assert await rows(session_database) == before


@pytest.mark.parametrize("role", ["sessions_worker", "sessions_reader"])
async def test_nobody_else_migrates(
    roles: Roles, session_database: SessionDatabase, session_database_url: str, role: str
) -> None:
    url, grants = roles(session_database_url, role)
    await grant(session_database, grants)
    async with SessionDatabase.connect(url) as db:
        await db.migrate()  # the schema is migrated already
    async with SessionDatabase.connect(url, schema="another") as db:
        with pytest.raises(ConfigurationError, match="42501"):
            await db.migrate()
    async with session_database.engine.begin() as connection:
        await connection.run_sync(run, "session_lifecycle", "downgrade", "base")
    async with SessionDatabase.connect(url) as db:
        with pytest.raises(ConfigurationError, match="42501"):
            await db.migrate()


async def test_the_migrator_needs_only_the_right_to_create(
    roles: Roles, session_template_server: TemplateServer
) -> None:
    name = f"permissions_{os.getpid()}"
    await session_template_server.run(f'CREATE DATABASE "{name}"')
    try:
        url, grants = roles(session_template_server.url_of(name), "sessions_migrator")
        async with SessionDatabase.connect(url) as db:
            with pytest.raises(ConfigurationError, match="42501"):
                await db.migrate()
        async with SessionDatabase.connect(session_template_server.url_of(name)) as owner:
            await grant(owner, grants)
        async with SessionDatabase.connect(url) as db:
            await db.migrate()
            await db.check()
    finally:
        await session_template_server.drop(name)


async def test_the_migrator_may_own_the_schema_instead(
    roles: Roles, session_database: SessionDatabase, session_database_url: str
) -> None:
    url, _ = roles(session_database_url, "sessions_migrator")
    await grant(session_database, [f"CREATE SCHEMA another AUTHORIZATION {make_url(url).username}"])
    async with SessionDatabase.connect(url, schema="another") as db:
        await db.migrate()
        await db.check()
