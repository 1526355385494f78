"""The job `reprice`: prices usage events again and moves the totals by the difference."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json

from session_lifecycle.models import RepriceReport
from session_lifecycle.models.fields import exact_sum
from session_lifecycle.models.maintenance import Repricing
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.statements.maintenance import reprice
from session_lifecycle.statements.maintenance.reprice import EventKey
from session_lifecycle.statements.shared.ledger import TOKEN_COLUMNS

OnProgress = Callable[[int], None] | None


class Repricer:
    """Implements `SessionMaintenanceDb.reprice`."""

    def __init__(self, execution: Execution, prices: PriceCatalogue) -> None:
        self._execution = execution
        self._prices = prices
        self._reprice = reprice.reprice(execution.schema)

    async def reprice(self, asked: Repricing, on_progress: OnProgress) -> RepriceReport:
        """Compares the events with the catalogue, in batches in the order of their keys. Writes the changed ones."""
        await self._prices.load()
        repricing_id = uuid4()
        window = (asked.model, asked.since, asked.until)
        if not asked.dry_run:
            await self._execution.fetch(reprice.begin_audit(repricing_id, *window), writes=True)
        looked_at = events = 0
        before = after = Decimal(0)
        last: EventKey | None = None
        while rows := await self._execution.fetch(reprice.priced_events(*window, last, asked.batch)):
            last = EventKey(rows[-1].user_id, rows[-1].session_id, rows[-1].event_id)
            looked_at += len(rows)
            changed = [(row, change) for row in rows if (change := self._change(row)) is not None]
            changes = [change for _, change in changed]
            events += len(changes)
            # The price of an event under a plan is no cost.
            costs = [change for row, change in changed if row.billing != "plan"]
            before = exact_sum([before, *(change["old_cost_usd"] or Decimal(0) for change in costs)])
            after = exact_sum([after, *(change["cost_usd"] for change in costs)])
            if changes and not asked.dry_run:
                parameters = {"changes": to_json(changes).decode(), "repricing_id": repricing_id}
                await self._execution.write(self._reprice, parameters, repeatable=True)
            if on_progress is not None:
                on_progress(looked_at)
        if not asked.dry_run:
            # The audit row counts what was written; events that changed meanwhile were left alone.
            [(events, before, after)] = await self._execution.fetch(reprice.audit(repricing_id))
        return RepriceReport(
            repricing_id=None if asked.dry_run else repricing_id,
            looked_at=looked_at,
            events=events,
            cost_before_usd=before,
            cost_after_usd=after,
        )

    def _change(self, row: Any) -> dict[str, Any] | None:
        """The change to write for an event; None if its price is the same or no longer known."""
        price = self._prices.price(
            model=row.model,
            provider=row.provider,
            at=row.at,
            service_tier=row.service_tier,
            **{column.key: getattr(row, column.key) for column in TOKEN_COLUMNS},
            **(row.parts or {}),
        )
        if price is None or price.cost_usd == row.price_usd:
            return None
        key: dict[str, UUID | str] = {name: getattr(row, name) for name in EventKey._fields}
        return {
            **key,
            "recorded_at": row.recorded_at,
            "run_id": row.run_id,
            "old_cost_usd": row.price_usd,
            "cost_usd": price.cost_usd,
            "price_source": price.source,
            "unit_prices": price.unit_prices,
        }
