"""Room: how many items of a recorder may be pending, and the callers that wait in line for room."""

import asyncio
import threading
from collections import deque

from session_lifecycle.errors import RecorderClosedError, RecorderFullError


class Room:
    """Counts the pending items of one recorder.

    `reserve` and `release` may be called from any thread where no caller waits. All else belongs to one event loop.

    Attributes:
        taken: The number of items that are pending.
        waiting: The turns of the callers that wait for room, in their order, and how much each needs.
    """

    def __init__(self, size: int) -> None:
        """All is free.

        Args:
            size: How many items may be pending.
        """
        self._size = size
        self._changing = threading.Lock()
        self.taken = 0
        self.waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def must_wait(self, count: int) -> bool:
        """Whether `count` more items have to wait, as no caller overtakes another."""
        return bool(self.waiting) or self.taken + count > self._size

    def reserve(self, count: int) -> None:
        """Takes room for `count` items.

        Raises:
            RecorderFullError: There is not as much.
        """
        with self._changing:
            if self.taken + count > self._size:
                raise RecorderFullError(
                    f"{self.taken} items are pending, and this call adds {count}: "
                    f"at most {self._size} (max_pending) may be pending"
                )
            self.taken += count

    async def wait(self, count: int) -> None:
        """Takes room for `count` items as soon as it is there and all callers before have theirs.

        Raises:
            RecorderClosedError: The recorder was closed before.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((turn, count))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                if (turn, count) in self.waiting:
                    self.waiting.remove((turn, count))
                self.grant()
            elif turn.exception() is None:  # room was granted before the cancellation arrived
                self.release(count)
            raise

    def release(self, count: int) -> None:
        """Gives room for `count` items back, to those that wait first."""
        with self._changing:
            self.taken -= count
        self.grant()

    def grant(self) -> None:
        """Gives free room to the waiting callers, in their order."""
        while self.waiting:
            turn, count = self.waiting[0]
            if turn.done():  # its caller was cancelled
                self.waiting.popleft()
                continue
            with self._changing:
                if self.taken + count > self._size:
                    return
                self.taken += count
            self.waiting.popleft()
            turn.set_result(None)

    def refuse_waiting(self) -> None:
        """Ends the wait of all callers, as the recorder closes."""
        while self.waiting:
            turn, _ = self.waiting.popleft()
            if not turn.done():
                turn.set_exception(RecorderClosedError("the recorder was closed before there was room"))
