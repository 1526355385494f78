"""SessionBlock: a session as a block of code. Entering touches the session, leaving ends it."""

import asyncio
import logging
from contextvars import ContextVar, Token
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Literal, Self, Unpack
from uuid import UUID

from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.models import EndOutcome, SessionStatus, TouchOutcome, UsageReceipt
from session_lifecycle.models.usage import RareUse
from session_lifecycle.writing.protocol import SessionWriter

_logger = logging.getLogger(__name__)
_current: ContextVar["SessionBlock | None"] = ContextVar("session_lifecycle_session", default=None)


def current_session() -> "SessionBlock | None":
    """The innermost session block around this code; None outside. Tasks that are started inside a block find it too."""
    return _current.get()


class SessionBlock:
    """A session as a block of code. Made by `SessionDatabase.session` and `SessionRecorder.session`.

    Entering touches the session. Leaving ends it: `completed`, or `failed` if an exception leaves the block. That
    exception goes on to the caller. The touch, each usage and the end are separate calls, not one transaction.

    The end is written even if the task is cancelled. If the end fails, leaving raises its error; but if an exception
    leaves the block or the task is cancelled, the failure is logged instead.

    Example:
        async with db.session("task-1", user_id, agent_name="coder") as session:
            await session.usage("gpt-4o", 120, 40, idempotency_key="response-1")
    """

    def __init__(
        self,
        writer: SessionWriter,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
    ) -> None:
        self.session_id = session_id
        self.user_id = user_id
        self._writer = writer
        self._dataset_id = dataset_id
        self._agent_name = agent_name
        self._token: Token[SessionBlock | None] | None = None

    async def __aenter__(self) -> Self:
        await self.touch()
        self._token = _current.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        status = SessionStatus.COMPLETED if error is None else SessionStatus.FAILED
        # A task of its own, so that cancelling the caller does not cancel the end.
        ending = asyncio.ensure_future(self.end(status))
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError:
            ending.add_done_callback(self._note)
            raise
        try:
            ending.result()
        except SessionLifecycleError as failure:
            if error is None:
                raise
            # The exception that left the block says more than the failure to write the end.
            log_lost_end(self.session_id, failure)

    async def usage(
        self,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        errored: bool = False,
        *,
        provider: str | None = None,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        idempotency_key: str | None = None,
        at: datetime | None = None,
        **rare: Unpack[RareUse],
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
            provider=provider,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            reasoning_tokens=reasoning_tokens,
            idempotency_key=idempotency_key,
            at=at,
            **rare,
        )

    async def touch(self) -> TouchOutcome:
        """Records activity of this session: `SessionWriter.ensure_and_touch_session`, the same results and errors."""
        return await self._writer.ensure_and_touch_session(
            self.session_id, self.user_id, self._dataset_id, agent_name=self._agent_name
        )

    async def end(self, status: SessionStatus | Literal["completed", "failed"]) -> EndOutcome:
        """Ends the session before the block does: `SessionWriter.end_session`, the same results and errors.

        The first end wins, so leaving the block changes nothing then.
        """
        return await self._writer.end_session(self.session_id, self.user_id, status)

    def _note(self, ending: "asyncio.Future[EndOutcome]") -> None:
        if not ending.cancelled() and (failure := ending.exception()) is not None:
            log_lost_end(self.session_id, failure)


def log_lost_end(session_id: str, failure: BaseException) -> None:
    """Logs that the end of a session was not written, where an error would hide another one."""
    _logger.error("the end of session %r could not be written: %s", session_id, failure)
