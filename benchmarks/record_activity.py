"""What recording activity costs: batches through `record`, one item at a time, and one plain INSERT per item."""

import argparse
import asyncio
import os
import platform
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle import Item, Message, Run, SessionDatabase, Settings, Step, UsageEvent
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir
from session_lifecycle.entities import (
    SessionMessageEntity,
    SessionRunEntity,
    SessionStepEntity,
    SessionUsageEventEntity,
)

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class Line(NamedTuple):
    """One line of the table."""

    name: str
    items: int
    per_second: float


def fleet(user_id: UUID, first: int, runs: int, sessions: int) -> list[Item]:
    """Of each run its start and end, two steps, a prompt and the usage of one response: six items."""
    items: list[Item] = []
    for number in range(first, first + runs):
        run_id, session_id = f"run-{number}", f"session-{number * 7919 % sessions}"
        at = BEGINNING + timedelta(seconds=number)
        run = {"run_id": run_id, "user_id": user_id, "session_id": session_id, "model": "gpt-4o", "started_at": at}
        step = {"run_id": run_id, "user_id": user_id, "started_at": at, "output": {"text": "done", "rows": [1, 2, 3]}}
        message = {"session_id": session_id, "user_id": user_id, "run_id": run_id, "role": "user", "created_at": at}
        usage = {"session_id": session_id, "user_id": user_id, "model": "gpt-4o", "run_id": run_id, "at": at}
        items += [
            Run(**run, input={"prompt": "What is the weather like?"}),
            Message(**message, message_id=run_id, content="What is the weather like?"),
            Step(**step, step_id="1", kind="task"),
            Step(**step, step_id="2", kind="tool", tool_call_id=f"call-{number}"),
            UsageEvent(**usage, tokens_in=120, tokens_out=40, cost_usd=Decimal("0.012"), idempotency_key=run_id),
            Run(**run, ended_at=at + timedelta(seconds=2), output={"text": "Sunny."}),
        ]
    return items


async def insert_plainly(connection: AsyncConnection, item: Item) -> None:
    """One INSERT and a commit, without any of our promises; the end of a run is an UPDATE."""
    match item:
        case Run(ended_at=None):
            values = {name: value for name, value in item if name != "metadata"}
            statement = insert(SessionRunEntity).values(**values, session_given=True)
        case Run():
            r = SessionRunEntity
            await connection.execute(
                update(r)
                .where(r.user_id == item.user_id, r.run_id == item.run_id)
                .values(ended_at=item.ended_at, output=item.output, status="completed")
            )
            await connection.commit()
            return
        case Step():
            values = {name: value for name, value in item if name != "metadata"}
            statement = insert(SessionStepEntity).values(**values)
        case Message():
            values = {name: value for name, value in item if name != "metadata"}
            statement = insert(SessionMessageEntity).values(**values, content_folded=item.content.casefold())
        case UsageEvent():
            names = ("user_id", "session_id", "model", "tokens_in", "tokens_out", "cost_usd", "at", "run_id")
            values = {name: getattr(item, name) for name in names}
            statement = insert(SessionUsageEventEntity).values(**values, event_id=uuid4())
        case _:
            raise TypeError(item)
    await connection.execute(statement)
    await connection.commit()


async def counted(db: SessionDatabase, user_id: UUID) -> int:
    """Rows of runs, steps, messages and events."""
    tables = (SessionRunEntity, SessionStepEntity, SessionMessageEntity, SessionUsageEventEntity)
    async with db.engine.connect() as connection:
        counts = [
            await connection.scalar(select(func.count()).where(table.user_id == user_id)) or 0 for table in tables
        ]
    return sum(counts)


async def measure(
    name: str, seconds: float, size: int, write: Callable[[Sequence[Item]], Awaitable[object]]
) -> tuple[Line, UUID, int]:
    """Writes batch after batch; the line, whose they are, and how many runs there were."""
    user_id, runs, written, took = uuid4(), 0, 0, 0.0
    warm_up = True
    while took < seconds:
        # Made outside of the time that is measured.
        batches = []
        for _ in range(20):
            count = max(size // 6, 1)
            batches.append(fleet(user_id, runs, count, 200))
            runs += count
        began = time.perf_counter()
        for batch in batches:
            for start in range(0, len(batch), size):
                await write(batch[start : start + size])
        if warm_up:
            warm_up = False
            continue
        took += time.perf_counter() - began
        written += sum(map(len, batches))
    return Line(name, size, written / took), user_id, runs


@asynccontextmanager
async def database() -> AsyncGenerator[tuple[EmbeddedPostgres, SessionDatabase]]:
    """A durable server of this run's own, migrated."""
    with temporary_data_dir() as data_dir:
        async with (
            await EmbeddedPostgres.start(data_dir) as server,
            SessionDatabase.connect(server.url, settings=Settings(pool_size=16, max_overflow=0)) as db,
        ):
            await db.migrate()
            yield server, db


async def main() -> None:
    """One run: every side on the same server, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    arguments = parser.parse_args()
    async with database() as (server, db), db.engine.connect() as connection:
        machine = f"PostgreSQL {server.version}, CPython {platform.python_version()}, {os.cpu_count()} cores"
        print(f"{machine}, synchronous_commit=on, {arguments.seconds:g} s a line\n")

        async def plainly(items: Sequence[Item]) -> None:
            for item in items:
                await insert_plainly(connection, item)

        lines = []
        for name, size, write in (
            ("one INSERT per item", 6, plainly),
            ("record, one item at a time", 1, db.lifecycle.record),
            ("record", 50, db.lifecycle.record),
            ("record", 500, db.lifecycle.record),
        ):
            line, user_id, runs = await measure(name, arguments.seconds, size, write)
            if await counted(db, user_id) != runs * 5:
                raise SystemExit(f"{name}: {await counted(db, user_id)} rows of {runs} runs")
            lines.append(line)
        print("| | items a batch | items/s | x INSERT |\n|---|---:|---:|---:|")
        for line in lines:
            ratio = line.per_second / lines[0].per_second
            print(f"| {line.name} | {line.items:,} | {line.per_second:,.0f} | {ratio:.1f} |")


if __name__ == "__main__":
    asyncio.run(main())
