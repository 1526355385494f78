"""The recorder: many callers, few transactions.

Calls that come while a transaction is under way are written together by the next one (group commit). Alone, a call is
written at once; under load, each transaction holds what came during the one before. Each caller awaits the commit that
holds its item.
"""

import asyncio
import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self, cast
from uuid import UUID

from session_lifecycle.batches import Prepared, Writable, is_repeatable
from session_lifecycle.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SchemaError,
    SessionLifecycleError,
    TransactionConflictError,
)
from session_lifecycle.execution import with_jitter
from session_lifecycle.handle import SessionHandle
from session_lifecycle.models import Item
from session_lifecycle.statements.recording import Written
from session_lifecycle.telemetry import RecorderSnapshot, observe
from session_lifecycle.writing import ItemWriter, WritesItems, check_item

DEFAULT_MAX_BATCH = 500
DEFAULT_MAX_PENDING = 10_000
DEFAULT_GIVE_UP_AFTER = timedelta(seconds=30)
DEFAULT_DRAIN_WITHIN = timedelta(seconds=10)
PAUSE_SECONDS = 0.25

_logger = logging.getLogger(__name__)


class _Call:
    """What one caller gave, written in one transaction or not at all."""

    __slots__ = ("answer", "items", "prepared", "taken_at")

    def __init__(
        self,
        items: Sequence[Writable],
        prepared: Sequence[Prepared] = (),
        answer: "asyncio.Future[list[Written]] | None" = None,
    ) -> None:
        self.items = items
        self.prepared = prepared
        """Empty: still to be done."""
        self.answer = answer
        """None: nobody waits for it, and a failure is logged."""
        self.taken_at = time.monotonic()


class SessionRecorder(WritesItems):
    """A `SessionWriter` that writes what many callers give in few transactions. Made by `SessionDatabase.recorder`.

    The calls, their answers and their errors are those of the direct one; each returns when its item is committed.
    Items of one session are written in the order in which they were given. It belongs to the event loop it is entered
    in; only `submit_threadsafe` may be called from elsewhere.

    Example:
        async with db.recorder() as recorder:
            await recorder.accumulate_usage("s-1", user_id, "gpt-4o", 120, 40, idempotency_key="response-1")
    """

    def __init__(
        self,
        writer: ItemWriter,
        *,
        max_batch: int = DEFAULT_MAX_BATCH,
        max_delay: timedelta | float = 0.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        on_full: Literal["wait", "raise"] = "wait",
        give_up_after: timedelta | float = DEFAULT_GIVE_UP_AFTER,
        drain_within: timedelta | float = DEFAULT_DRAIN_WITHIN,
    ) -> None:
        """See `SessionDatabase.recorder`."""
        for name, value in (("max_batch", max_batch), ("max_pending", max_pending)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name}: got {value!r}, expected a whole number from 1")
        if on_full not in {"wait", "raise"}:
            raise ConfigurationError(f"on_full: got {on_full!r}, expected 'wait' or 'raise'")
        self._writer = writer
        self._max_batch = max_batch
        self._max_delay = _seconds("max_delay", max_delay)
        self._max_pending = max_pending
        self._waits_when_full = on_full == "wait"
        self._give_up_after = _seconds("give_up_after", give_up_after)
        self._drain_within = _seconds("drain_within", drain_within)

        self._queue: deque[_Call] = deque()
        self._in_flight: Sequence[_Call] = ()
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        # Of items in the queue, in flight, and on their way from other threads; those are why it has a lock.
        self._pending = 0
        self._counting = threading.Lock()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._batches = self._items = self._repeats = self._failures = 0

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def submit(self, item: Item) -> None:
        """Takes an item in and returns at once; nobody awaits it. A failure to write it is counted and logged.

        Raises:
            InvalidValueError: It is no item.
            RecorderFullError: There is no room; this call never waits.
            RecorderClosedError: The recorder takes nothing more.
        """
        check_item(item)
        self._reserve(1)
        self._take(_Call([item]))

    def submit_threadsafe(self, item: Item) -> None:
        """`submit` for other threads, such as synchronous hooks run on a pool. Raises as `submit` does."""
        check_item(item)
        loop = self._open_loop()
        self._reserve(1)
        try:
            loop.call_soon_threadsafe(self._take, _Call([item]))
        except RuntimeError as error:  # the loop is closed
            self._release(1)
            raise RecorderClosedError("the recorder's event loop is closed") from error

    def session(
        self, session_id: str, user_id: UUID, dataset_id: UUID | None = None, *, agent_name: str | None = None
    ) -> SessionHandle:
        """`SessionDatabase.session`, written through this recorder."""
        return SessionHandle(self, session_id, user_id, dataset_id, agent_name=agent_name)

    def snapshot(self) -> RecorderSnapshot:
        """How it is doing now. May be called from any thread."""
        calls = (*self._in_flight[:1], *list(self._queue)[:1])
        oldest = min((call.taken_at for call in calls), default=None)
        return RecorderSnapshot(
            pending=self._pending,
            waiting=len(self._waiting),
            batches=self._batches,
            items=self._items,
            repeats=self._repeats,
            failures=self._failures,
            oldest_waiting_seconds=0.0 if oldest is None else time.monotonic() - oldest,
        )

    async def close(self) -> list[Item]:
        """Takes nothing more in, writes what is pending, and stops. Doing it again does nothing.

        Returns:
            What could not be written within `drain_within`, in the order in which it was given; whoever awaits it is
            told by `RecorderClosedError`. What was under way just then may have been written all the same; with a key
            it can be given again.
        """
        self._is_closing = True
        while self._waiting:
            turn, _ = self._waiting.popleft()
            turn.set_exception(RecorderClosedError("the recorder was closed before there was room"))
        task, self._task = self._task, None
        if task is None:
            return []
        self._arrived.set()
        await asyncio.wait([task], timeout=self._drain_within)
        unwritten = [*self._in_flight, *self._queue]
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        self._in_flight = ()
        self._queue.clear()
        self._fail(unwritten, RecorderClosedError("the recorder was closed before this could be written"))
        return [cast("Item", item) for call in unwritten for item in call.items]

    # Taking in

    async def _write(self, items: Sequence[Writable]) -> list[Written]:
        if not items:
            return []
        if len(items) > self._max_pending:
            raise InvalidValueError("items", f"{len(items)} items", f"at most the {self._max_pending} of max_pending")
        self._start()
        await self._room_for(len(items))
        try:
            prepared = self._writer.prepare_now(items)
        except Exception:
            self._release(len(items))
            raise
        answer: asyncio.Future[list[Written]] = asyncio.get_running_loop().create_future()
        self._take(_Call(items, prepared, answer))
        # Cancelling the caller cancels this future and not the item: it was taken in, and is written.
        return await answer

    def _start(self) -> None:
        if self._task is None and not self._is_closing:
            observe(self)
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run(), name="session-lifecycle recorder")

    def _take(self, call: _Call) -> None:
        self._queue.append(call)
        self._arrived.set()

    async def _room_for(self, count: int) -> None:
        """Reserves room; waits for it first come, first served, so that the calls of a session keep their order."""
        if not (self._waits_when_full and (self._waiting or self._pending + count > self._max_pending)):
            self._reserve(count)
            return
        self._open_loop()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, count))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((turn, count))
                self._grant()
            elif turn.exception() is None:  # room was granted, and is not needed any more
                self._release(count)
            raise

    def _reserve(self, count: int) -> None:
        self._open_loop()
        with self._counting:
            if self._pending + count > self._max_pending:
                raise RecorderFullError(f"{self._pending} items are pending, at most {self._max_pending} may be")
            self._pending += count

    def _release(self, count: int) -> None:
        with self._counting:
            self._pending -= count
        self._grant()

    def _grant(self) -> None:
        """Gives the room there is to those who wait for it."""
        while self._waiting:
            turn, count = self._waiting[0]
            with self._counting:
                if self._pending + count > self._max_pending:
                    return
                self._pending += count
            self._waiting.popleft()
            turn.set_result(None)

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        """The loop it belongs to, or RecorderClosedError."""
        if self._is_closing:
            raise RecorderClosedError("the recorder is closed")
        if self._loop is None:
            raise RecorderClosedError("the recorder is not open yet: enter it by `async with`")
        return self._loop

    # Writing

    async def _run(self) -> None:
        """One transaction after another, until it is closed and nothing is pending."""
        calls: Sequence[_Call] = ()
        while self._pending or not self._is_closing:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            if self._max_delay and len(calls) > 1:
                await asyncio.sleep(self._queue[0].taken_at + self._max_delay - time.monotonic())
            calls = self._next_calls(just_written=len(calls))
            await self._deliver(calls)
            self._in_flight = ()

    def _next_calls(self, *, just_written: int) -> list[_Call]:
        """The calls of the next transaction: as many as fit, and one at least.

        Under load not more than half of all that come again and again, so that the callers of one half go on while the
        other half is being written; unless they were waited for.
        """
        most = len(self._queue) if self._max_delay else (len(self._queue) + just_written + 1) // 2
        calls = [self._queue.popleft()]
        room = self._max_batch - len(calls[0].items)
        while self._queue and len(calls) < most and len(self._queue[0].items) <= room:
            calls.append(self._queue.popleft())
            room -= len(calls[-1].items)
        return calls

    async def _deliver(self, calls: Sequence[_Call]) -> None:
        """Writes calls in one transaction; where one of them cannot be written, in smaller ones, and that one fails."""
        while calls:
            self._in_flight = calls
            try:
                async with asyncio.timeout(self._give_up_after):
                    written = await self._writer.write(
                        [one for call in calls for one in call.prepared or await self._writer.prepare(call.items)]
                    )
            except (DatabaseUnavailableError, TransactionConflictError, TimeoutError) as error:
                self._in_flight = calls = self._to_repeat(calls, error)
                self._repeats += bool(calls)
                await asyncio.sleep(with_jitter(PAUSE_SECONDS))
            except SessionLifecycleError as error:
                # Nothing was written, and would not be the next time: it is one of them, or something about all.
                if len(calls) == 1 or isinstance(error, SchemaError | ConfigurationError):
                    self._fail(calls, error)
                    return
                self._repeats += 1
                middle = len(calls) // 2
                later = calls[middle:]
                self._queue.extendleft(reversed(later))
                calls = calls[:middle]
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave callers waiting for ever
                unforeseen = SessionLifecycleError(f"the recorder failed: {error!r}")
                unforeseen.__cause__ = error
                self._fail(calls, unforeseen)
                return
            else:
                self._succeed(calls, written)
                return

    def _to_repeat(self, calls: Sequence[_Call], error: Exception) -> Sequence[_Call]:
        """Of calls that did not get through, those to be sent again; the others are told. So are those behind them."""
        if isinstance(error, TimeoutError):
            told = f"the database did not answer within {self._give_up_after:g} s"
            error = DatabaseUnavailableError(told, may_have_written=True)
        if isinstance(error, DatabaseUnavailableError) and error.may_have_written:
            unknown = [call for call in calls if not all(map(is_repeatable, call.items))]
            self._fail(unknown, error)
            calls = [call for call in calls if call not in unknown]
        since = time.monotonic() - self._give_up_after
        self._fail([call for call in calls if call.taken_at <= since], error)
        while self._queue and self._queue[0].taken_at <= since:
            self._fail([self._queue.popleft()], DatabaseUnavailableError(f"not sent: {error}"))
        return [call for call in calls if call.taken_at > since]

    def _succeed(self, calls: Sequence[_Call], written: list[Written]) -> None:
        self._batches += 1
        self._items += len(written)
        position = 0
        for call in calls:
            following = position + len(call.items)
            if call.answer is not None and not call.answer.done():
                call.answer.set_result(written[position:following])
            position = following
        self._in_flight = ()
        self._release(position)

    def _fail(self, calls: Sequence[_Call], error: Exception) -> None:
        for call in calls:
            self._failures += len(call.items)
            if call.answer is None or call.answer.done():
                _logger.error("%d items could not be written: %s", len(call.items), error)
            else:
                # Each caller its own, as a traceback grows where it is raised.
                own = copy.copy(error)
                own.__cause__ = error.__cause__
                call.answer.set_exception(own)
            self._release(len(call.items))


def _seconds(name: str, value: timedelta | float) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        raise ConfigurationError(f"{name}: got {value!r}, expected a timedelta or a number of seconds from 0")
    return float(seconds)
