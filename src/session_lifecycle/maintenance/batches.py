"""Runs a long job in batches: each is its own transaction, and small enough that no writer waits long for it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from time import monotonic
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Executable

from session_lifecycle.postgres.driver_statements import KeptStatement
from session_lifecycle.postgres.execution import Execution

FIRST_BATCH_SIZE = 100
MAX_KEYS_PER_SEARCH = 20_000
MAX_BATCH_SECONDS = 0.25
"""A writer may wait this long for a batch. A batch that takes longer halves the size of the next one.

A batch of twice the size may take more than twice as long, so only one that takes a quarter of this time doubles it.
"""

Find = Callable[[Sequence[Any] | None, int], Executable]


async def in_batches(
    execution: Execution,
    find: Find,
    process_batch: KeptStatement,
    *,
    max_batch: int,
    at_once: int = 1,
    **parameters: Any,
) -> AsyncGenerator[Sequence[Any]]:
    """Runs `process_batch` on each batch of keys, in its own transaction, and yields its result row.

    Each key is processed at most once: a row that a writer has locked is skipped and left for the next job. Close the
    generator where it is left early: then the statements that still run are cancelled.

    Args:
        execution: Runs the statements.
        find: Builds the statement that finds the keys, in their order. It takes the last key found so far (None at
            first) and the most keys to return.
        process_batch: The statement that processes the bound `keys`, a JSON array as text, and returns one row. It must
            be harmless to repeat.
        max_batch: The most keys of one transaction.
        at_once: The most statements that run at the same time, each on its own connection. In a host's transaction they
            take turns.
        **parameters: The other bound parameters of `process_batch`.
    """
    size = min(max_batch, FIRST_BATCH_SIZE)
    last: Sequence[Any] | None = None
    keys: list[dict[str, Any]] = []
    may_find_more = True
    running: deque[asyncio.Task[tuple[Sequence[Any], float]]] = deque()

    async def process(batch: Sequence[dict[str, Any]]) -> tuple[Sequence[Any], float]:
        began = monotonic()
        bound = {"keys": to_json(batch).decode(), **parameters}
        [row] = await execution.write(process_batch, bound, repeatable=True)
        return row, monotonic() - began

    try:
        while keys or may_find_more or running:
            if len(running) < at_once and may_find_more and not keys:
                found = await execution.fetch(find(last, MAX_KEYS_PER_SEARCH))
                keys = [dict(zip(row._fields, row, strict=True)) for row in found]
                may_find_more = len(found) == MAX_KEYS_PER_SEARCH
                last = found[-1] if found else last
            elif len(running) < at_once and keys:
                batch, keys = keys[:size], keys[size:]
                running.append(asyncio.create_task(process(batch)))
            else:
                row, took = await running.popleft()
                if took > MAX_BATCH_SECONDS:
                    size = max(1, size // 2)
                elif took < MAX_BATCH_SECONDS / 4:
                    size = min(max_batch, size * 2)
                yield row
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
