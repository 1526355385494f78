"""Rolling up in the background: one call after another, whatever becomes of each."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from session_lifecycle.errors import ConfigurationError, SessionLifecycleError
from session_lifecycle.execution import with_jitter
from session_lifecycle.models import RollUpReport

DEFAULT_ROLL_UP_EVERY = timedelta(minutes=5)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RollUpSnapshot:
    """How rolling up in the background is doing, since it was made."""

    runs: int
    """Calls that came to their end."""
    failures: int
    """Calls that failed. What they had done by then stays."""
    last_report: RollUpReport | None
    """Of the latest call that came to its end; None before the first."""
    last_error: Exception | None
    """Of the latest call, if it failed; None once one came to its end."""


class BackgroundRollUp:
    """Rolls up on entering and then every so often, until it is left. Made by `SessionDatabase.rolling_up`.

    A call that fails is counted and logged, and the next one goes on where it was. Leaving cancels a call that is under
    way, which loses nothing.

    Example:
        async with db.rolling_up(every=timedelta(minutes=5)) as rolling_up:
            await serve()
    """

    def __init__(self, roll_up: Callable[[], Awaitable[RollUpReport]], every: timedelta | float) -> None:
        """See `SessionDatabase.rolling_up`; `roll_up` is what it calls."""
        seconds = every.total_seconds() if isinstance(every, timedelta) else every
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            raise ConfigurationError(f"every: got {every!r}, expected a timedelta or a number of seconds above 0")
        self._roll_up = roll_up
        self._every_seconds = float(seconds)
        self._task: asyncio.Task[None] | None = None
        self._runs = self._failures = 0
        self._last_report: RollUpReport | None = None
        self._last_error: Exception | None = None

    async def __aenter__(self) -> Self:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="session-lifecycle roll-up")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def snapshot(self) -> RollUpSnapshot:
        """How it is doing now."""
        return RollUpSnapshot(self._runs, self._failures, self._last_report, self._last_error)

    async def close(self) -> None:
        """Stops, and waits until it has. Doing it again does nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            try:
                self._last_report = await self._roll_up()
            except Exception as error:
                self._failures += 1
                self._last_error = error
                _logger.warning(
                    "rolling up failed, and is tried again in about %g s: %s",
                    self._every_seconds,
                    error,
                    exc_info=not isinstance(error, SessionLifecycleError),
                )
            else:
                self._runs += 1
                self._last_error = None
            # Processes that were started together do not go on together.
            await asyncio.sleep(with_jitter(self._every_seconds))
