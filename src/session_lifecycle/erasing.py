"""Erasing: one session, or everything of one user."""

from collections import Counter
from functools import partial
from uuid import uuid4

from pydantic_core import to_json

from session_lifecycle.execution import Execution
from session_lifecycle.models import ErasureReceipt
from session_lifecycle.models.maintenance import Erasing, OwnedSession
from session_lifecycle.piecemeal import in_batches
from session_lifecycle.statements import deleting, erasing

MOST_AT_ONCE = 1000
"""Sessions, or runs that are in none, of one transaction."""


class Eraser:
    """Erases; the docstrings of `SessionMaintenanceDb` say what."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._delete_sessions = deleting.delete_sessions(execution.schema)
        self._delete_waiting_runs = deleting.delete_waiting_runs(execution.schema)
        self._anonymise_sessions = deleting.anonymise_sessions(execution.schema)

    async def delete_session(self, asked: OwnedSession) -> bool:
        """Deletes the session; whether there was one."""
        keys = to_json([asked.model_dump()]).decode()
        parameters = {"keys": keys, "idle_before": None}
        [row] = await self._execution.write(self._delete_sessions, parameters, repeatable=True)
        return deleting.Deleted(*row).sessions > 0

    async def erase_user(self, asked: Erasing) -> ErasureReceipt:
        """Writes the tombstone first, then deletes or anonymises the sessions, then the runs that are in none."""
        user_id = asked.user_id
        found = partial(erasing.sessions_of, user_id)
        pseudonym = uuid4() if asked.usage == "anonymise" else None
        if asked.tombstone:
            await self._execution.fetch(erasing.write_tombstone(user_id))
        usage = (
            in_batches(self._execution, found, self._delete_sessions, most=MOST_AT_ONCE, idle_before=None)
            if pseudonym is None
            else in_batches(self._execution, found, self._anonymise_sessions, most=MOST_AT_ONCE, pseudonym=pseudonym)
        )
        waiting = partial(erasing.waiting_runs_of, user_id)
        runs = in_batches(self._execution, waiting, self._delete_waiting_runs, most=MOST_AT_ONCE, idle_before=None)
        erased: Counter[str] = Counter()
        for batches in (usage, runs):
            async for rows in batches:
                erased.update(deleting.Deleted(*rows)._asdict())
        [(erased_at,)] = await self._execution.fetch(erasing.now())
        return ErasureReceipt(
            user_id=user_id,
            erased_at=erased_at,
            pseudonym=pseudonym,
            tombstoned=asked.tombstone,
            **{name: erased[name] for name in ("sessions", "runs", "steps", "messages", "events")},
        )
