"""The role `budgets` over buckets: a user's budgets are in the user's bucket."""

from datetime import timedelta
from decimal import Decimal
from typing import Literal, Unpack
from uuid import UUID

from session_lifecycle.buckets.routing import Routing
from session_lifecycle.budgets import SessionBudgetsDb
from session_lifecycle.errors import DatabaseUnavailableError, InvalidValueError
from session_lifecycle.models import Budget, BudgetUse, Reservation, Viewer
from session_lifecycle.models.budgets import DEFAULT_LEASE
from session_lifecycle.models.usage import EstimatedUse


class BucketBudgetsDb(SessionBudgetsDb):
    """`SessionBudgetsDb` over buckets.

    A budget names a user, and may name a session, agent or data set beside. A budget of an agent or a data set of all
    users is refused: no bucket sees what the others spend, so it could be passed.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def set_budget(self, budget: Budget) -> bool:
        """See `SessionBudgetsDb`. Where a user of another bucket has a budget with this id, that one is deleted first.

        Raises:
            InvalidValueError: The budget names no user, or as in `SessionBudgetsDb`.
            DatabaseUnavailableError: A bucket is away that may have a budget with this id. One that the user's own
                bucket has, no other has.
        """
        asked = Budget.checked(budget, "budget")
        if asked.user_id is None:
            expected = "a user: over buckets a budget of an agent or a data set counts one user's sessions"
            raise InvalidValueError("user_id", None, expected)
        home = self._routing.of(asked.user_id)
        if await home.budgets.get_budget(asked.budget_id, Viewer.auditor()) is not None:
            return await home.budgets.set_budget(asked)
        others = [bucket for bucket in self._routing.buckets if bucket is not home]
        deleted = [await bucket.budgets.delete_budget(asked.budget_id) for bucket in others]
        return await home.budgets.set_budget(asked) and not any(deleted)

    async def get_budget(self, budget_id: str, viewer: Viewer | UUID | str) -> BudgetUse | None:
        asker = Viewer.of_caller(viewer)
        where = await self._routing.where(asker)
        found = await self._routing.ask(where, lambda bucket: bucket.budgets.get_budget(budget_id, asker))
        return next((one for one in found if one is not None), None)

    async def list_budgets(
        self, viewer: Viewer | UUID | str, *, limit: int = 100, after: str | None = None
    ) -> list[Budget]:
        asker = Viewer.of_caller(viewer)
        where = await self._routing.where(asker)
        found = await self._routing.ask(
            where, lambda bucket: bucket.budgets.list_budgets(asker, limit=limit, after=after)
        )
        return sorted((one for budgets in found for one in budgets), key=lambda one: one.budget_id)[:limit]

    async def delete_budget(self, budget_id: str) -> bool:
        """See `SessionBudgetsDb`.

        Raises:
            DatabaseUnavailableError: A bucket is away, and no other had a budget with this id.
        """
        away: DatabaseUnavailableError | None = None
        for bucket in self._routing.buckets:
            try:
                if await bucket.budgets.delete_budget(budget_id):
                    return True
            except DatabaseUnavailableError as error:
                away = away or error
        if away is not None:
            raise away
        return False

    async def would_exceed(
        self,
        session_id: str,
        user_id: UUID | str,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        *,
        dataset_id: UUID | str | None = None,
        agent_name: str | None = None,
        **more: Unpack[EstimatedUse],
    ) -> list[BudgetUse]:
        return await self._routing.of(user_id).budgets.would_exceed(
            session_id,
            user_id,
            model,
            tokens_in,
            tokens_out,
            cost_usd,
            dataset_id=dataset_id,
            agent_name=agent_name,
            **more,
        )

    async def reserve(
        self,
        session_id: str,
        user_id: UUID | str,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        *,
        idempotency_key: str,
        key_scope: Literal["session", "user"] = "session",
        lease: timedelta = DEFAULT_LEASE,
        dataset_id: UUID | str | None = None,
        agent_name: str | None = None,
        **more: Unpack[EstimatedUse],
    ) -> Reservation:
        return await self._routing.of(user_id).budgets.reserve(
            session_id,
            user_id,
            model,
            tokens_in,
            tokens_out,
            cost_usd,
            idempotency_key=idempotency_key,
            key_scope=key_scope,
            lease=lease,
            dataset_id=dataset_id,
            agent_name=agent_name,
            **more,
        )

    async def release(
        self,
        session_id: str,
        user_id: UUID | str,
        idempotency_key: str,
        *,
        key_scope: Literal["session", "user"] = "session",
    ) -> bool:
        return await self._routing.of(user_id).budgets.release(
            session_id, user_id, idempotency_key, key_scope=key_scope
        )
