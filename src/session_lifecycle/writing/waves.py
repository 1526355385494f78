"""Sorts prepared items into waves: the items of one wave do not depend on each other."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.writing.prepared import DependsOn, PreparedItem

PART_BYTES = 16_000_000
"""The JSON that one statement takes, unless a single item is larger. Postgres holds 256 MB in one JSON value."""
MOST_BYTES = 1_000_000_000
"""The JSON that one batch may have."""
_CONTENT = {
    "content", "content_folded", "details", "error", "errors", "input", "inputs", "metadata", "output", "prompt",
    "unit_prices",
}  # fmt: skip
"""Fields that locks do not depend on, and that may be large."""


def parts(prepared: Sequence[PreparedItem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The items in parts of about `PART_BYTES`, mostly one part: how many items a part has, and its parameters.

    Each part is one statement `statements.writing.record`. Only one part is in memory as JSON at a time.

    Raises:
        InvalidValueError: The items have more than `MOST_BYTES` of JSON.
    """
    part = _Part()
    size = 0
    for one in prepared:
        activity = b"" if one.activity is None else to_json(one.activity)
        weight = len(one.change) + len(activity)
        size += weight
        if size > MOST_BYTES:
            raise InvalidValueError("items", f"more than {MOST_BYTES:,} bytes", f"at most {MOST_BYTES:,} bytes as JSON")
        if part.items and part.weight + weight > PART_BYTES:
            yield len(part.items), part.parameters()
            part = _Part()
        part.add(one, activity, weight)
    yield len(part.items), part.parameters()


def lock_parameters(prepared: Sequence[PreparedItem]) -> dict[str, Any]:
    """The parameters of the statement `statements.writing.lock_items`, for all items together."""
    changes = (from_json(one.change) for one in prepared if one.change)
    activities = (one.activity for one in prepared if one.activity is not None)
    waves, activity = (
        [{name: value for name, value in fields.items() if name not in _CONTENT} for fields in given]
        for given in (changes, activities)
    )
    return {
        "waves": to_json([waves]).decode(),
        "activity": to_json([activity] if activity else []).decode(),
        "latest_at": latest_at(prepared),
    }


def latest_at(prepared: Sequence[PreparedItem]) -> datetime | None:
    """The latest time that any item names; None if no item names one."""
    return max((one.latest_at for one in prepared if one.latest_at is not None), default=None)


class _Part:
    """The items of one statement, as JSON in waves."""

    def __init__(self) -> None:
        self.weight = 0
        self.items: list[PreparedItem] = []
        self._waves: list[list[bytes]] = [[]]
        self._activity: list[list[bytes]] = [[]]
        self._of_key: dict[Hashable, int] = {}
        self._of_user: dict[UUID, WavesOfUser] = defaultdict(WavesOfUser)

    def add(self, one: PreparedItem, activity: bytes, weight: int) -> None:
        """Adds an item to the first wave that comes after all it may depend on."""
        not_before = 0 if one.key is None else self._of_key.get(one.key, -1) + 1
        wave = self._of_user[one.item.user_id].next_wave(one, not_before)
        if one.key is not None:
            self._of_key[one.key] = wave
        while wave >= len(self._waves):
            self._waves.append([])
            self._activity.append([])
        position = len(self.items)
        if one.change:
            self._waves[wave].append(_placed(position, one.change))
        if activity:
            self._activity[wave].append(_placed(position, activity))
        self.items.append(one)
        self.weight += weight

    def parameters(self) -> dict[str, Any]:
        """The parameters of the statement `statements.writing.record`."""
        return {
            "waves": _json_array(map(_json_array, self._waves)).decode(),
            "activity": _json_array(map(_json_array, self._activity)).decode() if any(self._activity) else "[]",
            "latest_at": latest_at(self.items),
            "is_plain": len(self._waves) == 1 and all(one.is_plain for one in self.items),
        }


def _placed(position: int, fields: bytes) -> bytes:
    """The JSON object with the place of its item in the part."""
    return b'{"position":%d,%b' % (position, fields[1:])


def _json_array(members: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(members) + b"]"


class WavesOfUser:
    """Assigns the items of one user to waves, each to the first wave that comes after all it may depend on."""

    def __init__(self) -> None:
        # By session: the wave of its last item, and whether that item must be the only one of the session there.
        self._of_session: dict[str, tuple[int, bool]] = {}
        # No item may go into a wave before this one: it holds the last key of the user's scope.
        self._first = 0
        # The last wave with any item.
        self._last = 0
        # The last wave with an end, a reopening, metadata or tags.
        self._last_alone = -1
        # The last wave with an item whose session is not known here.
        self._last_anywhere = -1

    def next_wave(self, one: PreparedItem, not_before: int) -> int:
        """Returns the wave of the next item, `not_before` or later: `not_before` is the first wave without its key."""
        session_id = one.session_id
        if session_id is None:
            # Its session is not known here, so it may depend on any end or reopening of the user, and on nothing else.
            wave = max(self._first, not_before, self._last_alone + 1)
            self._last_anywhere = max(self._last_anywhere, wave)
            self._last = max(self._last, wave)
            return wave
        is_alone = one.depends_on is DependsOn.SESSION_ALONE
        wave, follows_alone = self._of_session.get(session_id, (0, False))
        if follows_alone or (is_alone and session_id in self._of_session):
            wave += 1
        wave = max(wave, self._first, not_before)
        if one.depends_on is DependsOn.USER:
            wave = max(wave, self._last, self._last_alone + 1)
            self._first = self._last_anywhere = wave
        elif one.depends_on is DependsOn.RUN:
            wave = max(wave, self._last_alone + 1)
            self._last_anywhere = max(self._last_anywhere, wave)
        elif is_alone:
            wave = max(wave, self._last_anywhere + 1)
            self._last_alone = max(self._last_alone, wave)
        self._last = max(self._last, wave)
        self._of_session[session_id] = (wave, is_alone)
        return wave
