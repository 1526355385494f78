"""Waiting for what tells nobody: another process, the server, a snapshot."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable


async def until(condition: Callable[[], Awaitable[object] | object], *, within_seconds: float = 30) -> None:
    """Asks again and again until it is true, and fails where it does not become so."""
    async with asyncio.timeout(within_seconds):
        while True:
            found = condition()
            if await found if isawaitable(found) else found:
                return
            await asyncio.sleep(0.005)
