"""SpoolDelivery: what a recorder with a spool does. It puts items into the spool, and drains the spool beside that."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from session_lifecycle.errors import ConfigurationError, SessionLifecycleError, SpoolError
from session_lifecycle.models import Item
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.spool import Spool
from session_lifecycle.writing.spool_drain import Drainer
from session_lifecycle.writing.spool_writer import SpoolWriter

TURN_SECONDS = 1.0
"""How often a recorder looks whether another drainer is gone."""
CANCEL_SECONDS = 5.0
"""How long closing waits for a delivery that it has cancelled."""

_logger = logging.getLogger(__name__)


class SpoolDelivery:
    """Takes items from any thread, and drains the spool in the recorder's event loop while no other process does."""

    def __init__(
        self,
        spool: Spool,
        pipeline: WritePipeline,
        *,
        max_batch: int,
        most: int,
        on_failed: Callable[[Sequence[Item], SessionLifecycleError], object],
        on_written: Callable[[int], object],
    ) -> None:
        """Starts nothing yet.

        Args:
            spool: The spool.
            pipeline: Writes what is drained; its policy is applied before an item is put into the spool.
            max_batch: The most items of one transaction.
            most: The most items in memory.
            on_failed: Called with items that could not be put into the spool, on any thread.
            on_written: Called with the number of items of each transaction.

        Raises:
            ConfigurationError: `spool` is no `Spool`.
        """
        if not isinstance(spool, Spool):
            raise ConfigurationError(f"spool: got {spool!r}, expected a Spool")
        self._pipeline = pipeline
        self._on_written = on_written
        self._max_batch = max_batch
        self._writer = SpoolWriter(
            spool, most=most, on_failed=on_failed, on_kept=self._wake, prepared=pipeline.as_stored
        )
        self._spool = spool
        self._is_closing = False
        self._forget()
        forget_in_child(self)

    def _forget(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._drainer: Drainer | None = None

    def forget_parent(self) -> object:
        """See `HasParents`: the parent goes on draining."""
        ours = (self._loop, self._task, self._drainer)
        self._forget()
        return ours

    def put(self, item: Item) -> None:
        """See `SpoolWriter.put`."""
        self._writer.put(item)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drains in this event loop from now on."""
        if self._drainer is not None:  # the event loop before was closed around it
            self._drainer = None
            self._spool.end_draining()
        self._loop = loop
        self._begin()

    def _begin(self) -> None:
        if self._loop is not None and not self._loop.is_closed() and not self._is_closing:
            self._task = self._loop.create_task(self._run(), name="session-lifecycle spool drainer")
            self._task.add_done_callback(self._go_on)

    def _go_on(self, task: "asyncio.Task[None]") -> None:
        """Drains on after somebody else has cancelled the task, as a host that cancels all tasks does."""
        if task is self._task:
            self._begin()

    async def record(self, items: Sequence[Item]) -> None:
        """Writes items that are drained, in one transaction."""
        await self._pipeline.write(items)
        self._on_written(len(items))

    async def reopen_session(self, session_id: str, user_id: UUID | str, *, at: datetime | None = None) -> None:
        """Writes a reopening that is drained."""
        await self._pipeline.write([Reopen.of_call(session_id=session_id, user_id=user_id, at=at)])
        self._on_written(1)

    async def _run(self) -> None:
        while True:
            try:
                # Not in a thread: a lock that is got after a cancellation would have no owner.
                has_turn = self._spool.begin_draining()
            except SessionLifecycleError as error:
                _logger.warning("the spool %s cannot be drained now: %s", self._spool.path, error)
                has_turn = False
            if has_turn:
                self._drainer = Drainer(self._spool, self, batch=self._max_batch)
                try:
                    await self._drainer.run(follow=True)
                except Exception:
                    _logger.exception("draining the spool %s failed", self._spool.path)
                finally:
                    self._drainer = None
                    self._spool.end_draining()
            await asyncio.sleep(with_jitter(TURN_SECONDS))

    def _wake(self) -> None:
        loop, drainer = self._loop, self._drainer
        if loop is not None and drainer is not None:
            with suppress(RuntimeError):  # the event loop was closed meanwhile
                loop.call_soon_threadsafe(drainer.wake)

    async def flush(self, within_seconds: float | None = None) -> None:
        """Waits until what was taken is in the spool, and is delivered where this process drains it and can."""
        await asyncio.to_thread(self._writer.commit)
        await self._until_idle(within_seconds)

    async def _until_idle(self, within_seconds: float | None) -> None:
        drainer = self._drainer
        if drainer is None or drainer.trouble is not None or self._loop is not asyncio.get_running_loop():
            return
        drainer.idle.clear()
        drainer.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await drainer.idle.wait()

    async def close(self, within_seconds: float) -> None:
        """Takes no more items, puts the rest into the spool, delivers for a while, and says what is left there."""
        if self._is_closing:
            return
        await asyncio.to_thread(self._writer.close)
        await self._until_idle(within_seconds)
        self._is_closing = True
        if self._loop is asyncio.get_running_loop() and self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_SECONDS)
        try:
            left = await asyncio.to_thread(self._spool.count)
        except SpoolError as error:
            _logger.warning("the spool %s cannot be read: %s", self._spool.path, error)
        else:
            if left:
                _logger.warning("%d items stay in the spool %s until it is drained", left, self._spool.path)
        await asyncio.to_thread(self._spool.close)
