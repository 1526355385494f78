"""Waiting for a condition that sends no event: in another process, in the server, in a snapshot."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable


async def eventually(condition: Callable[[], Awaitable[object] | object], *, within_seconds: float = 30) -> None:
    """Polls until the condition is true; raises TimeoutError after the deadline."""
    async with asyncio.timeout(within_seconds):
        while True:
            found = condition()
            if await found if isawaitable(found) else found:
                return
            await asyncio.sleep(0.005)
