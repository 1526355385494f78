"""Reads that a page makes at once: a few at a time, and none of them goes on after one has failed."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

READS_AT_ONCE = 3
"""How many connections one page takes at most."""
Answer = TypeVar("Answer")


class Turns:
    """The turns of one page's reads."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(READS_AT_ONCE)

    async def read(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Asks when it is the read's turn."""
        async with self._turn:
            return await ask()


@asynccontextmanager
async def at_once() -> AsyncGenerator[asyncio.TaskGroup]:
    """A group of tasks that raises the first error of a task as it is, after it has stopped the others."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
