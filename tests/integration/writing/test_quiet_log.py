"""Cancelled calls leave nothing in the host's log: no future and no task whose error nobody takes (X49)."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from session_lifecycle import SessionDatabase, Settings
from support.faulty_proxy import FaultyProxy
from support.scripts import run_script
from support.usage import A, usage

SETTINGS = Settings(pool_size=2, max_overflow=0, statement_timeout_seconds=3, retries=1)
Disturb = Callable[[FaultyProxy], Awaitable[None]]


@pytest.fixture
def complaints() -> list[dict[str, Any]]:
    return []


@pytest_asyncio.fixture
async def proxy(session_database_url: str, complaints: list[dict[str, Any]]) -> AsyncIterator[tuple[FaultyProxy, str]]:
    """A proxy in front of the database, and the URL through it. What the event loop complains of is collected."""
    parsed = make_url(session_database_url)
    proxy = FaultyProxy(parsed.port or 5432, share=0)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with proxy.running():
        yield proxy, parsed.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)


async def nothing(_: FaultyProxy) -> None:
    """The database goes on."""


async def refuse(proxy: FaultyProxy) -> None:
    async with proxy.refusing():
        await asyncio.sleep(0.01)


async def fall_silent(proxy: FaultyProxy) -> None:
    async with proxy.silent():
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("disturb", [nothing, refuse, fall_silent])
async def test_X49_cancelled_calls_leave_the_log_quiet(
    proxy: tuple[FaultyProxy, str], complaints: list[dict[str, Any]], disturb: Disturb
) -> None:
    wire, url = proxy

    async def slow(db: SessionDatabase) -> None:
        async with db.engine.connect() as connection:
            await connection.exec_driver_sql("SELECT pg_sleep(1)")

    async def block(db: SessionDatabase) -> None:
        async with db.session("s", A):
            await asyncio.sleep(0.001)

    calls: list[asyncio.Task[Any]] = []
    for _ in range(10):
        # A new pool each time, so that connections are opened while their callers are cancelled.
        async with SessionDatabase.connect(url, settings=SETTINGS) as db, db.recorder(drain_within=0.5) as recorder:
            calls = [
                asyncio.create_task(db.lifecycle.accumulate_usage("s", A, "m", 1)),
                asyncio.create_task(db.lifecycle.aggregate_stats(A)),
                asyncio.create_task(slow(db)),
                asyncio.create_task(block(db)),
                asyncio.create_task(recorder.record([usage()])),
            ]
            await asyncio.sleep(random.uniform(0, 0.05))
            for call in calls:
                call.cancel()
            await disturb(wire)
            await asyncio.gather(*calls, return_exceptions=True)
    del calls
    gc.collect()
    await asyncio.sleep(0.1)
    assert complaints == []


def test_X49_a_run_that_is_interrupted_leaves_the_log_quiet(session_database_url: str) -> None:
    said = run_script(
        """
        import random
        async def main():
            async with SessionDatabase.connect(URL) as db, db.recorder() as recorder:
                calls = [db.lifecycle.accumulate_usage("s", A, "m", 1) for _ in range(3)]
                calls += [recorder.accumulate_usage("s", A, "m", 1), db.lifecycle.aggregate_stats(A)]
                async with db.session("s", A):
                    await asyncio.gather(*calls)
        async def interrupted():
            task = asyncio.create_task(main())
            await asyncio.sleep(random.uniform(0, 0.2))
            for one in asyncio.all_tasks():
                one.cancel()
            await asyncio.sleep(5)
        for _ in range(8):
            try:
                asyncio.run(interrupted())
            except asyncio.CancelledError:
                pass
        """,
        f"{session_database_url}?sslmode=disable",  # see `engines._connect` about TLS
        with_log=True,
    )
    # SQLAlchemy's pool reports a connection whose closing is cancelled, by its own logger.
    for complaint in ("never retrieved", "was destroyed", "already running"):
        assert complaint not in said
