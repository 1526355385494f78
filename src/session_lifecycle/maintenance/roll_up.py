"""The job `roll_up`: adds up ended and abandoned sessions once, so that no report has to do it again."""

import logging
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from functools import partial

from session_lifecycle.errors import DatabaseUnavailableError
from session_lifecycle.maintenance.batches import in_batches
from session_lifecycle.models import RollUpReport
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.maintenance import prune, reconcile_roll_ups, roll_up
from session_lifecycle.statements.maintenance.reconcile_roll_ups import Part

MAX_BATCH = 500
"""The most sessions of one transaction. It locks their rows for some thirty milliseconds."""
STREAMS = 2
"""How many batches the first call rolls up at once: it has all sessions to do, and no sums to change yet."""
CHANGES_AT_ONCE = 20_000
"""Changes added to the sums in one transaction. No writer waits for it, and many changes together are less work."""
MANY_SESSIONS = 20_000
"""Sessions rolled up by one call, from which on it removes the dead rows that they leave."""

OnProgress = Callable[[RollUpReport], None] | None
_logger = logging.getLogger(__name__)


class RollUp:
    """Implements `SessionMaintenanceDb.roll_up`."""

    def __init__(self, execution: Execution, abandon_after: timedelta) -> None:
        self._execution = execution
        self._abandon_after = abandon_after
        self._roll_up_sessions = roll_up.roll_up_sessions(execution.schema)
        self._compact = roll_up.compact(execution.schema)

    async def roll_up(self, on_progress: OnProgress) -> RollUpReport:
        """Rolls up ended and abandoned sessions, then adds all pending changes to the sums."""
        [(idle_before,)] = await self._execution.fetch(prune.cut(self._abandon_after))
        report = RollUpReport(idle_before=idle_before)
        uncompacted = 0
        is_first = not await self._has_buckets()
        batches = in_batches(
            self._execution,
            partial(roll_up.sessions_to_roll_up, idle_before),
            self._roll_up_sessions,
            max_batch=MAX_BATCH,
            at_once=STREAMS if is_first else 1,
            idle_before=idle_before,
        )
        async with aclosing(batches):
            async for (sessions,) in batches:
                report = report.model_copy(update={"sessions": report.sessions + sessions})
                uncompacted += sessions
                if uncompacted >= CHANGES_AT_ONCE and not is_first:
                    report = _with_changes(report, await self.compact())
                    uncompacted = 0
                if on_progress is not None:
                    on_progress(report)
        # Another call may have made the buckets meanwhile.
        is_first = not await self._has_buckets()
        if is_first:
            await self._make_buckets()
        report = _with_changes(report, await self.compact())
        if report.sessions >= (1 if is_first else MANY_SESSIONS):
            # The indexes on the sessions that are not rolled up still have all those that were: until a VACUUM a figure
            # reads them, and autovacuum waits for a fifth of the table.
            for table in roll_up.tables_of_many(self._execution.schema):
                await self._vacuum(table)
        if on_progress is not None:
            on_progress(report)
        return report

    async def _vacuum(self, table: str) -> None:
        try:
            await self._execution.vacuum([table])
        except DatabaseUnavailableError as error:
            # All sums are committed, and autovacuum does this later. The timeout may be short for a large table.
            _logger.warning("roll_up: %s was not vacuumed: %s", table, error)

    async def _has_buckets(self) -> bool:
        [(has_buckets,)] = await self._execution.fetch(roll_up.has_buckets())
        return bool(has_buckets)

    async def _make_buckets(self) -> None:
        """Makes all buckets in one transaction, from the sessions and not from changes. No writer waits for it."""
        everything = Part(None)
        rebuild = reconcile_roll_ups.rebuild(self._execution.schema, everything.shape)
        # The time grows with the sessions.
        await self._execution.write(rebuild, everything.parameters, repeatable=True, has_deadline=False)

    async def compact(self) -> int:
        """Adds the pending changes to the sums, in transactions of `CHANGES_AT_ONCE`. Returns how many there were."""
        changes = 0
        while True:
            parameters = {"most": CHANGES_AT_ONCE}
            [(more,)] = await self._execution.write(self._compact, parameters, repeatable=True)
            changes += int(more)
            # Changes that are appended meanwhile are left for the next call: under load they would never end.
            if more < CHANGES_AT_ONCE:
                return changes


def _with_changes(report: RollUpReport, changes: int) -> RollUpReport:
    return report.model_copy(update={"changes": report.changes + changes})
