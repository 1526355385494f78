"""Pruning what is old: whole sessions, or only what was said and done in them."""

from collections.abc import Callable
from functools import partial

from session_lifecycle.execution import Execution
from session_lifecycle.models import PruneReport
from session_lifecycle.models.maintenance import Pruning
from session_lifecycle.piecemeal import in_batches
from session_lifecycle.statements import deleting, pruning
from session_lifecycle.statements.deleting import Deleted

OnProgress = Callable[[PruneReport], None] | None


class Pruner:
    """Prunes; the docstrings of `SessionMaintenanceDb` say what."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._delete_sessions = deleting.delete_sessions(execution.schema)
        self._delete_waiting_runs = deleting.delete_waiting_runs(execution.schema)
        self._empty_sessions = deleting.empty_sessions(execution.schema)

    async def prune_sessions(self, asked: Pruning, on_progress: OnProgress) -> PruneReport:
        """Deletes idle sessions, then old runs that are in none."""
        report = await self._begin(asked)
        if asked.dry_run:
            [counted] = await self._execution.fetch(pruning.count_idle(report.cut_at))
            return _told(report, Deleted(*counted), on_progress)
        for find, delete in (
            (pruning.idle_sessions, self._delete_sessions),
            (pruning.waiting_runs, self._delete_waiting_runs),
        ):
            found = partial(find, report.cut_at)
            async for deleted in in_batches(
                self._execution, found, delete, most=asked.batch, idle_before=report.cut_at
            ):
                report = _told(report, Deleted(*deleted), on_progress)
        return report

    async def prune_payloads(self, asked: Pruning, on_progress: OnProgress) -> PruneReport:
        """Deletes the messages and empties the payloads of idle sessions."""
        report = await self._begin(asked)
        if asked.dry_run:
            [counted] = await self._execution.fetch(pruning.count_payloads(report.cut_at))
            return _told(report, Deleted(*counted), on_progress)
        found = partial(pruning.sessions_with_payloads, report.cut_at)
        async for emptied in in_batches(
            self._execution, found, self._empty_sessions, most=asked.batch, idle_before=report.cut_at
        ):
            report = _told(report, Deleted(*emptied), on_progress)
        return report

    async def _begin(self, asked: Pruning) -> PruneReport:
        [(cut_at,)] = await self._execution.fetch(pruning.cut(asked.older_than))
        return PruneReport(cut_at=cut_at, dry_run=asked.dry_run)


def _told(report: PruneReport, more: Deleted, on_progress: OnProgress) -> PruneReport:
    """The report with these rows added, told to who wants to know."""
    counts = {name: getattr(report, name) + count for name, count in more._asdict().items()}
    report = report.model_copy(update=counts)
    if on_progress is not None:
        on_progress(report)
    return report
