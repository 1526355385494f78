"""Group commit: the calls that arrive during a transaction are written together by the next one.

A lone call is written at once. Under load each transaction writes the calls that arrived during the one before. Each
caller waits for the commit of its own items. Items that nobody waits for wait `GATHER_SECONDS` for others: an agent's
hooks hand over several in a row, and a transaction costs the agent's process more than all that is done for one item.
"""

import asyncio
import copy
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import cast

from session_lifecycle.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    SchemaError,
    SessionLifecycleError,
    TransactionConflictError,
)
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.losses import OnLost, tell_loss
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.prepared import PreparedItem, WritableItem
from session_lifecycle.writing.recorder_metrics import RecorderCounts
from session_lifecycle.writing.room import Room

PAUSE_SECONDS = 0.25
GATHER_SECONDS = 0.02
"""How long an item that nobody waits for may wait for others, before a transaction begins that writes them."""
END_SECONDS = 5.0
"""How long `finish` waits for a write that it has cancelled."""


class Call:
    """The items of one caller. They are written in one transaction or not at all."""

    __slots__ = ("answer", "items", "prepared", "taken_at")

    def __init__(
        self,
        items: Sequence[WritableItem],
        prepared: Sequence[PreparedItem] = (),
        answer: "asyncio.Future[list[WriteResult]] | None" = None,
    ) -> None:
        self.items = items
        self.prepared = prepared
        """Empty until the items are prepared."""
        self.answer = answer
        """None: no caller waits for the results, so a failure is logged."""
        self.taken_at = time.monotonic()


class GroupCommit:
    """The queue of a recorder, and the task that writes what is in it.

    All but `fail` belongs to one event loop at a time; `move_to` says to which.

    Attributes:
        loop: The event loop; None before the first one, and in a forked child.
        room: For the items of calls that are on their way here, in the queue, or in flight.
        is_ending: Whether the task ends once nothing is pending.
    """

    def __init__(
        self,
        pipeline: WritePipeline,
        counts: RecorderCounts,
        on_lost: OnLost | None,
        *,
        max_batch: int,
        max_pending: int,
        max_delay_seconds: float,
        give_up_after_seconds: float,
    ) -> None:
        """Writes nothing yet."""
        self._pipeline = pipeline
        self._counts = counts
        self._on_lost = on_lost
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._max_delay_seconds = max_delay_seconds
        self._give_up_after_seconds = give_up_after_seconds
        self.is_ending = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.room = Room(self._max_pending)
        self._queue: deque[Call] = deque()
        self._in_flight: Sequence[Call] = ()
        # Whether the calls in flight may have reached the database.
        self._was_sent = False
        # Set while something in the queue is to be written now.
        self._is_due = asyncio.Event()
        self._due_later: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def forget_parent(self) -> object:
        """See `HasParents`: the parent writes what it has accepted."""
        ours = (self.loop, self._task, self._queue, self._in_flight, self.room, self._is_due)
        self._begin_anew()
        return ours

    @property
    def pending(self) -> list[Call]:
        """The calls in flight, and those in the queue, in the order in which they were taken."""
        return [*self._in_flight, *self._queue]

    @property
    def oldest(self) -> float | None:
        """When the oldest pending call was taken, by the monotonic clock. May be asked from any thread."""
        first = (*self._in_flight[:1], *list(self._queue)[:1])
        return min((call.taken_at for call in first), default=None)

    def move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Takes what is pending to another event loop. The callers in the loop before are gone."""
        for call in self.pending:
            if call.answer is not None and self.loop is not None and self.loop.is_closed():
                call.answer = None
        self.room.waiting.clear()
        self.loop, self._task, self._is_due, self._due_later = loop, None, asyncio.Event(), None
        self._put_back()
        if self._queue and self._task is None:
            self._begin()

    def take(self, call: Call) -> None:
        """Queues a call, for whose items there is room."""
        if self._task is None:
            self._begin()
        self._queue.append(call)
        if call.answer is not None or self.is_ending or len(self._queue) >= self._max_batch:
            self._is_due.set()
        elif self._due_later is None and self.loop is not None:
            self._due_later = self.loop.call_later(GATHER_SECONDS, self._is_due.set)

    def hurry(self) -> None:
        """Writes what is in the queue without waiting for more."""
        self._is_due.set()

    async def finish(self, until: float) -> list[Call]:
        """Writes what is pending until this time of the monotonic clock, and stops. Returns what was not written."""
        while (remaining := until - time.monotonic()) > 0 and (self.room.taken or self._queue):
            if self._task is None:  # it was cancelled
                self._begin()
            self._is_due.set()
            await asyncio.wait([cast("asyncio.Task[None]", self._task)], timeout=remaining)
        if (task := self._task) is not None:
            self._is_due.set()
            if self.room.taken or self._queue:
                task.cancel()
            await asyncio.wait([task], timeout=END_SECONDS)
        unwritten, self._in_flight = self.pending, ()
        self._queue.clear()
        return unwritten

    def fail(self, calls: Sequence[Call], error: SessionLifecycleError) -> None:
        """Ends calls with an error. What nobody waits for is lost, and `on_lost` gets it."""
        lost: list[WritableItem] = []
        for call in calls:
            self._counts.failures += len(call.items)
            if call.answer is None or call.answer.done():
                lost += call.items
            else:
                # A copy for each caller, as a traceback grows wherever its error is raised.
                own = copy.copy(error)
                own.__cause__ = error.__cause__
                call.answer.set_exception(own)
            self.room.release(len(call.items))
        if lost:
            tell_loss(lost, error, self._on_lost)

    def _begin(self) -> None:
        if self.loop is not None and not self.loop.is_closed():
            if self._queue:
                self._is_due.set()
            self._task = self.loop.create_task(self._run(), name="session-lifecycle recorder")
            self._task.add_done_callback(self._go_on)

    def _go_on(self, task: "asyncio.Task[None]") -> None:
        """Writes on after somebody else has cancelled the task, as a host that cancels all tasks does."""
        if task is not self._task:
            return
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            unforeseen = SessionLifecycleError(f"the recorder failed unexpectedly ({type(error).__name__})")
            unforeseen.__cause__ = error
            calls, self._in_flight = [*self._in_flight, *self._queue], ()
            self._queue.clear()
            self.fail(calls, unforeseen)
        elif not self.is_ending:
            self._put_back()
            if self._queue:
                self._begin()

    def _put_back(self) -> None:
        """Queues the calls in flight again; fails those that may have been written and may not be repeated."""
        calls, self._in_flight = self._in_flight, ()
        unknown: list[Call] = []
        if self._was_sent:
            unknown = [call for call in calls if not all(one.is_repeatable for one in call.prepared)]
        self._queue.extendleft(call for call in reversed(calls) if call not in unknown)
        message = "the recorder's task was cancelled before the answer came"
        self.fail(unknown, DatabaseUnavailableError(message, may_have_written=True))

    async def _run(self) -> None:
        """Writes one transaction after another until the recorder is closed and nothing is pending."""
        calls: Sequence[Call] = ()
        while self.room.taken or self._queue or not self.is_ending:
            if not self._queue:
                self._is_due.clear()
            if not self._is_due.is_set():
                await self._is_due.wait()
                continue
            if self._max_delay_seconds and len(calls) > 1:
                await asyncio.sleep(self._queue[0].taken_at + self._max_delay_seconds - time.monotonic())
            calls = self._next_calls(just_written=sum(call.answer is not None for call in calls))
            if not self._queue:
                self._is_due.clear()
                if self._due_later is not None:
                    self._due_later.cancel()
                    self._due_later = None
            await self._deliver(calls)
            self._in_flight = ()

    def _next_calls(self, *, just_written: int) -> list[Call]:
        """Picks the next batch (1 to `max_batch` items).

        Under load it takes half of the callers in the queue, so one half goes on while the other half is written. The
        callers of the last batch count as queued, as they are about to call again. With `max_delay` it takes all, as
        they have already waited for each other. Items that nobody waits for come along.
        """
        # No more than twice a batch: of more callers, half are more than a batch.
        callers = sum(call.answer is not None for call in islice(self._queue, 2 * self._max_batch))
        most = callers if self._max_delay_seconds else (callers + just_written + 1) // 2
        calls: list[Call] = []
        room = self._max_batch
        while self._queue and (not calls or len(self._queue[0].items) <= room):
            if self._queue[0].answer is not None:
                if most <= 0 and calls:
                    break
                most -= 1
            calls.append(self._queue.popleft())
            room -= len(calls[-1].items)
        return calls

    async def _deliver(self, calls: Sequence[Call]) -> None:
        """Writes the calls in one transaction. If one call is bad, bisects until only that call fails."""
        while calls:
            self._in_flight, self._was_sent = calls, False
            try:
                async with asyncio.timeout(self._give_up_after_seconds):
                    for call in calls:
                        call.prepared = call.prepared or await self._pipeline.prepare(call.items)
                    prepared = [one for call in calls for one in call.prepared]
                    written = await self._pipeline.send(prepared, on_sent=self._note_sent)
            except (DatabaseUnavailableError, TransactionConflictError, TimeoutError) as error:
                self._in_flight = calls = self._to_repeat(calls, error)
                self._counts.repeats += bool(calls)
                await asyncio.sleep(with_jitter(PAUSE_SECONDS))
            except SessionLifecycleError as error:
                # Permanent failure: either one call is bad (bisect) or the set-up is (fail all).
                if len(calls) == 1 or isinstance(error, SchemaError | ConfigurationError):
                    self.fail(calls, error)
                    return
                self._counts.repeats += 1
                middle = len(calls) // 2
                later = calls[middle:]
                self._queue.extendleft(reversed(later))
                self._is_due.set()
                calls = calls[:middle]
            except Exception as error:  # noqa: BLE001 - a bug in this library must not leave callers waiting for ever
                # The text of an unforeseen error may quote content; its traceback is kept in the cause.
                unforeseen = SessionLifecycleError(f"the recorder failed unexpectedly ({type(error).__name__})")
                unforeseen.__cause__ = error
                self.fail(calls, unforeseen)
                return
            else:
                self._succeed(calls, written)
                return

    def _note_sent(self) -> None:
        self._was_sent = True

    def _to_repeat(self, calls: Sequence[Call], error: SessionLifecycleError | TimeoutError) -> Sequence[Call]:
        """Returns the calls to send again, and fails the others: those that may not be repeated, or are too old.

        Queued calls that are older than `give_up_after` fail as well.
        """
        if isinstance(error, TimeoutError):
            message = f"the database did not answer within {self._give_up_after_seconds:g} s"
            error = DatabaseUnavailableError(message, may_have_written=self._was_sent)
        if isinstance(error, DatabaseUnavailableError) and error.may_have_written:
            unknown = [call for call in calls if not all(one.is_repeatable for one in call.prepared)]
            self.fail(unknown, error)
            calls = [call for call in calls if call not in unknown]
        since = time.monotonic() - self._give_up_after_seconds
        self.fail([call for call in calls if call.taken_at <= since], error)
        unsent: list[Call] = []
        while self._queue and self._queue[0].taken_at <= since:
            unsent.append(self._queue.popleft())
        self.fail(unsent, DatabaseUnavailableError(f"not sent: {error}"))
        return [call for call in calls if call.taken_at > since]

    def _succeed(self, calls: Sequence[Call], written: list[WriteResult]) -> None:
        self._counts.batches += bool(written)
        self._counts.items += len(written)
        position = 0
        for call in calls:
            following = position + len(call.items)
            if call.answer is not None and not call.answer.done():
                call.answer.set_result(written[position:following])
            position = following
        self._in_flight = ()
        self.room.release(position)
