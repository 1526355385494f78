"""Runs, steps, messages and usage in any order, cut up in any way, any number of times: the same tables."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_lifecycle import Item, Message, Run, SessionDatabase, Step, UsageEvent
from session_lifecycle.entities import metadata

USERS = (UUID(int=1), UUID(int=2))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# When it was written down, which is another time every time.
UNLIKE = {"recorded_at"}
RUNS = 5


def moment(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


@st.composite
def activities(draw: st.DrawFn) -> list[Item]:
    """What happened: runs and their links, steps, messages and events, each known in one or two parts."""
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
                        started_at=moment(draw(seconds)),
                        tool_call_id=draw(st.sampled_from([None, "c1", "c2"])),
                        errors=draw(st.sampled_from([None, ["boom"]])),
                    )
                )
            for place in range(draw(st.integers(0, 2))):
                items.append(
                    UsageEvent(
                        session_id=draw(st.sampled_from(["s1", "s3"])),
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


async def tables(db: SessionDatabase) -> dict[str, list[tuple[Any, ...]]]:
    """All that is stored, and then nothing is."""
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
async def nothing_left(db: SessionDatabase) -> AsyncIterator[None]:
    yield
    await tables(db)


@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
async def test_any_order_leaves_the_same_tables(session_database: SessionDatabase, data: st.DataObject) -> None:
    items = data.draw(activities())
    async with nothing_left(session_database):
        await write(session_database, items, [])
        expected = await tables(session_database)
        sizes = st.lists(st.integers(1, 6), max_size=8)
        shuffled = data.draw(st.permutations(items + data.draw(st.lists(st.sampled_from(items), max_size=5))))
        await write(session_database, shuffled, data.draw(sizes))
        assert await tables(session_database) == expected
