"""The database goes away under full load and comes back: memory bounded, callers wait or are told, nothing lost."""

import asyncio
import logging
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from sqlalchemy.engine import make_url

from faulty_proxy import FaultyProxy
from session_lifecycle import (
    DatabaseUnavailableError,
    RecorderFullError,
    SessionDatabase,
    SessionRecorder,
    Settings,
    UsageEvent,
)
from waiting import until

LOG = logging.getLogger(__name__)
A = UUID(int=1)
CALLERS = 256
MAX_PENDING = 200


@dataclass
class Callers:
    """Calls a recorder with one event after another, each repeated until it is answered, until told to stop."""

    recorder: SessionRecorder
    answered_at: list[float] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    async def call(self, number: int) -> int:
        """How many events it recorded."""
        turn = 0
        while not self.stopped:
            event = UsageEvent(f"s{number}", A, "m", 1, cost_usd=1, idempotency_key=f"{number}-{turn}")
            try:
                await self.recorder.record([event])
            except DatabaseUnavailableError as error:
                self.told[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            else:
                self.answered_at.append(time.monotonic())
                turn += 1
        return turn

    def answers_in_second_from(self, since: float) -> int:
        return sum(since <= at < since + 1 for at in self.answered_at)


async def submit(recorder: SessionRecorder, seconds: float) -> tuple[int, int]:
    """Submits all the while; how much was taken in and how much was refused. Of what waits there is never too much."""
    submitted = refused = 0
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        snapshot = recorder.snapshot()
        assert snapshot.pending <= MAX_PENDING
        assert snapshot.pending + snapshot.waiting <= CALLERS + submitted
        try:
            recorder.submit(UsageEvent("submitted", A, "m", 1, cost_usd=1, idempotency_key=f"{submitted}"))
            submitted += 1
        except RecorderFullError:
            refused += 1
        await asyncio.sleep(0.01)
    return submitted, refused


async def outage(url: str, *, seconds: float, give_up_after: float) -> None:
    parsed = make_url(url)
    proxy = FaultyProxy(parsed.port or 0, share=0)
    async with proxy.running():
        through = parsed.set(port=proxy.port).render_as_string(hide_password=False)
        settings = Settings(pool_size=4, max_overflow=0)
        async with (
            SessionDatabase.connect(through, settings=settings) as db,
            db.recorder(max_pending=MAX_PENDING, give_up_after=give_up_after) as recorder,
        ):
            callers = Callers(recorder)
            calling = [asyncio.create_task(callers.call(number)) for number in range(CALLERS)]
            await asyncio.sleep(2)
            tracemalloc.start()
            async with proxy.refusing():
                before, _ = tracemalloc.get_traced_memory()
                submitted, refused = await submit(recorder, seconds)
                after, _ = tracemalloc.get_traced_memory()
            returned_at = time.monotonic()
            tracemalloc.stop()
            assert after - before < 4_000_000  # some kilobytes for each pending item, however long it takes
            assert refused > 0
            enough = len(callers.answered_at) + CALLERS
            # Writing goes on by itself.
            await until(lambda: len(callers.answered_at) >= enough, within_seconds=10)
            await asyncio.sleep(2)
            callers.stopped = True
            recorded = sum(await asyncio.gather(*calling))
            LOG.info(
                "answers a second before %d, in the second second after %d; told %s",
                callers.answers_in_second_from(returned_at - seconds - 1),
                callers.answers_in_second_from(returned_at + 1),
                dict(callers.told),
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
