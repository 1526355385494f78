"""Rows of the lifecycle table about reads of single sessions and of pages."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from session_lifecycle import SessionListFilters, SessionStatus, Settings, Viewer
from session_lifecycle.testing import SessionClock
from support.world import World

MINUTE = timedelta(minutes=1)


async def test_L20_a_silent_session_reads_as_abandoned_until_touched(world: World) -> None:
    await world.touch(at=datetime.now(UTC) - 31 * MINUTE)
    assert (await world.effective(), (await world.row()).status) == ("abandoned", "running")
    await world.touch()
    assert await world.effective() == "running"


async def test_L21_exactly_at_the_threshold_it_still_runs(world: World, session_clock: SessionClock) -> None:
    await session_clock.freeze()
    await world.touch()
    await session_clock.advance(timedelta(seconds=1800))
    assert await world.effective() == "running"
    await session_clock.advance(timedelta(microseconds=1))
    assert await world.effective() == "abandoned"


async def test_L22_an_ended_session_is_never_abandoned(world: World) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=365)
    await world.touch(at=long_ago)
    await world.lifecycle.end_session("s", world.a, SessionStatus.COMPLETED, at=long_ago)
    assert await world.effective() == "completed"


@pytest.mark.parametrize(("text", "seconds", "warnings"), [("", 1800, 0), ("abc", 1800, 1), ("1", 1, 0)])
def test_L23_the_environment_sets_the_threshold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str, seconds: int, warnings: int
) -> None:
    monkeypatch.setenv("SESSION_ABANDON_AFTER_SECONDS", text)
    with caplog.at_level(logging.WARNING):
        assert Settings.load().abandon_after == timedelta(seconds=seconds)
    assert len(caplog.records) == warnings


async def assert_sees(world: World, viewer: Viewer, *expected: str) -> None:
    """Get, list, stats and cost by model all show these sessions and no other."""
    assert sorted(await world.listed(viewer)) == sorted(expected)
    for session in ("a1", "b1", "b2", "c1"):
        found = await world.lifecycle.get_session_row(session, viewer)
        assert (found is not None) == (session in expected)
    assert (await world.lifecycle.aggregate_stats(viewer)).tokens_in == 10 * len(expected)
    assert sorted(await world.models(viewer)) == sorted(f"model of {session}" for session in expected)


async def own_sessions(world: World) -> None:
    for session, owner, dataset in (
        ("a1", world.a, None),
        ("b1", world.b, world.d1),
        ("b2", world.b, None),
        ("c1", world.c, None),
    ):
        await world.touch(session, owner, dataset)
        await world.use(f"model of {session}", 10, session_id=session, user=owner)


async def test_L24_a_viewer_sees_their_own_and_the_permitted(world: World) -> None:
    await own_sessions(world)
    await assert_sees(world, Viewer(world.a), "a1")
    await assert_sees(world, Viewer(world.a, [world.d1]), "a1", "b1")


async def test_L25_a_viewer_sees_their_agents_sessions(world: World) -> None:
    await own_sessions(world)
    await assert_sees(world, Viewer(world.a, agent_user_ids=[world.c]), "a1", "c1")


async def test_L26_a_viewer_with_nothing_sees_nothing(world: World) -> None:
    await own_sessions(world)
    await assert_sees(world, Viewer(world.d2))
    await assert_sees(world, Viewer.of_users([]))
    assert (await world.lifecycle.aggregate_stats(world.d2)).success_rate == 1.0


async def test_L27_the_viewers_own_comes_first_unless_another_is_preferred(world: World) -> None:
    await world.touch("s", world.a)
    await world.touch("s", world.b, world.d1)

    async def owner(datasets: list[UUID], *, prefer_other_owner: bool) -> UUID:
        found = await world.lifecycle.get_session_row("s", world.a, datasets, prefer_other_owner)
        assert found is not None
        return found.record.user_id

    assert await owner([world.d1], prefer_other_owner=False) == world.a
    assert await owner([world.d1], prefer_other_owner=True) == world.b
    assert await owner([], prefer_other_owner=True) == world.a


async def test_L28_the_more_recently_active_of_two_others_is_found(world: World) -> None:
    await world.touch("s", world.b, world.d1)
    await world.touch("s", world.c, world.d1)
    await world.touch("s", world.b)
    found = [await world.found(viewer=Viewer(world.a, [world.d1])) for _ in range(10)]
    assert {one.record.user_id for one in found} == {world.b}


async def test_L29_pages_by_offset(world: World) -> None:
    for number in range(5):
        await world.touch(str(number))

    async def page(offset: int) -> Any:
        filters = SessionListFilters(user_id=world.a, limit=2, offset=offset)
        found = await world.lifecycle.list_session_rows(filters)
        return [row.record.session_id for row in found.sessions], found.total, found.has_more

    assert await page(0) == (["4", "3"], 5, True)
    assert await page(4) == (["0"], 5, False)


async def test_L30_an_unknown_order_falls_back(world: World) -> None:
    for session in ("x", "y", "z"):
        await world.touch(session)
    assert await world.listed(order_by="DROP TABLE session_records") == ["z", "y", "x"]
    assert await world.counts() == (3, 0, 0)


@pytest.mark.parametrize("bad", [{"limit": 0}, {"limit": 501}, {"offset": -1}])
def test_L31_a_limit_out_of_bounds_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        SessionListFilters(**bad)


async def test_L32_open_sessions_come_last_by_end_both_ways(world: World) -> None:
    for session in ("early", "open", "late"):
        await world.touch(session)
    for session in ("early", "late"):
        await world.lifecycle.end_session(session, world.a, SessionStatus.COMPLETED)
    assert await world.listed(order_by="ended_at") == ["late", "early", "open"]
    assert await world.listed(order_by="ended_at", descending=False) == ["early", "late", "open"]


async def walk(world: World, between: Any = None, **filters: Any) -> list[str]:
    walked: list[str] = []
    cursor = None
    while True:
        asked = SessionListFilters(user_id=world.a, cursor=cursor, **filters)
        page = await world.lifecycle.list_session_rows(asked)
        walked += [row.record.session_id for row in page.sessions]
        cursor = page.next_cursor
        if cursor is None:
            assert not page.has_more
            return walked
        if between:
            await between()


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order_by", ["last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in"])
async def test_L33_a_walk_gives_each_tied_row_once(world: World, order_by: str, descending: bool) -> None:
    at = datetime.now(UTC)
    for number in range(30):
        await world.touch(f"{number:02}", at=at)
        if number % 2 and order_by == "ended_at":
            await world.lifecycle.end_session(f"{number:02}", world.a, SessionStatus.FAILED, at=at)
    first = await walk(world, limit=7, order_by=order_by, descending=descending)
    assert sorted(first) == [f"{number:02}" for number in range(30)]
    assert await walk(world, limit=7, order_by=order_by, descending=descending) == first
    assert await world.listed(limit=30, order_by=order_by, descending=descending) == first


async def test_L34_a_walk_over_a_changing_table_misses_nothing(world: World) -> None:
    for number in range(20):
        await world.touch(f"quiet {number:02}")
        await world.touch(f"busy {number:02}")
    moving = iter(f"busy {number:02}" for number in range(20))

    async def touch_another() -> None:
        await world.touch(next(moving))

    walked = await walk(world, between=touch_another, limit=3)
    quiet = [session for session in walked if session.startswith("quiet")]
    assert quiet == [f"quiet {number:02}" for number in reversed(range(20))]


def test_L35_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValidationError, match="status_filter"):
        SessionListFilters(status_filter="zombie")


async def test_L36_a_window_includes_its_beginning_and_not_its_end(world: World) -> None:
    at = datetime.now(UTC)
    await world.touch(at=at)
    assert await world.listed(since=at) == ["s"]
    assert await world.listed(until=at) == []
