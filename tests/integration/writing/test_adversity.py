"""Counts of round trips, lost connections, and hosts' transactions that survive our errors."""

import asyncio
import traceback
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from sqlalchemy import text

from session_lifecycle import (
    ConfigurationError,
    DatabaseUnavailableError,
    End,
    InvalidValueError,
    SessionDatabase,
    SessionListFilters,
    SessionStatus,
    Settings,
    Touch,
    TransactionConflictError,
    UsageReceipt,
)
from session_lifecycle.testing import SessionClock
from support.usage import A, receipt_of
from support.usage import usage as event


class Proxy:
    """A TCP proxy in front of Postgres that counts round trips and can lose answers."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self.round_trips = 0
        self.lose_answers = 0
        self.server: asyncio.Server

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self.server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(*self._upstream)
        self._writers |= {to_client, to_server}
        # A round trip begins when the client speaks after the server did.
        servers_turn = False

        async def forth() -> None:
            nonlocal servers_turn
            while data := await client.read(65536):
                if not servers_turn:
                    self.round_trips += 1
                    servers_turn = True
                to_server.write(data)

        async def back() -> None:
            nonlocal servers_turn
            while data := await server.read(65536):
                servers_turn = False
                if self.lose_answers:
                    # The statement took effect; the caller never gets the answer.
                    self.lose_answers -= 1
                    to_client.transport.abort()
                    return
                to_client.write(data)

        ways = [asyncio.create_task(forth()), asyncio.create_task(back())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for writer in (to_client, to_server):
            writer.transport.abort()


@pytest_asyncio.fixture
async def proxy(session_database_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy in front of this test's database, and the URL through it."""
    parts = urlsplit(session_database_url)
    proxy = Proxy(parts.hostname or "", parts.port or 5432)
    port = await proxy.start()
    yield proxy, session_database_url.replace(f":{parts.port}/", f":{port}/")
    await proxy.close()


async def test_a_write_is_one_round_trip_and_a_read_at_most_two(proxy: tuple[Proxy, str]) -> None:
    counter, url = proxy
    async with SessionDatabase.connect(url, settings=Settings(pool_size=1, max_overflow=0)) as db:
        lifecycle = db.lifecycle

        def calls() -> dict[str, Any]:
            return {
                "touch": lifecycle.ensure_and_touch_session("s", A),
                "use": lifecycle.accumulate_usage("s", A, "gpt-4o", 10, 5),
                "keyed": lifecycle.accumulate_usage("s", A, "gpt-4o", 10, 5, idempotency_key="k"),
                "revision": lifecycle.record([event(idempotency_key="r", revision=1)]),
                "record": lifecycle.record([Touch(session_id=str(number), user_id=A) for number in range(5)]),
                "end": lifecycle.end_session("s", A, SessionStatus.FAILED),
                "reopen": lifecycle.reopen_session("s", A),
                "get": lifecycle.get_session_row("s", A),
                "list": lifecycle.list_session_rows(SessionListFilters(user_id=A)),
                "stats": lifecycle.aggregate_stats(A),
                "costs": lifecycle.cost_by_model(A),
            }

        for call in calls().values():
            await call  # each statement is prepared once per connection
        taken = {}
        for name, call in calls().items():
            before = counter.round_trips
            await call
            taken[name] = counter.round_trips - before
    assert set(taken.values()) == {1}, taken


async def test_after_a_lost_answer_only_an_item_with_a_key_is_sent_again(proxy: tuple[Proxy, str]) -> None:
    counter, url = proxy
    async with SessionDatabase.connect(url) as db:
        await db.lifecycle.record([event(idempotency_key="warm")])
        counter.lose_answers = 1
        assert (await receipt_of(db.lifecycle, event(idempotency_key="k"))).outcome == "duplicate"
        await db.lifecycle.record([event(idempotency_key="k")])
        counter.lose_answers = 1
        with pytest.raises(DatabaseUnavailableError) as lost:
            await db.lifecycle.record([event()])
        assert lost.value.__cause__ is not None
        assert (await db.lifecycle.aggregate_stats(A)).tokens_in == 3


async def test_after_a_lost_batch_a_recorder_sends_the_items_with_a_key_again(proxy: tuple[Proxy, str]) -> None:
    counter, url = proxy
    async with SessionDatabase.connect(url) as db, db.recorder() as recorder:
        await recorder.record([event(idempotency_key="warm")])
        counter.lose_answers = 1
        unkeyed, keyed = await asyncio.gather(
            receipt_of(recorder, event(tokens_in=10)),
            receipt_of(recorder, event(tokens_in=100, idempotency_key="k")),
            return_exceptions=True,
        )
        assert isinstance(unkeyed, DatabaseUnavailableError)
        assert unkeyed.may_have_written
        assert isinstance(keyed, UsageReceipt)
        assert keyed.outcome == "duplicate"
        assert (await db.lifecycle.aggregate_stats(A)).tokens_in == 111
        assert (recorder.snapshot().repeats, recorder.snapshot().failures) == (1, 1)


async def test_connections_killed_while_idle_are_replaced(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([event()])
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with SessionDatabase.connect(session_database.engine.url) as other, other.engine.connect() as killer:
        await killer.execute(text(kill))
    await asyncio.sleep(0.1)
    receipt = await receipt_of(session_database.lifecycle, event())
    assert (receipt.outcome, receipt.session_tokens_in) == ("applied", 2)


async def test_an_unreachable_database_raises_an_error_with_its_cause() -> None:
    async with SessionDatabase.connect("postgresql://u:secret@127.0.0.1:1/x", settings=Settings(retries=1)) as db:
        for call in (db.lifecycle.ensure_and_touch_session("s", A), db.migrate(), db.check()):
            with pytest.raises(DatabaseUnavailableError) as raised:
                await call
            assert isinstance(raised.value.__cause__, ConnectionRefusedError)
            assert "secret" not in str(raised.value)


async def test_a_statement_over_its_timeout_raises(
    session_database_url: str, session_database: SessionDatabase
) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    settings = Settings(statement_timeout_seconds=0.2, retries=0)
    async with (
        session_database.engine.begin() as holder,
        SessionDatabase.connect(session_database_url, settings=settings) as db,
    ):
        await holder.execute(text("SELECT 1 FROM session_lifecycle.session_records FOR UPDATE"))
        with pytest.raises(DatabaseUnavailableError, match="57014"):
            await db.lifecycle.ensure_and_touch_session("s", A)


async def test_a_cancelled_caller_leaves_the_pool_usable(session_database_url: str) -> None:
    async with SessionDatabase.connect(session_database_url, settings=Settings(pool_size=1, max_overflow=0)) as db:
        await db.lifecycle.ensure_and_touch_session("s", A)
        for delay in (0, 0.0005, 0.001, 0.002):
            call = asyncio.create_task(db.lifecycle.ensure_and_touch_session("s", A))
            await asyncio.sleep(delay)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert await db.lifecycle.ensure_and_touch_session("s", A) == "touched"


async def test_a_hosts_transaction_survives_refused_calls(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    ahead = await session_clock.now() + timedelta(hours=1)
    await session_database.lifecycle.ensure_and_touch_session("locked", A)
    async with session_database.engine.begin() as other, session_database.engine.begin() as host:
        await other.execute(text("SELECT 1 FROM session_lifecycle.session_records FOR UPDATE"))
        await host.execute(text("SET LOCAL lock_timeout = '50ms'"))
        lifecycle = session_database.bind(host).lifecycle
        await lifecycle.accumulate_usage("s", A, "m", 1)
        with pytest.raises(InvalidValueError, match="at:"):
            await lifecycle.ensure_and_touch_session("s", A, at=ahead)
        with pytest.raises(InvalidValueError, match="tokens_in"):
            await lifecycle.accumulate_usage("s", A, "m", -1)
        with pytest.raises(TransactionConflictError, match="55P03"):
            await lifecycle.ensure_and_touch_session("locked", A)
        await lifecycle.accumulate_usage("s", A, "m", 1)
    assert (await session_database.lifecycle.aggregate_stats(A)).tokens_in == 2


async def test_a_batch_with_one_event_too_far_ahead_writes_nothing(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    ahead = await session_clock.now() + timedelta(hours=1)
    with pytest.raises(InvalidValueError, match=r"items\.1\.at"):
        await session_database.lifecycle.record(
            [event(), event(at=ahead), End(session_id="s", user_id=A, status="failed")]
        )
    assert (await session_database.lifecycle.aggregate_stats(A)).sessions == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg://u:secret@h/x", r"postgresql\+asyncpg://u:\*\*\*@h/x"),
        ("sqlite:///x", "expected postgresql://"),
        ("nonsense", "cannot be read"),
        ("postgresql://u:pa@ss:secret@h/x", "cannot be read"),
        ("postgresql://u:secret@h/x?connect_timeout=3", "the option 'connect_timeout', expected none but"),
    ],
)
def test_an_unusable_url_is_refused_with_the_form_to_use(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        SessionDatabase.connect(url)
    assert "secret" not in "".join(traceback.format_exception(refused.value))


async def test_sslmode_is_understood(session_database_url: str) -> None:
    async with SessionDatabase.connect(f"{session_database_url}?sslmode=disable") as db:
        await db.check()
    async with SessionDatabase.connect(f"{session_database_url}?sslmode=require", settings=Settings(retries=0)) as db:
        with pytest.raises(DatabaseUnavailableError, match="SSL"):
            await db.check()


def test_without_a_url_the_error_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSION_LIFECYCLE_DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="SESSION_LIFECYCLE_DATABASE_URL"):
        SessionDatabase.connect()
