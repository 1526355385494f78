"""SpoolWriter: takes items at once, and appends them to a spool on a thread, many in one sync of the disk."""

import atexit
import logging
import threading
from collections.abc import Callable, Sequence
from weakref import WeakSet

from session_lifecycle.errors import RecorderClosedError, SessionLifecycleError
from session_lifecycle.models import Item
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.writing.spool import Spool
from session_lifecycle.writing.spool_drain import spooled_fields

IDLE_SECONDS = 10.0
"""How long the thread waits for a further item."""

_logger = logging.getLogger(__name__)
_open: "WeakSet[SpoolWriter]" = WeakSet()


class SpoolWriter:
    """Takes items from any thread. A thread appends what has arrived meanwhile in one transaction.

    At `most` items in memory, the caller itself appends them, so memory is bounded and no item is refused.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        most: int,
        on_failed: Callable[[Sequence[Item], SessionLifecycleError], object],
        on_kept: Callable[[], object] = lambda: None,
        prepared: Callable[[Item], Item] = lambda item: item,
    ) -> None:
        """Starts no thread yet.

        Args:
            spool: The spool.
            most: The most items in memory.
            on_failed: Called with items that could not be appended, on any thread.
            on_kept: Called after each append, on any thread.
            prepared: Called with each item before it is stored, on any thread.
        """
        self.spool = spool
        self._most = most
        self._on_failed = on_failed
        self._on_kept = on_kept
        self._prepared = prepared
        self._is_closed = False
        self._forget()
        _open.add(self)
        forget_in_child(self)

    def _forget(self) -> None:
        self._items: list[Item] = []
        self._arrived = threading.Event()
        self._taking = threading.Lock()
        self._appending = threading.Lock()  # taking and appending are one step, so the items keep their order
        self._thread: threading.Thread | None = None

    def forget_parent(self) -> object:
        """See `HasParents`: the parent appends what it has taken."""
        ours = (self._items, self._thread)
        self._forget()
        return ours

    def put(self, item: Item) -> None:
        """Takes the item. Returns at once, or after an append where `most` items are in memory.

        Raises:
            RecorderClosedError: The writer is closed.
        """
        with self._taking:
            if self._is_closed:
                raise RecorderClosedError("the recorder is closed")
            self._items.append(item)
            is_full = len(self._items) >= self._most
            if self._thread is None:
                self._start()
        if is_full or self._thread is None:
            self.commit()
        else:
            self._arrived.set()

    def commit(self) -> None:
        """Appends what was taken before. Raises nothing: see `on_failed`."""
        with self._appending:
            with self._taking:
                items, self._items = self._items, []
            if not items:
                return
            rows, failed, failure = [], [], None
            for item in items:
                try:
                    rows.append(spooled_fields(self._prepared(item)))
                except SessionLifecycleError as error:
                    failed.append(item)
                    failure = error
            try:
                self.spool.append(rows)
            except SessionLifecycleError as error:
                failed, failure = items, error
        if failure is not None:
            self._on_failed(failed, failure)
        self._on_kept()

    def close(self) -> None:
        """Appends what was taken, and takes no more. A second call does nothing."""
        with self._taking:
            self._is_closed = True
        self.commit()
        self._arrived.set()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="session-lifecycle spool", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter ends, or there are too many threads: callers append themselves
            _logger.debug("no thread for the spool: %s", error)
            return
        self._thread = thread

    def _run(self) -> None:
        while not self._is_closed:
            if not self._arrived.wait(IDLE_SECONDS):
                with self._taking:
                    if not self._items:
                        self._thread = None  # the next item starts another one
                        return
            self._arrived.clear()
            try:
                self.commit()
            except Exception:
                _logger.exception("items could not be put into the spool %s", self.spool.path)


def _commit_all() -> None:
    for writer in list(_open):
        writer.commit()


atexit.register(_commit_all)
