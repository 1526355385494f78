"""The recorder: many callers, few transactions. `group_commit.py` writes what the recorder accepts."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast
from uuid import UUID

from session_lifecycle.errors import (
    ConfigurationError,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SessionLifecycleError,
    shortened,
)
from session_lifecycle.models import Item
from session_lifecycle.postgres.engines import call_in
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.settings import check_callable
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.calls import CallsAsItems, checked_item
from session_lifecycle.writing.group_commit import END_SECONDS, Call, GroupCommit
from session_lifecycle.writing.losses import OnLost, tell_loss
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.prepared import WritableItem
from session_lifecycle.writing.protocol import SessionReserver
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.recorder_metrics import RecorderCounts, RecorderSnapshot, observe
from session_lifecycle.writing.session_block import SessionBlock

if TYPE_CHECKING:
    from session_lifecycle.writing.spool import Spool
    from session_lifecycle.writing.spool_delivery import SpoolDelivery

DEFAULT_MAX_BATCH = 500
DEFAULT_MAX_PENDING = 10_000
DEFAULT_GIVE_UP_AFTER = timedelta(seconds=30)
DEFAULT_DRAIN_WITHIN = timedelta(seconds=10)


class SessionRecorder(CallsAsItems):
    """A `SessionWriter` that writes the items of many callers in few transactions. Made by `SessionDatabase.recorder`.

    Its calls take the same arguments, return the same results and raise the same errors as those of
    `SessionDatabase.lifecycle`. Each call returns when its items are committed. Items of one session are written in the
    order in which the recorder received them.

    A recorder belongs to the event loop that uses it first. In another one, a call raises RecorderClosedError as long
    as the first loop is open; when it is closed, the recorder starts again there, with what is pending. It also starts
    again after its task was cancelled, and in a forked child, without the parent's items. `submit`,
    `submit_threadsafe` and `snapshot` may be called from any thread, and `close` from any event loop.

    With a spool, `submit` puts items into the spool, whatever the database does, and the recorder drains the spool
    while no other process does. Calls that wait for a receipt go to the database as they do without a spool.

    Attributes:
        quiet: Takes what session blocks record without waiting.

    Example:
        async with db.recorder() as recorder:
            await recorder.accumulate_usage("s-1", user_id, "gpt-4o", 120, 40, idempotency_key="response-1")
    """

    def __init__(
        self,
        pipeline: WritePipeline,
        *,
        max_batch: int = DEFAULT_MAX_BATCH,
        max_delay: timedelta | float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        on_full: Literal["wait", "raise"] = "wait",
        give_up_after: timedelta | float = DEFAULT_GIVE_UP_AFTER,
        drain_within: timedelta | float = DEFAULT_DRAIN_WITHIN,
        on_lost: OnLost | None = None,
        on_start: Callable[[], object] | None = None,
        spool: "Spool | None" = None,
        budgets: SessionReserver,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_pending", max_pending)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name}: got {shortened(value)}, expected a whole number, at least 1")
        if on_full not in {"wait", "raise"}:
            raise ConfigurationError(f"on_full: got {shortened(on_full)}, expected 'wait' or 'raise'")
        check_callable("on_lost", on_lost)
        self._pipeline = pipeline
        self.budgets = budgets
        """What session blocks ask before a model is called."""
        self._on_lost = on_lost
        self._on_start = on_start
        self._max_pending = max_pending
        self._waits_when_full = on_full == "wait"
        self.drain_within = _seconds("drain_within", drain_within)
        """How many seconds `close` goes on writing."""

        self._is_open = self._is_closed = False
        self.counts = RecorderCounts()
        """What it did, kept by whoever adds up recorders that are gone."""
        self._commits = GroupCommit(
            pipeline,
            self.counts,
            on_lost,
            max_batch=max_batch,
            max_pending=max_pending,
            max_delay_seconds=_seconds("max_delay", max_delay),
            give_up_after_seconds=_seconds("give_up_after", give_up_after),
        )
        # Calls of other threads, on their way to the queue.
        self._handed_over: deque[Call] = deque()
        self._is_collecting = False
        self.quiet = QuietWriter(self.submit, self.lose)
        self._delivery: SpoolDelivery | None = None
        if spool is not None:
            # Loaded here: a recorder without a spool needs no SQLite, which some builds of Python lack.
            from session_lifecycle.writing import spool_delivery

            self._delivery = spool_delivery.SpoolDelivery(
                spool,
                pipeline,
                max_batch=max_batch,
                most=max_pending,
                on_failed=self._hand_over_or_lose,
                on_written=self._count_drained,
            )
        forget_in_child(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop to which the recorder belongs; None before its first use, and in a forked child."""
        return self._commits.loop

    def forget_parent(self) -> object:
        """See `HasParents`: the parent writes what it has accepted."""
        ours = (self._commits.forget_parent(), self._handed_over)
        self._handed_over, self._is_collecting = deque(), False
        self.quiet.forget()
        return ours

    async def open(self) -> None:
        """Does what entering `async with` does: items may be submitted from now on."""
        self._enter()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def submit(self, item: Item) -> None:
        """Queues an item and returns at once. May be called from any thread. A transaction begins within 20 ms.

        If writing it fails, the failure is counted and logged, and `on_lost` gets the item.

        Raises:
            InvalidValueError: `item` is not an item.
            RecorderFullError: `max_pending` items are pending. This method never waits for room.
            RecorderClosedError: The recorder is closed or not yet open, or its event loop is closed.
        """
        item = checked_item(item)
        is_spooled = self._is_spooled(item)
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is None or not self._is_open or self._belongs_elsewhere(running):
            if not is_spooled:
                self._hand_over(item)
            return
        self._enter()
        if is_spooled:
            return
        self._reserve(1)
        self._commits.take(Call([item]))

    def submit_threadsafe(self, item: Item) -> None:
        """`submit` for other threads, such as synchronous hooks that run on a thread pool.

        Raises:
            InvalidValueError: `item` is not an item.
            RecorderFullError: `max_pending` items are pending. This method never waits for room.
            RecorderClosedError: The recorder is closed or not yet open, or its event loop is closed.
        """
        item = checked_item(item)
        if not self._is_spooled(item):
            self._hand_over(item)

    def _hand_over(self, item: Item) -> None:
        loop = self._open_loop()
        call = Call([item])
        self._reserve(1)
        self._handed_over.append(call)
        if self._is_collecting and not loop.is_closed():
            return  # the loop has been woken, and has not looked yet
        self._is_collecting = True
        try:
            loop.call_soon_threadsafe(self._collect)
        except RuntimeError as error:  # the loop is closed
            if call in self._handed_over:
                self._handed_over.remove(call)
                self._commits.room.release(1)
                raise RecorderClosedError("the recorder's event loop is closed") from error

    def _is_spooled(self, item: Item) -> bool:
        """Puts the item into the spool; False where there is none."""
        if self._delivery is not None:
            self._delivery.put(item)
        return self._delivery is not None

    def _hand_over_or_lose(self, items: Sequence[Item], error: SessionLifecycleError) -> None:
        """Takes items that the spool did not take into memory, and loses those for which there is no room."""
        lost: list[Item] = []
        for item in items:
            try:
                self._hand_over(item)
            except (RecorderFullError, RecorderClosedError):
                lost.append(item)
        if lost:
            self.lose(lost, error)

    @property
    def has_spool(self) -> bool:
        """Whether submitted items go into a spool."""
        return self._delivery is not None

    def lose(self, items: Sequence[Item], error: SessionLifecycleError) -> None:
        """Counts and tells a loss, in the recorder's event loop where it runs. May be called from any thread."""
        if self.loop is not None and not self.loop.is_closed():
            with suppress(RuntimeError):  # it was closed meanwhile
                self.loop.call_soon_threadsafe(self._lose, items, error)
                return
        self._lose(items, error)

    def _lose(self, items: Sequence[Item], error: SessionLifecycleError) -> None:
        self.counts.failures += len(items) or 1
        tell_loss(items, error, self._on_lost)

    def _count_drained(self, items: int) -> None:
        self.counts.batches += 1
        self.counts.items += items

    def session(
        self,
        session_id: str,
        user_id: UUID,
        dataset_id: UUID | None = None,
        *,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
        quiet: bool | None = None,
        attempt_timeout: timedelta | float | None = None,
    ) -> SessionBlock:
        """A session block like that of `SessionDatabase.session`, which writes through this recorder.

        `quiet=None` is `True` for a recorder with a spool, whose blocks need no database, and else `False`.
        """
        return SessionBlock(
            self,
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            quiet_writer=self.quiet,
            is_quiet=self.has_spool if quiet is None else quiet,
            attempt_timeout=attempt_timeout,
            budgets=self.budgets,
        )

    def snapshot(self) -> RecorderSnapshot:
        """The recorder's metrics now. May be called from any thread."""
        oldest = self._commits.oldest
        return RecorderSnapshot(
            pending=self._commits.room.taken,
            waiting=len(self._commits.room.waiting),
            batches=self.counts.batches,
            items=self.counts.items,
            repeats=self.counts.repeats,
            failures=self.counts.failures,
            oldest_waiting_seconds=0.0 if oldest is None else time.monotonic() - oldest,
        )

    async def flush(self) -> None:
        """Waits until every item that was accepted before is written or has failed. Raises nothing for a failure.

        With a spool: until it is in the spool, and is written, unless the database is away or another process drains.

        Raises:
            RecorderClosedError: The recorder belongs to another event loop.
        """
        loop = self._enter()
        if self._delivery is not None:
            await self._delivery.flush()
        self._collect()
        if self._is_closed or not self._commits.pending:
            return
        answer: asyncio.Future[list[WriteResult]] = loop.create_future()
        # A call without items: its turn comes after all calls before it.
        self._commits.take(Call([], (), answer))
        with suppress(SessionLifecycleError):
            await answer

    async def close(self) -> list[Item]:
        """Refuses new items, writes the pending ones, and stops. A second call does nothing.

        May be called in any event loop. Returns some seconds after `drain_within` at the latest. Attempts that are open
        are recorded without usage. What is in the spool then stays there, and the log says how much that is.

        Returns:
            The items that were not written within `drain_within`, in the order in which the recorder received them.
            Their callers get `RecorderClosedError`, and `on_lost` gets those that have no caller. Items that were in
            flight may have been written all the same; those with an `idempotency_key` can safely be recorded again.
        """
        self.quiet.cancel_open()
        unwritten: list[Call] = []

        async def close_here() -> None:
            unwritten.extend(await self._close_here())

        here, owner = asyncio.get_running_loop(), self.loop
        if owner is not None and owner is not here and owner.is_running():
            self._commits.is_ending = True
            if not await call_in(owner, close_here, within_seconds=self.drain_within + END_SECONDS + 1):
                unwritten += [*self._commits.pending, *self._handed_over]  # its thread is blocked
        else:
            if owner is not here and self._commits.room.taken:
                self._move_to(here)
            await close_here()
        return [cast("Item", item) for call in unwritten for item in call.items]

    async def _close_here(self) -> list[Call]:
        deadline = time.monotonic() + self.drain_within
        if self._delivery is not None:
            await self._delivery.close(self.drain_within)
        self._commits.is_ending = True
        self._commits.room.refuse_waiting()
        self._collect()
        unwritten = await self._commits.finish(deadline)
        self._is_closed = True
        unwritten += self._handed_over
        self._handed_over.clear()
        self._commits.fail(unwritten, RecorderClosedError("the recorder was closed before this could be written"))
        return unwritten

    # Accepting items

    async def write(self, items: Sequence[WritableItem]) -> list[WriteResult]:
        """Queues the items and waits for the commit. Returns the result of each item, in order.

        Raises:
            InvalidValueError: There are more items than `max_pending`, or one of them is refused.
            RecorderFullError: There is no room and `on_full` is `raise`.
            RecorderClosedError: The recorder closed before the items were written.
            DatabaseUnavailableError: The database did not answer within `give_up_after`, or the connection was lost and
                an item may not be repeated.
            TransactionConflictError: The items kept losing conflicts for `give_up_after`.
        """
        if not items:
            return []
        if len(items) > self._max_pending:
            raise InvalidValueError("items", f"{len(items)} items", f"at most {self._max_pending} (max_pending)")
        loop = self._enter()
        if self._waits_when_full and self._commits.room.must_wait(len(items)):
            await self._wait_for_room(len(items))
        else:
            self._reserve(len(items))
        try:
            prepared = self._pipeline.prepare_now(items)
        except Exception:
            self._commits.room.release(len(items))
            raise
        answer: asyncio.Future[list[WriteResult]] = loop.create_future()
        self._commits.take(Call(items, prepared, answer))
        # Cancelling the caller cancels this future only: the queued items are written all the same.
        return await answer

    def _enter(self) -> asyncio.AbstractEventLoop:
        """The running event loop, to which the recorder belongs from now on.

        Raises:
            RecorderClosedError: The recorder belongs to another event loop, which is open.
        """
        loop = asyncio.get_running_loop()
        if loop is self.loop or self._commits.is_ending:
            return loop
        if self._belongs_elsewhere(loop):
            raise RecorderClosedError(
                "the recorder belongs to another event loop, which is open: make a recorder in this loop, hand items "
                "over by `submit`, or use `synchronous_recorder`"
            )
        self._move_to(loop)
        if self._delivery is not None:
            self._delivery.start(loop)
        observe(self)
        if self._on_start is not None:
            self._on_start()
        self._is_open = True
        return loop

    def _belongs_elsewhere(self, loop: asyncio.AbstractEventLoop) -> bool:
        return self.loop is not None and self.loop is not loop and not self.loop.is_closed()

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Takes what is pending to another event loop."""
        self._commits.move_to(loop)
        self._collect()

    def _collect(self) -> None:
        """Queues what other threads have handed over."""
        self._is_collecting = False  # first, as an item that is handed over from now on may not be seen here
        while self._handed_over:
            call = self._handed_over.popleft()
            if self._is_closed:
                self._commits.fail([call], RecorderClosedError("the recorder was closed before this could be written"))
            else:
                self._commits.take(call)

    async def _wait_for_room(self, count: int) -> None:
        """Reserves room for `count` items. Calls wait in line, so those of a session keep their order."""
        self._open_loop()
        self._commits.hurry()
        await self._commits.room.wait(count)

    def _reserve(self, count: int) -> None:
        self._open_loop()
        self._commits.room.reserve(count)

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of this recorder; raises RecorderClosedError where the recorder is not open."""
        if self._commits.is_ending:
            raise RecorderClosedError("the recorder is closed")
        if self.loop is None:
            raise RecorderClosedError("the recorder is not open yet: enter it with `async with`")
        return self.loop


def _seconds(name: str, value: timedelta | float) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        raise ConfigurationError(
            f"{name}: got {shortened(value)}, expected a timedelta or a number of seconds, at least 0"
        )
    return float(seconds)
