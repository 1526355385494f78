"""One export of all buckets: the rows of each, in the order of the key."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from heapq import heapify, heappop, heapreplace
from typing import Any

from session_lifecycle.maintenance.import_rows import key_of
from session_lifecycle.models.transfer import EXPORT_TABLES, ExportBatch
from session_lifecycle.statements.maintenance.export import SHAPES

Place = tuple[int, tuple[Any, ...]]
"""The place of a row in an export: the number of its table, and its key."""


async def merge_exports(exports: Sequence[AsyncGenerator[ExportBatch]], size: int) -> AsyncGenerator[ExportBatch]:
    """Yields the rows of several exports as one export.

    Args:
        exports: An export of each bucket, of the same tables. They are closed when this one is.
        size: The most rows of a batch.
    """
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(aclosing(_placed(export))) for export in exports]
        # The first row of each bucket. Two buckets may have a row at one place, so the bucket's number decides then.
        heads = [
            (first[0], number, first[1])
            for number, stream in enumerate(streams)
            if (first := await anext(stream, None)) is not None
        ]
        heapify(heads)
        table, rows = 0, list[dict[str, Any]]()
        while heads:
            place, number, row = heads[0]
            if rows and (place[0] != table or len(rows) == size):
                yield ExportBatch(EXPORT_TABLES[table], rows)
                rows = []
            table = place[0]
            rows.append(row)
            if (following := await anext(streams[number], None)) is None:
                heappop(heads)
            else:
                heapreplace(heads, (following[0], number, following[1]))
        if rows:
            yield ExportBatch(EXPORT_TABLES[table], rows)


async def _placed(export: AsyncGenerator[ExportBatch]) -> AsyncGenerator[tuple[Place, dict[str, Any]]]:
    async with aclosing(export) as batches:
        async for batch in batches:
            table, shape = EXPORT_TABLES.index(batch.table), SHAPES[batch.table]
            for row in batch.rows:
                yield (table, key_of(shape, row)), row
