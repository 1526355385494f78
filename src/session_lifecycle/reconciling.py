"""Reconciling: every total beside what the ledger adds up to, and the roll-ups beside the sessions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from session_lifecycle.entities import (
    RolledUpSessionEntity,
    SessionModelUsageEntity,
    SessionRecordEntity,
    SessionRunEntity,
)
from session_lifecycle.execution import Execution
from session_lifecycle.models import Mismatch, ReconcileReport
from session_lifecycle.models.maintenance import MOST_MISMATCHES
from session_lifecycle.statements import reconciling, reconciling_rollups
from session_lifecycle.statements.reconciling import SessionKey, Totals
from session_lifecycle.statements.reconciling_rollups import FIGURES, OF_ROLLED_UP, Part
from session_lifecycle.statements.totals import MODEL_FIGURES

SESSIONS_AT_ONCE = 1000
USERS_AT_ONCE = 100
SUMMED_AT_ONCE = 20_000
"""Rolled-up sessions added up in one statement, or as many more as an owner has; everybody's are one statement too."""


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
        """Sessions and what is kept of each, in the order of their keys; then the runs of all users; then the sums."""
        last: SessionKey | None = None
        while keys := await self._execution.fetch(reconciling.sessions(last, SESSIONS_AT_ONCE)):
            self._sessions_looked_at += len(keys)
            first, last = SessionKey(*keys[0]), SessionKey(*keys[-1])
            for row in await self._execution.fetch(reconciling.session_mismatches(first, last)):
                await self._treat(row, SessionRecordEntity, ("user_id", "session_id"), reconciling.OF_SESSION)
            for row in await self._execution.fetch(reconciling.model_mismatches(first, last)):
                names = ("user_id", "session_id", "model")
                await self._treat(row, SessionModelUsageEntity, names, reconciling.OF_MODEL)
            # What is repaired above takes a session out of the roll-ups, or shows in them.
            await self._look_at_rolled_up(first, last)
        user = None
        while users := await self._execution.fetch(reconciling.users_with_runs(user, USERS_AT_ONCE)):
            user = users[-1].user_id
            for row in await self._execution.fetch(reconciling.run_mismatches(users[0].user_id, user)):
                await self._treat(row, SessionRunEntity, ("user_id", "run_id"), reconciling.OF_RUN)
        # After every session they are the sums of.
        await self._look_at_buckets(Part("all"))
        for family in ("user", "dataset", "user_dataset"):
            rest = Part(family)
            while end := await self._execution.fetch(reconciling_rollups.end_of_part(rest, SUMMED_AT_ONCE)):
                [(owner,)] = end
                await self._look_at_buckets(rest._replace(up_to=owner))
                rest = Part(family, after=owner)
            await self._look_at_buckets(rest)
        return ReconcileReport(
            sessions_looked_at=self._sessions_looked_at,
            mismatch_count=self._mismatch_count,
            mismatches=self._mismatches,
            repaired=self._repaired,
        )

    async def _treat(self, row: Any, entity: Any, names: Sequence[str], totals: Totals) -> None:
        """Notes what differs in a row, and puts it right where that was asked for."""
        differing = self._note(row, entity, names, totals)
        self._mismatch_count += differing
        if self._repair:
            key = {name: getattr(row, name) for name in names}
            found = {name: getattr(row, f"found_{name}") for name in totals}
            expected = {name: getattr(row, f"expected_{name}") for name in totals}
            statement = (
                reconciling.add_model(key, expected)
                if None in found.values()
                else reconciling.repair(entity, key, found, expected)
            )
            if await self._execution.fetch(statement):
                self._repaired += differing

    async def _look_at_rolled_up(self, first: SessionKey, last: SessionKey) -> None:
        """What the roll-ups have of each session; one that they have wrong is taken out of them."""
        schema = self._execution.schema
        sessions = await self._execution.fetch(reconciling_rollups.rolled_up_mismatches(first, last))
        models = await self._execution.fetch(reconciling_rollups.rolled_up_model_mismatches(schema, first, last))
        wrong: Counter[SessionKey] = Counter()
        for rows, names, columns in (
            (sessions, ("user_id", "session_id"), OF_ROLLED_UP),
            (models, ("user_id", "session_id", "model"), MODEL_FIGURES),
        ):
            for row in rows:
                wrong[SessionKey(row.user_id, row.session_id)] += self._note(row, RolledUpSessionEntity, names, columns)
        self._mismatch_count += wrong.total()
        if self._repair:
            # In the order of their keys: in a host's transaction the locks stay.
            for key, differing in sorted(wrong.items()):
                [(was_there,)] = await self._execution.fetch(reconciling_rollups.take_out(schema, key))
                self._repaired += differing if was_there else 0

    async def _look_at_buckets(self, part: Part) -> None:
        """The sums of a part of a family, which is built anew where one is wrong."""
        schema = self._execution.schema
        differing = 0
        for table, figures in FIGURES.items():
            names = [column.key for column in table.__table__.primary_key]
            found = reconciling_rollups.bucket_mismatches(schema, table, part, MOST_MISMATCHES)
            rows = await self._execution.fetch(found)
            for row in rows:
                self._note(row, table, names, figures)
            differing += rows[0].mismatches if rows else 0
        self._mismatch_count += differing
        if self._repair and differing:
            await self._execution.fetch(reconciling_rollups.rebuild(schema, part))
            self._repaired += differing

    def _note(self, row: Any, entity: Any, names: Iterable[str], columns: Iterable[str]) -> int:
        """Lists what differs in a row, as far as there is room; how much it is."""
        key = {name: getattr(row, name) for name in names}
        compared = ((name, getattr(row, f"found_{name}"), getattr(row, f"expected_{name}")) for name in columns)
        differing = [one for one in compared if _differ(*one[1:])]
        for name, found, expected in differing[: MOST_MISMATCHES - len(self._mismatches)]:
            mismatch = Mismatch(
                table=entity.__tablename__, **key, field=name, found=_told(found), expected=_told(expected)
            )
            self._mismatches.append(mismatch)
        return len(differing)


def _differ(found: object, expected: object) -> bool:
    """Whether they do; a total that is not there is zero."""
    return found != expected and not (found is None and expected == 0)


def _told(value: Any) -> Decimal | str | None:
    """A figure as it is, anything else as text."""
    if value is None or isinstance(value, Decimal):
        return value
    return Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
