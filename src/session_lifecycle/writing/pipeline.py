"""WritePipeline: redacts, prices and prepares items, then sends them in one transaction."""

from collections.abc import Sequence
from datetime import datetime

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.statements.writing import record
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.payload_policy import PayloadPolicy
from session_lifecycle.writing.prepared import PreparedItem, WritableItem, needs_price, prepare
from session_lifecycle.writing.waves import parameters


class WritePipeline:
    """Writes items. All writers use it; each `send` is one statement and one transaction."""

    def __init__(self, execution: Execution, prices: PriceCatalogue, payloads: PayloadPolicy) -> None:
        self._execution = execution
        self._prices = prices
        self._payloads = payloads
        self._record = record.record(execution.schema)

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
        apply = self._payloads.apply
        return [prepare(item if isinstance(item, Reopen) else apply(item), self._prices) for item in items]

    async def send(self, items: Sequence[PreparedItem]) -> list[WriteResult]:
        """Writes the items in one transaction. Returns the result of each item, in order.

        Raises:
            InvalidValueError: An item is more than five minutes ahead of the database's clock; nothing was written.
        """
        if not items:
            return []
        bound = parameters(items)
        rows = await self._execution.write(self._record, bound, repeatable=all(one.is_repeatable for one in items))
        # The database may return several rows for one item: the last one counts.
        results = {row[0]: WriteResult(*row) for row in rows}
        if rows[0][1] == record.FUTURE:
            raise _too_far_ahead([one.item for one in items], bound["latest_at"])
        return [results[position] for position in range(len(items))]


def _too_far_ahead(items: Sequence[WritableItem], latest_at: datetime) -> InvalidValueError:
    position, field = next(
        (position, name) for position, item in enumerate(items) for name, value in item if value == latest_at
    )
    name = field if len(items) == 1 else f"items.{position}.{field}"
    return InvalidValueError(name, latest_at, "at most five minutes ahead of the database's clock")
