"""A connection whose other side is silently gone: every call ends, and says whether it may have written (R24)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Literal

import pytest
import pytest_asyncio
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import (
    DatabaseUnavailableError,
    RecorderClosedError,
    SessionDatabase,
    SessionListFilters,
    Settings,
    Touch,
)
from session_lifecycle.postgres import engines, host_engines, migrations
from session_lifecycle.postgres.engines import asyncpg_url
from support.faulty_proxy import FaultyProxy
from support.usage import A, usage

TIMEOUT = 0.5
MARGIN = 0.3
# A generous bound: without a deadline the calls never return.
WITHIN = 15
SETTINGS = Settings(
    statement_timeout_seconds=TIMEOUT, connect_timeout_seconds=0.5, pool_timeout_seconds=1, pool_size=2, max_overflow=0
)
Call = Callable[[SessionDatabase], Awaitable[Any]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "DEADLINE_MARGIN_SECONDS", MARGIN)
    monkeypatch.setattr(host_engines, "DEADLINE_MARGIN_SECONDS", MARGIN)
    monkeypatch.setattr(engines, "CLOSE_SECONDS", 0.5)


@pytest_asyncio.fixture
async def proxy(session_database_url: str) -> AsyncIterator[tuple[FaultyProxy, str]]:
    parsed = make_url(session_database_url)
    proxy = FaultyProxy(parsed.port or 5432, share=0)
    async with proxy.running():
        yield proxy, parsed.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)


@contextmanager
def ends_in_time() -> Generator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < WITHIN


async def stored_tokens(url: str) -> int:
    async with SessionDatabase.connect(url) as db:
        return (await db.lifecycle.aggregate_stats(A)).tokens_in


WRITES: dict[str, Call] = {
    "usage": lambda db: db.lifecycle.accumulate_usage("s", A, "m", 1),
    "keyed": lambda db: db.lifecycle.accumulate_usage("s", A, "m", 1, idempotency_key="k"),
    "touch": lambda db: db.lifecycle.ensure_and_touch_session("s", A),
    "record": lambda db: db.lifecycle.record([usage(), Touch(session_id="s", user_id=A)]),
    "end": lambda db: db.lifecycle.end_session("s", A, "completed"),
}
READS: dict[str, Call] = {
    "get": lambda db: db.lifecycle.get_session_row("s", A),
    "list": lambda db: db.lifecycle.list_session_rows(SessionListFilters(user_id=A)),
    "stats": lambda db: db.lifecycle.aggregate_stats(A),
    "roll up": lambda db: db.maintenance.roll_up(),
    "check": lambda db: db.check(),
}


@pytest.mark.parametrize("name", [*WRITES, *READS])
async def test_R24_X30_a_call_on_a_silent_connection_ends(proxy: tuple[FaultyProxy, str], name: str) -> None:
    wire, url = proxy
    async with SessionDatabase.connect(url, settings=SETTINGS) as db:
        await db.lifecycle.accumulate_usage("s", A, "m", 1)
        async with wire.silent():
            with ends_in_time(), pytest.raises(DatabaseUnavailableError) as raised:
                await (WRITES | READS)[name](db)
        if name in WRITES:
            assert raised.value.may_have_written
        # The silent connection is not used again.
        assert (await db.lifecycle.accumulate_usage("after", A, "m", 1)).outcome == "applied"


async def test_R24_X30_opening_a_connection_to_a_silent_server_ends_and_wrote_nothing(
    proxy: tuple[FaultyProxy, str],
) -> None:
    wire, url = proxy
    settings = SETTINGS.model_copy(update={"retries": 1})
    async with SessionDatabase.connect(url, settings=settings) as db, wire.silent():
        for call in (WRITES["usage"], READS["list"], READS["check"]):
            with ends_in_time(), pytest.raises(DatabaseUnavailableError) as raised:
                await call(db)
            assert not raised.value.may_have_written


async def used_twice_by_each_connection(db: SessionDatabase) -> None:
    """Four tokens, by as many callers at once as the pool has connections: none of them has to wait for one."""
    for _ in range(2):
        await asyncio.gather(*(db.lifecycle.accumulate_usage("s", A, "m", 1) for _ in range(2)))


async def test_R24_X30_many_callers_of_a_silent_pool_all_end(proxy: tuple[FaultyProxy, str]) -> None:
    wire, url = proxy
    async with SessionDatabase.connect(url, settings=SETTINGS) as db:
        await used_twice_by_each_connection(db)
        async with wire.silent():
            with ends_in_time():
                answers = await asyncio.gather(
                    *(db.lifecycle.accumulate_usage("s", A, "m", 1) for _ in range(12)), return_exceptions=True
                )
        assert all(isinstance(answer, DatabaseUnavailableError) for answer in answers)
        unknown = sum(isinstance(one, DatabaseUnavailableError) and one.may_have_written for one in answers)
        assert 1 <= unknown <= 12
    assert 4 <= await stored_tokens(url) <= 4 + unknown


async def test_R24_X30_closing_a_silent_database_ends(proxy: tuple[FaultyProxy, str]) -> None:
    wire, url = proxy
    db = SessionDatabase.connect(url, settings=SETTINGS)
    await used_twice_by_each_connection(db)
    async with wire.silent():
        with ends_in_time():
            await db.close()


async def test_R24_X30_a_cancelled_call_on_a_silent_connection_does_not_hold_the_pool(
    proxy: tuple[FaultyProxy, str],
) -> None:
    wire, url = proxy
    async with SessionDatabase.connect(url, settings=SETTINGS) as db:
        await db.lifecycle.accumulate_usage("s", A, "m", 1)
        async with wire.silent():
            call = asyncio.create_task(db.lifecycle.accumulate_usage("s", A, "m", 1))
            await asyncio.sleep(0.05)
            call.cancel()
            with ends_in_time():
                await asyncio.gather(call, return_exceptions=True)
                with pytest.raises(DatabaseUnavailableError):
                    await db.lifecycle.accumulate_usage("s", A, "m", 1)
        with ends_in_time():
            await db.lifecycle.accumulate_usage("s", A, "m", 1)


async def test_R24_X30_a_recorder_on_a_silent_connection_answers_and_closes(proxy: tuple[FaultyProxy, str]) -> None:
    wire, url = proxy
    async with SessionDatabase.connect(url, settings=SETTINGS) as db:
        recorder = db.recorder(give_up_after=2, drain_within=0.5)
        await recorder.accumulate_usage("s", A, "m", 1)
        async with wire.silent():
            with ends_in_time(), pytest.raises(DatabaseUnavailableError) as raised:
                await recorder.accumulate_usage("s", A, "m", 1)
            assert raised.value.may_have_written
            waiting = asyncio.create_task(recorder.accumulate_usage("s", A, "m", 1, idempotency_key="k"))
            await asyncio.sleep(0.05)
            with ends_in_time():
                unwritten = await recorder.close()
            assert len(unwritten) == 1
            with pytest.raises(RecorderClosedError):
                await waiting


async def test_R24_X30_a_block_on_a_silent_connection_ends(proxy: tuple[FaultyProxy, str]) -> None:
    wire, url = proxy
    async with SessionDatabase.connect(url, settings=SETTINGS) as db:
        await db.lifecycle.accumulate_usage("s", A, "m", 1)
        async with AsyncExitStack() as silence:
            with ends_in_time(), pytest.raises(DatabaseUnavailableError):
                async with db.session("s", A):
                    await silence.enter_async_context(wire.silent())


async def test_R24_X30_a_hosts_engine_has_the_deadline_of_its_server_timeout(proxy: tuple[FaultyProxy, str]) -> None:
    wire, url = proxy
    arguments = {"server_settings": {"statement_timeout": "500"}, "timeout": 1}
    engine = create_async_engine(asyncpg_url(url), connect_args=arguments, pool_size=1, max_overflow=0)
    db = SessionDatabase.from_engine(engine, settings=Settings(retries=0))
    for call in (WRITES["usage"], READS["stats"], READS["check"]):
        await READS["check"](db)
        async with wire.silent():
            with ends_in_time(), pytest.raises(DatabaseUnavailableError):
                await call(db)
    await engine.dispose()


async def test_R24_X30_the_servers_timeout_comes_first_and_says_that_nothing_was_written(
    session_database_url: str,
) -> None:
    async with SessionDatabase.connect(session_database_url, settings=SETTINGS) as db:
        await db.lifecycle.accumulate_usage("s", A, "m", 1)
        async with db.engine.connect() as holder:
            await holder.exec_driver_sql("SELECT 1 FROM session_lifecycle.session_records FOR UPDATE")
            with pytest.raises(DatabaseUnavailableError, match="57014") as raised:
                await db.lifecycle.accumulate_usage("s", A, "m", 1)
        assert not raised.value.may_have_written
        assert (await db.lifecycle.aggregate_stats(A)).tokens_in == 1


async def test_X30_a_migration_may_take_longer_than_the_statement_timeout(
    session_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = migrations.run
    slept: list[str] = []

    def slow(connection: Connection, schema: str, direction: Literal["upgrade"], revision: str) -> None:
        connection.execute(text("SELECT pg_sleep(1.5)"))
        slept.append(schema)
        upgrade(connection, schema, direction, revision)

    monkeypatch.setattr(migrations, "run", slow)
    async with SessionDatabase.connect(session_database_url, settings=SETTINGS) as db:
        await db.migrate()
    assert slept == ["session_lifecycle"]
