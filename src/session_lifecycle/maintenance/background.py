"""BackgroundRollUp: repeats the roll-up in the background, even after a failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from session_lifecycle.errors import ConfigurationError, SessionLifecycleError
from session_lifecycle.models import RollUpReport
from session_lifecycle.postgres.execution import with_jitter

DEFAULT_ROLL_UP_EVERY = timedelta(minutes=5)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RollUpSnapshot:
    """The outcomes of a `BackgroundRollUp` since it was made."""

    runs: int
    """Roll-ups that succeeded."""
    failures: int
    """Roll-ups that failed. The transactions they had committed stay."""
    last_report: RollUpReport | None
    """The report of the last roll-up that succeeded; None before the first."""
    last_error: Exception | None
    """The error of the last roll-up; None if it succeeded."""


class BackgroundRollUp:
    """Rolls up on entering and then at intervals, until the block is left. Made by `SessionDatabase.rolling_up`.

    A roll-up that fails is counted and logged, and the next one continues where it stopped. Leaving the block cancels a
    running roll-up; the transactions it has committed stay.

    Example:
        async with db.rolling_up(every=timedelta(minutes=5)) as roll_ups:
            await serve()
    """

    def __init__(self, roll_up: Callable[[], Awaitable[RollUpReport]], every: timedelta | float) -> None:
        """See `SessionDatabase.rolling_up`.

        Args:
            roll_up: The roll-up to repeat.
            every: The pause after each roll-up (±50 %), a timedelta or seconds.

        Raises:
            ConfigurationError: `every` is not a finite duration above 0.
        """
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
        """The outcomes so far."""
        return RollUpSnapshot(self._runs, self._failures, self._last_report, self._last_error)

    async def close(self) -> None:
        """Cancels the task and waits until it has ended. A second call does nothing."""
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
                    "the roll-up failed; the next attempt is in about %g s: %s",
                    self._every_seconds,
                    error,
                    exc_info=not isinstance(error, SessionLifecycleError),
                )
            else:
                self._runs += 1
                self._last_error = None
            # The jitter keeps processes that started together from rolling up together.
            await asyncio.sleep(with_jitter(self._every_seconds))
