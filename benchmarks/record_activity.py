"""What does recording runs, steps, messages and usage cost, one by one and in batches, beside one INSERT per item?"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle import Message, Run, SessionDatabase, Step, UsageEvent
from session_lifecycle.entities import (
    SessionMessageEntity,
    SessionRunEntity,
    SessionStepEntity,
    SessionUsageEventEntity,
)
from session_lifecycle.models import MessageRole
from support.databases import database, machine
from support.tables import table

Activity = Run | Step | Message | UsageEvent
Write = Callable[[Sequence[Activity]], Awaitable[object]]
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
SESSIONS = 200
ITEMS_OF_RUN = 6
ROWS_OF_RUN = 5
"""One item of a run changes the row of another: the run's end."""
BATCHES_AT_ONCE = 20


class Line(NamedTuple):
    """One line of the table."""

    name: str
    items: int
    per_second: float


def items_of_run(user_id: UUID, number: int, *, after: float = 1) -> list[Activity]:
    """The start and the end of a run, two steps, a prompt, and the usage of one response.

    Args:
        user_id: The user.
        number: The number of the run, which decides its session.
        after: How many seconds a run begins after the run before it.
    """
    run_id, session_id = f"run-{number}", f"session-{number * 7919 % SESSIONS}"
    at = BEGINNING + timedelta(seconds=number * after)
    begun = Run(
        run_id=run_id,
        user_id=user_id,
        session_id=session_id,
        model="gpt-4o",
        started_at=at,
        input={"prompt": "What is the weather like?"},
    )
    prompt = Message(
        message_id=run_id,
        user_id=user_id,
        session_id=session_id,
        run_id=run_id,
        role=MessageRole.USER,
        content="What is the weather like?",
        created_at=at,
    )
    output = {"text": "done", "rows": [1, 2, 3]}
    task = Step(step_id="1", run_id=run_id, user_id=user_id, kind="task", started_at=at, output=output)
    tool = Step(
        step_id="2",
        run_id=run_id,
        user_id=user_id,
        kind="tool",
        started_at=at,
        output=output,
        tool_call_id=f"call-{number}",
    )
    usage = UsageEvent(
        session_id=session_id,
        user_id=user_id,
        model="gpt-4o",
        tokens_in=120,
        tokens_out=40,
        cost_usd=Decimal("0.012"),
        idempotency_key=run_id,
        at=at,
        run_id=run_id,
    )
    ended = Run(
        run_id=run_id,
        user_id=user_id,
        session_id=session_id,
        model="gpt-4o",
        started_at=at,
        ended_at=at + timedelta(seconds=2),
        output={"text": "Sunny."},
    )
    return [begun, prompt, task, tool, usage, ended]


async def insert_plainly(connection: AsyncConnection, item: Activity) -> None:
    """Writes one item by a statement and a commit, without any of our promises; the end of a run is an UPDATE."""
    # The fields have the names of the columns, but for two, which no item here has.
    values: dict[str, Any] = {name: value for name, value in item if name not in {"metadata", "parent_session_id"}}
    match item:
        case Run(ended_at=None):
            await connection.execute(insert(SessionRunEntity).values(**values, session_given=True))
        case Run():
            run = SessionRunEntity
            await connection.execute(
                update(run)
                .where(run.user_id == item.user_id, run.run_id == item.run_id)
                .values(ended_at=item.ended_at, output=item.output, status="completed")
            )
        case Step():
            await connection.execute(insert(SessionStepEntity).values(**values))
        case Message():
            folded = item.content.casefold()
            await connection.execute(insert(SessionMessageEntity).values(**values, content_folded=folded))
        case UsageEvent():
            names = ("user_id", "session_id", "model", "tokens_in", "tokens_out", "cost_usd", "at", "run_id")
            event = {name: values[name] for name in names}
            await connection.execute(insert(SessionUsageEventEntity).values(**event, event_id=uuid4()))
    await connection.commit()


async def counted_rows(db: SessionDatabase, user_id: UUID) -> int:
    """How many rows of runs, steps, messages and usage events the user has."""
    tables = (SessionRunEntity, SessionStepEntity, SessionMessageEntity, SessionUsageEventEntity)
    async with db.engine.connect() as connection:
        counts = [await connection.scalar(select(func.count()).where(one.user_id == user_id)) or 0 for one in tables]
    return sum(counts)


async def measure_writing(db: SessionDatabase, name: str, size: int, write: Write, seconds: float) -> Line:
    """One caller writes batch after batch; the first batches warm up."""
    user_id = uuid4()
    runs = written = 0
    took = 0.0
    warm_up = True
    while took < seconds:
        # Items are made outside the time that is measured.
        batches: list[list[Activity]] = []
        for _ in range(BATCHES_AT_ONCE):
            first, runs = runs, runs + max(size // ITEMS_OF_RUN, 1)
            batches.append([item for number in range(first, runs) for item in items_of_run(user_id, number)])
        began = time.perf_counter()
        for batch in batches:
            for start in range(0, len(batch), size):
                await write(batch[start : start + size])
        if warm_up:
            warm_up = False
            continue
        took += time.perf_counter() - began
        written += sum(map(len, batches))
    rows = await counted_rows(db, user_id)
    if rows != runs * ROWS_OF_RUN:
        raise SystemExit(f"{name}: {rows} rows of {runs} runs")
    return Line(name, size, written / took)


def lines_table(lines: Sequence[Line]) -> str:
    """The lines as Markdown, each as a multiple of the first."""
    rows = [
        [one.name, f"{one.items:,}", f"{one.per_second:,.0f}", f"{one.per_second / lines[0].per_second:.1f}"]
        for one in lines
    ]
    return table("", ["", "items a batch", "items/s", "x INSERT"], rows)


async def main() -> None:
    """One run: every side on the same server, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    arguments = parser.parse_args()
    async with database() as (server, db), db.engine.connect() as connection:
        print(f"{machine(server)}, synchronous_commit=on, {arguments.seconds:g} s a line\n")

        async def insert_each(items: Sequence[Activity]) -> None:
            for item in items:
                await insert_plainly(connection, item)

        async def record(items: Sequence[Activity]) -> None:
            await db.lifecycle.record(items)

        sides: tuple[tuple[str, int, Write], ...] = (
            ("one INSERT per item", ITEMS_OF_RUN, insert_each),
            ("record, one item at a time", 1, record),
            ("record", 50, record),
            ("record", 500, record),
        )
        lines = [await measure_writing(db, name, size, write, arguments.seconds) for name, size, write in sides]
        print(lines_table(lines))


if __name__ == "__main__":
    asyncio.run(main())
