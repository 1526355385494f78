"""What an operator does to sessions: pricing them again."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID, uuid4

from pydantic_core import to_json

from session_lifecycle.errors import ConfigurationError
from session_lifecycle.execution import Execution
from session_lifecycle.models import RepriceReport
from session_lifecycle.models.maintenance import Repricing
from session_lifecycle.pricing import PriceCatalogue
from session_lifecycle.statements import repricing
from session_lifecycle.statements.repricing import EventKey

DEFAULT_BATCH = 500


class SessionMaintenanceDb(Protocol):
    """What an operator does. Every call may be interrupted and run again."""

    async def reprice(
        self,
        model: str | None = None,
        since: datetime | None = None,
        dry_run: bool = False,
        *,
        until: datetime | None = None,
        batch: int = DEFAULT_BATCH,
        on_progress: Callable[[int], None] | None = None,
    ) -> RepriceReport:
        """Prices events again by the catalogue and the overrides of today, and moves totals by the difference.

        Only events whose price was looked up, and unpriced ones; a cost that was given stays. Each batch is one
        transaction: ledger, totals and the run's row in `session_repricings` change together. What is recorded
        meanwhile is left alone. A price nobody knows any more does not take the old one away.

        Args:
            model: The events that named this model; None: of all.
            since: Used at this time or later.
            dry_run: Nothing is written; the report says what would be.
            until: Used before this time.
            batch: How many events are looked at, and at most changed, in one transaction.
            on_progress: Told after each batch how many events were looked at.
        """
        ...


class SqlAlchemySessionMaintenanceDb:
    """`SessionMaintenanceDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, prices: PriceCatalogue) -> None:
        self._execution = execution
        self._prices = prices
        self._reprice = repricing.reprice(execution.schema)

    async def reprice(
        self,
        model: str | None = None,
        since: datetime | None = None,
        dry_run: bool = False,
        *,
        until: datetime | None = None,
        batch: int = DEFAULT_BATCH,
        on_progress: Callable[[int], None] | None = None,
    ) -> RepriceReport:
        """See `SessionMaintenanceDb`."""
        wanted = Repricing.of_call(model=model, since=since, dry_run=dry_run, until=until, batch=batch)
        if on_progress is not None and not callable(on_progress):
            raise ConfigurationError(f"on_progress: got {on_progress!r}, expected a callable")
        await self._prices.load()
        run = uuid4()
        window = (wanted.model, wanted.since, wanted.until)
        if not wanted.dry_run:
            await self._execution.fetch(repricing.begin_audit(run, *window))
        looked_at = events = 0
        before = after = Decimal(0)
        last: EventKey | None = None
        while rows := await self._execution.fetch(repricing.priced_events(*window, last, wanted.batch)):
            last = EventKey(rows[-1].user_id, rows[-1].session_id, rows[-1].event_id)
            looked_at += len(rows)
            changes = [change for row in rows if (change := self._change(row)) is not None]
            events += len(changes)
            before += sum((change["old_cost_usd"] or Decimal(0) for change in changes), Decimal(0))
            after += sum((change["cost_usd"] for change in changes), Decimal(0))
            if changes and not wanted.dry_run:
                parameters = {"changes": to_json(changes).decode(), "repricing_id": run}
                await self._execution.write(self._reprice, parameters, repeatable=True)
            if on_progress is not None:
                on_progress(looked_at)
        if not wanted.dry_run:
            [(events, before, after)] = await self._execution.fetch(repricing.audit(run))
        return RepriceReport(
            repricing_id=None if wanted.dry_run else run,
            looked_at=looked_at,
            events=events,
            cost_before_usd=before,
            cost_after_usd=after,
        )

    def _change(self, row: Any) -> dict[str, Any] | None:
        """What is to be written of an event; None where its price is the same, or nobody knows one."""
        price = self._prices.price(
            model=row.model,
            provider=row.provider,
            at=row.at,
            **{column.key: getattr(row, column.key) for column in repricing.PRICED_BY},
        )
        if price is None or price.cost_usd == row.cost_usd:
            return None
        key: dict[str, UUID | str] = {name: getattr(row, name) for name in EventKey._fields}
        return {
            **key,
            "revision": row.revision,
            "run_id": row.run_id,
            "old_cost_usd": row.cost_usd,
            "cost_usd": price.cost_usd,
            "price_source": price.source,
            "unit_prices": price.unit_prices,
        }
