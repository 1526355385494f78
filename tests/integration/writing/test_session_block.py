"""The session block: it touches the session, records its usage, and ends it in any case."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import text

from session_lifecycle import SchemaError, SessionDatabase, SessionStatus, current_session
from session_lifecycle.writing.session_block import SessionBlock
from support.eventually import eventually

A, D = UUID(int=1), UUID(int=2)
Open = Callable[..., SessionBlock]


@pytest_asyncio.fixture(params=["direct", "recorder"])
async def open_session(request: pytest.FixtureRequest, session_database: SessionDatabase) -> AsyncIterator[Open]:
    if request.param == "direct":
        yield session_database.session
    else:
        async with session_database.recorder() as recorder:
            yield recorder.session


async def status(db: SessionDatabase, session_id: str = "s") -> tuple[str, int]:
    found = await db.lifecycle.get_session_row(session_id, A)
    assert found is not None
    return found.effective_status.value, found.record.tokens_in


async def test_a_block_is_touched_used_and_completed(session_database: SessionDatabase, open_session: Open) -> None:
    async with open_session("s", A, D, agent_name="coder") as session:
        assert await status(session_database) == ("running", 0)
        receipt = await session.usage("m", 10, 5, 0.5, idempotency_key="k")
        assert (receipt.outcome, receipt.session_tokens_in) == ("applied", 10)
    found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    assert (found.record.status, found.record.dataset_id, found.record.agent_name) == ("completed", D, "coder")


async def test_an_exception_fails_the_session_and_is_raised_on(
    session_database: SessionDatabase, open_session: Open
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_session("s", A):
            raise ZeroDivisionError
    assert (await status(session_database))[0] == "failed"


async def test_an_end_inside_the_block_wins(session_database: SessionDatabase, open_session: Open) -> None:
    async with open_session("s", A) as session:
        assert await session.end(SessionStatus.FAILED) == "ended"
    assert (await status(session_database))[0] == "failed"


async def test_the_end_is_written_though_the_task_is_cancelled(
    session_database: SessionDatabase, open_session: Open
) -> None:
    inside = asyncio.Event()

    async def live() -> None:
        async with open_session("s", A):
            inside.set()
            await asyncio.sleep(60)

    async with session_database.engine.connect() as holder:
        task = asyncio.create_task(live())
        await inside.wait()
        # The end waits for this lock, so the task is cancelled a second time while the end is written.
        await holder.execute(text("SELECT 1 FROM session_lifecycle.session_records FOR UPDATE"))
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.05)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def has_failed() -> bool:
        return (await status(session_database))[0] == "failed"

    await eventually(has_failed)


async def test_code_inside_finds_the_innermost_session(open_session: Open) -> None:
    async def found() -> SessionBlock | None:
        return current_session()

    assert current_session() is None
    async with open_session("outer", A) as outer:
        async with open_session("inner", A) as inner:
            in_coroutine, in_task = await asyncio.gather(found(), asyncio.create_task(found()))
            assert in_coroutine is in_task is inner
        assert current_session() is outer
    assert current_session() is None


async def test_an_end_that_cannot_be_written_does_not_hide_the_exception(
    session_database: SessionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    async def live(error: Exception | None) -> None:
        async with session_database.session("s", A):
            async with session_database.engine.begin() as connection:
                await connection.execute(text("ALTER FUNCTION session_lifecycle.record_v1 RENAME TO gone"))
            if error is not None:
                raise error

    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        await live(ZeroDivisionError())
    assert "the end of session 's' could not be written" in caplog.text
    async with session_database.engine.begin() as connection:
        await connection.execute(text("ALTER FUNCTION session_lifecycle.gone RENAME TO record_v1"))
    with pytest.raises(SchemaError):
        await live(None)
