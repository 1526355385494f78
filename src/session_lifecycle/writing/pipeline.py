"""WritePipeline: redacts, prices and prepares items, then sends them in one transaction."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import Item
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.postgres.execution import Execution, Run
from session_lifecycle.postgres.failures import FAR_AHEAD
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.statements.writing import record
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.payload_policy import PayloadPolicy
from session_lifecycle.writing.prepared import PreparedItem, WritableItem, needs_price, prepare
from session_lifecycle.writing.waves import latest_at, lock_parameters, parts

MOST_ITEMS = 100_000
"""The items that one batch may have."""


class WritePipeline:
    """Writes items. All writers use it; each `send` is one transaction, and one statement unless it is large."""

    def __init__(self, execution: Execution, prices: PriceCatalogue, payloads: PayloadPolicy) -> None:
        self._execution = execution
        self._prices = prices
        self._payloads = payloads
        self._record = record.record(execution.schema)
        self._lock_items = record.lock_items(execution.schema)

    def as_stored(self, item: Item) -> Item:
        """The item after the host's redaction and the size limit, for a spool. Errors: see `PayloadPolicy.apply`."""
        return self._payloads.apply(item)

    async def write(self, items: Sequence[WritableItem]) -> list[WriteResult]:
        """Prepares the items and sends them in one transaction. Returns the result of each item, in order.

        Raises:
            InvalidValueError: An item is refused; nothing was written.
        """
        return await self.send(await self.prepare(items))

    async def prepare(self, items: Sequence[WritableItem]) -> list[PreparedItem]:
        """Redacts, prices and prepares the items. Loads the price catalogue first if an item needs a price."""
        if not self._prices.is_loaded and any(map(needs_price, items)):
            await self._prices.load()
        return self._prepared(items)

    def prepare_now(self, items: Sequence[WritableItem]) -> list[PreparedItem]:
        """Like `prepare`, without waiting. Returns an empty list if the price catalogue must be loaded first."""
        if not self._prices.is_loaded and any(map(needs_price, items)):
            return []
        return self._prepared(items)

    def _prepared(self, items: Sequence[WritableItem]) -> list[PreparedItem]:
        if len(items) > MOST_ITEMS:
            raise InvalidValueError("items", f"{len(items)} items", f"at most {MOST_ITEMS:,} items")
        apply = self._payloads.apply
        return [prepare(item if isinstance(item, Reopen) else apply(item), self._prices) for item in items]

    async def send(
        self, items: Sequence[PreparedItem], *, on_sent: Callable[[], object] | None = None
    ) -> list[WriteResult]:
        """Writes the items in one transaction. Returns the result of each item, in order.

        Args:
            items: The items.
            on_sent: See `Execution.write`.

        Raises:
            InvalidValueError: An item is more than five minutes ahead of the database's clock, or the items are more
                than `MOST_ITEMS` or have more than `MOST_BYTES` of JSON; nothing was written.
        """
        if not items:
            return []
        repeatable = all(one.is_repeatable for one in items)
        rest = parts(items)
        _, parameters = next(rest)
        await self._execution.check_takes_any_user()
        if next(rest, None) is None:
            rows = await self._execution.write(self._record, parameters, repeatable=repeatable, on_sent=on_sent)
        else:
            for _ in rest:
                pass  # a batch that is too large is refused here, before anything is sent
            work = partial(self._write_parts, items)
            rows = await self._execution.write_together(work, repeatable=repeatable, on_sent=on_sent)
        if rows[0][1] == record.FUTURE:
            raise _too_far_ahead([one.item for one in items], latest_at(items))
        # The database may return several rows for one item: the last one counts.
        results = {row[0]: WriteResult(*row) for row in rows}
        return [results[position] for position in range(len(items))]

    async def _write_parts(self, items: Sequence[PreparedItem], run: Run) -> Sequence[Any]:
        """Writes items that are too large for one statement: first all locks, then one statement after another."""
        [[is_in_time]] = await run(self._lock_items, lock_parameters(items))
        if not is_in_time:
            return [(0, record.FUTURE)]
        rows: list[Any] = []
        done = 0
        for count, parameters in parts(items):
            found = await run(self._record, {**parameters, "latest_at": None})
            rows += [(done + position, *result) for position, *result in found]
            done += count
        return rows


def _too_far_ahead(items: Sequence[WritableItem], latest_at: datetime | None) -> InvalidValueError:
    position, field = next(
        (position, name) for position, item in enumerate(items) for name, value in item if value == latest_at
    )
    name = field if len(items) == 1 else f"items.{position}.{field}"
    return InvalidValueError(name, latest_at, FAR_AHEAD)
