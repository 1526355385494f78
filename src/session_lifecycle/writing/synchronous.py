"""SynchronousRecorder: the recorder for code without an event loop. It has a thread and an event loop of its own."""

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload
from uuid import UUID

from session_lifecycle.errors import RecorderClosedError, SessionLifecycleError
from session_lifecycle.models import (
    ActivityOutcome,
    BudgetUse,
    End,
    EndOutcome,
    Item,
    Message,
    Receipt,
    ReopenOutcome,
    Reservation,
    Run,
    SessionStatus,
    Step,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageReceipt,
)
from session_lifecycle.models.budgets import DEFAULT_LEASE
from session_lifecycle.models.usage import EstimatedUse, UsageOptions
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.writing.protocol import SessionReserver
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.recorder import SessionRecorder
from session_lifecycle.writing.recorder_metrics import RecorderCounts, RecorderSnapshot
from session_lifecycle.writing.session_block import log_lost_end
from session_lifecycle.writing.session_trace import SessionTrace

Result = TypeVar("Result")

LOOK_SECONDS = 1.0
"""How often a waiting call looks whether its event loop is still there."""

# Held until they are closed: a script may keep no reference to the recorder that holds its items.
_open: "set[SynchronousRecorder]" = set()


class _Threads(ThreadPoolExecutor):
    """Runs each call in a thread of its own. Its base refuses calls as soon as the main thread has ended."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments, **named))
            except BaseException as error:  # noqa: BLE001 - the future hands it to the caller
                future.set_exception(error)

        threading.Thread(target=run, name="session-lifecycle lookup", daemon=True).start()
        return future


class SynchronousRecorder:
    """The calls of `SessionRecorder` without `await`. Made by `SessionDatabase.synchronous_recorder`.

    Every method may be called from any thread. Arguments, results and errors are those of `SessionRecorder`. The thread
    starts with the first call. When the interpreter exits, pending items are written first, for at most `drain_within`.
    A process that ends without that, by a signal or `os._exit`, must call `close` or `flush` itself.

    Example:
        with db.synchronous_recorder() as recorder:
            recorder.accumulate_usage("s-1", user_id, "gpt-4o", 120, 40, idempotency_key="response-1")
    """

    def __init__(self, recorder: SessionRecorder) -> None:
        """Use `SessionDatabase.synchronous_recorder` instead."""
        self._recorder = recorder
        self.quiet = QuietWriter(self.submit, recorder.lose)
        """Takes what session blocks record without waiting."""
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        forget_in_child(self)

    def forget_parent(self) -> object:
        """See `HasParents`: the thread did not come along."""
        ours = (self._loop, self._thread)
        self._loop = self._thread = None
        self._starting = threading.Lock()
        self.quiet.forget()
        _open.discard(self)
        return ours

    def __enter__(self) -> Self:
        self._run_loop()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ensure_and_touch_session(
        self,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
        at: datetime | None = None,
    ) -> TouchOutcome:
        """`SessionWriter.ensure_and_touch_session`, which returns when the touch is committed."""
        return self._call(
            lambda: self._recorder.ensure_and_touch_session(
                session_id, user_id, dataset_id, agent_name=agent_name, at=at
            )
        )

    def accumulate_usage(
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
        """`SessionWriter.accumulate_usage`, which returns when the usage is committed."""
        return self._call(
            lambda: self._recorder.accumulate_usage(
                session_id,
                user_id,
                model,
                tokens_in,
                tokens_out,
                cost_usd,
                errored,
                **options,
            )
        )

    def end_session(
        self,
        session_id: str,
        user_id: UUID | str,
        status: SessionStatus | Literal["completed", "failed"],
        *,
        at: datetime | None = None,
    ) -> EndOutcome:
        """`SessionWriter.end_session`, which returns when the end is committed."""
        return self._call(lambda: self._recorder.end_session(session_id, user_id, status, at=at))

    def reopen_session(self, session_id: str, user_id: UUID | str, *, at: datetime | None = None) -> ReopenOutcome:
        """`SessionWriter.reopen_session`, which returns when the reopening is committed."""
        return self._call(lambda: self._recorder.reopen_session(session_id, user_id, at=at))

    @overload  # An empty sequence fits every overload, and so does the empty list that answers it.
    def record(self, items: Sequence[Touch]) -> list[TouchOutcome]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def record(self, items: Sequence[UsageEvent]) -> list[UsageReceipt]: ...
    @overload
    def record(self, items: Sequence[End]) -> list[EndOutcome]: ...
    @overload
    def record(self, items: Sequence[Run | Step | Message]) -> list[ActivityOutcome]: ...
    @overload
    def record(self, items: Sequence[Item]) -> list[Receipt]: ...
    def record(self, items: Sequence[Item]) -> Any:
        """`SessionWriter.record`, which returns when the items are committed."""
        return self._call(lambda: self._recorder.record(items))

    def submit(self, item: Item) -> None:
        """Queues an item and returns at once: `SessionRecorder.submit`.

        Raises:
            InvalidValueError: `item` is not an item.
            RecorderFullError: `max_pending` items are pending.
            RecorderClosedError: The recorder is closed.
        """
        self._run_loop()
        self._recorder.submit_threadsafe(item)

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
    ) -> "SynchronousSessionBlock":
        """A session block for `with`: entering touches the session, leaving ends it. See `SessionRecorder.session`."""
        return SynchronousSessionBlock(
            self,
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            is_quiet=self._recorder.has_spool if quiet is None else quiet,
            attempt_timeout=attempt_timeout,
        )

    @property
    def counts(self) -> RecorderCounts:
        """See `SessionRecorder.counts`."""
        return self._recorder.counts

    def snapshot(self) -> RecorderSnapshot:
        """The recorder's metrics now."""
        return self._recorder.snapshot()

    def flush(self) -> None:
        """Waits until every item that was accepted before is written or has failed, as `SessionRecorder.flush`."""
        if self._loop is not None and not self._is_closed:
            self._call(self._recorder.flush)

    def close(self) -> list[Item]:
        """Refuses new items, writes the pending ones, and ends the thread. A second call does nothing.

        Returns:
            The items that were not written within `drain_within`, as `SessionRecorder.close`.

        Raises:
            RecorderClosedError: Called on the recorder's own thread, as from `on_lost`.
        """
        self._refuse_own_thread()
        self.quiet.cancel_open()
        with self._starting:
            if self._is_closed:
                return []
            self._is_closed = True
            _open.discard(self)
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return []
        unwritten = asyncio.run_coroutine_threadsafe(self._recorder.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        return unwritten

    def finish(self) -> None:
        """Writes what is pending at the end of the interpreter; closes the recorder where that takes too long."""
        self.quiet.cancel_open()
        loop = self._loop
        if loop is None or self._is_closed:
            return
        flushing = asyncio.run_coroutine_threadsafe(self._recorder.flush(), loop)
        try:
            flushing.result(timeout=self._recorder.drain_within)
        except TimeoutError:
            self._recorder.drain_within = 0.0  # that time is spent
            self.close()

    def ask(self, question: Callable[[SessionReserver], Coroutine[Any, Any, Result]]) -> Result:
        """What the budgets answer. For session blocks."""
        return self._call(lambda: question(self._recorder.budgets))

    def _call(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        self._refuse_own_thread()
        loop = self._run_loop()
        coroutine = call()
        try:
            running = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError as error:  # the loop was closed meanwhile
            coroutine.close()
            raise RecorderClosedError("the recorder is closed") from error
        while True:
            try:
                return running.result(timeout=LOOK_SECONDS)
            except TimeoutError:
                if running.done():
                    raise
                if loop.is_closed():  # it was closed before it began the call
                    raise RecorderClosedError("the recorder is closed") from None

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RecorderClosedError("the recorder cannot be waited for on its own thread, as in `on_lost`")

    def _run_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of this recorder's thread, started where it does not run."""
        if (loop := self._loop) is not None and not self._is_closed:
            return loop
        with self._starting:
            if self._is_closed:
                raise RecorderClosedError("the recorder is closed")
            if self._loop is None:
                self._loop = self._start()
                _open.add(self)
            return self._loop

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()
        thread = threading.Thread(target=self._serve, args=(started,), name="session-lifecycle recorder", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise RecorderClosedError(f"the recorder's thread cannot be started: {error}") from error
        self._thread = thread
        return started.result()

    def _serve(self, started: "Future[asyncio.AbstractEventLoop]") -> None:
        """Runs the event loop until `close` stops it, then ends what is left in it, as `asyncio.run` does."""
        with asyncio.Runner() as runner:
            runner.get_loop().set_default_executor(_Threads())
            try:
                runner.run(self._recorder.open())
            except BaseException as error:
                started.set_exception(error)
                raise
            loop = runner.get_loop()
            started.set_result(loop)
            loop.run_forever()


class SynchronousSessionBlock(SessionTrace):
    """A session as a block of synchronous code. Made by `SynchronousRecorder.session`.

    Entering touches the session. Leaving ends it: `completed`, or `failed` if an exception leaves the block. A *quiet*
    block hands both over, waits for nothing and raises nothing. See `SessionBlock`.

    Example:
        with recorder.session("task-1", user_id, agent_name="coder") as session, session.run("answer") as run:
            run.usage("gpt-4o", 120, 40, idempotency_key="response-1")
    """

    def __init__(
        self,
        recorder: SynchronousRecorder,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
        is_quiet: bool = False,
        attempt_timeout: timedelta | float | None = None,
    ) -> None:
        """Use `SynchronousRecorder.session` instead."""
        super().__init__(
            recorder.quiet,
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            attempt_timeout=attempt_timeout,
        )
        self._recorder = recorder
        self._is_quiet = is_quiet

    def __enter__(self) -> Self:
        if self._is_quiet:
            self.begin()
        else:
            self.touch()
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit()
        self._cancel_attempts()
        status = SessionStatus.COMPLETED if error is None else SessionStatus.FAILED
        if self._is_quiet:
            self.finish(status)
            return
        try:
            self.end(status)
        except SessionLifecycleError as failure:
            if error is None:
                raise
            # The exception that left the block says more than the failure to write the end.
            log_lost_end(self.session_id, failure)

    def usage(
        self,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        errored: bool = False,
        **options: Unpack[UsageOptions],
    ) -> UsageReceipt:
        """Counts usage of this session: `SynchronousRecorder.accumulate_usage`."""
        return self._recorder.accumulate_usage(
            self.session_id,
            self.user_id,
            model,
            tokens_in,
            tokens_out,
            cost_usd,
            errored,
            **options,
        )

    def would_exceed(
        self,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        **more: Unpack[EstimatedUse],
    ) -> list[BudgetUse]:
        """The budgets that a call of a model would exceed now: `SessionReserver.would_exceed`, for this session."""
        names = self._budget_names
        ids = (self.session_id, self.user_id)
        return self._recorder.ask(
            lambda budgets: budgets.would_exceed(*ids, model, tokens_in, tokens_out, cost_usd, **names, **more)
        )

    def reserve(
        self,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        *,
        idempotency_key: str,
        key_scope: Literal["session", "user"] = "session",
        lease: timedelta = DEFAULT_LEASE,
        **more: Unpack[EstimatedUse],
    ) -> Reservation:
        """Reserves what a call of a model may use: `SessionReserver.reserve`, for this session."""
        return self._recorder.ask(
            lambda budgets: budgets.reserve(
                self.session_id,
                self.user_id,
                model,
                tokens_in,
                tokens_out,
                cost_usd,
                idempotency_key=idempotency_key,
                key_scope=key_scope,
                lease=lease,
                **self._budget_names,
                **more,
            )
        )

    def release(self, idempotency_key: str, *, key_scope: Literal["session", "user"] = "session") -> bool:
        """Ends a reservation whose event will not come: `SessionReserver.release`, for this session."""
        return self._recorder.ask(
            lambda budgets: budgets.release(self.session_id, self.user_id, idempotency_key, key_scope=key_scope)
        )

    def touch(self) -> TouchOutcome:
        """Records activity of this session: `SynchronousRecorder.ensure_and_touch_session`."""
        [outcome] = self._recorder.record([Touch.of_call(**self._touch_fields)])
        return outcome

    def child(
        self, session_id: str, dataset_id: UUID | str | None = None, *, agent_name: str | None = None
    ) -> "SynchronousSessionBlock":
        """A block of a session below this one, of the same user. Arguments: see `SessionBlock.child`."""
        return SynchronousSessionBlock(
            self._recorder,
            session_id,
            self.user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=self.session_id,
            is_quiet=self._is_quiet,
            attempt_timeout=self._scope.attempt_timeout,
        )

    def end(self, status: SessionStatus | Literal["completed", "failed"]) -> EndOutcome:
        """Ends the session before the block does: `SynchronousRecorder.end_session`. The first end wins."""
        return self._recorder.end_session(self.session_id, self.user_id, status)


def _finish_all() -> None:
    for recorder in list(_open):
        recorder.finish()


def _close_all() -> None:
    for recorder in list(_open):
        recorder.close()


# From Python 3.12 on no thread can be started in `atexit`, so a script that ends at once could not look up the name of
# its server there. `concurrent.futures` registers the same way. Other threads may still record afterwards.
getattr(threading, "_register_atexit", atexit.register)(_finish_all)
atexit.register(_close_all)
