"""The job `erase`: deletes one session, or erases everything of one user."""

from collections import Counter
from functools import partial
from uuid import UUID

from pydantic_core import to_json

from session_lifecycle.maintenance.batches import in_batches
from session_lifecycle.models import ErasureReceipt
from session_lifecycle.models.maintenance import Erasing, OwnedSession
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.budgets import budgets, reservations
from session_lifecycle.statements.maintenance import delete, erase

MAX_BATCH = 1000
"""The most sessions, or runs outside a session, of one transaction."""


class Eraser:
    """Implements `delete_session` and `erase_user` of `SessionMaintenanceDb`."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._delete_sessions = delete.delete_sessions(execution.schema)
        self._delete_runs_outside_sessions = delete.delete_runs_outside_sessions(execution.schema)
        self._anonymise_sessions = delete.anonymise_sessions(execution.schema)

    async def delete_session(self, asked: OwnedSession) -> bool:
        """Deletes the session in one transaction. Returns whether it existed."""
        keys = to_json([asked.model_dump()]).decode()
        parameters = {"keys": keys, "idle_before": None}
        [row] = await self._execution.write(self._delete_sessions, parameters, repeatable=True)
        return delete.Deleted(*row).sessions > 0

    async def erase_user(self, asked: Erasing, pseudonym: UUID | None) -> ErasureReceipt:
        """Writes the tombstone, deletes or anonymises the sessions, then deletes the runs outside a session.

        Args:
            asked: The arguments of the call.
            pseudonym: The user id that the usage gets; None: the usage is deleted.
        """
        user_id = asked.user_id
        found = partial(erase.sessions_of, user_id)
        if asked.tombstone:
            await self._execution.fetch(erase.write_tombstone(self._execution.schema, user_id), writes=True)
        if pseudonym is None:
            # Before the events go: afterwards nothing says which models the user used.
            await self._forget_repriced_models(user_id)
        await self._forget_budgets(user_id)
        sessions = (
            in_batches(self._execution, found, self._delete_sessions, max_batch=MAX_BATCH, idle_before=None)
            if pseudonym is None
            else in_batches(self._execution, found, self._anonymise_sessions, max_batch=MAX_BATCH, pseudonym=pseudonym)
        )
        found_runs = partial(erase.runs_outside_sessions_of, user_id)
        runs = in_batches(
            self._execution, found_runs, self._delete_runs_outside_sessions, max_batch=MAX_BATCH, idle_before=None
        )
        erased: Counter[str] = Counter()
        for batches in (sessions, runs):
            async for row in batches:
                erased.update(delete.Deleted(*row).counts())
        if not asked.tombstone:
            await self._forget_budgets(user_id)  # those of calls that began meanwhile
        [(erased_at,)] = await self._execution.fetch(erase.now())
        return ErasureReceipt(
            user_id=user_id,
            erased_at=erased_at,
            pseudonym=pseudonym,
            tombstoned=asked.tombstone,
            **{name: erased[name] for name in ("sessions", "runs", "steps", "messages", "events")},
        )

    async def _forget_budgets(self, user_id: UUID) -> None:
        """Deletes the reservations of the user, and the budgets that name the user."""
        await self._execution.fetch(reservations.delete_reservations_of(user_id), writes=True)
        await self._execution.fetch(budgets.delete_budgets_of(user_id), writes=True)

    async def _forget_repriced_models(self, user_id: UUID) -> None:
        """Takes models that only this user has used out of the audit of repricings: a name may be personal."""
        models = [model for (model,) in await self._execution.fetch(erase.repriced_models_of(user_id))]
        if models:
            await self._execution.fetch(erase.forget_models(models, user_id), writes=True)
