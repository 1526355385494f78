"""The room of a recorder: callers get it in the order in which they asked."""

import asyncio

import pytest

from session_lifecycle import RecorderClosedError, RecorderFullError
from session_lifecycle.writing.room import Room


async def waiting_in(room: Room, *counts: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(room.wait(count)) for count in counts]
    await asyncio.sleep(0)
    return tasks


def test_there_is_no_more_room_than_its_size() -> None:
    room = Room(3)
    room.reserve(2)
    with pytest.raises(RecorderFullError, match=r"^2 items are pending, .* adds 2: at most 3 \(max_pending\)"):
        room.reserve(2)
    room.reserve(1)
    assert room.taken == 3
    assert room.must_wait(1)
    room.release(1)
    assert not room.must_wait(1)


async def test_no_caller_overtakes_another() -> None:
    room = Room(2)
    room.reserve(2)
    large, small = await waiting_in(room, 2, 1)
    room.release(1)  # enough for the small one only
    await asyncio.sleep(0)
    assert (large.done(), small.done()) == (False, False)
    assert room.must_wait(0)
    room.release(1)
    await large
    room.release(2)
    await small
    assert (room.taken, len(room.waiting)) == (1, 0)


async def test_X29_a_caller_is_cancelled_before_room_is_granted() -> None:
    """`grant` runs between the cancellation of a caller and that caller's next step."""
    room = Room(1)
    room.reserve(1)
    cancelled, *others = await waiting_in(room, 1, 1)
    turn, _ = room.waiting[0]
    cancelled.cancel()
    assert turn.cancelled()
    room.release(1)
    await asyncio.gather(*others)
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (room.taken, len(room.waiting)) == (1, 0)


async def test_X29_a_caller_is_cancelled_after_room_was_granted() -> None:
    room = Room(1)
    room.reserve(1)
    cancelled, following = await waiting_in(room, 1, 1)
    room.release(1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await following
    assert (room.taken, len(room.waiting)) == (1, 0)


async def test_a_caller_that_waits_is_refused_when_the_recorder_closes() -> None:
    room = Room(1)
    room.reserve(1)
    first, cancelled = await waiting_in(room, 1, 1)
    cancelled.cancel()
    room.refuse_waiting()
    with pytest.raises(RecorderClosedError, match="closed before there was room"):
        await first
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (room.taken, len(room.waiting)) == (1, 0)
