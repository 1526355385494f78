"""SessionBlock: a session as a block of code. Entering touches the session, leaving ends it."""

import asyncio
import logging
from contextvars import ContextVar, Token
from datetime import timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Protocol, Self, Unpack
from uuid import UUID

from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.models import (
    BudgetUse,
    EndOutcome,
    Reservation,
    SessionStatus,
    Touch,
    TouchOutcome,
    UsageReceipt,
)
from session_lifecycle.models.budgets import DEFAULT_LEASE
from session_lifecycle.models.usage import EstimatedUse, UsageOptions
from session_lifecycle.writing.protocol import SessionReserver, SessionWriter
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.session_trace import SessionTrace

_logger = logging.getLogger(__name__)
_current: ContextVar["SessionBlock | None"] = ContextVar("session_lifecycle_session", default=None)


def current_session() -> "SessionBlock | None":
    """The innermost session block around this code; None outside. Tasks that are started inside a block find it too."""
    return _current.get()


class OwnRecorder(Protocol):
    """A recorder for one block."""

    @property
    def quiet(self) -> QuietWriter:
        """Takes what the block records."""
        ...

    async def open(self) -> None:
        """Takes items from now on."""
        ...

    async def flush(self) -> None:
        """Writes what is pending."""
        ...

    async def close(self) -> object:
        """Writes what is pending, for a limited time, and takes no more."""
        ...


class SessionBlock(SessionTrace):
    """A session as a block of code. Made by `SessionDatabase.session` and `SessionRecorder.session`.

    Entering touches the session. Leaving ends it: `completed`, or `failed` if an exception leaves the block. That
    exception goes on to the caller. The touch, each usage and the end are separate calls, not one transaction.

    The end is written even if the task is cancelled. If the end fails, leaving raises its error; but if an exception
    leaves the block or the task is cancelled, the failure is logged instead.

    A *quiet* block keeps trouble of the library out of the host's code: entering and leaving hand over the touch and
    the end, wait for nothing, and raise nothing. `run`, `message`, `attempt`, `begin` and `finish` are quiet in every
    block (`SessionTrace`). The other methods are not: they wait for the database, for its answer.

    Example:
        async with db.session("task-1", user_id, agent_name="coder") as session:
            with session.run("answer") as run:
                run.usage("gpt-4o", 120, 40, idempotency_key="response-1")
    """

    def __init__(
        self,
        writer: SessionWriter,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
        quiet_writer: QuietWriter,
        is_quiet: bool = False,
        attempt_timeout: timedelta | float | None = None,
        own_recorder: OwnRecorder | None = None,
        is_child: bool = False,
        budgets: SessionReserver,
    ) -> None:
        """Use `session` of a database or a recorder instead.

        Args:
            writer: Writes what is waited for.
            session_id: The session's id.
            user_id: The session's owner.
            dataset_id: See `Touch`.
            agent_name: See `Touch`.
            parent_session_id: See `Touch`.
            quiet_writer: Takes what is not waited for.
            is_quiet: Whether entering and leaving are not waited for either.
            attempt_timeout: How long an attempt may be open.
            own_recorder: The recorder behind `quiet_writer`, where only this block and its children use it.
            is_child: Whether another block closes that recorder.
            budgets: Asked before a model is called.
        """
        super().__init__(
            quiet_writer,
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            attempt_timeout=attempt_timeout,
        )
        self._writer = writer
        self._is_quiet = is_quiet
        self._own_recorder = own_recorder
        self._is_child = is_child
        self._budgets = budgets
        self._token: Token[SessionBlock | None] | None = None

    async def __aenter__(self) -> Self:
        if self._own_recorder is not None:
            await self._own_recorder.open()
        if self._is_quiet:
            self.begin()
        else:
            await self.touch()
        self._token = _current.set(self)
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
            self._exit()
        status = SessionStatus.COMPLETED if error is None else SessionStatus.FAILED
        self._cancel_attempts()
        if self._is_quiet:
            self.finish(status)
            if self._own_recorder is None:
                return
        # A task of its own, so that cancelling the caller does not cancel the end.
        ending = asyncio.ensure_future(self._leave(status))
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError:
            ending.add_done_callback(self._note)
            raise
        try:
            ending.result()
        except SessionLifecycleError as failure:
            if error is None and not self._is_quiet:
                raise
            # The exception that left the block says more than the failure to write the end.
            log_lost_end(self.session_id, failure)

    async def _leave(self, status: SessionStatus) -> None:
        if self._own_recorder is not None:  # first, as usage after the end is late
            await (self._own_recorder.flush() if self._is_child else self._own_recorder.close())
        if not self._is_quiet:
            await self.end(status)

    def child(
        self, session_id: str, dataset_id: UUID | str | None = None, *, agent_name: str | None = None
    ) -> "SessionBlock":
        """A block of a session below this one, of the same user, which writes the same way. Enter it inside this block.

        Args:
            session_id: The child's id.
            dataset_id: The dataset through which the child may be shared.
            agent_name: The child's agent.
        """
        return SessionBlock(
            self._writer,
            session_id,
            self.user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=self.session_id,
            quiet_writer=self._scope.quiet,
            is_quiet=self._is_quiet,
            attempt_timeout=self._scope.attempt_timeout,
            own_recorder=self._own_recorder,
            is_child=True,
            budgets=self._budgets,
        )

    async def usage(
        self,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        errored: bool = False,
        **options: Unpack[UsageOptions],
    ) -> UsageReceipt:
        """Counts usage of this session: `SessionWriter.accumulate_usage`, the same results and errors."""
        return await self._writer.accumulate_usage(
            self.session_id,
            self.user_id,
            model,
            tokens_in,
            tokens_out,
            cost_usd,
            errored,
            **options,
        )

    async def would_exceed(
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
        return await self._budgets.would_exceed(*ids, model, tokens_in, tokens_out, cost_usd, **names, **more)

    async def reserve(
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
        return await self._budgets.reserve(
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

    async def release(self, idempotency_key: str, *, key_scope: Literal["session", "user"] = "session") -> bool:
        """Ends a reservation whose event will not come: `SessionReserver.release`, for this session."""
        return await self._budgets.release(self.session_id, self.user_id, idempotency_key, key_scope=key_scope)

    async def touch(self) -> TouchOutcome:
        """Records activity of this session: `SessionWriter.ensure_and_touch_session`, the same results and errors."""
        [outcome] = await self._writer.record([Touch.of_call(**self._touch_fields)])
        return outcome

    async def end(self, status: SessionStatus | Literal["completed", "failed"]) -> EndOutcome:
        """Ends the session before the block does: `SessionWriter.end_session`, the same results and errors.

        The first end wins, so leaving the block changes nothing then.
        """
        return await self._writer.end_session(self.session_id, self.user_id, status)

    def _note(self, ending: "asyncio.Future[Any]") -> None:
        if not ending.cancelled() and (failure := ending.exception()) is not None:
            log_lost_end(self.session_id, failure)


def log_lost_end(session_id: str, failure: BaseException) -> None:
    """Logs that the end of a session was not written, where an error would hide another one."""
    _logger.error("the end of session %r could not be written: %s", session_id, failure)
