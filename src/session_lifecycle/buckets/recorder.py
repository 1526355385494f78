"""BucketRecorder: a recorder for each bucket, so that a bucket that is away does not stop the others."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self
from uuid import UUID

from session_lifecycle.buckets.writing import parts_of, write_parts
from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.models import Item
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.calls import CallsAsItems, checked_item
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.prepared import WritableItem
from session_lifecycle.writing.protocol import SessionReserver
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.recorder import SessionRecorder
from session_lifecycle.writing.recorder_metrics import RecorderSnapshot
from session_lifecycle.writing.session_block import SessionBlock


class BucketRecorder(CallsAsItems):
    """A `SessionWriter` with a `SessionRecorder` for each bucket. Made by `BucketDatabase.recorder`.

    Its calls are those of a `SessionRecorder`. A call over users of several buckets is one transaction in each of them;
    it raises PartlyWrittenError where some were written and others failed. `max_pending` and `max_batch` count for each
    bucket.

    Attributes:
        budgets: What session blocks ask before a model is called.
        quiet: Takes what session blocks of a synchronous front record without waiting.
    """

    def __init__(
        self,
        recorders: Sequence[SessionRecorder],
        number_of: Callable[[UUID | str], int],
        pipeline: WritePipeline,
        budgets: SessionReserver,
    ) -> None:
        """Use `BucketDatabase.recorder` instead."""
        self._recorders = recorders
        self._number_of = number_of
        self._pipeline = pipeline
        self.budgets = budgets
        self.quiet = QuietWriter(self.submit, self.lose)

    @property
    def has_spool(self) -> bool:
        """Whether submitted items go into a spool: never."""
        return False

    @property
    def drain_within(self) -> float:
        """How many seconds `close` goes on writing."""
        return max(recorder.drain_within for recorder in self._recorders)

    @drain_within.setter
    def drain_within(self, seconds: float) -> None:
        for recorder in self._recorders:
            recorder.drain_within = seconds

    async def open(self) -> None:
        """Does what entering `async with` does: items may be submitted from now on."""
        for recorder in self._recorders:
            await recorder.open()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def write(self, items: Sequence[WritableItem]) -> list[WriteResult]:
        """Queues the items of each bucket and waits for the commits. Returns the result of each item, in order.

        Raises:
            PartlyWrittenError: Some buckets wrote their items, and others failed.
            SessionLifecycleError: As `SessionRecorder.write`.
        """
        if not items:
            return []
        parts = parts_of(items, self._number_of)
        [first, *others] = parts
        if not others:
            return await self._recorders[first].write(items)
        # Nothing is queued while an item may be refused.
        await self._pipeline.prepare(items)
        return await write_parts(
            items, parts, lambda number, positions: self._recorders[number].write([items[at] for at in positions])
        )

    def submit(self, item: Item) -> None:
        """Queues an item for its bucket and returns at once. See `SessionRecorder.submit`."""
        checked = checked_item(item)
        self._of(checked.user_id).submit(checked)

    def submit_threadsafe(self, item: Item) -> None:
        """`submit` for other threads. See `SessionRecorder.submit_threadsafe`."""
        checked = checked_item(item)
        self._of(checked.user_id).submit_threadsafe(checked)

    def lose(self, items: Sequence[Item], error: SessionLifecycleError) -> None:
        """Counts a loss and hands it to `on_lost`, as `SessionRecorder.lose` does. A refused value has no items."""
        if not items:
            self._recorders[0].lose(items, error)
        for number, positions in parts_of(items, self._number_of).items():
            self._recorders[number].lose([items[at] for at in positions], error)

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
    ) -> SessionBlock:
        """A session block, which writes through the recorder of the user's bucket. See `SessionRecorder.session`."""
        return self._of(user_id).session(
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            quiet=quiet,
            attempt_timeout=attempt_timeout,
        )

    def snapshot(self) -> RecorderSnapshot:
        """The metrics of all buckets together now. May be called from any thread."""
        every = self.snapshots().values()
        sums = {
            name: sum(getattr(one, name) for one in every)
            for name in ("pending", "waiting", "batches", "items", "repeats", "failures")
        }
        return RecorderSnapshot(**sums, oldest_waiting_seconds=max(one.oldest_waiting_seconds for one in every))

    def snapshots(self) -> Mapping[int, RecorderSnapshot]:
        """The metrics of each bucket now, by its number. May be called from any thread."""
        return {number: recorder.snapshot() for number, recorder in enumerate(self._recorders)}

    async def flush(self) -> None:
        """Waits until every item that was accepted before is written or has failed, in every bucket."""
        await asyncio.gather(*(recorder.flush() for recorder in self._recorders))

    async def close(self) -> list[Item]:
        """Refuses new items, writes the pending ones of all buckets at once, and stops.

        Returns:
            The items that were not written in time, bucket by bucket. See `SessionRecorder.close`.

        Raises:
            SessionLifecycleError: A recorder could not be closed; all others are.
        """
        closed = await asyncio.gather(*(recorder.close() for recorder in self._recorders), return_exceptions=True)
        unwritten: list[Item] = []
        failures: list[BaseException] = []
        for one in closed:
            if isinstance(one, BaseException):
                failures.append(one)
            else:
                unwritten += one
        if failures:
            raise failures[0]
        return unwritten

    def _of(self, user_id: UUID | str) -> SessionRecorder:
        return self._recorders[self._number_of(user_id)]
