"""The job `reconcile`: compares every total with the ledger, and the roll-ups with the sessions."""

import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Executable

from session_lifecycle.entities import (
    RolledUpSessionEntity,
    SessionModelUsageEntity,
    SessionRecordEntity,
    SessionRunEntity,
    SessionUsageEventEntity,
)
from session_lifecycle.models import Mismatch, ReconcileReport
from session_lifecycle.models.maintenance import MOST_MISMATCHES
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.maintenance import reconcile, reconcile_roll_ups
from session_lifecycle.statements.maintenance.reconcile import SessionKey
from session_lifecycle.statements.maintenance.reconcile_roll_ups import FIGURES, OF_ROLLED_UP, Part
from session_lifecycle.statements.roll_ups.totals import MODEL_FIGURES
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS

SESSIONS_AT_ONCE = 1000
USERS_AT_ONCE = 100
ROLLED_UP_AT_ONCE = 20_000
"""Rolled-up sessions that one statement adds up. One owner's are never split, and neither is the family `all`."""


async def parts_of(execution: Execution, family: str, sessions: int) -> AsyncGenerator[Part]:
    """The parts of a family of about so many rolled-up sessions each. Those of one owner are never divided.

    The family of everybody is one part.
    """
    rest = Part(family)
    if family != "all":
        while end := await execution.fetch(reconcile_roll_ups.end_of_part(rest.shape, sessions), rest.parameters):
            [(owner,)] = end
            yield rest._replace(up_to=owner)
            rest = rest._replace(after=owner)
    yield rest


class Reconciler:
    """Implements one call of `SessionMaintenanceDb.reconcile`; make a new one for each call."""

    def __init__(self, execution: Execution, *, repair: bool) -> None:
        self._execution = execution
        self._repair = repair
        self._sessions_looked_at = 0
        self._mismatch_count = 0
        self._mismatches: list[Mismatch] = []
        self._repaired = 0

    async def reconcile(self) -> ReconcileReport:
        """Compares the sessions in the order of their keys, then all users' runs, then the sums of the roll-ups."""
        last: SessionKey | None = None
        while keys := await self._execution.fetch(reconcile.sessions(last, SESSIONS_AT_ONCE)):
            self._sessions_looked_at += len(keys)
            first, last = SessionKey(*keys[0]), SessionKey(*keys[-1])
            between = reconcile.sessions_between(first, last)
            for row in await self._execution.fetch(reconcile.session_mismatches(), between):
                key: tuple[str, ...] = ("user_id", "session_id")
                await self._compare(row, SessionRecordEntity, key, reconcile.OF_SESSION)
            for row in await self._execution.fetch(reconcile.model_mismatches(), between):
                key = ("user_id", "session_id", "model")
                await self._compare(row, SessionModelUsageEntity, key, reconcile.OF_MODEL)
            # After the repairs above, which take a session out of the roll-ups or leave it rolled up wrongly.
            await self._compare_rolled_up(between)
        user = None
        while users := await self._execution.fetch(reconcile.users_with_runs(user, USERS_AT_ONCE)):
            user = users[-1].user_id
            between = reconcile.users_between(users[0].user_id, user)
            for row in await self._execution.fetch(reconcile.run_mismatches(), between):
                await self._compare(row, SessionRunEntity, ("user_id", "run_id"), reconcile.OF_RUN)
            for row in await self._execution.fetch(reconcile.adjustment_mismatches(), between):
                await self._compare_adjustment(row)
        # After all sessions, as the buckets are sums over them.
        for family in ("all", "user", "dataset", "user_dataset"):
            async for part in parts_of(self._execution, family, ROLLED_UP_AT_ONCE):
                await self._compare_buckets(part)
        return ReconcileReport(
            sessions_looked_at=self._sessions_looked_at,
            mismatch_count=self._mismatch_count,
            mismatches=self._mismatches,
            repaired=self._repaired,
        )

    async def _compare(self, row: Any, entity: Any, names: Sequence[str], totals: Iterable[str]) -> None:
        """Notes the totals of a row that differ, and repairs them if asked to."""
        differing = self._note(row, entity, names, totals)
        self._mismatch_count += differing
        if self._repair:
            key = {name: getattr(row, name) for name in names}
            found = {name: getattr(row, f"found_{name}") for name in totals}
            expected = {name: getattr(row, f"expected_{name}") for name in totals}
            statement: Executable
            if any(value is not None for value in found.values()):
                statement = reconcile.repair(entity, key, found, expected)
            elif entity is SessionRunEntity:
                statement = reconcile.add_run(key, expected)
            else:
                statement = reconcile.add_model(key, expected)
            if await self._execution.fetch(statement, writes=True):
                self._repaired += differing

    async def _compare_adjustment(self, row: Any) -> None:
        """Notes what differs of an adjustment, and settles its run if asked to repair."""
        differing = self._note(row, SessionUsageEventEntity, ("user_id", "run_id"), reconcile.OF_ADJUSTMENT)
        self._mismatch_count += differing
        if self._repair:
            session_id = row.found_session_id if row.expected_session_id is None else row.expected_session_id
            settled = reconcile.settle_run(self._execution.schema, row.user_id, row.run_id, session_id)
            await self._execution.fetch(settled, writes=True)
            self._repaired += differing

    async def _compare_rolled_up(self, between: dict[str, Any]) -> None:
        """Notes the sessions that are rolled up wrongly, and takes them out of the roll-ups if asked to repair."""
        schema = self._execution.schema
        sessions = await self._execution.fetch(reconcile_roll_ups.rolled_up_mismatches(), between)
        models = await self._execution.fetch(reconcile_roll_ups.rolled_up_model_mismatches(schema), between)
        wrong: Counter[SessionKey] = Counter()
        for rows, names, columns in (
            (sessions, ("user_id", "session_id"), OF_ROLLED_UP),
            (models, ("user_id", "session_id", "model"), MODEL_FIGURES),
        ):
            for row in rows:
                wrong[SessionKey(row.user_id, row.session_id)] += self._note(row, RolledUpSessionEntity, names, columns)
        self._mismatch_count += wrong.total()
        if self._repair:
            # In the order of keys, against deadlocks: in a host's transaction the locks stay until it ends.
            for key, differing in sorted(wrong.items()):
                [(was_rolled_up,)] = await self._execution.fetch(reconcile_roll_ups.take_out(schema, key), writes=True)
                self._repaired += differing if was_rolled_up else 0

    async def _compare_buckets(self, part: Part) -> None:
        """Notes the wrong sums in a part of a family, and rebuilds the part if asked to repair."""
        schema = self._execution.schema
        differing = 0
        for table, figures in FIGURES.items():
            names = [column.key for column in table.__table__.primary_key]
            found = reconcile_roll_ups.bucket_mismatches(schema, table, part.shape, MOST_MISMATCHES)
            rows = await self._execution.fetch(found, part.parameters, has_deadline=False)
            for row in rows:
                self._note(row, table, names, figures)
            differing += rows[0].mismatches if rows else 0
        self._mismatch_count += differing
        if self._repair and differing:
            rebuild = reconcile_roll_ups.rebuild(schema, part.shape)
            await self._execution.fetch(rebuild, part.parameters, writes=True, has_deadline=False)
            self._repaired += differing

    def _note(self, row: Any, entity: Any, names: Iterable[str], columns: Iterable[str]) -> int:
        """Lists the columns of a row that differ, as long as there is room. Returns how many differ."""
        key = {name: getattr(row, name) for name in names}
        compared = ((name, getattr(row, f"found_{name}"), getattr(row, f"expected_{name}")) for name in columns)
        differing = [one for one in compared if _differ(*one)]
        for name, found, expected in differing[: MOST_MISMATCHES - len(self._mismatches)]:
            mismatch = Mismatch(
                table=entity.__tablename__, **key, field=name, found=_reported(found), expected=_reported(expected)
            )
            self._mismatches.append(mismatch)
        return len(differing)


def _differ(name: str, found: Any, expected: Any) -> bool:
    """Whether the values of this column differ; an absent total counts as zero."""
    if name == FURTHER_TOTALS:
        # JSON as text, in which equal numbers may have more or fewer zeros.
        found, expected = (json.loads(value or "{}", parse_float=Decimal) for value in (found, expected))
    return bool(found != expected and not (found is None and expected == 0))


def _reported(value: Any) -> Decimal | str | None:
    """The value as a `Mismatch` holds it: a number as Decimal, any other value as text."""
    if value is None or isinstance(value, Decimal):
        return value
    return Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
