"""Reconciling: every total, beside what the ledger adds up to."""

from collections.abc import Sequence
from typing import Any

from session_lifecycle.entities import SessionModelUsageEntity, SessionRecordEntity, SessionRunEntity
from session_lifecycle.execution import Execution
from session_lifecycle.models import Mismatch, ReconcileReport
from session_lifecycle.models.maintenance import MOST_MISMATCHES
from session_lifecycle.statements import reconciling
from session_lifecycle.statements.reconciling import SessionKey, Totals

SESSIONS_AT_ONCE = 1000
USERS_AT_ONCE = 100


class Reconciler:
    """Reconciles once; the docstrings of `SessionMaintenanceDb` say what."""

    def __init__(self, execution: Execution, *, repair: bool) -> None:
        self._execution = execution
        self._repair = repair
        self._sessions_looked_at = 0
        self._mismatch_count = 0
        self._mismatches: list[Mismatch] = []
        self._repaired = 0

    async def reconcile(self) -> ReconcileReport:
        """Sessions and their models in the order of their keys, then the runs of all users in the order of theirs."""
        last: SessionKey | None = None
        while keys := await self._execution.fetch(reconciling.sessions(last, SESSIONS_AT_ONCE)):
            self._sessions_looked_at += len(keys)
            first, last = SessionKey(*keys[0]), SessionKey(*keys[-1])
            for row in await self._execution.fetch(reconciling.session_mismatches(first, last)):
                await self._treat(row, SessionRecordEntity, ("user_id", "session_id"), reconciling.OF_SESSION)
            for row in await self._execution.fetch(reconciling.model_mismatches(first, last)):
                names = ("user_id", "session_id", "model")
                await self._treat(row, SessionModelUsageEntity, names, reconciling.OF_MODEL)
        user = None
        while users := await self._execution.fetch(reconciling.users_with_runs(user, USERS_AT_ONCE)):
            user = users[-1].user_id
            for row in await self._execution.fetch(reconciling.run_mismatches(users[0].user_id, user)):
                await self._treat(row, SessionRunEntity, ("user_id", "run_id"), reconciling.OF_RUN)
        return ReconcileReport(
            sessions_looked_at=self._sessions_looked_at,
            mismatch_count=self._mismatch_count,
            mismatches=self._mismatches,
            repaired=self._repaired,
        )

    async def _treat(self, row: Any, entity: Any, names: Sequence[str], totals: Totals) -> None:
        """Notes what differs in a row, and puts it right where that was asked for."""
        key = {name: getattr(row, name) for name in names}
        found = {name: getattr(row, f"found_{name}") for name in totals}
        expected = {name: getattr(row, f"expected_{name}") for name in totals}
        differing = [name for name in totals if (found[name] or 0) != expected[name]]
        self._mismatch_count += len(differing)
        for name in differing[: MOST_MISMATCHES - len(self._mismatches)]:
            self._mismatches.append(Mismatch(**key, field=name, found=found[name], expected=expected[name]))
        if self._repair:
            statement = (
                reconciling.add_model(key, expected)
                if None in found.values()
                else reconciling.repair(entity, key, found, expected)
            )
            if await self._execution.fetch(statement):
                self._repaired += len(differing)
