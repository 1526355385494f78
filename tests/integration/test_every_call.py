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

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import QueuePool
from sqlalchemy.engine import make_url

from session_lifecycle import SessionDatabase, Settings
from session_lifecycle.postgres import engines
from session_lifecycle.testing import TemplateServer
from support.eventually import eventually
from support.every_call import BUSY, CALLS, PRICES, Caller, Round, complaints_of_a_round, public_calls
from support.faulty_proxy import FaultyProxy
from support.scripts import run_script

# A generous bound: without a deadline the calls never return.
WITHIN = 20
SETTINGS = Settings(
    statement_timeout_seconds=20, connect_timeout_seconds=20, pool_timeout_seconds=20, pool_size=90, retries=3
)
FEW = Settings(pool_size=8, max_overflow=0, pool_timeout_seconds=60)
LOCKED = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
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

    async def round(self, fault: "Fault") -> Round:
        """Makes all calls with a fault, and checks what each of them says."""
        round_ = Round(self.caller, self.url)
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
            await self.locker.execute(f"LOCK TABLE {await self.admin.fetchval(TABLES)} IN ACCESS EXCLUSIVE MODE")
            round_.begin()

            async def all_wait() -> bool:
                return await self.admin.fetchval(LOCKED) >= round_.waiting

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
    admin, locker = await asyncpg.connect(direct), await asyncpg.connect(direct)
    async with proxy.running():
        through = make_url(direct).set(host="127.0.0.1", port=proxy.port)
        async with SessionDatabase.connect(through, settings=settings, prices=PRICES) as db:
            yield Bench(direct, proxy, Caller(db, give_up_after), admin, locker)
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
    "cancelled while the server works": cancelled_within,
    "cancelled before the answer": cancelled_after(0),
    "cancelled before the second answer": cancelled_after(1),
    "cut while the server works": cut_within,
    "cut before the answer": cut_after(0),
    "cut before the second answer": cut_after(1),
    "cut before the third answer": cut_after(2),
    "cut before the answer, then refused": refused_after(1),
    "terminated": terminated,
}


@in_one_loop
@pytest.mark.parametrize("fault", FAULTS)
async def test_R24_every_call_says_what_it_wrote(bench: Bench, fault: str) -> None:
    round_ = await bench.round(FAULTS[fault])
    print(
        {name: str(error)[:60] + str(getattr(error, "may_have_written", "")) for name, error in round_.failed().items()}
    )
