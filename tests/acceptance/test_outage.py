"""An outage under full load: memory is bounded, callers wait or get an error, and nothing is lost."""

import asyncio
import logging
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from sqlalchemy.engine import make_url

from session_lifecycle import (
    DatabaseUnavailableError,
    RecorderFullError,
    SessionDatabase,
    SessionRecorder,
    Settings,
    UsageEvent,
)
from support.eventually import eventually
from support.faulty_proxy import FaultyProxy

LOG = logging.getLogger(__name__)
A = UUID(int=1)
CALLERS = 256
MAX_PENDING = 200


@dataclass
class Callers:
    """Callers that record one event after another, and repeat each until it is answered; `stopped` ends them."""

    recorder: SessionRecorder
    answered_at: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    async def call(self, number: int) -> int:
        """Records until stopped; returns the number of recorded events."""
        turn = 0
        while not self.stopped:
            event = UsageEvent(
                session_id=f"s{number}",
                user_id=A,
                model="m",
                tokens_in=1,
                cost_usd=1,
                idempotency_key=f"{number}-{turn}",
            )
            try:
                await self.recorder.record([event])
            except DatabaseUnavailableError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            else:
                self.answered_at.append(time.monotonic())
                turn += 1
        return turn

    def answers_in_second_from(self, since: float) -> int:
        return sum(since <= at < since + 1 for at in self.answered_at)


async def submit(recorder: SessionRecorder, seconds: float) -> tuple[int, int]:
    """Submits for some seconds; returns how many items were accepted and refused. The queue stays in its bounds."""
    submitted = refused = 0
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        snapshot = recorder.snapshot()
        assert snapshot.pending <= MAX_PENDING
        assert snapshot.pending + snapshot.waiting <= CALLERS + submitted
        try:
            recorder.submit(
                UsageEvent(
                    session_id="submitted",
                    user_id=A,
                    model="m",
                    tokens_in=1,
                    cost_usd=1,
                    idempotency_key=f"{submitted}",
                )
            )
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
            assert after - before < 4_000_000  # some kilobytes for each pending item, however long the outage
            assert refused > 0
            enough = len(callers.answered_at) + CALLERS
            # Writing goes on without a call of ours.
            await eventually(lambda: len(callers.answered_at) >= enough, within_seconds=10)
            await asyncio.sleep(2)
            callers.stopped = True
            recorded = sum(await asyncio.gather(*calling))
            LOG.info(
                "answers a second before %d, in the second second after %d; errors %s",
                callers.answers_in_second_from(returned_at - seconds - 1),
                callers.answers_in_second_from(returned_at + 1),
                dict(callers.errors),
            )
    async with SessionDatabase.connect(url) as db:
        stats = await db.lifecycle.aggregate_stats(A)
        found = await db.lifecycle.get_session_row("submitted", A)
        by_submit = 0 if found is None else found.record.tokens_in
    assert stats.tokens_in - by_submit == recorded
    assert by_submit <= submitted


async def test_callers_wait_through_a_short_outage(session_database_url: str) -> None:
    await outage(session_database_url, seconds=2, give_up_after=30)


@pytest.mark.soak
@pytest.mark.parametrize("give_up_after", [60, 5])
async def test_nothing_is_lost_in_a_long_outage(session_database_url: str, give_up_after: float) -> None:
    await outage(session_database_url, seconds=20, give_up_after=give_up_after)
