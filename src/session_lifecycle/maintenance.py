"""What an operator does to sessions: pricing them again, pruning, erasing, and checking their totals."""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol
from uuid import UUID, uuid4

from pydantic_core import to_json

from session_lifecycle.erasing import Eraser
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.execution import Execution
from session_lifecycle.models import ErasureReceipt, PruneReport, ReconcileReport, RepriceReport, RollUpReport
from session_lifecycle.models.maintenance import Erasing, OwnedSession, Pruning, Reconciling, Repricing
from session_lifecycle.pricing import PriceCatalogue
from session_lifecycle.pruning import Pruner
from session_lifecycle.reconciling import Reconciler
from session_lifecycle.rolling_up import RollUp
from session_lifecycle.statements import repricing
from session_lifecycle.statements.repricing import EventKey

DEFAULT_BATCH = 500
DEFAULT_PRUNE_BATCH = 1000


class SessionMaintenanceDb(Protocol):
    """What an operator does. Every call may be interrupted and run again, and goes on where it was.

    No call asks who is looking: it is the host's to say who may make it. Each raises `InvalidValueError` for a value it
    refuses, and nothing is changed then.
    """

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

    async def roll_up(self, *, on_progress: Callable[[RollUpReport], None] | None = None) -> RollUpReport:
        """Adds up the sessions that are over, so that `aggregate_stats`, `cost_by_model` and totals need not.

        No answer depends on it: whether, when and how often anyone rolls up, only how long an answer takes. Over are
        sessions that ended, and those that are abandoned by the settings' `abandon_after`. One that changes afterwards
        is taken out again by whoever changes it, and added up anew by the next call. To be run every few minutes.

        In short transactions, of which each is kept: interrupted, the next call goes on. No writer is waited for, and
        several calls at once share the work.

        Args:
            on_progress: Told after each transaction what the report is so far.
        """
        ...

    async def prune_sessions(
        self,
        older_than: timedelta,
        *,
        batch: int = DEFAULT_PRUNE_BATCH,
        dry_run: bool = False,
        on_progress: Callable[[PruneReport], None] | None = None,
    ) -> PruneReport:
        """Deletes sessions last active longer ago than that, with all that is theirs: totals, ledger, runs, messages.

        A session goes as a whole or stays as a whole, whatever its status; last active exactly at the cut it stays.
        What it cost leaves stats, spend and cost by model together with it. Runs that wait outside of any session and
        were last seen before the cut go as well.

        Oldest first, each batch one transaction, and a smaller one where the last took long. No writer is waited for:
        a session that one is at is passed by, and the next call looks at it again. A batch whose answer was lost with
        its connection is run again, and the report counts what that still found. Inside a host's transaction all
        batches are of that one, and their locks last as long.

        Args:
            older_than: How long ago, more than nothing; by the database's clock.
            batch: How many sessions a transaction deletes at most, 1..10,000.
            dry_run: Nothing is deleted; the report counts what is there now.
            on_progress: Told after each batch what the report is so far.
        """
        ...

    async def prune_payloads(
        self,
        older_than: timedelta,
        *,
        batch: int = DEFAULT_PRUNE_BATCH,
        dry_run: bool = False,
        on_progress: Callable[[PruneReport], None] | None = None,
    ) -> PruneReport:
        """Takes what was said and done out of sessions last active longer ago than that; what it cost stays.

        Deletes their messages, and empties the `input`, `output` and `error` of their runs and the `inputs`, `output`,
        `prompt` and `errors` of their steps. Sessions, ledger, runs, steps and their metadata stay. What counted as an
        error goes on counting: the errors of such a step become the text "pruned", and a run keeps its status.

        In batches as `prune_sessions`; the report counts sessions treated, rows emptied, and messages deleted. Sessions
        with nothing left to prune are not found again. Runs that wait outside of any session are left as they are.

        Args:
            older_than: How long ago, more than nothing; by the database's clock.
            batch: How many sessions a transaction treats at most, 1..10,000.
            dry_run: Nothing is changed; the report counts what is there now.
            on_progress: Told after each batch what the report is so far.
        """
        ...

    async def delete_session(self, session_id: str, user_id: UUID) -> bool:
        """Deletes a session of this user with all that is theirs; whether there was one. One transaction.

        Waits for a writer that is at it. Writing to it again begins a new session under the same id.
        """
        ...

    async def erase_user(
        self, user_id: UUID, *, usage: Literal["delete", "anonymise"] = "delete", tombstone: bool = False
    ) -> ErasureReceipt:
        """Erases everything this user has, in batches of sessions, each one transaction.

        Without a tombstone, what is written for the user meanwhile may be there afterwards; run again, it goes too, and
        what was made anonymous then is under another pseudonym.

        Args:
            user_id: Whose.
            usage: `delete` deletes the ledger as well. `anonymise` keeps it, so that spend and stats stay right:
                ledger, totals, times, status, models and data sets stay, under a random user id and random session
                ids. Runs, steps, messages, titles, agents' names, metadata, and the keys and details of events go.
            tombstone: The user cannot come back: before the first row goes, creating a session of theirs is refused.
        """
        ...

    async def reconcile(self, *, repair: bool = False) -> ReconcileReport:
        """Rebuilds every total from the ledger and compares: of sessions, of their models, and of runs.

        Then what the roll-ups have of each session with that session, and their sums with what they have.

        A session's `error_count` and `last_model` are left out: an error, or a model, that came without a key is in no
        ledger (rule R03). In batches in the order of keys; nothing is locked, and each batch is compared within one
        snapshot, so writers may go on. The sums over everybody are one batch, and so are those over one user or data
        set however many sessions they have: of very many, that may take longer than `statement_timeout_seconds`.

        Args:
            repair: Each row that differs gets the right totals, one transaction each. One that a writer changed since
                it was compared is left for the next call. A session that the roll-ups have wrong is taken out of them,
                for the next `roll_up` to take in; sums that are wrong are built anew, a batch in one transaction, for
                which `roll_up` waits, and no writer.
        """
        ...


class SqlAlchemySessionMaintenanceDb:
    """`SessionMaintenanceDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, prices: PriceCatalogue, abandon_after: timedelta) -> None:
        self._execution = execution
        self._prices = prices
        self._roll_up = RollUp(execution, abandon_after)
        self._reprice = repricing.reprice(execution.schema)
        self._pruner = Pruner(execution)
        self._eraser = Eraser(execution)

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
        _check_callable(on_progress)
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

    async def roll_up(self, *, on_progress: Callable[[RollUpReport], None] | None = None) -> RollUpReport:
        """See `SessionMaintenanceDb`."""
        _check_callable(on_progress)
        return await self._roll_up.roll_up(on_progress)

    async def prune_sessions(
        self,
        older_than: timedelta,
        *,
        batch: int = DEFAULT_PRUNE_BATCH,
        dry_run: bool = False,
        on_progress: Callable[[PruneReport], None] | None = None,
    ) -> PruneReport:
        """See `SessionMaintenanceDb`."""
        _check_callable(on_progress)
        asked = Pruning.of_call(older_than=older_than, batch=batch, dry_run=dry_run)
        return await self._pruner.prune_sessions(asked, on_progress)

    async def prune_payloads(
        self,
        older_than: timedelta,
        *,
        batch: int = DEFAULT_PRUNE_BATCH,
        dry_run: bool = False,
        on_progress: Callable[[PruneReport], None] | None = None,
    ) -> PruneReport:
        """See `SessionMaintenanceDb`."""
        _check_callable(on_progress)
        asked = Pruning.of_call(older_than=older_than, batch=batch, dry_run=dry_run)
        return await self._pruner.prune_payloads(asked, on_progress)

    async def delete_session(self, session_id: str, user_id: UUID) -> bool:
        """See `SessionMaintenanceDb`."""
        return await self._eraser.delete_session(OwnedSession.of_call(session_id=session_id, user_id=user_id))

    async def erase_user(
        self, user_id: UUID, *, usage: Literal["delete", "anonymise"] = "delete", tombstone: bool = False
    ) -> ErasureReceipt:
        """See `SessionMaintenanceDb`."""
        receipt = await self._eraser.erase_user(Erasing.of_call(user_id=user_id, usage=usage, tombstone=tombstone))
        # Until then the sums, and what was taken out of them, would name the user.
        await self._roll_up.compact()
        return receipt

    async def reconcile(self, *, repair: bool = False) -> ReconcileReport:
        """See `SessionMaintenanceDb`."""
        asked = Reconciling.of_call(repair=repair)
        return await Reconciler(self._execution, repair=asked.repair).reconcile()


def _check_callable(on_progress: object) -> None:
    if on_progress is not None and not callable(on_progress):
        raise ConfigurationError(f"on_progress: got {on_progress!r}, expected a callable")
