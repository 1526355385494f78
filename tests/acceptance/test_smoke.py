from uuid import uuid4
from datetime import timedelta


async def test_smoke(session_database, session_clock):
    l = session_database.lifecycle
    A = uuid4()
    await session_clock.freeze()
    assert await l.ensure_and_touch_session("s", A) == "created"
    await session_clock.advance(timedelta(seconds=1800))
    assert (await l.get_session_row("s", A)).effective_status == "running"
    await session_clock.advance(timedelta(microseconds=1))
    assert (await l.get_session_row("s", A)).effective_status == "abandoned"
