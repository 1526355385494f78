"""Budgets: limits on what sessions use, and reservations of what a call of a model may use (rule R28)."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol, Unpack, cast
from uuid import UUID

from session_lifecycle.models import Budget, BudgetUse, Reservation, ReservationOutcome, Touch, UsageEvent, Viewer
from session_lifecycle.models.budgets import DEFAULT_LEASE, BudgetList, OneBudget, Releasing, Reserving
from session_lifecycle.models.usage import EstimatedUse
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.statements.budgets import budgets, reservations
from session_lifecycle.statements.shared.visibility import shape_of_viewer
from session_lifecycle.writing.payload_policy import PayloadPolicy
from session_lifecycle.writing.prepared import cost_fields, event_id_of, needs_price
from session_lifecycle.writing.protocol import SessionReserver

_MICROSECOND = timedelta(microseconds=1)


class SessionBudgetsDb(SessionReserver, Protocol):
    """Budgets, and the reservations of calls in flight.

    A budget bounds what is admitted: what is spent in its window and what calls in flight have reserved never pass its
    limit, however many callers reserve at once. What was admitted is booked as it is: a call that uses more than it
    reserved can pass the limit, and so can usage that nobody reserved.

    Recording knows nothing of budgets and pays nothing for them. Each call below is one statement on the primary, and
    one transaction, unless it is inside a host's. There, `reserve` keeps its locks until the host's transaction ends,
    and the reservation is part of that transaction; so reserve in a transaction that ends before the model is called.

    No call but `get_budget` and `list_budgets` takes a viewer: the host decides who may make it. A viewer sees a budget
    if they see every session that it counts: it names them or one of their agents as the user, or a dataset that they
    may read. Only the auditor sees a budget that names neither.

    A call that fails for a passing reason is retried, except inside a host's transaction. Every call raises:

    - `InvalidValueError`: it refuses an argument; or it would keep a row about a user who was erased with a tombstone.
    - `SchemaError`: the schema is not migrated, or does not serve this version.
    - `DatabaseUnavailableError`: the database cannot be reached or did not answer, also after the retries.
    - `TransactionConflictError`: the call lost conflicts with concurrent transactions, also after the retries; or the
      host's transaction is not READ COMMITTED.
    """

    async def set_budget(self, budget: Budget) -> bool:
        """Creates the budget, or replaces the one with its id. Returns whether it is new.

        It counts what the ledger has of its window, also from before. Calls that have begun to reserve before it was
        set are not held to it.

        Raises:
            InvalidValueError: 20 other budgets have the same user, session, agent and dataset; or Postgres does not
                know the time zone.
        """
        ...

    async def get_budget(self, budget_id: str, viewer: Viewer | UUID | str) -> BudgetUse | None:
        """The budget and what is used of it; None if the viewer sees no budget with this id.

        `over_usd` and `over_tokens` are not None where the limit is used up.
        """
        ...

    async def list_budgets(
        self, viewer: Viewer | UUID | str, *, limit: int = 100, after: str | None = None
    ) -> list[Budget]:
        """The budgets that the viewer sees, in the order of their ids.

        Args:
            viewer: The viewer, or the viewer's user id.
            limit: The most budgets, 1..1,000.
            after: The last id of the list before; None: from the beginning.
        """
        ...

    async def delete_budget(self, budget_id: str) -> bool:
        """Deletes the budget. Returns whether it existed. Reservations stay: other budgets may count them."""
        ...


class _Asked(NamedTuple):
    """What a call asks for."""

    event: UsageEvent
    usd: Decimal | None
    tokens: int | None
    parameters: dict[str, Any]


class SqlAlchemySessionBudgetsDb(SessionBudgetsDb):
    """`SessionBudgetsDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, prices: PriceCatalogue, payloads: PayloadPolicy) -> None:
        self._execution = execution
        self._prices = prices
        self._payloads = payloads

    async def set_budget(self, budget: Budget) -> bool:
        asked = Budget.checked(budget, "budget")
        window = asked.window
        fields = asked.model_dump(exclude={"window"}) | {
            "calendar": None if isinstance(window, timedelta) or window == "total" else window,
            "rolling_us": window // _MICROSECOND if isinstance(window, timedelta) else None,
        }
        await self._execution.check_takes_any_user()
        [(is_new,)] = await self._execution.fetch(budgets.set_budget(self._execution.schema), fields, writes=True)
        return bool(is_new)

    async def get_budget(self, budget_id: str, viewer: Viewer | UUID | str) -> BudgetUse | None:
        asked = OneBudget.of_call(budget_id=budget_id)
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        statement = reservations.budget_use(self._execution.schema, seen)
        found = await self._execution.fetch(statement, {**parameters, "budget_id": asked.budget_id}, viewer=asker)
        return _use(found[0]) if found else None

    async def list_budgets(
        self, viewer: Viewer | UUID | str, *, limit: int = 100, after: str | None = None
    ) -> list[Budget]:
        asked = BudgetList.of_call(limit=limit, after=after)
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        statement = budgets.list_budgets(seen, has_after=asked.after is not None)
        rows = await self._execution.fetch(statement, parameters | asked.model_dump(), viewer=asker)
        return [_budget(row) for row in rows]

    async def delete_budget(self, budget_id: str) -> bool:
        asked = OneBudget.of_call(budget_id=budget_id)
        return bool(await self._execution.fetch(budgets.delete_budget(asked.budget_id), writes=True))

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
        asked = await self._ask(
            dataset_id,
            agent_name,
            session_id=session_id,
            user_id=user_id,
            model=model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=cost_usd,
            **more,
        )
        statement = reservations.would_exceed(self._execution.schema)
        return _uses(await self._execution.fetch(statement, asked.parameters))

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
        given = Reserving.of_call(idempotency_key=idempotency_key, lease=lease)
        asked = await self._ask(
            dataset_id,
            agent_name,
            session_id=session_id,
            user_id=user_id,
            model=model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=cost_usd,
            idempotency_key=given.idempotency_key,
            key_scope=key_scope,
            **more,
        )
        event = asked.event
        parameters = asked.parameters | {
            "event_id": UUID(event_id_of(event)),
            "key_scope": event.key_scope,
            "lease_us": given.lease // _MICROSECOND,
        }
        await self._execution.check_takes_any_user()
        rows = await self._execution.fetch(reservations.reserve(self._execution.schema), parameters, writes=True)
        outcome = ReservationOutcome(rows[0].outcome)
        return Reservation(
            session_id=event.session_id,
            user_id=event.user_id,
            idempotency_key=given.idempotency_key,
            key_scope=event.key_scope,
            outcome=outcome,
            cost_usd=asked.usd,
            tokens=asked.tokens,
            expires_at=rows[0].ends_at,
            refused_by=_uses(rows) if outcome is ReservationOutcome.REFUSED else [],
        )

    async def release(
        self,
        session_id: str,
        user_id: UUID | str,
        idempotency_key: str,
        *,
        key_scope: Literal["session", "user"] = "session",
    ) -> bool:
        asked = Releasing.of_call(
            session_id=session_id, user_id=user_id, idempotency_key=idempotency_key, key_scope=key_scope
        )
        event_id = UUID(event_id_of(UsageEvent(**asked.model_dump())))
        statement = reservations.release(asked.user_id, asked.session_id, event_id)
        return bool(await self._execution.fetch(statement, writes=True))

    async def _ask(self, dataset_id: UUID | str | None, agent_name: str | None, **use: Any) -> _Asked:
        """Checks, redacts and prices what is asked for, as recording does it with the event to come."""
        event = cast("UsageEvent", self._payloads.apply(UsageEvent.of_call(**use)))
        names = {"dataset_id": dataset_id, "agent_name": agent_name}
        given = Touch.of_call(session_id=event.session_id, user_id=event.user_id, **names)
        touch = cast("Touch", self._payloads.apply(given))
        is_to_be_priced = needs_price(event)
        if is_to_be_priced and not self._prices.is_loaded:
            await self._prices.load()
        usd: Decimal | None = None
        if event.billing == "plan":
            usd = Decimal(0)
        elif event.has_use or event.cost_usd is not None:
            usd = cost_fields(event, self._prices).get("cost_usd")
        # Every call of a model takes tokens, so none means that the caller does not know.
        tokens = event.tokens_in + event.tokens_out or None
        parameters = {
            "user_id": event.user_id,
            "session_id": event.session_id,
            "agent_name": touch.agent_name,
            "dataset_id": touch.dataset_id,
            "asked_usd": usd,
            "asked_tokens": tokens,
            "is_unpriced": is_to_be_priced and usd is None,
        }
        return _Asked(event, usd, tokens, parameters)


def _budget(row: Any) -> Budget:
    fields = {name: getattr(row, name) for name in budgets.COLUMNS if name not in {"calendar", "rolling_us"}}
    if row.rolling_us is not None:
        return Budget(**fields, window=row.rolling_us * _MICROSECOND)
    return Budget(**fields, window=row.calendar or "total")


def _use(row: Any) -> BudgetUse:
    whole = {name: int(getattr(row, name)) for name in ("spent_tokens", "reserved_tokens")}
    figures = (
        "since",
        "spent_usd",
        "reserved_usd",
        "unpriced_events",
        "unmeasured_events",
        "over_usd",
        "over_unpriced",
    )
    return BudgetUse(
        budget=_budget(row),
        **whole,
        **{name: getattr(row, name) for name in figures},
        over_tokens=None if row.over_tokens is None else int(row.over_tokens),
    )


def _uses(rows: Sequence[Any]) -> list[BudgetUse]:
    return sorted(map(_use, rows), key=lambda one: one.budget.budget_id)
