"""The job `prune`: deletes idle sessions, or only old messages and payloads."""

from collections.abc import Callable
from functools import partial

from session_lifecycle.maintenance.batches import in_batches
from session_lifecycle.models import PruneReport
from session_lifecycle.models.maintenance import OwnedSession, Pruning
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.maintenance import delete, prune
from session_lifecycle.statements.maintenance.delete import Deleted

OnProgress = Callable[[PruneReport], None] | None


class Pruner:
    """Implements `prune_sessions` and `prune_payloads` of `SessionMaintenanceDb`."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._delete_sessions = delete.delete_sessions(execution.schema)
        self._delete_runs_outside_sessions = delete.delete_runs_outside_sessions(execution.schema)
        self._empty_sessions = delete.empty_sessions(execution.schema)

    async def prune_sessions(self, asked: Pruning, on_progress: OnProgress) -> PruneReport:
        """Deletes idle sessions, then old runs outside a session."""
        report = await self._begin(asked)
        if asked.dry_run:
            [counted] = await self._execution.fetch(prune.count_idle(report.cut_at, asked))
            return _add(report, Deleted(*counted), on_progress)
        for find, process_batch in (
            (prune.idle_sessions, self._delete_sessions),
            (prune.runs_outside_sessions, self._delete_runs_outside_sessions),
        ):
            found = partial(find, report.cut_at, asked)
            async for deleted in in_batches(
                self._execution, found, process_batch, max_batch=asked.batch, idle_before=report.cut_at
            ):
                report = _add(report, Deleted(*deleted), on_progress)
        return report

    async def prune_payloads(self, asked: Pruning, on_progress: OnProgress) -> PruneReport:
        """Deletes the messages and empties the payloads that are old enough."""
        report = await self._begin(asked)
        if asked.dry_run:
            [counted] = await self._execution.fetch(prune.count_payloads(report.cut_at, asked))
            return _add(report, Deleted(*counted), on_progress)
        found = partial(prune.sessions_with_payloads, report.cut_at, asked)
        async for emptied in in_batches(
            self._execution, found, self._empty_sessions, max_batch=asked.batch, older_than=report.cut_at
        ):
            report = _add(report, Deleted(*emptied), on_progress)
        return report

    async def _begin(self, asked: Pruning) -> PruneReport:
        [(cut_at,)] = await self._execution.fetch(prune.cut(asked.older_than))
        return PruneReport(cut_at=cut_at, dry_run=asked.dry_run)


def _add(report: PruneReport, more: Deleted, on_progress: OnProgress) -> PruneReport:
    """Returns the report with these rows added, after passing it to `on_progress`."""
    sums = {name: getattr(report, name) + count for name, count in more.counts().items()}
    keys = tuple(OwnedSession.model_validate(key) for key in more.session_keys or ())
    report = report.model_copy(update=sums | {"session_keys": keys})
    if on_progress is not None:
        on_progress(report)
    return report
