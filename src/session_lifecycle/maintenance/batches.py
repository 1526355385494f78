"""Runs a long job in batches: each is its own transaction, and small enough that no writer waits long for it."""

from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Executable

from session_lifecycle.errors import ConfigurationError
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
    execution: Execution, find: Find, process_batch: KeptStatement, *, max_batch: int, **parameters: Any
) -> AsyncIterator[Sequence[Any]]:
    """Runs `process_batch` on each batch of keys, in its own transaction, and yields its result row.

    Each key is processed at most once: a row that a writer has locked is skipped and left for the next job.

    Args:
        execution: Runs the statements.
        find: Builds the statement that finds the keys, in their order. It takes the last key found so far (None at
            first) and the most keys to return.
        process_batch: The statement that processes the bound `keys`, a JSON array as text, and returns one row. It must
            be harmless to repeat.
        max_batch: The most keys of one transaction.
        **parameters: The other bound parameters of `process_batch`.
    """
    size = min(max_batch, FIRST_BATCH_SIZE)
    last: Sequence[Any] | None = None
    while True:
        found = await execution.fetch(find(last, MAX_KEYS_PER_SEARCH))
        keys = [dict(zip(row._fields, row, strict=True)) for row in found]
        while keys:
            batch, keys = keys[:size], keys[size:]
            began = monotonic()
            bound = {"keys": to_json(batch).decode(), **parameters}
            [row] = await execution.write(process_batch, bound, repeatable=True)
            took = monotonic() - began
            if took > MAX_BATCH_SECONDS:
                size = max(1, size // 2)
            elif took < MAX_BATCH_SECONDS / 4:
                size = min(max_batch, size * 2)
            yield row
        if len(found) < MAX_KEYS_PER_SEARCH:
            return
        last = found[-1]


def check_callable(name: str, given: object) -> None:
    """Refuses what cannot be called while the job runs.

    Raises:
        ConfigurationError: It is neither None nor callable.
    """
    if given is not None and not callable(given):
        raise ConfigurationError(f"{name}: got {given!r}, expected a callable")
