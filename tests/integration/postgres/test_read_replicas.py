"""Reads on a replica, a real standby: which calls go there, what they see, and how failures of it are raised."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from session_lifecycle import (
    ConfigurationError,
    DatabaseUnavailableError,
    Message,
    Run,
    RunFilters,
    SchemaError,
    SessionActivityDb,
    SessionBudgetsDb,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    SessionMaintenanceDb,
    SessionReportsDb,
    SessionStatus,
    SessionWriter,
    Settings,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
)
from session_lifecycle.models import Budget, UsageEventFilters
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.postgres.migrations import run
from session_lifecycle.roles import SessionRoles
from session_lifecycle.testing import TemplateServer
from support.eventually import eventually
from support.standby import Standby, ask, eventually_on, running_standby

A = UUID(int=1)
NOWHERE = "postgresql://u@127.0.0.1:1/x"
LONG_AGO, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
STARTED = datetime(2026, 1, 2, tzinfo=UTC)
AGE = timedelta(seconds=1)
FILTERS = SessionListFilters(user_id=A)

Roles = SessionDatabase | SessionRoles
Call = Callable[[Roles], Awaitable[Any]]


async def pruned(roles: Roles, call: str) -> int:
    report = await getattr(roles.maintenance, call)(AGE, dry_run=True)
    sessions: int = report.sessions
    return sessions


async def exported(roles: Roles) -> list[Any]:
    async with aclosing(roles.maintenance.export("sessions")) as batches:
        return [batch async for batch in batches]


ON_THE_REPLICA: dict[str, Call] = {
    "list_session_rows": lambda db: db.lifecycle.list_session_rows(FILTERS),
    "aggregate_stats": lambda db: db.lifecycle.aggregate_stats(A),
    "cost_by_model": lambda db: db.lifecycle.cost_by_model(A),
    "get_family_figures": lambda db: db.lifecycle.get_family_figures("s", A),
    "list_session_summaries": lambda db: db.activity.list_session_summaries(SummaryFilters(user_id=A)),
    "get_session_detail": lambda db: db.activity.get_session_detail("s", A),
    "get_recent_activity": lambda db: db.activity.get_recent_activity("s", A),
    "list_threads": lambda db: db.activity.list_threads("s", A),
    "list_runs": lambda db: db.activity.list_runs(RunFilters(user_id=A)),
    "list_usage_events": lambda db: db.activity.list_usage_events(UsageEventFilters(user_id=A)),
    "list_models": lambda db: db.activity.list_models(A),
    "list_clients": lambda db: db.activity.list_clients(A),
    "list_agents": lambda db: db.activity.list_agents(A),
    "usage": lambda db: db.reports.usage(A, group_by=("model",)),
    "spend": lambda db: db.reports.spend(A),
    "usage_timeseries": lambda db: db.reports.usage_timeseries(A, since=LONG_AGO, until=LATER, bucket="month"),
    "tokens_by_class": lambda db: db.reports.tokens_by_class(A),
    "session_durations": lambda db: db.reports.session_durations(A),
    "run_durations": lambda db: db.reports.run_durations(A),
    "cost_by_agent": lambda db: db.reports.cost_by_agent(A),
    "cost_by_user": lambda db: db.reports.cost_by_user(A),
    "cost_by_user_agent": lambda db: db.reports.cost_by_user_agent(A),
    "telemetry": lambda db: db.reports.telemetry(A),
    "list_telemetry_keys": lambda db: db.reports.list_telemetry_keys(A),
}
ON_THE_PRIMARY: dict[str, Call] = {
    "get_session_row": lambda db: db.lifecycle.get_session_row("s", A),
    "list_annotations": lambda db: db.lifecycle.list_annotations("s", A),
    "find_lineage": lambda db: db.activity.find_lineage(A, "call"),
    "chat_history": lambda db: db.activity.chat_history("s", A),
    "prune_sessions": lambda db: pruned(db, "prune_sessions"),
    "prune_payloads": lambda db: pruned(db, "prune_payloads"),
    "reconcile": lambda db: db.maintenance.reconcile(),
    "get_budget": lambda db: db.budgets.get_budget("b", A),
    "list_budgets": lambda db: db.budgets.list_budgets(A),
    "would_exceed": lambda db: db.budgets.would_exceed("s", A, cost_usd=1),
    "reprice": lambda db: db.maintenance.reprice(dry_run=True),
    "export": exported,
}
READS = ON_THE_REPLICA | ON_THE_PRIMARY
# These calls would fail on a standby.
WRITES = {
    *("roll_up", "delete_session", "erase_user", "import_export", "update_session", "annotate_session"),
    *("set_budget", "delete_budget", "reserve", "release"),
    *(name for name in dir(SessionWriter) if not name.startswith("_")),
}


@pytest.fixture(scope="module")
def standby() -> Iterator[Standby]:
    with running_standby() as standby:
        yield standby


@pytest.fixture(scope="module")
def template(standby: Standby, session_template_server: TemplateServer) -> Iterator[TemplateServer]:
    del session_template_server  # with it, this process uses the clocks of tests
    with TemplateServer(standby.primary.url, "template") as server:
        asyncio.run(server.prepare())
        yield server


_numbers = count(1)


@asynccontextmanager
async def database(standby: Standby, template: TemplateServer) -> AsyncGenerator[str]:
    """The URL of a migrated, empty database on the primary, replayed on the standby."""
    name = f"test_{next(_numbers)}"
    await template.clone(name)
    try:
        await standby.caught_up()
        yield template.url_of(name)
    finally:
        await template.drop(name)


@pytest_asyncio.fixture
async def url(standby: Standby, template: TemplateServer) -> AsyncIterator[str]:
    async with database(standby, template) as url:
        yield url


@pytest_asyncio.fixture
async def db(standby: Standby, url: str) -> AsyncIterator[SessionDatabase]:
    async with SessionDatabase.connect(url, read_url=standby.url_of(url)) as db:
        yield db


async def live(db: SessionDatabase) -> None:
    """Records something for every read to find."""
    step = {"step_id": "step", "run_id": "r", "user_id": A, "kind": "tool", "started_at": STARTED}
    message = {"message_id": "m", "user_id": A, "session_id": "s", "role": "user", "content": "hi"}
    ended = {"started_at": STARTED, "ended_at": STARTED, "model": "gpt-4o", "client": "c", "provider": "openai"}
    await db.lifecycle.record(
        [
            Touch(session_id="s", user_id=A, agent_name="agent", at=STARTED),
            Run(run_id="r", user_id=A, session_id="s", **ended),
            Step(**step, tool_call_id="call"),
            Message(**message, created_at=STARTED),
            UsageEvent(
                session_id="s",
                user_id=A,
                model="gpt-4o",
                tokens_in=10,
                tokens_out=5,
                run_id="r",
                idempotency_key="k",
                at=STARTED,
            ),
        ]
    )
    await db.lifecycle.annotate_session("s", A, "quality", score=1)
    await db.budgets.set_budget(Budget(budget_id="b", user_id=A, limit_usd=0))


def reads_of(*protocols: type[Any]) -> set[str]:
    return {name for one in protocols for name in dir(one) if not name.startswith("_")} - WRITES


def test_every_read_is_listed_on_one_side() -> None:
    every = reads_of(SessionLifecycleDb, SessionActivityDb, SessionReportsDb, SessionMaintenanceDb, SessionBudgetsDb)
    assert sorted(READS) == sorted(every)


class Answers(NamedTuple):
    """The answers of one read: on each server alone, and with a replica by each way in."""

    of_the_primary: Any
    of_the_replica: Any
    given: Any
    on_the_primary: Any
    in_a_transaction: Any


@pytest.fixture(scope="module")
def answers(standby: Standby, template: TemplateServer) -> dict[str, Answers]:
    """The answers of every read, while the primary has rows that the replica does not have yet."""

    async def asked() -> dict[str, Answers]:
        async with (
            database(standby, template) as url,
            SessionDatabase.connect(url) as primary,
            SessionDatabase.connect(standby.url_of(url)) as replica,
            SessionDatabase.connect(url, read_url=standby.url_of(url)) as db,
            standby.paused(),
        ):
            await live(db)
            async with db.engine.begin() as host:
                ways = (primary, replica, db, db.primary, db.bind(host))
                return {name: Answers(*[await call(way) for way in ways]) for name, call in READS.items()}

    return asyncio.run(asked())


@pytest.mark.parametrize("name", READS)
def test_a_read_goes_where_it_belongs(answers: dict[str, Answers], name: str) -> None:
    of_read = answers[name]
    assert of_read.of_the_replica != of_read.of_the_primary
    assert of_read.given == (of_read.of_the_replica if name in ON_THE_REPLICA else of_read.of_the_primary)
    assert of_read.on_the_primary == of_read.in_a_transaction == of_read.of_the_primary


async def test_what_was_written_is_seen_on_the_primary_at_once_and_on_the_replica_later(
    standby: Standby, db: SessionDatabase
) -> None:
    async with standby.paused():
        await db.lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)
        assert await db.lifecycle.get_session_row("s", A) is not None
        assert (await db.primary.lifecycle.list_session_rows(FILTERS)).total == 1
        assert (await db.primary.lifecycle.aggregate_stats(A)).tokens_in == 1
        assert (await db.lifecycle.list_session_rows(FILTERS)).total == 0
        assert (await db.lifecycle.aggregate_stats(A)).tokens_in == 0
    await standby.caught_up()
    assert (await db.lifecycle.list_session_rows(FILTERS)).total == 1
    assert (await db.lifecycle.aggregate_stats(A)).tokens_in == 1


async def test_nothing_is_written_on_the_replica(standby: Standby, db: SessionDatabase) -> None:
    async with standby.paused():
        await live(db)
        await db.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
        await db.lifecycle.reopen_session("s", A)
        async with db.recorder() as recorder:
            await recorder.ensure_and_touch_session("t", A)
        async with db.session("u", A):
            pass
        assert (await db.maintenance.roll_up()).sessions > 0
        async with db.rolling_up(every=0.001) as rolling_up:
            await eventually(lambda: rolling_up.snapshot().runs)
        assert rolling_up.snapshot().failures == 0
        assert await db.maintenance.delete_session("u", A)
        assert (await db.maintenance.erase_user(A)).sessions == 2


async def test_writing_to_a_replica_raises(standby: Standby, url: str) -> None:
    async with SessionDatabase.connect(standby.url_of(url), settings=Settings(retries=1)) as db:
        with pytest.raises(DatabaseUnavailableError, match=r"is read-only, as a replica is.*25006") as raised:
            await db.lifecycle.accumulate_usage("s", A, "m", 1)
        assert not raised.value.may_have_written


async def test_a_read_that_recovery_cancels_is_repeated(standby: Standby, url: str, db: SessionDatabase) -> None:
    """The read waits for the clock function, until the primary has removed rows of the read's snapshot."""
    await live(db)
    held_clock = """
        CREATE OR REPLACE FUNCTION session_lifecycle_clock.statement_timestamp() RETURNS timestamptz
        LANGUAGE plpgsql AS $$
        BEGIN
            IF pg_is_in_recovery() THEN
                PERFORM pg_advisory_xact_lock_shared(1);
            END IF;
            RETURN pg_catalog.statement_timestamp();
        END
        $$
    """
    async with db.engine.begin() as primary:
        await primary.execute(text(held_clock))
    await standby.caught_up()
    waits = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    holder = await asyncpg.connect(standby.url_of(url))
    try:
        await holder.execute("SELECT pg_advisory_lock(1)")
        read = asyncio.create_task(db.lifecycle.aggregate_stats(A))
        await eventually_on(standby.server.url, waits)
        await db.maintenance.delete_session("s", A)
        await ask(url, "SELECT 1", first="VACUUM session_lifecycle.session_records")
        await standby.caught_up()
    finally:
        await holder.close()
    # The cancelled read would have seen one session; the repeated one sees none.
    assert (await read).sessions == 0


async def test_an_unreachable_replica_raises_and_no_read_goes_to_the_primary(session_database_url: str) -> None:
    settings = Settings(retries=0)
    async with SessionDatabase.connect(session_database_url, read_url=NOWHERE, settings=settings) as db:
        await live(db)
        for name, call in ON_THE_REPLICA.items():
            with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
                await call(db)
            assert await call(db.primary), name
        for call in ON_THE_PRIMARY.values():
            assert await call(db)


async def test_a_replica_behind_a_migration_raises(standby: Standby, url: str) -> None:
    async with SessionDatabase.connect(url) as db, db.engine.begin() as connection:
        await connection.run_sync(run, "session_lifecycle", "downgrade", "base")
    async with SessionDatabase.connect(url, read_url=standby.url_of(url)) as db:
        async with standby.paused():
            await db.migrate()
            await db.check()
            assert (await db.primary.lifecycle.aggregate_stats(A)).sessions == 0
            with pytest.raises(SchemaError):
                await db.lifecycle.aggregate_stats(A)
        await standby.caught_up()
        assert (await db.lifecycle.aggregate_stats(A)).sessions == 0


async def test_closing_leaves_a_hosts_engines_alone_and_closes_ours(standby: Standby, url: str) -> None:
    engine, read_engine = (create_async_engine(asyncpg_url(one)) for one in (url, standby.url_of(url)))
    async with SessionDatabase.from_engine(engine, read_engine=read_engine) as db:
        await live(db)
        await standby.caught_up()
        assert (await db.lifecycle.aggregate_stats(A)).sessions == 1
        # The read goes to the replica.
        assert [pooled(one) for one in (engine, read_engine)] == [1, 1]
    assert [pooled(one) for one in (engine, read_engine)] == [1, 1]
    await engine.dispose()
    await read_engine.dispose()

    settings = Settings(application_name="ours")
    connected = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'ours'"
    async with SessionDatabase.connect(url, read_url=standby.url_of(url), settings=settings) as db:
        await db.lifecycle.aggregate_stats(A)
        assert await ask(standby.server.url, connected)
        assert not await ask(standby.primary.url, connected)
    await eventually_on(standby.server.url, f"SELECT NOT ({connected})")


def pooled(engine: AsyncEngine) -> int:
    """The number of open, idle connections."""
    pool: Any = engine.pool
    idle: int = pool.checkedin()
    return idle


async def test_the_replica_comes_from_the_same_place_as_the_database(
    monkeypatch: pytest.MonkeyPatch, session_database_url: str
) -> None:
    monkeypatch.setenv("SESSION_LIFECYCLE_DATABASE_URL", session_database_url)
    monkeypatch.setenv("SESSION_LIFECYCLE_READ_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("SESSION_LIFECYCLE_RETRIES", "0")
    async with SessionDatabase.connect() as db:
        with pytest.raises(DatabaseUnavailableError):
            await db.lifecycle.aggregate_stats(A)
        assert (await db.primary.lifecycle.aggregate_stats(A)).sessions == 0
    # The setting's replica belongs to the setting's database, so a given URL ignores it.
    for url, read_url in ((session_database_url, None), (None, session_database_url)):
        async with SessionDatabase.connect(url, read_url=read_url) as db:
            assert (await db.lifecycle.aggregate_stats(A)).sessions == 0


def test_another_driver_for_reading_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="mysql"):
        SessionDatabase.connect(NOWHERE, read_url="mysql://h/x")
    not_an_engine: Any = "text"
    with pytest.raises(ConfigurationError, match="read_engine: got 'text'"):
        SessionDatabase.from_engine(create_async_engine(asyncpg_url(NOWHERE)), read_engine=not_an_engine)
