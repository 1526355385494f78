"""CallsAsItems: makes an item of each call, and a receipt of each result."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Unpack, cast, overload
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
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
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.models.usage import UsageOptions
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.prepared import WritableItem
from session_lifecycle.writing.protocol import SessionWriter

_KINDS: tuple[type[Item], ...] = (UsageEvent, Touch, End, Run, Step, Message)


class CallsAsItems(SessionWriter, ABC):
    """A `SessionWriter` whose calls all use one method, `write`: each call makes an item and writes it."""

    @abstractmethod
    async def write(self, items: Sequence[WritableItem]) -> list[WriteResult]:
        """Writes the items in one transaction. Returns the result of each item, in order."""

    async def ensure_and_touch_session(
        self,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
        at: datetime | None = None,
    ) -> TouchOutcome:
        item = Touch.of_call(
            session_id=session_id, user_id=user_id, dataset_id=dataset_id, agent_name=agent_name, at=at
        )
        return cast("TouchOutcome", await self._record_one(item))

    async def accumulate_usage(
        self,
        session_id: str,
        user_id: UUID | str,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        errored: bool = False,
        **options: Unpack[UsageOptions],
    ) -> UsageReceipt:
        item = UsageEvent.of_call(
            session_id=session_id,
            user_id=user_id,
            model=model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=cost_usd,
            errored=errored,
            **options,
        )
        return cast("UsageReceipt", await self._record_one(item))

    async def end_session(
        self,
        session_id: str,
        user_id: UUID | str,
        status: SessionStatus | Literal["completed", "failed"],
        *,
        at: datetime | None = None,
    ) -> EndOutcome:
        item = End.of_call(session_id=session_id, user_id=user_id, status=status, at=at)
        return cast("EndOutcome", await self._record_one(item))

    async def reopen_session(
        self, session_id: str, user_id: UUID | str, *, at: datetime | None = None
    ) -> ReopenOutcome:
        item = Reopen.of_call(session_id=session_id, user_id=user_id, at=at)
        return cast("ReopenOutcome", await self._record_one(item))

    @overload
    async def record(self, items: Sequence[Touch]) -> list[TouchOutcome]: ...
    @overload
    async def record(self, items: Sequence[UsageEvent]) -> list[UsageReceipt]: ...
    @overload
    async def record(self, items: Sequence[End]) -> list[EndOutcome]: ...
    @overload
    async def record(self, items: Sequence[Run | Step | Message]) -> list[ActivityOutcome]: ...
    @overload
    async def record(self, items: Sequence[Item]) -> list[Receipt]: ...
    async def record(self, items: Sequence[Item]) -> Any:
        asked = checked(items)
        written = await self.write(asked)
        return [cast("Receipt", receipt_of(item, one)) for item, one in zip(asked, written, strict=True)]

    async def _record_one(self, item: WritableItem) -> Receipt | ReopenOutcome:
        [written] = await self.write([item])
        return receipt_of(item, written)


def checked(items: Any) -> list[Item]:
    """The items given to `record`, each with fields that are checked.

    Raises:
        InvalidValueError: The argument is not a sequence, an element is not an item, or a field of one is refused.
    """
    if isinstance(items, str | bytes) or not isinstance(items, Sequence):
        raise InvalidValueError("items", items, "a sequence of Touch, UsageEvent, End, Run, Step and Message")
    if len(items) == 1:
        return [checked_item(items[0], "items.0")]
    checked_items: list[Item] = []
    for position, item in enumerate(items):
        try:
            checked_items.append(checked_item(item, f"items.{position}"))
        except InvalidValueError as error:
            if error.value is item:
                raise
            raise InvalidValueError(f"items.{position}.{error.field}", error.value, error.expected) from error
    return checked_items


def checked_item(item: Any, name: str = "item") -> Item:
    """The item, with fields that are checked: a value is not trusted for its class.

    Raises:
        InvalidValueError: The value is not an item, or a field is refused.
    """
    for kind in _KINDS:
        if isinstance(item, kind):
            return kind.checked(item, name)
    raise InvalidValueError(name, item, "a Touch, UsageEvent, End, Run, Step or Message")


def receipt_of(item: WritableItem, written: WriteResult) -> Receipt | ReopenOutcome:
    """The item's receipt. Each caller makes its own, so a recorder sends the next transaction without that delay."""
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
