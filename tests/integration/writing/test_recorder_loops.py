"""A recorder whose task is cancelled or whose event loop is another one, and the items that are lost (R23, R27)."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from session_lifecycle import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    RecorderClosedError,
    SessionDatabase,
    SessionLifecycleError,
    SessionRecorder,
    SessionStatus,
    Settings,
    Spool,
    UsageEvent,
)
from session_lifecycle.models import Item, Message, Step
from support.eventually import eventually
from support.scripts import run_script
from support.usage import A, usage

Lost = list[tuple[Sequence[Item], SessionLifecycleError]]
LOCK = text("SELECT 1 FROM session_lifecycle.session_records FOR UPDATE")


async def tokens(db: SessionDatabase) -> int:
    return (await db.lifecycle.aggregate_stats(A)).tokens_in


def the_task(recorder: SessionRecorder) -> "asyncio.Task[None]":
    """The task of the recorder, as a host finds it that cancels all tasks."""
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "session-lifecycle recorder"]
    return task


async def test_R23_X29_a_recorder_goes_on_after_its_task_was_cancelled(session_database: SessionDatabase) -> None:
    async with asyncio.timeout(20), session_database.recorder() as recorder:
        assert (await recorder.accumulate_usage("s", A, "m", 1)).session_tokens_in == 1
        for number in range(2, 5):
            the_task(recorder).cancel()
            await asyncio.sleep(0)
            assert (await recorder.accumulate_usage("s", A, "m", 1)).session_tokens_in == number
        the_task(recorder).cancel()
        await asyncio.sleep(0)
        recorder.submit(usage())
    assert await tokens(session_database) == 5


async def test_X29_calls_under_way_are_answered_when_the_task_is_cancelled(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.accumulate_usage("s", A, "m", 1)
    async with asyncio.timeout(20), session_database.recorder(max_batch=2) as recorder:
        async with session_database.engine.connect() as holder:
            await holder.execute(LOCK)
            keyed = asyncio.create_task(recorder.accumulate_usage("s", A, "m", 10, idempotency_key="k"))
            unkeyed = asyncio.create_task(recorder.accumulate_usage("s", A, "m", 100))
            queued = [asyncio.create_task(recorder.accumulate_usage("s", A, "m", 1000)) for _ in range(2)]
            await eventually(lambda: recorder.snapshot().pending == 4)
            await asyncio.sleep(0.1)
            the_task(recorder).cancel()
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(keyed, unkeyed, *queued, return_exceptions=True)
        unknown = [one for one in answers if isinstance(one, BaseException)]
        # Whatever was in flight and has no key may have been written, and its caller is told so.
        assert all(isinstance(one, DatabaseUnavailableError) and one.may_have_written for one in unknown)
        assert len(unknown) <= 1
        assert not isinstance(answers[0], BaseException)
        assert recorder.snapshot().pending == 0
    assert await tokens(session_database) - 2011 in {0, 100}


async def test_X29_a_recorder_closes_after_its_task_was_cancelled(session_database: SessionDatabase) -> None:
    async with asyncio.timeout(20):
        recorder = session_database.recorder()
        async with recorder:
            recorder.submit(usage())
            the_task(recorder).cancel()
        assert await recorder.close() == []
    assert await tokens(session_database) == 1


@pytest.mark.parametrize("debug", [True, False])
def test_X29_asyncio_run_that_ends_without_close_writes_what_is_pending(session_database_url: str, debug: bool) -> None:
    said = run_script(
        f"""
        db = SessionDatabase.connect(URL)
        async def main():
            recorder = db.recorder()
            await recorder.open()
            for _ in range(50):
                recorder.submit(usage())
        asyncio.run(main(), debug={debug})
        async def read():
            return (await db.lifecycle.aggregate_stats(A)).tokens_in
        print(asyncio.run(read()))
        """,
        session_database_url,
        with_log=True,
    )
    assert said == "50"


@pytest.mark.parametrize("debug", [True, False])
def test_X29_cancelling_all_tasks_loses_nothing_and_close_returns(session_database_url: str, debug: bool) -> None:
    said = run_script(
        f"""
        db = SessionDatabase.connect(URL)
        async def main():
            async with db.recorder() as recorder:
                calls = [asyncio.create_task(recorder.accumulate_usage("s", A, "m", 1)) for _ in range(20)]
                await asyncio.sleep(0)
                for task in asyncio.all_tasks():
                    task.cancel()
                await asyncio.sleep(10)
        try:
            asyncio.run(main(), debug={debug})
        except asyncio.CancelledError:
            print("cancelled", end=" ")
        async def read():
            return (await db.lifecycle.aggregate_stats(A)).tokens_in
        print(asyncio.run(read()))
        """,
        session_database_url,
        within_seconds=30,
    )
    # The batch that was in flight has no keys: its callers are gone, and it may not be written twice.
    outcome, written = said.split()
    assert outcome == "cancelled"
    assert 0 <= int(written) <= 20


def test_R23_X29_a_recorder_starts_again_in_the_next_loop_with_what_is_pending(session_database_url: str) -> None:
    said = run_script(
        """
        db = SessionDatabase.connect(URL)
        recorder = db.recorder()
        async def use():
            return (await recorder.accumulate_usage("s", A, "m", 1)).session_tokens_in
        loop = asyncio.new_event_loop()
        print(loop.run_until_complete(use()))
        recorder.submit_threadsafe(usage())
        loop.close()  # by hand: nothing is closed with it
        try:
            recorder.submit_threadsafe(usage())
        except RecorderClosedError as error:
            print(error)
        async def next_loop():
            recorder.submit(usage())
            print(await use())
        asyncio.run(next_loop())
        """,
        session_database_url,
    )
    assert said.splitlines() == ["1", "the recorder's event loop is closed", "4"]


def test_R23_X29_a_recorder_is_closed_with_its_loop(session_database_url: str) -> None:
    db = SessionDatabase.connect(session_database_url)
    recorder = db.recorder()

    async def use() -> int:
        return (await recorder.accumulate_usage("s", A, "m", 1)).session_tokens_in

    assert asyncio.run(use()) == 1
    with pytest.raises(RecorderClosedError):
        asyncio.run(use())


async def test_R23_X29_another_loop_gets_our_error_at_once(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        await recorder.accumulate_usage("s", A, "m", 1)

        async def elsewhere() -> None:
            for call in (recorder.accumulate_usage("s", A, "m", 1), recorder.record([usage()]), recorder.flush()):
                async with asyncio.timeout(10):
                    with pytest.raises(RecorderClosedError, match="another event loop"):
                        await call
            recorder.submit(usage(tokens_in=10))  # works from everywhere

        await asyncio.to_thread(asyncio.run, elsewhere())
        await recorder.flush()
        assert await tokens(session_database) == 11

        async def close() -> list[Item]:
            recorder.submit(usage(tokens_in=100))
            return await recorder.close()

        assert await asyncio.to_thread(asyncio.run, close()) == []
        with pytest.raises(RecorderClosedError):
            await recorder.accumulate_usage("s", A, "m", 1)
    assert await tokens(session_database) == 111


def test_R23_X29_a_forked_child_starts_again_without_the_parents_items(session_database_url: str) -> None:
    said = run_script(
        """
        db = SessionDatabase.connect(URL)
        recorder = db.recorder()
        loop = asyncio.new_event_loop()
        async def use():
            return (await recorder.accumulate_usage("s", A, "m", 1)).session_tokens_in
        loop.run_until_complete(use())
        recorder.submit_threadsafe(usage(tokens_in=100))  # the loop stands still
        child = os.fork()
        if child == 0:
            print(asyncio.run(use()))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        loop.run_until_complete(recorder.flush())
        print(loop.run_until_complete(use()))
        loop.run_until_complete(db.close())
        """,
        session_database_url,
    )
    assert said.split() == ["2", "103"]


async def test_X29_a_caller_that_is_cancelled_while_it_waits_for_room_does_not_keep_the_recorder_from_closing(
    session_database: SessionDatabase,
) -> None:
    closing = session_database.recorder(max_pending=1)
    calls = [asyncio.create_task(closing.accumulate_usage("s", A, "m", 1)) for _ in range(2)]
    await asyncio.sleep(0)
    assert closing.snapshot().waiting == 1
    calls[1].cancel()
    assert await closing.close() == []
    await asyncio.gather(*calls, return_exceptions=True)


async def test_R27_X31_lost_items_reach_on_lost_and_one_line_of_the_log(
    session_database: SessionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    lost: Lost = []
    secret = "the patient's diagnosis"
    ahead = datetime.now(UTC) + timedelta(hours=1)
    items: list[Item] = [
        usage(session_id=f"s{number}", idempotency_key=f"key-{number}", at=ahead) for number in range(3)
    ]
    items.append(Message(user_id=A, session_id="m", message_id="m-1", role="user", content=secret, created_at=ahead))
    items.append(Step(user_id=A, run_id="r", step_id="step-1", kind="tool", started_at=ahead))
    async with session_database.recorder(on_lost=lambda these, error: lost.append((these, error))) as recorder:
        with caplog.at_level(logging.ERROR, logger="session_lifecycle"):
            for item in items:
                recorder.submit(item)
            await recorder.flush()
        assert recorder.snapshot().failures == 5
    assert [item for these, _ in lost for item in these] == items
    assert all(isinstance(error, InvalidValueError) for _, error in lost)
    for name in ("'s0'", "'s2'", "'key-0'", "'m-1'", "'step-1'"):
        assert name in caplog.text
    assert secret not in caplog.text


async def test_R27_X31_a_batch_that_is_lost_is_one_call_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    lost: Lost = []
    settings = Settings(retries=0)
    with caplog.at_level(logging.ERROR, logger="session_lifecycle"):
        async with (
            SessionDatabase.connect("postgresql://u@127.0.0.1:1/x", settings=settings) as db,
            db.recorder(
                give_up_after=0.2, drain_within=3, max_batch=500, on_lost=lambda *those: lost.append(those)
            ) as recorder,
        ):
            for number in range(100):
                recorder.submit(usage(session_id=f"s{number}", idempotency_key=f"k{number}"))
            await recorder.flush()
    [(first, error), *rest] = lost
    assert sum(len(items) for items, _ in lost) == 100
    assert len(rest) <= 1
    assert isinstance(error, DatabaseUnavailableError)
    lines = [record.getMessage() for record in caplog.records if "could not be written" in record.getMessage()]
    assert len(lines) == len(lost)
    assert "'s0'" in lines[0]
    assert "80 more" in lines[0] or len(first) < 100


async def test_R27_X31_a_caller_who_gets_the_error_is_not_told_twice(session_database: SessionDatabase) -> None:
    lost: Lost = []
    ahead = datetime.now(UTC) + timedelta(hours=1)
    async with session_database.recorder(on_lost=lambda *those: lost.append(those)) as recorder:
        with pytest.raises(InvalidValueError):
            await recorder.record([usage(at=ahead)])
        assert lost == []
        cancelled = asyncio.create_task(recorder.record([usage(at=ahead)]))
        await asyncio.sleep(0)
        cancelled.cancel()
        await recorder.flush()
        assert [len(items) for items, _ in lost] == [1]


async def test_R27_X31_closing_hands_over_what_is_unwritten_and_a_broken_callback_is_logged(
    session_database: SessionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    lost: Lost = []

    def keep(items: Sequence[Item], error: SessionLifecycleError) -> None:
        lost.append((items, error))
        raise ZeroDivisionError

    await session_database.lifecycle.accumulate_usage("s", A, "m", 1)
    async with session_database.engine.connect() as holder:
        await holder.execute(LOCK)
        recorder = session_database.recorder(drain_within=0.1, on_lost=keep)
        async with recorder:
            recorder.submit(usage(idempotency_key="k"))
        [(items, error)] = lost
        assert isinstance(error, RecorderClosedError)
        assert [item.idempotency_key for item in items if isinstance(item, UsageEvent)] == ["k"]
    assert "ZeroDivisionError" in caplog.text


async def test_R27_an_item_of_another_thread_that_comes_too_late_is_lost_aloud(
    session_database: SessionDatabase,
) -> None:
    lost: Lost = []
    recorder = session_database.recorder(on_lost=lambda *those: lost.append(those))
    async with recorder:
        loop = asyncio.get_running_loop()
    # The thread had asked whether the recorder is open just before it was closed. No thread can be stopped between two
    # statements, so the test sets what it had seen.
    recorder._commits.is_ending = False  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - see above
    await asyncio.to_thread(recorder.submit_threadsafe, usage())
    await asyncio.sleep(0.05)
    assert loop.is_running()
    assert [len(items) for items, _ in lost] == [1]


async def test_X31_on_lost_must_be_callable(session_database: SessionDatabase) -> None:
    not_a_function: Any = "log"
    with pytest.raises(ConfigurationError, match="on_lost"):
        session_database.recorder(on_lost=not_a_function)


async def test_R27_X31_a_function_that_nobody_awaits_is_refused(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    async def wait(*_: Any) -> None:
        pytest.fail("nobody awaits this")

    class Waiting:
        async def __call__(self, *_: Any) -> None:
            pytest.fail("nobody awaits this")

    url = session_database.engine.url.render_as_string(hide_password=False)
    for given in (wait, Waiting(), partial(wait, 1)):
        function: Any = given
        for make in (
            lambda function=function: session_database.recorder(on_lost=function),
            lambda function=function: session_database.synchronous_recorder(on_lost=function),
            lambda function=function: session_database.session("s", A, on_lost=function),
            lambda function=function: Spool(tmp_path / "spool").session("s", A, on_lost=function),
        ):
            with pytest.raises(ConfigurationError, match=r"^on_lost: .* a coroutine function, "):
                make()
        with pytest.raises(ConfigurationError, match=r"^redact: .* a coroutine function, "):
            SessionDatabase.connect(url, redact=function)
        with pytest.raises(ConfigurationError, match=r"^on_progress: .* a coroutine function, "):
            await session_database.maintenance.roll_up(on_progress=function)


async def test_flush_waits_for_what_was_accepted_before(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        await recorder.flush()
        for _ in range(30):
            recorder.submit(usage())
        batches = recorder.snapshot().batches
        await recorder.flush()
        assert recorder.snapshot().pending == 0
        assert recorder.snapshot().batches > batches
        assert await tokens(session_database) == 30
        assert await recorder.end_session("s", A, SessionStatus.COMPLETED) == "ended"
    await recorder.flush()
