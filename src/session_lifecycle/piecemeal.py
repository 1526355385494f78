"""Much work in batches: each a transaction of its own, and as many rows as no writer waits long for."""

from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from typing import Any

from pydantic_core import to_json

from session_lifecycle.execution import AnySelect, Execution

FIRST_BATCH = 100
FOUND_AT_ONCE = 20_000
LONG_SECONDS = 0.25
"""A batch that took longer makes the next ones smaller: so long a writer may have waited for it."""

Find = Callable[[Sequence[Any] | None, int], AnySelect]


async def in_batches(
    execution: Execution, find: Find, treat: AnySelect, *, most: int, **bound: Any
) -> AsyncIterator[Sequence[Any]]:
    """Treats what is found, and gives after each transaction the one row it told.

    Each key is looked at once: what is passed by because a writer is at it is not come back to.

    Args:
        execution: Where the statements run.
        find: The keys in their order, after the last of those found before, and how many at most.
        treat: What treats the bound `keys`; harmless to repeat.
        most: How many keys a transaction may have.
        **bound: What else it binds.
    """
    size = min(most, FIRST_BATCH)
    last: Sequence[Any] | None = None
    while True:
        found = await execution.fetch(find(last, FOUND_AT_ONCE))
        keys = [row._asdict() for row in found]
        while keys:
            batch, keys = keys[:size], keys[size:]
            began = monotonic()
            [row] = await execution.write(treat, {"keys": to_json(batch).decode(), **bound}, repeatable=True)
            size = max(1, size // 2) if monotonic() - began > LONG_SECONDS else min(most, size * 2)
            yield row
        if len(found) < FOUND_AT_ONCE:
            return
        last = found[-1]
