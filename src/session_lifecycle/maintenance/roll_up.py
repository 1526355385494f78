"""The job `roll_up`: adds up ended and abandoned sessions once, so that no report has to do it again."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

from session_lifecycle.maintenance.batches import in_batches
from session_lifecycle.models import RollUpReport
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.maintenance import prune, roll_up

MAX_BATCH = 100
"""The most sessions of one transaction. It locks their rows for about ten milliseconds."""
CHANGES_AT_ONCE = 20_000
"""Changes added to the sums in one transaction. No writer waits for it, and many changes together are less work."""

OnProgress = Callable[[RollUpReport], None] | None


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
        found = partial(roll_up.sessions_to_roll_up, idle_before)
        async for (sessions,) in in_batches(
            self._execution, found, self._roll_up_sessions, max_batch=MAX_BATCH, idle_before=idle_before
        ):
            report = report.model_copy(update={"sessions": report.sessions + sessions})
            uncompacted += sessions
            if uncompacted >= CHANGES_AT_ONCE:
                report = _with_changes(report, await self.compact())
                uncompacted = 0
            if on_progress is not None:
                on_progress(report)
        report = _with_changes(report, await self.compact())
        if on_progress is not None:
            on_progress(report)
        return report

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
