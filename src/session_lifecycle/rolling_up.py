"""Rolling up: what is over is added up once, so that no report has to do it again."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

from session_lifecycle.execution import Execution
from session_lifecycle.models import RollUpReport
from session_lifecycle.piecemeal import in_batches
from session_lifecycle.statements import pruning, rolling_up

MOST_AT_ONCE = 100
"""Sessions of one transaction, whose rows are locked as long as it takes: some ten milliseconds."""
CHANGES_AT_ONCE = 20_000
"""Changes put into the roll-ups in one transaction. Nobody waits for it, and many together are less work."""

OnProgress = Callable[[RollUpReport], None] | None


class RollUp:
    """Rolls up; the docstrings of `SessionMaintenanceDb` say what."""

    def __init__(self, execution: Execution, abandon_after: timedelta) -> None:
        self._execution = execution
        self._abandon_after = abandon_after
        self._roll_up_sessions = rolling_up.roll_up_sessions(execution.schema)
        self._compact = rolling_up.compact(execution.schema)

    async def roll_up(self, on_progress: OnProgress) -> RollUpReport:
        """Takes in the sessions that are over, then puts them, and what changed since the last time, into the sums."""
        [(idle_before,)] = await self._execution.fetch(pruning.cut(self._abandon_after))
        report = RollUpReport(idle_before=idle_before)
        waiting = 0
        found = partial(rolling_up.sessions_to_roll_up, idle_before)
        async for (sessions,) in in_batches(
            self._execution, found, self._roll_up_sessions, most=MOST_AT_ONCE, idle_before=idle_before
        ):
            report = report.model_copy(update={"sessions": report.sessions + sessions})
            waiting += sessions
            if waiting >= CHANGES_AT_ONCE:
                report = _with_changes(report, await self.compact())
                waiting = 0
            if on_progress is not None:
                on_progress(report)
        report = _with_changes(report, await self.compact())
        if on_progress is not None:
            on_progress(report)
        return report

    async def compact(self) -> int:
        """Puts the changes there are into the sums; how many it was."""
        changes = 0
        while True:
            parameters = {"most": CHANGES_AT_ONCE}
            [(more,)] = await self._execution.write(self._compact, parameters, repeatable=True)
            changes += int(more)
            # What is appended meanwhile is the next call's: under load there is always more.
            if more < CHANGES_AT_ONCE:
                return changes


def _with_changes(report: RollUpReport, changes: int) -> RollUpReport:
    return report.model_copy(update={"changes": report.changes + changes})
