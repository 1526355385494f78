"""SpoolSession: a session block that writes to a spool, for hosts without a database."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Literal, Self
from uuid import UUID

from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.models import Item, SessionStatus
from session_lifecycle.settings import check_callable
from session_lifecycle.writing.losses import reason_of
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.session_trace import SessionTrace
from session_lifecycle.writing.spool import Spool
from session_lifecycle.writing.spool_writer import SpoolWriter

MOST_IN_MEMORY = 1000

OnLost = Callable[[Sequence[Item], SessionLifecycleError], object]
"""Called with items that could not be kept, and with the error. There is no item where a value was refused."""

_logger = logging.getLogger(__name__)


class SpoolSession(SessionTrace):
    """A session as a block of code that writes to a spool. Made by `Spool.session`. For `with` and `async with`.

    Entering hands over a touch, leaving an end: `completed`, or `failed` if an exception leaves the block. Leaving
    returns when everything is in the spool, or was told to `on_lost`. The block raises nothing for trouble of the
    spool, and has every quiet method of a session block (`SessionTrace`). A drainer delivers what it wrote.

    Example:
        with Spool().session("task-1", user_id) as session, session.run("answer") as run:
            run.usage("gpt-4o", 120, 40, idempotency_key="response-1")
    """

    def __init__(
        self,
        spool: Spool,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
        on_lost: OnLost | None = None,
        attempt_timeout: timedelta | float | None = None,
    ) -> None:
        """Use `Spool.session` instead."""
        check_callable("on_lost", on_lost)
        self._spool = spool
        self._on_lost = on_lost
        self._spool_writer = SpoolWriter(spool, most=MOST_IN_MEMORY, on_failed=self._lose)
        super().__init__(
            QuietWriter(self._spool_writer.put, self._lose),
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            attempt_timeout=attempt_timeout,
        )

    def child(
        self, session_id: str, dataset_id: UUID | str | None = None, *, agent_name: str | None = None
    ) -> "SpoolSession":
        """A block of a session below this one, of the same user, in the same spool. Arguments: see `SessionBlock`."""
        return SpoolSession(
            self._spool,
            session_id,
            self.user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=self.session_id,
            on_lost=self._on_lost,
            attempt_timeout=self._scope.attempt_timeout,
        )

    def finish(
        self,
        status: SessionStatus | Literal["completed", "failed"] = SessionStatus.COMPLETED,
        *,
        reason: str | None = None,
        at: datetime | None = None,
    ) -> None:
        """See `SessionTrace.finish`. It returns when the end is in the spool, or was told to `on_lost`."""
        super().finish(status, reason=reason, at=at)
        self.flush()

    def flush(self) -> None:
        """Returns when everything that was recorded before is in the spool, or was told to `on_lost`."""
        self._spool_writer.commit()

    def __enter__(self) -> Self:
        self.begin()
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit()
        self._scope.quiet.cancel_open()
        self.finish(SessionStatus.COMPLETED if error is None else SessionStatus.FAILED)
        self._spool_writer.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _lose(self, items: Sequence[Item], error: SessionLifecycleError) -> None:
        _logger.error("%d items could not be put into the spool: %s", len(items) or 1, reason_of(error))
        if self._on_lost is None:
            return
        try:
            self._on_lost(items, error)
        except Exception:
            _logger.exception("on_lost failed")
