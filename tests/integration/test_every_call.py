"""Every public call, cancelled, cut off, and in another loop, process and thread (R23, R24).

It returns or raises an error of ours within its deadline. What stands in the tables is what it said. The database
works on, and its pool has every connection back.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import QueuePool
from sqlalchemy.engine import make_url

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, Settings
from session_lifecycle.postgres import engines
from session_lifecycle.testing import TemplateServer
from support.eventually import eventually
from support.every_call import BUSY, CALLS, PRICES, Caller, Round, public_calls
from support.faulty_proxy import FaultyProxy
from support.scripts import run_script

# A generous bound: without a deadline the calls never return.
WITHIN = 20
SETTINGS = Settings(
    statement_timeout_seconds=20, connect_timeout_seconds=20, pool_timeout_seconds=20, pool_size=90, retries=3
)
SHORT = Settings(
    statement_timeout_seconds=2, connect_timeout_seconds=2, pool_timeout_seconds=20, pool_size=90, retries=1
)
LOCKED = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
BLOCKING = """
    SELECT pid, backend_type, state, wait_event_type, wait_event, now() - xact_start, pg_blocking_pids(pid), query
    FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids($1))
"""
# So long does a call of an earlier round at most live on: its client's deadline and the server's are shorter.
LOCK_WITHIN = 25
TABLES = """
    SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
    WHERE relnamespace = 'session_lifecycle'::regnamespace AND relkind = 'r'
"""
TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
"""
in_one_loop = pytest.mark.asyncio(loop_scope="module")
_numbers = count(1)


@dataclass
class Bench:
    """One database behind a proxy, for all rounds of this module."""

    url: str
    proxy: FaultyProxy
    caller: Caller
    admin: asyncpg.Connection
    locker: asyncpg.Connection
    """Another one, as a transaction sees the activity of the server as it was at its first look."""

    async def round(self, fault: "Fault", *, without: str | None = None) -> Round:
        """Makes all calls but one with a fault, and checks what each of them says."""
        round_ = Round(self.caller, self.url, [name for name in CALLS if name != without])
        await round_.prepare()
        await fault(self, round_)
        await round_.end(WITHIN)
        assert round_.complaints() == []
        pool = self.caller.db.engine.pool
        assert isinstance(pool, QueuePool)
        await eventually(lambda: pool.checkedout() == 0)
        return round_

    async def open_connections(self, count: int) -> None:
        """Opens the connections of the pool before the deadlines are short for so many at once."""
        async with AsyncExitStack() as stack:
            for _ in range(count):
                await stack.enter_async_context(self.caller.db.engine.connect())

    async def quiet(self) -> None:
        """Waits until the server has done what it was asked."""

        async def is_quiet() -> bool:
            for _ in range(3):
                await asyncio.sleep(0.1)
                if await self.admin.fetchval(BUSY):
                    return False
            return True

        await eventually(is_quiet)

    @asynccontextmanager
    async def locked(self, round_: Round) -> AsyncGenerator[None]:
        """The server has begun every call, and none gets on until the block is left."""
        async with self.locker.transaction():
            lock = f"LOCK TABLE {await self.admin.fetchval(TABLES)} IN ACCESS EXCLUSIVE MODE"
            locking = asyncio.create_task(self.locker.execute(lock))
            await asyncio.wait([locking], timeout=LOCK_WITHIN)
            if not locking.done():
                blocking = [tuple(row) for row in await self.admin.fetch(BLOCKING, self.locker.get_server_pid())]
                locking.cancel()
                raise AssertionError(f"a lock is held: {blocking}")
            await locking
            round_.begin()

            async def all_wait() -> bool:
                locked = await self.admin.fetchval(LOCKED)
                return locked is not None and bool(locked >= round_.waiting)

            await eventually(all_wait)
            yield


Fault = Callable[[Bench, Round], Awaitable[None]]


@asynccontextmanager
async def made(server: TemplateServer, settings: Settings, *, give_up_after: float = 30) -> AsyncGenerator[Bench]:
    """A bench on a database of its own. Its pool has a connection for each call."""
    name = f"session_lifecycle_every_call_{os.getpid()}_{next(_numbers)}"
    await server.clone(name)
    direct = server.url_of(name)
    proxy = FaultyProxy(make_url(direct).port or 5432, share=0)
    admin = await asyncpg.connect(direct)
    # Else what is left behind would keep the test waiting without end.
    locker = await asyncpg.connect(direct, server_settings={"lock_timeout": "30s"})
    try:
        async with proxy.running():
            through = make_url(direct).set(host="127.0.0.1", port=proxy.port)
            async with SessionDatabase.connect(through, settings=settings, prices=PRICES) as db:
                yield Bench(direct, proxy, Caller(db, give_up_after), admin, locker)
    finally:
        await admin.close()
        await locker.close()
        await server.drop(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(session_template_server: TemplateServer) -> AsyncIterator[Bench]:
    async with made(session_template_server, SETTINGS) as bench:
        yield bench


def test_R23_every_public_call_is_here() -> None:
    assert {name.split(",")[0] for name in CALLS if "." in name} == public_calls()


async def nothing(bench: Bench, round_: Round) -> None:
    round_.begin()


@in_one_loop
async def test_R23_every_call_works(bench: Bench) -> None:
    assert (await bench.round(nothing)).failed() == {}


async def cancelled_before(bench: Bench, round_: Round) -> None:
    round_.begin()
    round_.cancel()


async def cancelled_on_the_way(bench: Bench, round_: Round) -> None:
    round_.begin()
    for _ in range(10):
        await asyncio.sleep(0)
    round_.cancel()


async def cancelled_before_running(bench: Bench, round_: Round) -> None:
    """The server has parsed a statement of each call, and the client is cancelled before it says to run it."""
    await bench.caller.db.engine.dispose()  # a connection parses a statement once
    with pytest.MonkeyPatch.context() as patch:
        # The moment between parsing and running has no public name.
        get_statement = asyncpg.Connection._get_statement  # noqa: SLF001

        async def parse_and_cancel(connection: asyncpg.Connection, query: str, *values: Any, **named: Any) -> Any:
            statement = await get_statement(connection, query, *values, **named)
            # Not in what a new connection asks.
            if "session_lifecycle." in query:
                raise asyncio.CancelledError
            return statement

        patch.setattr(asyncpg.Connection, "_get_statement", parse_and_cancel)
        round_.begin()
        await asyncio.wait(round_.tasks.values(), timeout=WITHIN)


async def cancelled_within(bench: Bench, round_: Round) -> None:
    async with bench.locked(round_):
        round_.cancel()


def cancelled_after(answers: int) -> Fault:
    async def fault(bench: Bench, round_: Round) -> None:
        async with bench.proxy.withholding(answers):
            round_.begin()
            await bench.quiet()
            round_.cancel()

    return fault


def cut_after(answers: int) -> Fault:
    async def fault(bench: Bench, round_: Round) -> None:
        async with bench.proxy.withholding(answers):
            round_.begin()
            await bench.quiet()
            bench.proxy.cut()

    return fault


def refused_after(answers: int) -> Fault:
    async def fault(bench: Bench, round_: Round) -> None:
        async with bench.proxy.withholding(answers):
            round_.begin()
            await bench.quiet()
            async with bench.proxy.refusing():
                await asyncio.sleep(0.5)

    return fault


async def cut_within(bench: Bench, round_: Round) -> None:
    async with bench.locked(round_):
        bench.proxy.cut()


async def terminated(bench: Bench, round_: Round) -> None:
    async with bench.locked(round_):
        await bench.admin.fetch(TERMINATE)


FAULTS: dict[str, Fault] = {
    "cancelled before it begins": cancelled_before,
    "cancelled on the way": cancelled_on_the_way,
    "cancelled before a statement runs": cancelled_before_running,
    "cancelled while the server works": cancelled_within,
    "cancelled before the answer": cancelled_after(1),
    "cut while the server works": cut_within,
    "cut before the answer": cut_after(1),
    "cut before a later answer": cut_after(2),
    "cut before the answer, then refused": refused_after(1),
    "terminated": terminated,
}


@in_one_loop
@pytest.mark.parametrize("fault", FAULTS)
async def test_R24_every_call_says_what_it_wrote(bench: Bench, fault: str) -> None:
    await bench.round(FAULTS[fault])


async def silent(bench: Bench, round_: Round) -> None:
    async with bench.proxy.silent():
        round_.begin()
        await asyncio.wait(round_.tasks.values(), timeout=WITHIN)


async def timed_out(bench: Bench, round_: Round) -> None:
    async with bench.locked(round_):
        await asyncio.wait(round_.tasks.values(), timeout=WITHIN)


async def test_R24_every_call_ends_within_its_deadline(
    session_template_server: TemplateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "DEADLINE_MARGIN_SECONDS", 0.5)
    async with made(session_template_server, SHORT, give_up_after=2) as bench:
        await bench.open_connections(70)
        # A migration waits for locks for more than a minute.
        refused = await bench.round(timed_out, without="database.migrate")
        # The server answers in time, and says that it wrote nothing.
        assert {getattr(error, "may_have_written", False) for error in refused.failed().values()} == {False}
        assert len(refused.failed()) > 40
        unanswered = await bench.round(silent)
        assert {*refused.failed(), "database.migrate"} == unanswered.failed().keys()


ELSEWHERE = """
from support.every_call import Caller, PRICES, complaints_of_a_round
db = SessionDatabase.connect(URL, settings=Settings(pool_size=8, pool_timeout_seconds=60), prices=PRICES)
caller = Caller(db)
def call_all(on):
    return asyncio.run(complaints_of_a_round(on, URL))
print("first loop", call_all(caller), flush=True)
child = os.fork()
if child == 0:
    print("forked child", call_all(Caller(db)), flush=True)
    os._exit(0)
found = []
thread = threading.Thread(target=lambda: found.append(call_all(Caller(db))))
thread.start()
second = call_all(caller)
thread.join()
print("code", os.waitpid(child, 0)[1], flush=True)
print("second loop", second)
print("other thread", *found)
"""


def test_R23_every_call_works_in_another_loop_process_and_thread(session_database_url: str) -> None:
    said = run_script(ELSEWHERE, session_database_url, within_seconds=120)
    assert said.splitlines() == [
        "first loop []",
        "forked child []",
        "code 0",
        "second loop []",
        "other thread []",
    ]


HOST = """
from sqlalchemy.ext.asyncio import create_async_engine
from support.every_call import CALLS, Caller, PRICES, Round
engine = create_async_engine(URL.replace("postgresql://", "postgresql+asyncpg://"), pool_size=8, pool_timeout=60)
caller = Caller(SessionDatabase.from_engine(engine, settings=Settings(), prices=PRICES))
names = [name for name in CALLS if not name.startswith("synchronous")]
async def call_all():
    round_ = Round(caller, URL, names)
    await round_.prepare()
    round_.begin()
    await round_.end(within_seconds=60)
    return round_
first = asyncio.run(call_all())
print(first.complaints(), list(first.failed()))
second = asyncio.run(call_all())
print(second.complaints())
print([(name, error) for name, error in second.failed().items() if not isinstance(error, ConfigurationError)])
print(sorted(set(names) - set(second.failed())))
print(set(second.stored.values()))
"""


def test_R23_every_call_on_a_hosts_engine_is_refused_in_another_loop(session_database_url: str) -> None:
    said = run_script(HOST, session_database_url)
    # The first of these asks no database, the second has nothing to wait for, and of the third `on_lost` gets the item.
    unrefused = ["database.migration_sql", "recorder.flush", "recorder.submit"]
    assert said.splitlines() == ["[] []", "[]", "[]", str(unrefused), "{0.0}"]


async def test_R24_a_migration_that_is_cut_off_may_have_written(
    session_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut_off(*_: object, **__: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("session_lifecycle.database.migrations.upgrade_on", cut_off)
    unreachable = make_url(session_database_url).set(host="127.0.0.1", port=1)
    for url, may_have_written in ((session_database_url, True), (unreachable, False)):
        async with SessionDatabase.connect(url) as db:
            with pytest.raises(DatabaseUnavailableError) as raised:
                await db.migrate()
        assert raised.value.may_have_written == may_have_written
