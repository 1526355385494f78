"""The recorder: few transactions, a bounded queue, items in order, and no accepted item lost."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
import pytest_asyncio
from sqlalchemy import text

from session_lifecycle import (
    ConfigurationError,
    DatabaseUnavailableError,
    End,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SchemaError,
    SessionDatabase,
    SessionListFilters,
    SessionRecorder,
    SessionStatus,
    Settings,
    Touch,
    UsageEvent,
    UsageReceipt,
)
from support.eventually import eventually
from support.stored_rows import deadlocks
from support.usage import A, receipt_of
from support.usage import usage as event


async def tokens(db: SessionDatabase) -> int:
    return (await db.lifecycle.aggregate_stats(A)).tokens_in


class Held:
    """A database that answers no write until `let_go`: another transaction locks every session."""

    def __init__(self, db: SessionDatabase) -> None:
        self._db = db

    async def __aenter__(self) -> Self:
        await self._db.lifecycle.record([Touch(session_id="s", user_id=A), Touch(session_id="t", user_id=A)])
        self._connection = await self._db.engine.connect()
        await self._connection.execute(text("SELECT 1 FROM session_lifecycle.session_records FOR UPDATE"))
        return self

    async def let_go(self) -> None:
        await self._connection.rollback()

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def until(recorder: SessionRecorder, **expected: int) -> None:
    """Waits until the snapshot has these figures."""

    def has_them() -> bool:
        snapshot = recorder.snapshot()
        return all(getattr(snapshot, name) == value for name, value in expected.items())

    await eventually(has_them, within_seconds=5)


@pytest_asyncio.fixture
async def recorder(session_database: SessionDatabase) -> AsyncIterator[SessionRecorder]:
    async with session_database.recorder() as recorder:
        yield recorder


async def test_calls_that_come_together_share_a_transaction(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    await recorder.accumulate_usage("s", A, "m", 1)
    receipts = await asyncio.gather(*(recorder.accumulate_usage("s", A, "m", 1) for _ in range(200)))
    assert [receipt.session_tokens_in for receipt in receipts] == list(range(2, 202))
    assert await tokens(session_database) == 201
    snapshot = recorder.snapshot()
    assert (snapshot.items, snapshot.pending) == (201, 0)
    assert snapshot.batches < 12  # under load a batch takes half of the queue, so the first ones are small
    assert snapshot.mean_batch == snapshot.items / snapshot.batches


async def test_no_transaction_holds_more_than_max_batch(session_database: SessionDatabase) -> None:
    async with session_database.recorder(max_batch=10) as recorder:
        await asyncio.gather(*(recorder.accumulate_usage(f"s{number}", A, "m", 1) for number in range(95)))
        assert recorder.snapshot().batches == 10
        # The items of one call share a transaction, also when they are more than `max_batch`.
        await recorder.record([event() for _ in range(25)])
        assert recorder.snapshot().batches == 11
    assert await tokens(session_database) == 120


async def test_items_of_one_session_keep_their_order(session_database: SessionDatabase) -> None:
    async with session_database.recorder(max_batch=7) as recorder:
        revisions = [event(idempotency_key="k", revision=number) for number in range(50)]
        receipts, ended, late, reopened = await asyncio.gather(
            asyncio.gather(*(receipt_of(recorder, revision) for revision in revisions)),
            recorder.end_session("s", A, SessionStatus.COMPLETED),
            recorder.accumulate_usage("s", A, "m", 1),
            recorder.reopen_session("s", A),
        )
    assert [receipt.outcome for receipt in receipts] == ["applied", *["replaced"] * 49]
    assert (ended, late.outcome, reopened) == ("ended", "frozen", "reopened")


async def test_a_bad_item_fails_alone(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    good = [recorder.accumulate_usage("s", A, "m", 1) for _ in range(20)]
    bad = recorder.record([event(), event(at=ahead)])
    answers = await asyncio.gather(*good[:10], bad, *good[10:], return_exceptions=True)
    refused = answers.pop(10)
    assert isinstance(refused, InvalidValueError)
    assert (refused.field, refused.value) == ("items.1.at", ahead)
    assert all(isinstance(answer, UsageReceipt) for answer in answers)
    assert await tokens(session_database) == 20
    assert recorder.snapshot().failures == 2
    with pytest.raises(InvalidValueError, match="tokens_in"):
        await recorder.accumulate_usage("s", A, "m", -1)
    nonsense: list[Any] = ["text", [Touch(session_id="s", user_id=A), "text"], None]
    for items in nonsense:
        with pytest.raises(InvalidValueError, match="items"):
            await recorder.record(items)


async def test_callers_wait_for_room_in_their_order(session_database: SessionDatabase) -> None:
    async with Held(session_database) as held, session_database.recorder(max_pending=3, max_batch=1) as recorder:
        calls = [asyncio.create_task(recorder.accumulate_usage("s", A, "m", 1)) for _ in range(8)]
        await until(recorder, pending=3, waiting=5)
        assert recorder.snapshot().oldest_waiting_seconds > 0
        await held.let_go()
        receipts = await asyncio.gather(*calls)
        assert [receipt.session_tokens_in for receipt in receipts] == list(range(1, 9))
        assert recorder.snapshot().waiting == 0


async def test_a_full_recorder_raises_at_once_when_set_to(session_database: SessionDatabase) -> None:
    async with (
        Held(session_database) as held,
        session_database.recorder(max_pending=3, on_full="raise") as recorder,
    ):
        calls = [asyncio.create_task(recorder.accumulate_usage("s", A, "m", 1)) for _ in range(3)]
        await until(recorder, pending=3)
        with pytest.raises(RecorderFullError, match="at most 3"):
            await recorder.accumulate_usage("s", A, "m", 1)
        with pytest.raises(RecorderFullError):
            recorder.submit(event())
        await held.let_go()
        await asyncio.gather(*calls)
        await recorder.accumulate_usage("s", A, "m", 1)
    assert await tokens(session_database) == 4


async def test_more_items_than_there_is_ever_room_for_are_refused(session_database: SessionDatabase) -> None:
    async with session_database.recorder(max_pending=3) as recorder:
        with pytest.raises(InvalidValueError, match="at most 3"):
            await recorder.record([event() for _ in range(4)])
        assert len(await recorder.record([event() for _ in range(3)])) == 3


async def test_an_accepted_item_is_written_though_its_caller_is_cancelled(session_database: SessionDatabase) -> None:
    async with Held(session_database) as held, session_database.recorder(max_pending=4, max_batch=2) as recorder:
        calls = [asyncio.create_task(recorder.accumulate_usage("s", A, "m", 1)) for _ in range(7)]
        await until(recorder, pending=4, waiting=3)
        for call in (calls[0], calls[3], calls[5]):  # in flight, in the queue, and still waiting for room
            call.cancel()
        await asyncio.sleep(0)
        await until(recorder, pending=4, waiting=2)
        await held.let_go()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [
            True, False, False, True, False, True, False,
        ]  # fmt: skip
        await until(recorder, pending=0)
    # All but the one that waited for room and was never accepted.
    assert await tokens(session_database) == 6


async def test_the_room_of_a_cancelled_caller_goes_to_the_next_caller(session_database: SessionDatabase) -> None:
    async with Held(session_database) as held, session_database.recorder(max_pending=1) as recorder:

        async def first() -> None:
            await recorder.accumulate_usage("s", A, "m", 1)
            # The room is granted to the next caller already, and that task has not run yet.
            calls[1].cancel()

        calls: list[asyncio.Task[Any]] = [asyncio.create_task(first())]
        await until(recorder, pending=1)
        calls += [asyncio.create_task(recorder.accumulate_usage("s", A, "m", 1)) for _ in range(2)]
        await until(recorder, waiting=2)
        await held.let_go()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert isinstance(answers[2], UsageReceipt)
        await until(recorder, pending=0, waiting=0)
    assert await tokens(session_database) == 2


async def test_closing_writes_what_is_pending(session_database: SessionDatabase) -> None:
    recorder = session_database.recorder(max_batch=5)
    async with recorder:
        for _ in range(50):
            recorder.submit(event())
    assert await tokens(session_database) == 50
    for call in (recorder.accumulate_usage("s", A, "m", 1), recorder.record([event()])):
        with pytest.raises(RecorderClosedError):
            await call
    with pytest.raises(RecorderClosedError):
        recorder.submit(event())
    assert await recorder.close() == []


async def test_closing_reports_what_it_could_not_write(
    session_database: SessionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    async with Held(session_database):
        recorder = session_database.recorder(max_batch=1, max_pending=3, drain_within=0.2)
        calls = [asyncio.create_task(recorder.accumulate_usage("s", A, "m", number)) for number in range(1, 3)]
        await until(recorder, pending=2)
        recorder.submit(event(tokens_in=3))
        waiting = asyncio.create_task(recorder.accumulate_usage("s", A, "m", 4))
        await until(recorder, waiting=1)
        with caplog.at_level(logging.ERROR):
            unwritten = await recorder.close()
        assert [item.tokens_in for item in unwritten if isinstance(item, UsageEvent)] == [1, 2, 3]
        for call in (*calls, waiting):
            with pytest.raises(RecorderClosedError):
                await call
        assert recorder.snapshot().failures == 3
        assert "1 items could not be written" in caplog.text
    # The write under way at the deadline was cancelled, unless the server was faster.
    assert await tokens(session_database) in {0, 1}


async def test_closing_the_database_closes_its_recorders(session_database_url: str) -> None:
    async with SessionDatabase.connect(session_database_url) as db:
        recorder = db.recorder()
        await recorder.accumulate_usage("s", A, "m", 1)
        recorder.submit(event())
    with pytest.raises(RecorderClosedError):
        await recorder.accumulate_usage("s", A, "m", 1)
    async with SessionDatabase.connect(session_database_url) as db:
        assert await tokens(db) == 2


async def test_other_threads_submit(session_database: SessionDatabase) -> None:
    refused: list[Exception] = []

    def hook(recorder: SessionRecorder) -> None:
        for _ in range(50):
            try:
                recorder.submit_threadsafe(event())
            except RecorderFullError as error:
                refused.append(error)

    async with session_database.recorder(max_pending=10_000) as recorder:
        threads = [threading.Thread(target=hook, args=(recorder,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
    assert refused == []
    assert await tokens(session_database) == 400
    with pytest.raises(RecorderClosedError):
        await asyncio.to_thread(recorder.submit_threadsafe, event())
    not_an_item: Any = "text"
    with pytest.raises(InvalidValueError, match="item"):
        recorder.submit_threadsafe(not_an_item)


async def test_a_failure_nobody_awaits_is_counted_and_logged(
    recorder: SessionRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="session_lifecycle"):
        recorder.submit(event(at=datetime.now(UTC) + timedelta(hours=1)))
        await until(recorder, failures=1, pending=0)
    assert "at most five minutes ahead" in caplog.text


async def test_an_unreachable_database_raises_after_give_up_after() -> None:
    settings = Settings(retries=0)
    async with (
        SessionDatabase.connect("postgresql://u@127.0.0.1:1/x", settings=settings) as db,
        db.recorder(give_up_after=0.5, drain_within=0) as recorder,
    ):
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(
            *(recorder.accumulate_usage("s", A, "m", 1) for _ in range(20)), return_exceptions=True
        )
        took = asyncio.get_running_loop().time() - began
        assert all(isinstance(answer, DatabaseUnavailableError) for answer in answers)
        assert 0.4 < took < 2
        assert recorder.snapshot().failures == 20
    # The recorder was closed during a pause: no item fails twice.
    assert (recorder.snapshot().failures, recorder.snapshot().pending) == (20, 0)


async def test_a_database_that_does_not_answer_raises_and_may_recover(session_database: SessionDatabase) -> None:
    async with Held(session_database) as held, session_database.recorder(give_up_after=0.3) as recorder:
        with pytest.raises(DatabaseUnavailableError, match=r"did not answer within 0\.3 s") as raised:
            await recorder.accumulate_usage("s", A, "m", 1)
        assert raised.value.may_have_written
        await held.let_go()
        receipt = await recorder.accumulate_usage("s", A, "m", 1)
        assert receipt.outcome == "applied"


async def test_a_broken_schema_fails_every_caller_with_an_error_of_its_own(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        await recorder.accumulate_usage("s", A, "m", 1)
        async with session_database.engine.begin() as connection:
            await connection.execute(text("DROP FUNCTION session_lifecycle.record_v1"))
        answers = await asyncio.gather(
            *(recorder.accumulate_usage("s", A, "m", 1) for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(answer, SchemaError) for answer in answers)
        assert len({id(answer) for answer in answers}) == 5


async def test_a_lone_call_does_not_wait_for_others(session_database: SessionDatabase) -> None:
    async with session_database.recorder(max_delay=timedelta(hours=1)) as recorder, asyncio.timeout(60):
        await recorder.accumulate_usage("s", A, "m", 1)


async def test_a_busy_recorder_waits_to_fill_a_batch(session_database: SessionDatabase) -> None:
    async with session_database.recorder(max_delay=timedelta(seconds=0.5)) as recorder:
        await asyncio.gather(*(recorder.accumulate_usage("s", A, "m", 1) for _ in range(6)))
        batches = recorder.snapshot().batches

        async def straggler(seconds: float) -> None:
            await asyncio.sleep(seconds)
            await recorder.accumulate_usage("s", A, "m", 1)

        await asyncio.gather(*(straggler(number / 50) for number in range(5)))
        assert recorder.snapshot().batches <= batches + 2


@pytest.fixture
def gathers_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("session_lifecycle.writing.group_commit.GATHER_SECONDS", 3600)


def touch(number: int) -> Touch:
    return Touch(session_id=f"s{number}", user_id=A)


@pytest.mark.usefixtures("gathers_for_long")
async def test_items_that_nobody_waits_for_wait_for_others(session_database: SessionDatabase) -> None:
    async with session_database.recorder(max_batch=4) as recorder:
        for number in range(3):
            recorder.submit(touch(number))
            await asyncio.sleep(0.01)
        assert (recorder.snapshot().pending, recorder.snapshot().batches) == (3, 0)
        # A caller waits for its answer, so all is written with it.
        await recorder.ensure_and_touch_session("s3", A)
        assert (recorder.snapshot().items, recorder.snapshot().batches) == (4, 1)
        # As many as a transaction takes wait for nothing else, and take the rest along.
        for number in range(6):
            recorder.submit(touch(number))
        await until(recorder, batches=3, items=10, pending=0)
        # Flushing and closing wait for nothing else either.
        recorder.submit(touch(1))
        await recorder.flush()
        assert recorder.snapshot().items == 11
        recorder.submit(touch(1))
    assert (recorder.snapshot().items, recorder.snapshot().pending) == (12, 0)


async def test_items_that_nobody_waits_for_are_written_though_nothing_else_comes(
    session_database: SessionDatabase,
) -> None:
    async with session_database.recorder() as recorder:
        for number in range(3):
            recorder.submit(touch(number))
            await until(recorder, items=number + 1, pending=0)


@pytest.mark.usefixtures("gathers_for_long")
async def test_a_caller_that_waits_for_room_hurries_those_that_wait_for_others(
    session_database: SessionDatabase,
) -> None:
    async with session_database.recorder(max_pending=2) as recorder:
        for number in range(2):
            recorder.submit(touch(number))
        await recorder.ensure_and_touch_session("s3", A)
        assert recorder.snapshot().items == 3


@pytest.mark.usefixtures("gathers_for_long")
async def test_one_bad_item_among_those_that_nobody_waits_for(session_database: SessionDatabase) -> None:
    async with session_database.recorder(max_batch=4) as recorder:
        late = Touch(session_id="s9", user_id=A, at=datetime.now(UTC) + timedelta(days=1))
        for item in (touch(0), touch(1), late, touch(2)):
            recorder.submit(item)
        await until(recorder, items=3, failures=1, pending=0)


async def test_a_thread_wakes_the_event_loop_once_for_all_that_it_hands_over(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    woken: list[object] = []
    wake = loop.call_soon_threadsafe

    def counted(callback: Any, *arguments: Any, **named: Any) -> asyncio.Handle:
        woken.append(callback)
        return wake(callback, *arguments, **named)

    async with session_database.recorder() as recorder:
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        for burst in range(2):
            for number in range(50):
                recorder.submit_threadsafe(touch(number))  # the loop does not look meanwhile
            assert len(woken) == burst + 1
            await asyncio.sleep(0)
        monkeypatch.undo()
        await recorder.flush()
        assert recorder.snapshot().items == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch": 0},
        {"max_pending": True},
        {"max_delay": -1},
        {"on_full": "drop"},
        {"give_up_after": "soon"},
        {"drain_within": float("nan")},
    ],
)
async def test_a_wrong_bound_is_refused(session_database: SessionDatabase, wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(ConfigurationError, match=name):
        session_database.recorder(**wrong)


async def test_recorders_direct_calls_and_hosts_transactions_do_not_deadlock(session_database: SessionDatabase) -> None:
    def items(caller: int, number: int) -> list[UsageEvent]:
        return [event(session_id=f"s{(caller * 7 + number * 3 + step) % 5}") for step in range(3)]

    async def direct(caller: int) -> None:
        for number in range(20):
            await session_database.lifecycle.record(items(caller, number))

    async def recorded(recorder: SessionRecorder, caller: int) -> None:
        for number in range(20):
            await recorder.record(items(caller, number))

    async def host(caller: int) -> None:
        for number in range(20):
            async with session_database.engine.begin() as connection:
                await session_database.bind(connection).lifecycle.accumulate_usage(f"s{number % 5}", A, "m", 1)

    async with session_database.recorder() as one, session_database.recorder() as other:
        await asyncio.gather(
            *(direct(caller) for caller in range(3)),
            *(recorded(recorder, caller) for recorder in (one, other) for caller in range(4)),
            *(host(caller) for caller in range(3)),
        )
    assert await tokens(session_database) == 20 * 3 * (3 + 8) + 20 * 3
    assert await deadlocks(session_database) == 0
    page = await session_database.lifecycle.list_session_rows(SessionListFilters(user_id=A))
    assert page.total == 5
    await session_database.lifecycle.record([End(session_id="s0", user_id=A, status="failed")])
