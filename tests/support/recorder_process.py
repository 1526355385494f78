"""One process of the recorder's storm: many tasks, each of which repeats a call until it is answered."""

import asyncio
import random
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, Settings, TransactionConflictError, UsageEvent
from support.usage import random_use

USERS = [UUID(int=number) for number in (1, 2, 3)]
SESSIONS = 40


def events_of(process: int, task: int, uses: int) -> Iterator[UsageEvent]:
    """The events of a task, in order; some begin as a lower bound, some come twice, some with a higher revision."""
    chance = random.Random(f"{process}-{task}")
    for number in range(uses):
        event = random_use(chance, number, sessions=SESSIONS, users=USERS, idempotency_key=f"{process}-{task}-{number}")
        if chance.random() < 0.2:
            yield event.model_copy(update={"partial": True, "tokens_out": event.tokens_out // 2})
        yield event
        if chance.random() < 0.1:
            yield event
        if chance.random() < 0.2:
            yield event.model_copy(update={"revision": 1, "tokens_in": event.tokens_in + 7, "model": "revised"})


async def until_answered(call: Any, event: UsageEvent) -> None:
    while True:
        try:
            await call([event])
        except (DatabaseUnavailableError, TransactionConflictError):
            await asyncio.sleep(random.uniform(0.01, 0.1))
        else:
            return


async def main(url: str, process: int, tasks: int, uses: int) -> None:
    settings = Settings(pool_size=4, max_overflow=0, connect_timeout_seconds=5, pool_timeout_seconds=30)
    async with SessionDatabase.connect(url, settings=settings) as db, db.recorder(give_up_after=5) as recorder:

        async def live(task: int) -> None:
            # One task in eight calls directly, beside the recorder.
            call = recorder.record if task % 8 else db.lifecycle.record
            for event in events_of(process, task, uses):
                await until_answered(call, event)

        await asyncio.gather(*map(live, range(tasks)))


if __name__ == "__main__":
    _, url, *numbers = sys.argv
    asyncio.run(main(url, *map(int, numbers)))
