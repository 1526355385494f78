"""LiveFeed: what changes, for many streams at once.

A feed learns that something has changed, and looks what: `look.py` compares the newest sessions that a viewer sees now
with those of the last look.

- *Learning*: one connection of the process listens for notes, where the database sends them and no pooler stands before
  it. Else the feed asks once a second. It does neither while nobody has a stream.
- *Looking*: streams of one viewer with the same filters share one look, and looks follow each other after a pause. Each
  stream is also looked after every `LOOK_SECONDS`, for what no writer does: a session becomes abandoned.
- *Streams*: a stream keeps a position in the events of its look, and no events of its own. A stream that is too slow is
  told to look again.

This module needs no extra: the command line follows a feed without HTTP.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Coroutine
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Self
from uuid import UUID

from session_lifecycle.database import SessionDatabase
from session_lifecycle.errors import ConfigurationError, SessionLifecycleError, shortened
from session_lifecycle.models import SessionListFilters, Viewer
from session_lifecycle.web.look import FeedEvent, Look, as_json, session_event

WINDOW = 50
"""How many of the newest sessions a look reads and compares."""
MOST_RECENT = WINDOW
MOST_IDLE_LOOKS = 100
"""The looks without a stream that a feed keeps, for streams that come back."""
MOST_STREAMS = 1000
LOOK_SECONDS = 15.0
PAUSE_SECONDS = 0.3
"""How long a feed collects changes before it looks."""
POLL_SECONDS = 1.0
LISTEN_AGAIN_SECONDS = 60.0
"""How long a feed polls before it tries to listen again."""
TRY_AGAIN_SECONDS = 1.0
MOST_LOOKS_AT_ONCE = 4
"""So a feed never takes all connections of a pool."""
FEW_LOOKS = 4
"""So many looks cost no more than asking first whom a change concerns."""
HEARTBEAT_SECONDS = 15.0
STREAM_SECONDS = 300.0
"""How long a stream lives. The client comes back, and the host says anew who is asking."""

_logger = logging.getLogger(__name__)

# The fields of filters that say nothing of which sessions a stream shows.
_NOT_CHOSEN = {
    "viewer", "user_id", "permitted_dataset_ids", "since", "until", "limit", "offset", "order_by", "descending",
    "cursor", "total",
}  # fmt: skip


class StreamsFullError(SessionLifecycleError):
    """A feed has as many streams as it may have."""


class LiveFeed:
    """What changes in the sessions of a database, for the streams of one event loop.

    Make one for each process, and share it between the app's routers. It opens nothing before there is a stream, and
    nothing stays open after the last one. `close` ends all streams.

    Example:
        feed = LiveFeed(db)
        app.include_router(live_router(db, viewer=current_viewer, feed=feed), prefix="/api/v1")
    """

    def __init__(
        self,
        db: SessionDatabase,
        *,
        most_streams: int = MOST_STREAMS,
        stream_seconds: float | None = STREAM_SECONDS,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Opens nothing.

        Args:
            db: The database. The host opens and closes it.
            most_streams: How many streams may be open at once.
            stream_seconds: How long a stream lives; None: until it is closed. A client comes back by itself.
            look_seconds: How often a stream is looked after where no writer has said anything.

        Raises:
            ConfigurationError: A number is not above 0, or a duration is below 0.
        """
        if most_streams < 1:
            raise ConfigurationError(f"most_streams: got {shortened(most_streams)}, expected a number from 1")
        if stream_seconds is not None and not stream_seconds >= 0:
            raise ConfigurationError(
                f"stream_seconds: got {shortened(stream_seconds)}, expected a number from 0, or None"
            )
        if not look_seconds > 0:
            raise ConfigurationError(f"look_seconds: got {shortened(look_seconds)}, expected a number above 0")
        self.db = db
        self._most_streams = most_streams
        self.stream_seconds = stream_seconds
        self._look_seconds = look_seconds
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._streams = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._due = asyncio.Event()
        self.is_closed = False
        self._is_listening = False
        self._is_away = False

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._streams

    @property
    def is_listening(self) -> bool:
        """Whether the feed listens for notes. It polls while it does not, and does neither without a stream."""
        return self._is_listening

    async def open(
        self, filters: SessionListFilters | None = None, *, viewer: Viewer, after: str | None = None, recent: int = 0
    ) -> "LiveStream":
        """Opens a stream of what the viewer sees. Changes from now on are its events.

        Args:
            filters: Which sessions. The window, the order and the page do not count.
            viewer: Who is asking.
            after: The id of the last event that the client has. The stream goes on after it. Where that cannot be done,
                as in another process, the stream begins with `look_again`.
            recent: How many of the newest sessions come first, the oldest of them first, where the stream does not go
                on after an event. At most `MOST_RECENT`.

        Raises:
            StreamsFullError: The feed is closed, or has as many streams as it may have.
            ConfigurationError: The feed has streams in another event loop.
            DatabaseUnavailableError: The database cannot be reached.
            SchemaError: The schema does not serve this version.
        """
        self._enter_loop()
        if self.is_closed or self._streams >= self._most_streams:
            raise StreamsFullError("this server has too many open streams, or is about to end")
        asked = SessionListFilters() if filters is None else filters
        chosen = {name: getattr(asked, name) for name in asked.model_fields_set - _NOT_CHOSEN}
        look = self._look_of(SessionListFilters.of_call(**chosen, viewer=viewer, limit=WINDOW, total="none"))
        look.streams += 1
        self._streams += 1
        stream = LiveStream(self, look)
        try:
            self._start()
            await look.look(self.db, unless_since=time.monotonic())
            await stream.begin(after, min(recent, MOST_RECENT))
        except BaseException:
            stream.close()
            raise
        return stream

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._streams and self._loop is not None and self._loop.is_running():
            raise ConfigurationError("the feed has streams in another event loop: make a LiveFeed for each loop")
        # What is left belongs to a loop that has ended, or to the parent of this process.
        self._loop, self._tasks, self._streams, self._due = loop, [], 0, asyncio.Event()
        self._looks.clear()

    def _look_of(self, filters: SessionListFilters) -> Look:
        name = blake2b(as_json(filters.model_dump(mode="json")).encode("utf-8", "surrogatepass")).hexdigest()
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = Look(filters)
        self._looks.move_to_end(name)
        idle = [one for one, look in self._looks.items() if not look.streams]
        for one in idle[:-MOST_IDLE_LOOKS]:
            del self._looks[one]
        return look

    def leave(self, look: Look, loop: asyncio.AbstractEventLoop) -> None:
        """Counts a stream that has ended."""
        look.streams -= 1
        if loop is not self._loop:
            return
        self._streams -= 1
        if not self._streams:
            self._stop()

    def _start(self) -> None:
        if not self._tasks:
            self._tasks = [self._run(self._learn(), "learns"), self._run(self._look_around(), "looks")]

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"session-lifecycle feed {name}")
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        """Ends the streams of a feed that cannot go on, so that their clients come back."""
        if task.cancelled() or task not in self._tasks:
            return
        _logger.error("the live feed failed", exc_info=task.exception())
        self._stop()
        self._end_streams()

    def _stop(self) -> list[asyncio.Task[None]]:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._is_listening = False
        return tasks

    def _end_streams(self) -> None:
        """Forgets all looks. A stream whose look is not the feed's ends."""
        looks = list(self._looks.values())
        self._looks.clear()
        for look in looks:
            look.wake()

    def has(self, look: Look) -> bool:
        """Whether the look goes on."""
        return not self.is_closed and any(one is look for one in self._looks.values())

    async def close(self) -> None:
        """Ends all streams and stops listening. No stream can be opened any more. A second call does nothing."""
        self.is_closed = True
        tasks = self._stop()
        self._end_streams()
        if tasks and self._loop is asyncio.get_running_loop():
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def _wake(self, ids: frozenset[UUID] | None) -> None:
        for look in self._looks.values():
            if look.streams and look.concerns(ids):
                look.is_due = True
                self._due.set()

    async def _learn(self) -> None:
        """Says which looks are due: by notes, or by polling."""
        while True:
            is_refused = False
            try:
                await self._listen()
            except ConfigurationError as error:
                _logger.info("the live feed polls: %s", error)
                is_refused = True
            except SessionLifecycleError as error:
                self._say_once("the live feed does not hear the database: %s", error)
            finally:
                self._is_listening = False
            if is_refused:
                await self._poll()
            else:
                await asyncio.sleep(TRY_AGAIN_SECONDS)

    def _say_once(self, message: str, error: Exception) -> None:
        """Logs that the database is away; once, until it is back."""
        if not self._is_away:
            _logger.warning(message, error)
        self._is_away = True

    async def _listen(self) -> None:
        async with self.db.listening() as notes:
            self._is_listening, self._is_away = True, False
            self._wake(None)  # what happened before
            while True:
                self._wake(await notes.next())

    async def _poll(self) -> None:
        """Asks once a second what changed, until it is time to try to listen again."""
        everybody = Look(
            SessionListFilters(viewer=Viewer.auditor(), limit=WINDOW, order_by="last_activity_at", total="none")
        )
        until = time.monotonic() + LISTEN_AGAIN_SECONDS
        while time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
            if sum(look.streams > 0 for look in self._looks.values()) <= FEW_LOOKS:
                self._wake(None)
                continue
            try:
                # Whom a change concerns is asked as the auditor. What a stream shows is read as its viewer.
                self._wake(await everybody.look(self.db))
                self._is_away = False
            except SessionLifecycleError as error:
                self._say_once("the live feed cannot ask what changed: %s", error)

    async def _look_around(self) -> None:
        """Looks for whoever is due, and for everybody from time to time."""
        at_once = asyncio.Semaphore(MOST_LOOKS_AT_ONCE)

        async def look(one: Look) -> None:
            async with at_once:
                try:
                    await one.look(self.db)
                    one.is_failing = False
                except SessionLifecycleError as error:
                    if not one.is_failing:
                        _logger.warning("the live feed cannot look: %s", error)
                    one.is_failing = True

        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TRY_AGAIN_SECONDS):
                    await self._due.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            self._due.clear()
            begin = time.monotonic() - self._look_seconds
            due = [one for one in self._looks.values() if one.streams and (one.is_due or one.began < begin)]
            await asyncio.gather(*map(look, due))


class LiveStream:
    """The events of one client, as an asynchronous iterator. Made by `LiveFeed.open`.

    None comes where nothing else came for `HEARTBEAT_SECONDS`. The stream ends after the feed's `stream_seconds`, when
    the feed is closed, and when the stream itself is closed. Close it: it counts among the streams of the feed until
    then.
    """

    def __init__(self, feed: LiveFeed, look: Look) -> None:
        self._feed = feed
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._count = look.count
        self._first: deque[FeedEvent] = deque()
        self._until = None if feed.stream_seconds is None else time.monotonic() + feed.stream_seconds
        self._is_closed = False

    async def begin(self, after: str | None, recent: int) -> None:
        """Goes on after an event, or begins anew."""
        count = None if after is None else self._look.count_of(after)
        if count is not None:
            self._count = count
            return
        self._count = self._look.count
        if after is not None:
            self._first.append(self._look.look_again())
        if recent:
            at = self._look.id_after(self._count)
            filters = self._look.filters.model_copy(update={"limit": recent})
            page = await self._feed.db.primary.lifecycle.list_session_rows(filters)
            for row in reversed(page.sessions):
                self._first.append(session_event(at, row))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FeedEvent | None:
        if self._first:
            return self._first.popleft()
        while True:
            self._count, event = self._look.next_after(self._count)
            if event is not None:
                return event
            if self._is_closed or not self._feed.has(self._look):
                raise StopAsyncIteration
            left = HEARTBEAT_SECONDS if self._until is None else min(HEARTBEAT_SECONDS, self._until - time.monotonic())
            if left <= 0:
                raise StopAsyncIteration
            try:
                async with asyncio.timeout(left):
                    await self._look.changed()
            except TimeoutError:
                if left == HEARTBEAT_SECONDS:
                    return None

    def close(self) -> None:
        """Ends the stream. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._feed.leave(self._look, self._loop)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.close()
