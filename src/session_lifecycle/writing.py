"""Writing sessions: the protocol runtimes type against, what makes items of its calls, and what writes them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol, cast
from uuid import UUID

from session_lifecycle.batches import Prepared, Writable, is_repeatable, is_to_be_priced, parameters, prepare
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.execution import Execution
from session_lifecycle.models import (
    ActivityOutcome,
    End,
    EndOutcome,
    Item,
    Message,
    Receipt,
    ReopenOutcome,
    Run,
    SessionStatus,
    Step,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageReceipt,
)
from session_lifecycle.models.items import Reopen
from session_lifecycle.payloads import PayloadPolicy
from session_lifecycle.pricing import PriceCatalogue
from session_lifecycle.statements import recording
from session_lifecycle.statements.recording import Written


class SessionWriter(Protocol):
    """What an agent runtime's hook needs.

    Every call is one transaction and one round trip, safe to repeat where it says so. Each raises `InvalidValueError`
    for a value it refuses (nothing is written then), `SchemaError` when the database is not migrated,
    `DatabaseUnavailableError` and `TransactionConflictError` when repeating did not help.
    """

    async def ensure_and_touch_session(
        self,
        session_id: str,
        user_id: UUID,
        dataset_id: UUID | None = None,
        *,
        agent_name: str | None = None,
        at: datetime | None = None,
    ) -> TouchOutcome:
        """Creates the session, or notes a sign of life of a running one. Idempotent.

        Args:
            session_id: Any text of 1..512 characters that is not only whitespace.
            user_id: The owner. The same session id under two users is two sessions.
            dataset_id: What the session may be shared through; kept if the session has none yet.
            agent_name: Kept if the session has none yet.
            at: When it happened, aware and at most five minutes ahead of the database. None: now, by its clock.
        """
        ...

    async def accumulate_usage(
        self,
        session_id: str,
        user_id: UUID,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | None = None,
        errored: bool = False,
        *,
        provider: str | None = None,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        idempotency_key: str | None = None,
        at: datetime | None = None,
    ) -> UsageReceipt:
        """Counts the usage of one model response: ledger, session and model together, or not at all.

        Args:
            session_id: Created, running, when it does not exist.
            user_id: The owner.
            model: The model's name, as the response gave it.
            tokens_in: All input, cache reads and writes included.
            tokens_out: All output, reasoning included.
            cost_usd: USD; a float is taken by its shortest decimal form. None: priced from the catalogue.
            errored: Whether the call failed; adds one to the session's errors.
            provider: The provider's name, where the model's does not tell.
            cache_read_tokens: The part of `tokens_in` read from a cache.
            cache_write_tokens: The part of `tokens_in` written to a cache.
            reasoning_tokens: The part of `tokens_out` spent on reasoning.
            idempotency_key: Names this response within the session. With it the call can be repeated safely, and is
                after a lost connection; without it, it is not.
            at: When it happened; None: now, by the database's clock.
        """
        ...

    async def end_session(
        self, session_id: str, user_id: UUID, status: SessionStatus, *, at: datetime | None = None
    ) -> EndOutcome:
        """Ends a running session as `completed` or `failed`; the first end wins. Idempotent."""
        ...

    async def reopen_session(self, session_id: str, user_id: UUID, *, at: datetime | None = None) -> ReopenOutcome:
        """Makes an ended session running and active again, its totals kept. Idempotent."""
        ...

    async def record(self, items: Sequence[Item]) -> list[Receipt]:
        """Any mix of items over any sessions and users, in one transaction, as if they had come one after another.

        Returns one receipt per item, in order: `TouchOutcome`, `UsageReceipt`, `EndOutcome`, and `ActivityOutcome` for
        runs, steps and messages. Repeated after a lost connection only when every usage event has an idempotency key.
        """
        ...


class WritesItems(ABC):
    """`SessionWriter` by one primitive: each call is an item."""

    @abstractmethod
    async def _write(self, items: Sequence[Writable]) -> list[Written]:
        """Writes the items in one transaction; what became of each, in order."""

    async def ensure_and_touch_session(
        self,
        session_id: str,
        user_id: UUID,
        dataset_id: UUID | None = None,
        *,
        agent_name: str | None = None,
        at: datetime | None = None,
    ) -> TouchOutcome:
        """See `SessionWriter`."""
        item = Touch.of_call(
            session_id=session_id, user_id=user_id, dataset_id=dataset_id, agent_name=agent_name, at=at
        )
        return cast("TouchOutcome", await self._record_one(item))

    async def accumulate_usage(
        self,
        session_id: str,
        user_id: UUID,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | None = None,
        errored: bool = False,
        *,
        provider: str | None = None,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        idempotency_key: str | None = None,
        at: datetime | None = None,
    ) -> UsageReceipt:
        """See `SessionWriter`."""
        item = UsageEvent.of_call(
            session_id=session_id,
            user_id=user_id,
            model=model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=cost_usd,
            errored=errored,
            provider=provider,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            reasoning_tokens=reasoning_tokens,
            idempotency_key=idempotency_key,
            at=at,
        )
        return cast("UsageReceipt", await self._record_one(item))

    async def end_session(
        self, session_id: str, user_id: UUID, status: SessionStatus, *, at: datetime | None = None
    ) -> EndOutcome:
        """See `SessionWriter`."""
        item = End.of_call(session_id=session_id, user_id=user_id, status=status, at=at)
        return cast("EndOutcome", await self._record_one(item))

    async def reopen_session(self, session_id: str, user_id: UUID, *, at: datetime | None = None) -> ReopenOutcome:
        """See `SessionWriter`."""
        item = Reopen.of_call(session_id=session_id, user_id=user_id, at=at)
        return cast("ReopenOutcome", await self._record_one(item))

    async def record(self, items: Sequence[Item]) -> list[Receipt]:
        """See `SessionWriter`."""
        written = await self._write(checked(items))
        return [cast("Receipt", _receipt(item, one)) for item, one in zip(items, written, strict=True)]

    async def _record_one(self, item: Writable) -> Receipt | ReopenOutcome:
        [written] = await self._write([item])
        return _receipt(item, written)


class ItemWriter:
    """Writes items, as the policy lets them: each call one statement, one transaction."""

    def __init__(self, execution: Execution, prices: PriceCatalogue, payloads: PayloadPolicy) -> None:
        self._execution = execution
        self._prices = prices
        self._payloads = payloads
        self._record = recording.record(execution.schema)

    async def prepare(self, items: Sequence[Writable]) -> list[Prepared]:
        """The items with their prices, ready to be written."""
        if any(map(is_to_be_priced, items)):
            await self._prices.load()
        return self._prepared(items)

    def prepare_now(self, items: Sequence[Writable]) -> list[Prepared]:
        """The same without waiting; nothing where the catalogue has to be loaded first."""
        if not self._prices.is_loaded and any(map(is_to_be_priced, items)):
            return []
        return self._prepared(items)

    def _prepared(self, items: Sequence[Writable]) -> list[Prepared]:
        applied = self._payloads.applied
        return [prepare(item if isinstance(item, Reopen) else applied(item), self._prices) for item in items]

    async def write(self, items: Sequence[Prepared]) -> list[Written]:
        """What became of each item, in order.

        Raises:
            InvalidValueError: An item is too far ahead of the database's clock; nothing was written.
        """
        if not items:
            return []
        bound = parameters(items)
        repeatable = all(is_repeatable(one.item) for one in items)
        rows = await self._execution.write(self._record, bound, repeatable=repeatable)
        # Of several rows of one item the last one holds.
        written = {row[0]: Written(*row) for row in rows}
        if rows[0][1] == recording.FUTURE:
            raise _too_far_ahead([one.item for one in items], bound["latest_at"])
        return [written[position] for position in range(len(items))]


def _too_far_ahead(items: Sequence[Writable], latest_at: datetime) -> InvalidValueError:
    position, field = next(
        (position, name) for position, item in enumerate(items) for name, value in item if value == latest_at
    )
    name = field if len(items) == 1 else f"items.{position}.{field}"
    return InvalidValueError(name, latest_at, "at most five minutes ahead of the database's clock")


def checked(items: Any) -> Sequence[Item]:
    """The items of a `record`.

    Raises:
        InvalidValueError: They are no sequence, or one of them is no item.
    """
    if isinstance(items, str | bytes) or not isinstance(items, Sequence):
        raise InvalidValueError("items", items, "a sequence of Touch, UsageEvent, End, Run, Step and Message")
    for position, item in enumerate(items):
        check_item(item, f"items.{position}")
    return items


def check_item(item: Any, field: str = "item") -> None:
    """Raises InvalidValueError for what is no item."""
    if not isinstance(item, Item):
        raise InvalidValueError(field, item, "a Touch, UsageEvent, End, Run, Step or Message")


def _receipt(item: Writable, written: Written) -> Receipt | ReopenOutcome:
    """What its caller is told. Each makes their own, so that a recorder sends the next transaction first."""
    match item:
        case UsageEvent():
            return UsageReceipt.model_validate(written, from_attributes=True)
        case Touch():
            return TouchOutcome(written.outcome)
        case End():
            return EndOutcome(written.outcome)
        case Reopen():
            return ReopenOutcome(written.outcome)
        case Run() | Step() | Message():
            return ActivityOutcome(written.outcome)
