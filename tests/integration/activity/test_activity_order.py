"""Runs, steps, messages and usage leave the same tables in any order, any batches and any repetition."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from session_lifecycle import Message, Run, SessionDatabase, SessionWriter, Step, Touch, UsageEvent
from session_lifecycle.entities import metadata
from session_lifecycle.models import Item
from support.stored_rows import deadlocks

USERS = (UUID(int=1), UUID(int=2))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# The time of writing, and the number of the recording: they differ each time.
UNLIKE = {"recorded_at", "record_no"}
RUNS = 5


def moment(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


@st.composite
def activities(draw: st.DrawFn) -> list[Item]:
    """Runs and their links, steps, messages and events; a run comes in one or two parts."""
    items: list[Item] = []
    seconds = st.integers(0, 60)
    for user in draw(st.sampled_from([USERS[:1], USERS])):
        for number in range(draw(st.integers(1, RUNS))):
            start = draw(seconds)
            known: dict[str, Any] = {"run_id": f"r{number}", "user_id": user, "started_at": moment(start)}
            known["session_id"] = draw(st.sampled_from([None, None, "s1", "s2"]))
            known["model"] = draw(st.sampled_from([None, "m1"]))
            link = draw(st.sampled_from(["none", "parent", "call", "root"]))
            other = f"r{draw(st.integers(0, RUNS))}"
            if link == "parent" and other != f"r{number}":
                known["parent_run_id"] = other
            elif link == "call":
                known["parent_tool_call_id"] = draw(st.sampled_from(["c1", "c2"]))
            elif link == "root":
                known["root_run_id"] = other
            later = {"ended_at": moment(start + draw(seconds)), "quality_score": 0.5}
            later["reported_cost_usd"] = draw(st.sampled_from([None, Decimal("0.5"), Decimal(2)]))
            if draw(st.booleans()):
                items += [Run(**known), Run(**{**known, **later})]
            else:
                items.append(Run(**{**known, **later}))
            for place in range(draw(st.integers(0, 2))):
                items.append(
                    Step(
                        step_id=f"step{place}",
                        run_id=f"r{number}",
                        user_id=user,
                        kind="tool",
                        # Of two calls with one id, the later one counts; of one moment, the one that is recorded later.
                        # So no two are of one moment here.
                        started_at=moment(draw(seconds)) + timedelta(microseconds=len(items)),
                        tool_call_id=draw(st.sampled_from([None, "c1", "c2"])),
                        errors=draw(st.sampled_from([None, ["boom"]])),
                    )
                )
            for place in range(draw(st.integers(0, 2))):
                items.append(
                    UsageEvent(
                        # The session of its run; any session where the run names none.
                        session_id=known["session_id"] or draw(st.sampled_from(["s1", "s3"])),
                        user_id=user,
                        model="m1",
                        tokens_in=10,
                        cost_usd=Decimal("0.3"),
                        idempotency_key=f"{number}-{place}",
                        at=moment(draw(seconds)),
                        run_id=f"r{number}",
                    )
                )
        for number in range(draw(st.integers(0, 2))):
            items.append(
                Message(
                    message_id=f"m{number}",
                    user_id=user,
                    session_id=draw(st.sampled_from(["s1", "s4"])),
                    role="user",
                    content="hello",
                    created_at=moment(draw(seconds)),
                )
            )
    return items


def fleet(threads: int) -> list[Item]:
    """Threads of three runs each, linked by a parent and by a tool call, with steps, events and messages."""
    items: list[Item] = []
    for number in range(threads):
        user = USERS[number % 2]
        top, middle, low = (f"{number}-{name}" for name in ("top", "middle", "low"))
        start = moment(number)
        common: dict[str, Any] = {"user_id": user, "started_at": start}
        session = f"s{number % 7}" if number % 3 else None
        items.append(Run(run_id=top, session_id=session, **common, reported_cost_usd=1))
        items.append(Run(run_id=middle, parent_run_id=top, **common, ended_at=start + timedelta(seconds=5)))
        items.append(Run(run_id=low, parent_tool_call_id=f"call-{number}", **common))
        items.append(Step(step_id="call", run_id=middle, kind="tool", tool_call_id=f"call-{number}", **common))
        items.append(Step(step_id="task", run_id=low, kind="task", errors="no", **common))
        for run_id, named in ((top, session or "s9"), (middle, "s0"), (low, "s9")):
            used = {"tokens_in": 10, "tokens_out": 5, "cost_usd": Decimal("0.6"), "model": "m", "at": start}
            items.append(UsageEvent(session_id=named, user_id=user, idempotency_key=run_id, run_id=run_id, **used))
        items.append(
            Message(message_id=top, user_id=user, session_id="s1", role="user", content="hello", created_at=start)
        )
    return items


async def tables(db: SessionDatabase) -> dict[str, list[tuple[Any, ...]]]:
    """Returns all stored rows and deletes them."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    async with db.engine.begin() as connection:
        for table in metadata.sorted_tables:
            columns = [column for column in table.columns if column.name not in UNLIKE]
            rows = await connection.execute(table.select().with_only_columns(*columns))
            found[table.name] = sorted((tuple(row) for row in rows), key=repr)
            await connection.execute(table.delete())
    return found


async def write(db: SessionDatabase, items: Sequence[Item], sizes: Sequence[int]) -> None:
    rest = list(items)
    for size in sizes:
        part, rest = rest[:size], rest[size:]
        if part:
            await db.lifecycle.record(part)
    if rest:
        await db.lifecycle.record(rest)


@asynccontextmanager
async def nothing_left(db: SessionDatabase) -> AsyncGenerator[None]:
    yield
    await tables(db)


async def agrees(db: SessionDatabase, data: st.DataObject) -> None:
    """Draws activities and two ways to record them, and compares the tables that both leave."""
    items = data.draw(activities())
    again = data.draw(st.lists(st.sampled_from(items), max_size=5))
    shuffled = data.draw(st.permutations(items + again))
    sizes = data.draw(st.lists(st.integers(1, 6), max_size=8))
    async with nothing_left(db):
        await write(db, items, [])
        expected = await tables(db)
        await write(db, shuffled, sizes)
        found = await tables(db)
        for name, rows in expected.items():
            assert found[name] == rows, name


def run(run_id: str, second: int, until: int | None = None, **more: Any) -> Run:
    ended_at = None if until is None else moment(until)
    return Run(run_id=run_id, user_id=USERS[0], started_at=moment(second), ended_at=ended_at, **more)


def call(run_id: str, second: int, **more: Any) -> Step:
    at = moment(second)
    return Step(step_id="call", run_id=run_id, user_id=USERS[0], kind="tool", started_at=at, tool_call_id="c", **more)


def touch(session_id: str, second: int) -> Touch:
    return Touch(session_id=session_id, user_id=USERS[0], at=moment(second))


RUNS_THAT_MOVE = {
    # Found by the test below: the call makes the two runs each other's ancestors, so `child` leaves the session s2.
    "into no session": [
        run("parent", 56, session_id="s2", parent_tool_call_id="c"),
        run("child", 15, 39, parent_run_id="parent"),
        call("child", 37),
    ],
    "to the session of a newer call": [
        run("a", 10, session_id="s1"),
        run("b", 10, session_id="s2"),
        call("a", 12),
        run("moves", 5, 30, parent_tool_call_id="c"),
        call("b", 4),
    ],
    "out of a session that a thread made": [
        run("a", 10),
        run("b", 11, session_id="s2"),
        call("a", 12),
        run("moves", 20, 30, parent_tool_call_id="c"),
        call("b", 14),
    ],
    "out of a session that a thread made and a call named": [
        run("a", 10),
        run("b", 11, session_id="s2"),
        call("a", 12),
        run("moves", 20, 30, parent_tool_call_id="c"),
        call("b", 14),
        touch("a", 15),
    ],
    "beside touches that came before and after": [
        run("a", 10, session_id="s1"),
        touch("s1", 8),
        touch("s1", 25),
        run("moves", 6, 30, parent_run_id="a"),
        run("moves", 6, 30, parent_run_id="a", session_id="s2"),
    ],
}


@pytest.mark.parametrize("items", RUNS_THAT_MOVE.values(), ids=RUNS_THAT_MOVE.keys())
async def test_R06_a_run_that_moves_takes_its_times_along(session_database: SessionDatabase, items: list[Item]) -> None:
    """In whichever order the items come, one by one, the tables end as if they had come together."""
    orders = list(permutations(items))
    await write(session_database, items, [])
    expected = await tables(session_database)
    for order in Random(len(items)).sample(orders, min(len(orders), 50)):
        await write(session_database, order, [1] * len(order))
        assert await tables(session_database) == expected, order


any_order = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    # Shrinking runs on a real database and would take longer than finding.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@settings(any_order, max_examples=30)
@given(data=st.data())
async def test_any_order_leaves_the_same_tables(session_database: SessionDatabase, data: st.DataObject) -> None:
    await agrees(session_database, data)


@pytest.mark.soak
@settings(any_order, max_examples=3000)
@given(data=st.data())
async def test_any_order_at_length_leaves_the_same_tables(
    session_database: SessionDatabase, data: st.DataObject
) -> None:
    await agrees(session_database, data)


async def storm(db: SessionDatabase, threads: int, tasks: int) -> None:
    """Many tasks record the fleet, about twice: directly, through a recorder, and in hosts' transactions."""
    random = Random(threads)
    items = fleet(threads)
    await write(db, items, [50] * len(items))
    expected = await tables(db)
    shares = [random.sample(items, len(items) * 2 // tasks) for _ in range(tasks - 1)]
    sent = [item for share in shares for item in share]
    shares.append([item for item in items if item not in sent])

    async def some(number: int, share: Sequence[Item], recorder: SessionWriter) -> None:
        for item in share:
            size = random.randint(1, 6)
            part = [item, *random.sample(share, min(size, len(share)))]
            if number % 3 == 0:
                await db.lifecycle.record(part)
            elif number % 3 == 1:
                await recorder.record(part)
            else:
                async with db.engine.begin() as connection:
                    await db.bind(connection).lifecycle.record(part)

    async with db.recorder() as recorder:
        await asyncio.gather(*(some(number, share, recorder) for number, share in enumerate(shares)))
    assert await deadlocks(db) == 0
    assert await tables(db) == expected


async def test_many_at_once_leave_the_same_tables(session_database: SessionDatabase) -> None:
    await storm(session_database, threads=24, tasks=9)


@pytest.mark.soak
async def test_a_storm_of_activity_leaves_the_same_tables(session_database: SessionDatabase) -> None:
    for threads in (40, 80, 160):
        await storm(session_database, threads=threads, tasks=24)
