"""Sorts prepared items into waves: the items of one wave do not depend on each other."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from session_lifecycle.writing.prepared import PreparedItem


def parameters(prepared: Sequence[PreparedItem]) -> dict[str, Any]:
    """Sorts the items into waves and returns the parameters of the statement `statements.writing.record`."""
    waves: list[list[dict[str, Any]]] = [[]]
    activity: list[list[dict[str, Any]]] = [[]]
    of_key: dict[Hashable, int] = {}
    of_user: dict[UUID, WavesOfUser] = defaultdict(WavesOfUser)
    is_plain = True
    for position, one in enumerate(prepared):
        not_before = 0 if one.key is None else of_key.get(one.key, -1) + 1
        wave = of_user[one.item.user_id].next_wave(one, not_before)
        if one.key is not None:
            of_key[one.key] = wave
        while wave >= len(waves):
            waves.append([])
            activity.append([])
        if one.fields is not None:
            one.fields["position"] = position
            waves[wave].append(one.fields)
        if one.activity is not None:
            one.activity["position"] = position
            activity[wave].append(one.activity)
        is_plain = is_plain and one.is_plain
    return {
        "waves": to_json(waves).decode(),
        "activity": to_json(activity if any(activity) else []).decode(),
        "latest_at": max((one.latest_at for one in prepared if one.latest_at is not None), default=None),
        "is_plain": is_plain and len(waves) == 1,
    }


class WavesOfUser:
    """Assigns the items of one user to waves, each to the first wave that comes after all it may depend on."""

    def __init__(self) -> None:
        # By session: the wave of its last item, and whether that item must be the only one of the session there.
        self._of_session: dict[str, tuple[int, bool]] = {}
        # No item may go into a wave before this one: it holds the last key of the user's scope.
        self._first = 0
        # The last wave with any item.
        self._last = 0
        # The last wave with an end, a reopening or metadata.
        self._last_alone = -1
        # The last wave with an item whose session is not known here.
        self._last_anywhere = -1

    def next_wave(self, one: PreparedItem, not_before: int) -> int:
        """Returns the wave of the next item, `not_before` or later: `not_before` is the first wave without its key."""
        if one.fields is None:
            # Its session is not known here, so it may depend on any end or reopening of the user, and on nothing else.
            wave = max(self._first, not_before, self._last_alone + 1)
            self._last_anywhere = max(self._last_anywhere, wave)
            self._last = max(self._last, wave)
            return wave
        session_id = one.fields["session_id"]
        wave, follows_alone = self._of_session.get(session_id, (0, False))
        if follows_alone or (one.is_alone and session_id in self._of_session):
            wave += 1
        wave = max(wave, self._first, not_before)
        if "key_scope" in one.fields:
            # A key of the user's scope: the first event with this key may belong to any session of the user.
            wave = max(wave, self._last, self._last_alone + 1)
            self._first = self._last_anywhere = wave
        elif "run_id" in one.fields:
            # The event counts for the session of its run, which may be another session than the one it names.
            wave = max(wave, self._last_alone + 1)
            self._last_anywhere = max(self._last_anywhere, wave)
        elif one.is_alone:
            wave = max(wave, self._last_anywhere + 1)
            self._last_alone = max(self._last_alone, wave)
        self._last = max(self._last, wave)
        self._of_session[session_id] = (wave, one.is_alone)
        return wave
