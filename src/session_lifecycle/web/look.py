"""Look: the newest sessions of one viewer, compared from look to look, and the events that say what changed.

Nothing is taken from a note, so a lost note or connection loses no change, and a session that is deleted or no longer
shared is noticed by its absence.
"""

import asyncio
import json
import re
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from secrets import token_hex
from typing import Any, Literal, NamedTuple
from uuid import UUID

from session_lifecycle.database import SessionDatabase
from session_lifecycle.models import SessionListFilters, SessionRecord, SessionRowWithStatus

MOST_EVENTS = 500
MOST_EVENT_BYTES = 128 * 1024
"""The events that a look keeps for streams that are behind. Of several events of a session it keeps the last one."""

Key = tuple[UUID, str]
EventName = Literal["session", "gone", "look_again"]


@dataclass(frozen=True)
class FeedEvent:
    """One event of a stream."""

    id: str
    """What a stream can go on after."""
    name: EventName
    """`session`: the session is new or has changed. `gone`: it was deleted, or is no longer among what the stream
    shows. `look_again`: changes were missed, so what the client has may be out of date.
    """
    data: str
    """JSON: of `session` the row as `GET /sessions` has it; of `gone` the `user_id` and `session_id`; else `{}`."""
    row: SessionRowWithStatus | None = field(default=None, repr=False)
    key: Key | None = None


class _Known(NamedTuple):
    """What a look has seen of a session."""

    fingerprint: int
    position: tuple[datetime, bytes, bytes]
    dataset_id: UUID | None


def _position(record: SessionRecord) -> tuple[datetime, bytes, bytes]:
    """The place of a session in the order by last activity."""
    return record.last_activity_at, record.user_id.bytes, record.session_id.encode()


def _fingerprint(row: SessionRowWithStatus) -> int:
    """A number that is another one when the row has changed. Most rows have not, and need not become JSON."""
    values = (repr(value) if isinstance(value, dict) else value for value in vars(row.record).values())
    return hash((row.effective_status, *values))


def as_json(value: Any) -> str:
    """The value as the JSON of an event."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def session_event(event_id: str, row: SessionRowWithStatus) -> FeedEvent:
    """The event that says that a session is new or has changed."""
    key = (row.record.user_id, row.record.session_id)
    return FeedEvent(event_id, "session", as_json(row.to_dict()), row, key)


class Look:
    """The newest sessions of one viewer under some filters, and what changed from look to look."""

    def __init__(self, filters: SessionListFilters) -> None:
        self.filters = filters
        viewer = filters.asker
        self._concerned = None if viewer.sees_all else {*viewer.owner_ids, *viewer.permitted_dataset_ids}
        self._name = token_hex(6)
        self._events: deque[FeedEvent | None] = deque()
        """The last events. In the place of one that a later event of its session has replaced, there is None."""
        self._last_of: dict[Key | None, int] = {}
        """The number of the last event of each session in `_events`."""
        self._bytes = 0
        self.count = 0
        """The number of events so far."""
        self._known: dict[Key, _Known] | None = None
        self._newest: tuple[datetime, bytes, bytes] | None = None
        self.streams = 0
        self.is_due = True
        self.is_failing = False
        self.began = 0.0
        """When the last look that succeeded began."""
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()

    def concerns(self, ids: frozenset[UUID] | None) -> bool:
        """Whether a change of sessions of these owners or datasets may be seen here."""
        return ids is None or self._concerned is None or not self._concerned.isdisjoint(ids)

    def id_after(self, count: int) -> str:
        """The id of the event of this number, or of the beginning."""
        return f"{self._name}.{count}"

    def count_of(self, event_id: str) -> int | None:
        """The number of the event with this id, if all later events are kept."""
        name, _, count = event_id.partition(".")
        if name != self._name or not re.fullmatch(r"[0-9]{1,18}", count):
            return None
        return int(count) if self.count - len(self._events) <= int(count) <= self.count else None

    def next_after(self, count: int) -> tuple[int, FeedEvent | None]:
        """The number of the next event after this one, and the event; the number of the last event, and None, at the
        end.

        Of several events of a session only the last one comes: the others say what was, and perhaps what the viewer may
        see no more. Where that may have happened unseen, or events are kept no more, the event is `look_again`.
        """
        first = self.count - len(self._events) + 1
        if count < first - 1:
            return self.count, self.look_again()
        for number in range(count + 1, self.count + 1):
            event = self._events[number - first]
            if event is None:
                continue
            if event.name == "session" and (self._known is None or event.key not in self._known):
                return self.count, self.look_again()
            return number, event
        return self.count, None

    def look_again(self) -> FeedEvent:
        """The event that says that changes were missed; a stream goes on after all that is known now."""
        return FeedEvent(self.id_after(self.count), "look_again", "{}")

    async def changed(self) -> None:
        """Waits for the next event."""
        await self._changed.wait()

    def wake(self) -> None:
        """Ends the waiting of all streams."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def look(self, db: SessionDatabase, *, unless_since: float | None = None) -> frozenset[UUID] | None:
        """Reads and compares. Returns whose sessions changed; None: they may be anybody's.

        Args:
            db: The database.
            unless_since: Does nothing where a look that began after this time has succeeded meanwhile.
        """
        async with self._lock:
            if unless_since is not None and self.began > unless_since:
                return frozenset()
            began = time.monotonic()
            self.is_due = False
            try:
                page = await db.primary.lifecycle.list_session_rows(self.filters)
            except BaseException:
                self.is_due = True
                raise
            self.began = began
            return self._compare(page.sessions, has_more=page.has_more)

    def _compare(self, rows: list[SessionRowWithStatus], *, has_more: bool) -> frozenset[UUID] | None:
        before, count = self._known, self.count
        known: dict[Key, _Known] = {}
        ids: set[UUID | None] = set()
        oldest = _position(rows[-1].record) if rows and has_more else None
        missed = before is not None and oldest is not None and self._newest is not None and oldest > self._newest
        if missed:  # more sessions were active since the last look than a look reads
            self._add(FeedEvent(self._next_id(), "look_again", "{}"))
        for row in reversed(rows):
            record = row.record
            key = (record.user_id, record.session_id)
            found = known[key] = _Known(_fingerprint(row), _position(record), record.dataset_id)
            last = None if before is None else before.get(key)
            if before is not None and (last is None or last.fingerprint != found.fingerprint):
                self._add(session_event(self._next_id(), row))
                ids |= {record.user_id, record.dataset_id, last.dataset_id if last is not None else None}
        for key, last in () if before is None else before.items():
            # A session that is older than all of a full page was only overtaken.
            if key not in known and (oldest is None or last.position > oldest):
                data = as_json({"user_id": str(key[0]), "session_id": key[1]})
                self._add(FeedEvent(self._next_id(), "gone", data, None, key))
                ids |= {key[0], last.dataset_id}
        self._known = known
        self._newest = _position(rows[0].record) if rows else None
        if self.count > count:
            self.wake()
        return None if missed else frozenset(one for one in ids if one is not None)

    def _next_id(self) -> str:
        return self.id_after(self.count + 1)

    def _add(self, event: FeedEvent) -> None:
        first = self.count - len(self._events) + 1
        replaced = self._last_of.get(event.key)
        if replaced is not None:
            self._forget(self._events[replaced - first])
            self._events[replaced - first] = None
        self.count += 1
        self._events.append(event)
        self._last_of[event.key] = self.count
        self._bytes += len(event.data)
        while len(self._events) > MOST_EVENTS or self._bytes > MOST_EVENT_BYTES:
            self._forget(self._events.popleft())

    def _forget(self, event: FeedEvent | None) -> None:
        if event is not None:
            self._bytes -= len(event.data)
            del self._last_of[event.key]
