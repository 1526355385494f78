"""The database goes away under full load and comes back: memory bounded, callers wait or are told, nothing lost."""

import asyncio
import time
import tracemalloc
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy.engine import make_url

from faulty_proxy import FaultyProxy
from session_lifecycle import DatabaseUnavailableError, RecorderFullError, SessionDatabase, Settings, UsageEvent

A = UUID(int=1)
CALLERS = 256
MAX_PENDING = 200


async def outage(url: str, *, seconds: float, give_up_after: float) -> None:  # noqa: PLR0915 - one story
    parsed = make_url(url)
    proxy = FaultyProxy(parsed.port or 0, share=0)
    answered_at: list[float] = []
    told: Counter[str] = Counter()
    stop = False
    async with proxy.running():
        through = parsed.set(port=proxy.port).render_as_string(hide_password=False)
        settings = Settings(pool_size=4, max_overflow=0)
        async with (
            SessionDatabase.connect(through, settings=settings) as db,
            db.recorder(max_pending=MAX_PENDING, give_up_after=give_up_after) as recorder,
        ):

            async def caller(number: int) -> int:
                """Calls until told to stop, each call repeated until it is answered; how many events it recorded."""
                turn = 0
                while not stop:
                    event = UsageEvent(f"s{number}", A, "m", 1, cost_usd=1, idempotency_key=f"{number}-{turn}")
                    try:
                        await recorder.record([event])
                    except DatabaseUnavailableError as error:
                        told[type(error).__name__] += 1
                    else:
                        answered_at.append(time.monotonic())
                        turn += 1
                        continue
                    await asyncio.sleep(0.01)
                return turn

            callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
            await asyncio.sleep(2)
            tracemalloc.start()
            async with proxy.refusing():
                before, _ = tracemalloc.get_traced_memory()
                submitted = refused = 0
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    snapshot = recorder.snapshot()
                    assert snapshot.pending <= MAX_PENDING
                    assert snapshot.pending + snapshot.waiting <= CALLERS + submitted
                    try:
                        recorder.submit(UsageEvent("submitted", A, "m", 1, cost_usd=1, idempotency_key=f"{submitted}"))
                        submitted += 1
                    except RecorderFullError:
                        refused += 1
                    await asyncio.sleep(0.01)
                after, _ = tracemalloc.get_traced_memory()
            returned_at = time.monotonic()
            tracemalloc.stop()
            assert after - before < 4_000_000  # some kilobytes for each pending item, however long it takes
            assert refused > 0
            answers = len(answered_at)
            while len(answered_at) < answers + CALLERS:
                await asyncio.sleep(0.01)
                assert time.monotonic() - returned_at < 10, "writing did not go on"
            await asyncio.sleep(2)
            stop = True
            recorded = sum(await asyncio.gather(*callers))
            rate = [sum(since <= at - returned_at < since + 1 for at in answered_at) for since in (-seconds - 1, 1)]
            print(  # noqa: T201 - what a run with -s is for
                f"answers a second before {rate[0]}, in the second second after {rate[1]}; told {dict(told)}"
            )
    async with SessionDatabase.connect(url) as db:
        stats = await db.lifecycle.aggregate_stats(A)
        found = await db.lifecycle.get_session_row("submitted", A)
        by_submit = 0 if found is None else found.record.tokens_in
    assert stats.tokens_in - by_submit == recorded
    assert by_submit <= submitted


async def test_an_outage_that_callers_wait_for(session_database_url: str) -> None:
    await outage(session_database_url, seconds=2, give_up_after=30)


@pytest.mark.soak
@pytest.mark.parametrize("give_up_after", [60, 5])
async def test_a_long_outage(session_database_url: str, give_up_after: float) -> None:
    await outage(session_database_url, seconds=20, give_up_after=give_up_after)
