"""Drainer: delivers the items of a spool to a writer. Items as the spool holds them, and back."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from session_lifecycle.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SchemaError,
    SessionLifecycleError,
    SpoolError,
    TransactionConflictError,
    described,
    shortened,
)
from session_lifecycle.models import End, Item, Message, Run, Step, Touch, UsageEvent
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.writing.spool import DEFAULT_DRAIN_BATCH, DrainReport, HasWriter, Records, Spool, SpooledItem

LOOK_SECONDS = 0.5
"""How often a drainer that follows looks for items of other processes."""
PAUSE_SECONDS = 1.0
"""How long a drainer that follows waits before it tries a database again."""
MOST_ITEMS = 10_000

Result = TypeVar("Result")
_logger = logging.getLogger(__name__)
ITEM_KINDS: dict[str, type[Item | Reopen]] = {
    "touch": Touch,
    "usage": UsageEvent,
    "end": End,
    "reopen": Reopen,
    "run": Run,
    "step": Step,
    "message": Message,
}
_NAMES = {kind: name for name, kind in ITEM_KINDS.items()}
# The fields that are called `kind` in the item, where the spool has the kind of the item.
OWN_KIND = {"usage": "usage_kind", "step": "step_kind"}
_PASSING = (DatabaseUnavailableError, TransactionConflictError, RecorderFullError, RecorderClosedError, TimeoutError)
_SET_UP = (SchemaError, ConfigurationError, SpoolError)


def spooled_fields(item: Item) -> dict[str, Any]:
    """The item as `Spool.append` takes it."""
    kind = _NAMES[type(item)]
    fields = {name: value for name, value in item.model_dump(mode="json").items() if value is not None}
    if (own := OWN_KIND.get(kind)) is not None:
        fields[own] = fields["kind"]
    fields["kind"] = kind
    return fields


def item_of(text: str) -> Item | Reopen:
    """The item that the spool has as JSON. Errors: see `item_of_fields`."""
    return item_of_fields(json.loads(text))


def item_of_fields(given: Mapping[str, Any]) -> Item | Reopen:
    """The item with these fields, which are as `Spool.append` takes them.

    Raises:
        InvalidValueError: A field is refused.
    """
    fields = dict(given)
    kind = fields.pop("kind")
    if (own := OWN_KIND.get(kind)) is not None and own in fields:
        fields["kind"] = fields.pop(own)
    item = ITEM_KINDS[kind].of_call(**fields)
    if isinstance(item, UsageEvent) and item.idempotency_key is None:
        raise InvalidValueError("idempotency_key", None, "a key: without one a second delivery counts twice")
    return item


class Drainer:
    """Delivers the items of a spool to a writer, in order. `Spool.drain` says how. Use it inside `Spool.draining`.

    Attributes:
        drained: Items that the database has acknowledged.
        set_aside: Items that were refused.
        trouble: Why the last delivery failed; None where it did not fail.
    """

    def __init__(self, spool: Spool, into: Records | HasWriter, *, batch: int = DEFAULT_DRAIN_BATCH) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MOST_ITEMS:
            raise ConfigurationError(f"batch: got {shortened(batch)}, expected a whole number from 1 to {MOST_ITEMS:,}")
        self._spool = spool
        writer: Any = getattr(into, "lifecycle", into)
        self._writer: Records = writer
        self._batch = batch
        self._look = asyncio.Event()
        self.drained = self.set_aside = 0
        self.trouble: SessionLifecycleError | TimeoutError | None = None
        self.idle = asyncio.Event()
        """Set while the spool is empty or cannot be delivered."""

    def wake(self) -> None:
        """Has a drainer that follows look for items now."""
        self._look.set()

    async def run(self, *, follow: bool) -> DrainReport:
        """Delivers until the spool is empty; with `follow` until the task is cancelled. Errors: see `Spool.drain`."""
        while True:
            self._look.clear()
            try:
                is_empty = not await self._deliver_next()
            except (*_PASSING, *_SET_UP) as error:
                if not follow:
                    if isinstance(error, _SET_UP):
                        raise
                    return await self._report(error)
                self._note(error)
                self.idle.set()
                await asyncio.sleep(with_jitter(PAUSE_SECONDS))
                continue
            if self.trouble is not None:
                _logger.info("the spool %s is delivered again", self._spool.path)
                self.trouble = None
            if not is_empty:
                self.idle.clear()
                continue
            if not follow:
                await _in_thread(self._spool.shrink)
                return await self._report(None)
            if not self._look.is_set():
                self.idle.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(with_jitter(LOOK_SECONDS)):
                    await self._look.wait()

    async def _deliver_next(self) -> bool:
        """Delivers one batch. Returns False where there is none."""
        rows = await _in_thread(lambda: self._spool.read(self._batch))
        if not rows:
            return False
        poison: list[tuple[SpooledItem, str]] = []
        good: list[tuple[SpooledItem, Item | Reopen]] = []
        for row in rows:
            try:
                good.append((row, item_of(row.item)))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one item must not stop the others
                poison.append((row, _reason(error)))
        await self._write(good, poison)
        await _in_thread(lambda: self._spool.settle(rows[-1].position, poison))
        self.drained += len(rows) - len(poison)
        self.set_aside += len(poison)
        for row, reason in poison:
            _logger.error("item %d of the spool %s was set aside: %s", row.position, self._spool.path, reason)
        if len(rows) < self._batch:
            await _in_thread(self._spool.shrink)
        return True

    async def _write(
        self, items: Sequence[tuple[SpooledItem, Item | Reopen]], poison: list[tuple[SpooledItem, str]]
    ) -> None:
        """Writes the items in order. Bisects where the database refuses them, until only the guilty ones are left."""
        if not items:
            return
        place = next((place for place, (_, item) in enumerate(items) if isinstance(item, Reopen)), None)
        if place is not None and len(items) > 1:  # a reopening is a call of its own
            await self._write(items[:place], poison)
            await self._write(items[place : place + 1], poison)
            await self._write(items[place + 1 :], poison)
            return
        try:
            if isinstance(item := items[0][1], Reopen):
                await self._writer.reopen_session(item.session_id, item.user_id, at=item.at)
            else:
                await self._writer.record([item for _, item in items])
        except (*_PASSING, *_SET_UP):
            raise
        except SessionLifecycleError as error:
            if len(items) == 1:
                poison.append((items[0][0], _reason(error)))
                return
            middle = len(items) // 2
            await self._write(items[:middle], poison)
            await self._write(items[middle:], poison)

    async def _report(self, error: SessionLifecycleError | TimeoutError | None) -> DrainReport:
        left = await _in_thread(self._spool.count)
        return DrainReport(self.drained, self.set_aside, left, None if error is None else _told(error))

    def _note(self, error: SessionLifecycleError | TimeoutError) -> None:
        if type(error) is not type(self.trouble):  # once for each kind of trouble, not for each attempt
            _logger.warning("the spool %s cannot be delivered now: %s", self._spool.path, _told(error))
        self.trouble = error


def _reason(error: Exception) -> str:
    """Why an item is refused, without its values, which may be content."""
    if isinstance(error, InvalidValueError):
        return f"{error.field}: expected {error.expected}"
    if isinstance(error, SessionLifecycleError):
        return str(error)
    return f"this is not an item ({type(error).__name__})"


async def _in_thread(call: Callable[[], Result]) -> Result:
    # A sync of the disk takes milliseconds, in which the event loop would stand still.
    return await asyncio.to_thread(call)


def _told(error: SessionLifecycleError | TimeoutError) -> str:
    """What the error says. A TimeoutError says nothing but its class."""
    return str(error) or described(error)
