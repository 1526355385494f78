"""Settings that a host or a database may have changed: calls work, or raise our error at first use."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from session_lifecycle import (
    ConfigurationError,
    InvalidValueError,
    Run,
    SessionDatabase,
    SessionLifecycleError,
    SessionStatus,
    Settings,
    SummaryFilters,
)
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.testing import TemplateServer
from support.scripts import run_script
from support.usage import A, receipt_of, usage

EXACT = Decimal("0.123456789012345678901234567891")
SCORE = 0.1 + 0.2


@pytest_asyncio.fixture
async def setting(session_database: SessionDatabase) -> AsyncIterator[Any]:
    """Sets a default of the test's database, for connections that are opened afterwards."""

    async def change(name: str, value: str) -> None:
        async with session_database.engine.begin() as connection:
            database = (await connection.exec_driver_sql("SELECT current_database()")).scalar()
            await connection.exec_driver_sql(f'ALTER DATABASE "{database}" SET {name} = {value}')

    yield change


async def use(db: SessionDatabase) -> None:
    """Writes and reads money, floats, times, ids and text, and compares them to the last digit."""
    receipt = await receipt_of(db.lifecycle, usage(cost_usd=EXACT))
    assert receipt.session_cost_usd == EXACT
    run = Run(user_id=A, session_id="s", run_id="é", started_at="2026-01-02T03:04:05.678901Z", quality_score=SCORE)
    await db.lifecycle.record([run])
    found = await db.lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.record.cost_usd == EXACT
    detail = await db.activity.get_session_detail("s", A)
    assert detail is not None
    [stored] = detail.runs
    assert (stored.run_id, stored.quality_score, stored.started_at) == ("é", SCORE, run.started_at)
    page = await db.activity.list_session_summaries(SummaryFilters(user_id=A, search="nothing"))
    assert page.sessions == []
    assert (await db.lifecycle.aggregate_stats(A)).total_spend_usd == EXACT
    assert [row.cost_usd for row in await db.lifecycle.cost_by_model(A)] == [EXACT]


CHANGES = [
    ("search_path", "''"),
    ("default_transaction_isolation", "'repeatable read'"),
    ("default_transaction_isolation", "'serializable'"),
    ("extra_float_digits", "0"),
    ('"DateStyle"', "'SQL, DMY'"),
    ('"IntervalStyle"', "'sql_standard'"),
    ('"TimeZone"', "'Asia/Kolkata'"),
    ("bytea_output", "'escape'"),
    ("client_encoding", "'LATIN1'"),
    ("standard_conforming_strings", "off"),
    ("quote_all_identifiers", "on"),
]


@pytest.mark.parametrize(("name", "value"), CHANGES)
async def test_X36_our_own_engine_works_whatever_the_database_has_set(
    session_database_url: str, setting: Any, name: str, value: str
) -> None:
    await setting(name, value)
    async with SessionDatabase.connect(session_database_url) as db:
        await use(db)


async def test_X36_our_own_connections_are_read_committed_and_have_a_safe_path(
    session_database_url: str, setting: Any
) -> None:
    await setting("default_transaction_isolation", "serializable")
    async with SessionDatabase.connect(session_database_url) as db, db.engine.connect() as connection:
        for name, value in (("transaction_isolation", "read committed"), ("extra_float_digits", "1"), ("jit", "off")):
            assert (await connection.exec_driver_sql(f"SHOW {name}")).scalar() == value


def test_X40_the_path_of_our_own_connections_has_no_schema_but_postgres_own(session_database_url: str) -> None:
    # In a process of its own, without the clock of the tests.
    said = run_script(
        """
        async def main():
            async with SessionDatabase.connect(URL) as db:
                await db.lifecycle.accumulate_usage("s", A, "m", 1)
                print((await db.lifecycle.aggregate_stats(A)).tokens_in)
                async with db.engine.connect() as connection:
                    print((await connection.exec_driver_sql("SHOW search_path")).scalar())
        asyncio.run(main())
        """,
        session_database_url,
    )
    assert said.splitlines() == ["1", "pg_catalog, pg_temp"]


async def test_X40_an_operator_planted_before_the_catalogue_is_not_run(session_database_url: str, setting: Any) -> None:
    connection = await asyncpg.connect(session_database_url)
    try:
        await connection.execute("""
            CREATE SCHEMA hostile;
            CREATE FUNCTION hostile.planted(pg_catalog.uuid, pg_catalog.uuid) RETURNS boolean LANGUAGE plpgsql AS
                $$BEGIN RAISE EXCEPTION 'hostile code ran'; END$$;
            CREATE OPERATOR hostile.= (
                LEFTARG = pg_catalog.uuid, RIGHTARG = pg_catalog.uuid, FUNCTION = hostile.planted
            );
        """)
    finally:
        await connection.close()
    await setting("search_path", "hostile, pg_catalog")
    hit = await asyncpg.connect(session_database_url)
    with pytest.raises(asyncpg.RaiseError, match="hostile code ran"):
        await hit.fetch("SELECT $1::uuid = $1::uuid", A)
    await hit.close()
    async with SessionDatabase.connect(session_database_url) as db:
        await use(db)


def host_engine(url: str, **options: Any) -> AsyncEngine:
    return create_async_engine(asyncpg_url(url), **options)


async def outcome(db: SessionDatabase, engine: AsyncEngine) -> list[str]:
    """What the first use on the pool and in the host's transaction raise: our error, or nothing."""
    raised: list[str] = []
    for _ in range(2):  # an error comes again: nothing remembers a failed look
        try:
            await use(db)
            break
        except ConfigurationError as error:
            raised.append(str(error))
    try:
        async with engine.begin() as connection:
            await db.bind(connection).lifecycle.accumulate_usage("bound", A, "m", 1, cost_usd=EXACT)
    except ConfigurationError as error:
        raised.append(str(error))
    return raised


@pytest.mark.parametrize(("name", "value"), CHANGES)
async def test_X36_a_hosts_engine_works_or_raises_our_error(
    session_database_url: str, setting: Any, name: str, value: str
) -> None:
    await setting(name, value)
    engine = host_engine(session_database_url, isolation_level="READ COMMITTED")
    raised = await outcome(SessionDatabase.from_engine(engine), engine)
    await engine.dispose()
    if name == "default_transaction_isolation":
        assert len(raised) == 2  # the pool's calls; the host's own transaction is READ COMMITTED
        assert "expected READ COMMITTED" in raised[0]
    elif name == "extra_float_digits":
        assert len(raised) == 3
        assert "extra_float_digits" in raised[0]
    else:
        assert raised == []


CODECS = [
    ("numeric", {"encoder": str, "decoder": float, "format": "text"}),
    ("numeric", {"encoder": str, "decoder": str, "format": "text"}),
    ("uuid", {"encoder": str, "decoder": str, "format": "text"}),
    ("uuid", {"encoder": lambda value: value.hex(), "decoder": str, "format": "text"}),
    ("timestamptz", {"encoder": str, "decoder": str, "format": "text"}),
    ("int8", {"encoder": str, "decoder": str, "format": "text"}),
    ("float8", {"encoder": str, "decoder": Decimal, "format": "text"}),
    ("bool", {"encoder": str, "decoder": str, "format": "text"}),
]


@pytest.mark.parametrize("codec", CODECS, ids=[f"{name} {number}" for number, (name, _) in enumerate(CODECS)])
async def test_X36_a_codec_of_the_host_raises_our_error_before_anything_is_written(
    session_database_url: str, session_database: SessionDatabase, codec: tuple[str, dict[str, Any]]
) -> None:
    name, options = codec
    engine = host_engine(session_database_url)

    @event.listens_for(engine.sync_engine, "connect")
    def _set(adapted: Any, _record: Any) -> None:
        adapted.run_async(lambda driver: driver.set_type_codec(name, schema="pg_catalog", **options))

    raised = await outcome(SessionDatabase.from_engine(engine), engine)
    await engine.dispose()
    assert len(raised) == 3
    assert all("SessionDatabase.connect" in message for message in raised)
    assert (await session_database.lifecycle.aggregate_stats(A)).sessions == 0


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII"])
async def test_X36_a_database_of_another_encoding_is_refused(
    session_template_server: TemplateServer, encoding: str
) -> None:
    database = f"encoded_{encoding.lower()}_{os.getpid()}"
    await session_template_server.run(
        f"CREATE DATABASE {database} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    url = session_template_server.url_of(database)
    try:
        engine = host_engine(url)
        async with SessionDatabase.connect(url, settings=Settings(retries=0)) as own:
            for db in (own, SessionDatabase.from_engine(engine)):
                calls: list[Any] = [db.migrate, db.check, lambda db=db: db.lifecycle.accumulate_usage("s", A, "m", 1)]
                for call in calls:
                    with pytest.raises(ConfigurationError, match=f"encoding {encoding}, expected UTF8"):
                        await call()
            async with engine.begin() as connection:
                with pytest.raises(ConfigurationError, match="expected UTF8"):
                    await own.migrate(connection=connection)
                with pytest.raises(ConfigurationError, match="expected UTF8"):
                    await own.bind(connection).lifecycle.accumulate_usage("s", A, "m", 1)
            schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'session_lifecycle'"
            async with engine.connect() as connection:
                assert (await connection.exec_driver_sql(schemas)).scalar() == 0
        await engine.dispose()
    finally:
        await session_template_server.drop(database)


async def test_X36_a_replica_of_a_host_may_have_any_isolation_level(session_database_url: str, setting: Any) -> None:
    engine = host_engine(session_database_url)
    await SessionDatabase.from_engine(engine).lifecycle.accumulate_usage("s", A, "m", 1)
    await setting("default_transaction_isolation", "'repeatable read'")
    replica = host_engine(session_database_url)
    db = SessionDatabase.from_engine(engine, read_engine=replica)
    assert (await db.lifecycle.aggregate_stats(A)).tokens_in == 1
    await engine.dispose()
    await replica.dispose()


RAISE_ONCE = """
    CREATE SEQUENCE session_lifecycle.attempts;
    GRANT ALL ON SEQUENCE session_lifecycle.attempts TO PUBLIC;
    CREATE FUNCTION session_lifecycle.raise_once() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('session_lifecycle.attempts') = 1 THEN
            RAISE EXCEPTION 'raced' USING ERRCODE = '{state}';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER raise_once BEFORE INSERT ON session_lifecycle.session_records
        FOR EACH ROW EXECUTE FUNCTION session_lifecycle.raise_once();
"""


@pytest.mark.parametrize("state", ["23505", "SL001", "SL003", "40001", "40P01", "55P03"])
async def test_X36_a_race_is_repeated_also_without_a_key(
    session_database: SessionDatabase, session_database_url: str, state: str
) -> None:
    connection = await asyncpg.connect(session_database_url)
    await connection.execute(RAISE_ONCE.format(state=state))
    await connection.close()
    assert (await session_database.lifecycle.accumulate_usage("s", A, "m", 1)).outcome == "applied"
    assert (await session_database.lifecycle.aggregate_stats(A)).tokens_in == 1


@pytest.mark.parametrize("savepoints", [True, False])
@pytest.mark.parametrize("host", [AsyncConnection, AsyncSession])
async def test_calls_of_several_tasks_in_one_transaction_wait_for_each_other(
    session_database: SessionDatabase, host: type[AsyncConnection | AsyncSession], savepoints: bool
) -> None:
    engine = session_database.engine
    async with engine.connect() if host is AsyncConnection else AsyncSession(engine) as shared:
        bound = [session_database.bind(shared, savepoints=savepoints) for _ in range(2)]
        calls: list[Awaitable[Any]] = [one.lifecycle.accumulate_usage("s", A, "m", 1) for one in bound * 3]
        calls += [one.lifecycle.aggregate_stats(A) for one in bound]
        if savepoints:
            ahead = datetime.now(UTC) + timedelta(days=1)
            calls.insert(1, bound[0].lifecycle.end_session("s", A, SessionStatus.FAILED, at=ahead))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await shared.commit()
    assert [type(one) for one in outcomes if isinstance(one, Exception)] == [InvalidValueError] * savepoints
    assert (await session_database.lifecycle.aggregate_stats(A)).tokens_in == 6


@pytest.mark.parametrize("host", [AsyncConnection, AsyncSession])
async def test_a_call_after_a_cancelled_one_says_that_the_transaction_failed(
    session_database: SessionDatabase, host: type[AsyncConnection | AsyncSession]
) -> None:
    engine = session_database.engine
    async with (
        engine.connect() as blocker,
        engine.connect() if host is AsyncConnection else AsyncSession(engine) as own,
    ):
        await session_database.bind(blocker).lifecycle.accumulate_usage("s", A, "m", 1)
        bound = session_database.bind(own)
        await bound.lifecycle.accumulate_usage("t", A, "m", 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bound.lifecycle.accumulate_usage("s", A, "m", 1), 0.1)
        with pytest.raises(SessionLifecycleError, match=r"^the host's transaction failed before this call: "):
            await bound.lifecycle.accumulate_usage("t", A, "m", 1)
        await own.rollback()
        assert (await session_database.bind(own).lifecycle.accumulate_usage("t", A, "m", 1)).outcome == "applied"


async def test_a_call_after_the_hosts_connection_was_closed_says_so(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    engine = create_async_engine(asyncpg_url(session_database_url))
    async with engine.begin() as connection:
        late = session_database.bind(connection)
    calls: list[Any] = [
        lambda: late.lifecycle.ensure_and_touch_session("s", A),
        lambda: late.lifecycle.aggregate_stats(A),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=r"^the host's connection is closed: "):
            await call()
    await engine.dispose()
