"""BackgroundRollUp: repeats the roll-up in the background, even after a failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from session_lifecycle.errors import ConfigurationError, SessionLifecycleError, shortened
from session_lifecycle.models import RollUpReport
from session_lifecycle.postgres.engines import call_in
from session_lifecycle.postgres.execution import with_jitter

DEFAULT_ROLL_UP_EVERY = timedelta(minutes=5)
END_SECONDS = 5.0
"""How long closing waits for a roll-up that it has cancelled."""

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

    The block belongs to the event loop in which it is entered. Entering it in another one, while the first still runs
    it, raises ConfigurationError.

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
            raise ConfigurationError(
                f"every: got {shortened(every)}, expected a timedelta or a number of seconds above 0"
            )
        self._roll_up = roll_up
        self._every_seconds = float(seconds)
        self._task: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop in which the roll-ups run; None before the block is entered."""
        self._runs = self._failures = 0
        self._last_report: RollUpReport | None = None
        self._last_error: Exception | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if self.loop is not loop and self._runs_elsewhere():
            raise ConfigurationError("the roll-up runs in another event loop: make one for each loop with `rolling_up`")
        if self._task is None or self._task.done() or self.loop is not loop:
            self.loop = loop
            self._task = loop.create_task(self._run(), name="session-lifecycle roll-up")
        return self

    def _runs_elsewhere(self) -> bool:
        running = self._task is not None and not self._task.done()
        return running and self.loop is not None and self.loop.is_running()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def snapshot(self) -> RollUpSnapshot:
        """The outcomes so far."""
        return RollUpSnapshot(self._runs, self._failures, self._last_report, self._last_error)

    async def close(self) -> None:
        """Cancels the task and waits until it has ended, for some seconds at most. A second call does nothing.

        May be called in any event loop.
        """
        task, self._task = self._task, None
        if task is None or self.loop is None:
            return

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task], timeout=END_SECONDS)

        await call_in(self.loop, end, within_seconds=END_SECONDS + 1)

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
