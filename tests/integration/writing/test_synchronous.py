"""The synchronous recorder: the calls of a recorder without await, from any thread, to the end of the interpreter."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import (
    ConfigurationError,
    End,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SessionDatabase,
    SessionStatus,
    Settings,
    Touch,
)
from session_lifecycle.models import Item
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.writing.synchronous import SynchronousRecorder
from support.scripts import run_script
from support.usage import A, usage

STORED = "SELECT coalesce(sum(tokens_in), 0)::bigint FROM session_lifecycle.session_records"

STATUSES = """
    SELECT string_agg(session_id || ' ' || status, ', ' ORDER BY session_id) FROM session_lifecycle.session_records
"""


async def ask(url: str, sql: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def stored_tokens(url: str) -> int:
    counted: int = asyncio.run(ask(url, STORED))
    return counted


@pytest.fixture
def recorder(session_database_url: str) -> Iterator[SynchronousRecorder]:
    with SessionDatabase.connect(session_database_url).synchronous_recorder() as recorder:
        yield recorder


def test_X32_it_has_the_calls_of_a_recorder(recorder: SynchronousRecorder, session_database_url: str) -> None:
    assert recorder.ensure_and_touch_session("s", A, agent_name="coder") == "created"
    receipt = recorder.accumulate_usage("s", A, "m", 10, 5, 0.5, idempotency_key="k")
    assert (receipt.outcome, receipt.session_tokens_in) == ("applied", 10)
    assert recorder.end_session("s", A, SessionStatus.COMPLETED) == "ended"
    assert recorder.reopen_session("s", A) == "reopened"
    assert recorder.record([Touch(session_id="s", user_id=A), End(session_id="s", user_id=A, status="failed")]) == [
        "touched",
        "ended",
    ]
    recorder.submit(usage(session_id="t", tokens_in=3))
    recorder.flush()
    assert stored_tokens(session_database_url) == 13
    assert recorder.snapshot().items == 7
    with pytest.raises(InvalidValueError, match="tokens_in"):
        recorder.accumulate_usage("s", A, "m", -1)
    assert recorder.close() == []
    assert recorder.close() == []
    for call in (lambda: recorder.accumulate_usage("s", A, "m", 1), lambda: recorder.submit(usage())):
        with pytest.raises(RecorderClosedError):
            call()
    recorder.flush()


def test_X32_a_block_ends_its_session(recorder: SynchronousRecorder, session_database_url: str) -> None:
    with recorder.session("done", A, agent_name="coder") as session:
        assert session.touch() == "touched"
        assert session.usage("m", 1, idempotency_key="k").outcome == "applied"
    with pytest.raises(ZeroDivisionError), recorder.session("broken", A):
        raise ZeroDivisionError
    with recorder.session("early", A) as session:
        assert session.end("failed") == "ended"
    assert asyncio.run(ask(session_database_url, STATUSES)) == "broken failed, done completed, early failed"


def test_R23_X32_many_threads_share_it(recorder: SynchronousRecorder, session_database_url: str) -> None:
    def hook() -> None:
        for _ in range(20):
            recorder.accumulate_usage("s", A, "m", 1)
            recorder.submit(usage())

    threads = [threading.Thread(target=hook) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.flush()
    assert stored_tokens(session_database_url) == 320
    assert recorder.snapshot().batches < 320


async def test_R23_X32_it_works_beside_an_event_loop(session_database_url: str) -> None:
    async with SessionDatabase.connect(session_database_url) as db:
        recorder = db.synchronous_recorder()
        await db.lifecycle.accumulate_usage("s", A, "m", 1)
        assert recorder.accumulate_usage("s", A, "m", 1).session_tokens_in == 2  # blocks this loop, and works
        assert (await asyncio.to_thread(recorder.accumulate_usage, "s", A, "m", 1)).session_tokens_in == 3
        recorder.submit(usage())
    with pytest.raises(RecorderClosedError):  # closing the database closes it, and writes what is pending
        recorder.submit(usage())
    assert await ask(session_database_url, STORED) == 4


def test_R27_X32_lost_items_are_told_on_its_thread(session_database_url: str) -> None:
    lost: list[Sequence[Item]] = []
    refused: list[Exception] = []

    def keep(items: Sequence[Item], _error: Exception) -> None:
        lost.append(items)
        for call in (lambda: losing.accumulate_usage("s", A, "m", 1), losing.close):
            try:
                call()
            except RecorderClosedError as error:
                refused.append(error)

    db = SessionDatabase.connect("postgresql://u@127.0.0.1:1/x", settings=Settings(retries=0))
    losing = db.synchronous_recorder(give_up_after=0.1, drain_within=5, max_pending=2, on_lost=keep)
    losing.submit(usage(idempotency_key="k"))
    losing.submit(usage(idempotency_key="l"))
    with pytest.raises(RecorderFullError):
        losing.submit(usage())
    losing.close()
    assert sum(map(len, lost)) == 2
    assert len(refused) == 2 * len(lost)


async def test_X32_a_hosts_engine_is_refused(session_database_url: str) -> None:
    engine = create_async_engine(asyncpg_url(session_database_url))
    with pytest.raises(ConfigurationError, match="synchronous_recorder"):
        SessionDatabase.from_engine(engine).synchronous_recorder()
    with pytest.raises(ConfigurationError, match="embedded"):
        SessionDatabase.embedded().synchronous_recorder()
    with pytest.raises(ConfigurationError, match="max_batch"):
        SessionDatabase.connect(session_database_url).synchronous_recorder(max_batch=0)


@pytest.mark.parametrize(
    "source",
    [
        # ends at once, and keeps no reference
        "SessionDatabase.connect(URL).synchronous_recorder().submit(usage(tokens_in=7))",
        """
        recorder = SessionDatabase.connect(URL).synchronous_recorder()
        recorder.submit(usage(tokens_in=7))
        sys.exit(0)
        """,
        # a thread that is no daemon goes on after the main thread has ended
        """
        recorder = SessionDatabase.connect(URL).synchronous_recorder()
        def work():
            time.sleep(0.5)
            recorder.submit(usage(tokens_in=3))
            recorder.accumulate_usage("s", A, "m", 4)
        recorder.submit(usage(tokens_in=0, cost_usd=1))
        threading.Thread(target=work).start()
        """,
        # in the middle of an event loop
        """
        async def main():
            recorder = SessionDatabase.connect(URL).synchronous_recorder()
            recorder.submit(usage(tokens_in=7))
        asyncio.run(main())
        """,
        # a handler that runs at the end of the interpreter
        """
        import atexit
        recorder = SessionDatabase.connect(URL).synchronous_recorder()
        recorder.submit(usage(tokens_in=3))
        atexit.register(lambda: recorder.submit(usage(tokens_in=4)))
        """,
    ],
)
def test_R27_X32_a_script_that_ends_at_once_loses_nothing(session_database_url: str, source: str) -> None:
    named = session_database_url.replace("@127.0.0.1:", "@localhost:")  # a name has to be looked up, in a thread
    assert run_script(source, named, with_log=True) == ""
    assert stored_tokens(session_database_url) == 7


def test_R27_X32_an_exception_that_ends_a_script_loses_nothing(session_database_url: str) -> None:
    run_script(
        "SessionDatabase.connect(URL).synchronous_recorder().submit(usage(tokens_in=7)); 1 / 0",
        session_database_url,
        code=1,
    )
    assert stored_tokens(session_database_url) == 7


def test_R24_X32_a_script_without_a_database_ends_and_says_what_it_lost() -> None:
    said = run_script(
        """
        db = SessionDatabase.connect(URL, settings=Settings(retries=0))
        recorder = db.synchronous_recorder(drain_within=0.5)
        recorder.submit(usage(idempotency_key="lost-key"))
        """,
        "postgresql://u@127.0.0.1:1/x",
        with_log=True,
        within_seconds=30,
    )
    assert "1 items could not be written" in said
    assert "'lost-key'" in said


def test_R23_X32_a_forked_child_starts_a_thread_of_its_own(session_database_url: str) -> None:
    said = run_script(
        """
        import multiprocessing
        recorder = SessionDatabase.connect(URL).synchronous_recorder()
        print(recorder.accumulate_usage("s", A, "m", 1).session_tokens_in, flush=True)
        def work():
            recorder.accumulate_usage("s", A, "m", 1)
            recorder.submit(usage())  # and ends at once
        processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
        for process in processes: process.start()
        for process in processes: process.join()
        print([process.exitcode for process in processes])
        print(recorder.accumulate_usage("s", A, "m", 1).session_tokens_in)
        """,
        session_database_url,
    )
    assert said.splitlines() == ["1", "[0, 0, 0]", "8"]
