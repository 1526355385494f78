"""What is written: items, priced and put into waves, as `record_v4` reads them."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from pydantic_core import to_json

from session_lifecycle.models import End, Item, Message, Run, Step, Touch, UsageEvent
from session_lifecycle.models.items import Reopen
from session_lifecycle.models.payloads import folded
from session_lifecycle.pricing import PriceCatalogue

Writable = Item | Reopen

# What an item may leave out, being None, zero or empty; the function has the same defaults.
_OF_KIND: dict[type, tuple[str, ...]] = {
    Touch: ("at", "dataset_id", "agent_name", "title", "metadata"),
    End: ("at", "status"),
    Reopen: ("at",),
    UsageEvent: (
        "at",
        "dataset_id",
        "model",
        "provider",
        "tokens_in",
        "tokens_out",
        "cache_read_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "errored",
        "idempotency_key",
        "revision",
        "run_id",
        "details",
    ),
}
_KINDS = {Touch: "touch", End: "end", Reopen: "reopen", Run: "run", Step: "step", Message: "message"}
# These make it depend on more than its session.
_NOT_PLAIN = {"revision", "key_scope", "run_id"}


def is_repeatable(item: Writable) -> bool:
    """Whether recording it once more, after nobody knows whether it was, leaves the same."""
    return not isinstance(item, UsageEvent) or item.idempotency_key is not None or item.is_nothing


class Prepared(NamedTuple):
    """An item and, as JSON will have it, what is written of it."""

    item: Writable
    written: dict[str, Any] | None
    """What it does to the session it names; None where it names none."""
    activity: dict[str, Any] | None
    """The run, step or message; None of other items."""
    key: Hashable
    """What may be in a wave once only: the id of a keyed event, or a run's, step's or message's own; None: nothing."""
    latest_at: datetime | None
    """The latest time it speaks of."""
    is_alone: bool
    """No other item of its session may be in its wave: an end, a reopening, and metadata."""
    is_plain: bool
    """A touch or a use that depends on nothing but its session and, with a key, on that being new."""


def is_to_be_priced(item: Writable) -> bool:
    """Whether the catalogue is needed for it."""
    return isinstance(item, UsageEvent) and item.cost_usd is None and item.has_tokens


def prepare(item: Writable, prices: PriceCatalogue) -> Prepared:
    """The item with its price; the catalogue is loaded, where it is needed."""
    if isinstance(item, Run | Step | Message):
        return _prepare_activity(item)
    written = _written(item, prices)
    key = written["event_id"] if "idempotency_key" in written else None
    is_alone = isinstance(item, End | Reopen) or "metadata" in written
    is_plain = not is_alone and _NOT_PLAIN.isdisjoint(written) and written["kind"] != "nothing"
    return Prepared(item, written, None, key, item.at, is_alone, is_plain)


def parameters(prepared: Sequence[Prepared]) -> dict[str, Any]:
    """What `statements.recording.record` binds for these items."""
    waves: list[list[dict[str, Any]]] = [[]]
    activity: list[list[dict[str, Any]]] = [[]]
    of_key: dict[Hashable, int] = {}
    of_user: dict[UUID, _UsersWaves] = defaultdict(_UsersWaves)
    is_plain = True
    for position, one in enumerate(prepared):
        not_before = 0 if one.key is None else of_key.get(one.key, -1) + 1
        wave = of_user[one.item.user_id].next_wave(one, not_before)
        if one.key is not None:
            of_key[one.key] = wave
        while wave >= len(waves):
            waves.append([])
            activity.append([])
        if one.written is not None:
            one.written["position"] = position
            waves[wave].append(one.written)
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


class _UsersWaves:
    """Which wave each of a user's items is in: the first in which nothing overtakes what it may depend on."""

    def __init__(self) -> None:
        # Of each session the wave of its last item, and whether that is alone with it.
        self._of_session: dict[str, tuple[int, bool]] = {}
        self._first = 0
        self._last = 0
        self._last_alone = -1
        self._last_anywhere = -1

    def next_wave(self, one: Prepared, not_before: int) -> int:
        """The wave of the next item; not before the one in which its key is free."""
        if one.written is None:
            # Of a session that is not known here: it depends on what ends or reopens any, and on nothing else.
            wave = max(self._first, not_before, self._last_alone + 1)
            self._last_anywhere = max(self._last_anywhere, wave)
            self._last = max(self._last, wave)
            return wave
        session_id = one.written["session_id"]
        wave, follows_alone = self._of_session.get(session_id, (0, False))
        if follows_alone or (one.is_alone and session_id in self._of_session):
            wave += 1
        wave = max(wave, self._first, not_before)
        if "key_scope" in one.written:
            # A key of the user's scope: it may turn out to be of any session of the user.
            wave = max(wave, self._last, self._last_alone + 1)
            self._first = self._last_anywhere = wave
        elif "run_id" in one.written:
            # Of the session its run was given, which may be another one.
            wave = max(wave, self._last_alone + 1)
            self._last_anywhere = max(self._last_anywhere, wave)
        elif one.is_alone:
            wave = max(wave, self._last_anywhere + 1)
            self._last_alone = max(self._last_alone, wave)
        self._last = max(self._last, wave)
        self._of_session[session_id] = (wave, one.is_alone)
        return wave


def _prepare_activity(item: Run | Step | Message) -> Prepared:
    activity = {name: value for name, value in item if value is not None}
    activity["kind"] = _KINDS[type(item)]
    touch: dict[str, Any] | None = None
    match item:
        case Run():
            key: Hashable = (Run, item.user_id, item.run_id)
            latest_at = max(item.started_at, item.ended_at or item.started_at)
            if item.session_id is not None:
                touch = {"session_id": item.session_id, "began_at": item.started_at, "run_id": item.run_id}
                touch |= {name: activity[name] for name in ("dataset_id", "agent_name") if name in activity}
        case Step():
            key = (Step, item.user_id, item.run_id, item.step_id)
            latest_at = max(item.started_at, item.ended_at or item.started_at)
            activity["step_kind"] = item.kind
        case Message():
            key = (Message, item.user_id, item.session_id, item.message_id)
            latest_at = item.created_at
            activity["content_folded"] = folded(item.content)
            touch = {"session_id": item.session_id}
    if touch is not None:
        touch |= {"kind": "touch", "user_id": item.user_id, "at": latest_at, "answers": False}
    return Prepared(item, touch, activity, key, latest_at, is_alone=False, is_plain=False)


def _written(item: Touch | UsageEvent | End | Reopen, prices: PriceCatalogue) -> dict[str, Any]:
    written: dict[str, Any] = {"user_id": item.user_id, "session_id": item.session_id}
    if isinstance(item, UsageEvent) and item.is_nothing:
        return written | {"kind": "nothing", "cost_usd": 0}
    given = vars(item)
    written |= {name: value for name in _OF_KIND[type(item)] if (value := given[name])}
    if not isinstance(item, UsageEvent):
        written["kind"] = _KINDS[type(item)]
        return written
    written["kind"] = "usage"
    written["event_id"] = _event_id(item)
    if not item.touch:
        written["touch"] = False
    if not item.measured:
        written["measured"] = False
    if item.key_scope == "user" and item.idempotency_key is not None:
        written["key_scope"] = "user"
    _add_cost(written, item, prices)
    return written


def _add_cost(written: dict[str, Any], event: UsageEvent, prices: PriceCatalogue) -> None:
    """What the event costs, and by which unit prices (rule R07); no cost at all when nobody knows."""
    if event.cost_usd is not None:
        written["cost_usd"] = written["given_cost_usd"] = event.cost_usd
        written["price_source"] = "given"
    elif not event.has_tokens:
        if event.measured:
            written["cost_usd"] = 0
    else:
        price = prices.price(
            model=event.model,
            provider=event.provider,
            # The database's clock is not known here; prices change on days, and the clocks differ by less.
            at=event.at or datetime.now(UTC),
            tokens_in=event.tokens_in,
            tokens_out=event.tokens_out,
            cache_read_tokens=event.cache_read_tokens,
            cache_write_tokens=event.cache_write_tokens,
            reasoning_tokens=event.reasoning_tokens,
        )
        if price is not None:
            written["cost_usd"] = price.cost_usd
            written["price_source"] = price.source
            written["unit_prices"] = price.unit_prices


def _event_id(event: UsageEvent) -> UUID:
    """Of a keyed event derived from the key within its scope, a UUIDv8 of RFC 9562; else a new one."""
    if event.idempotency_key is None:
        return uuid4()
    # No session id is empty, so a key of the user's scope is never one of a session's. The length keeps the parts
    # apart. `keyed_event_id_v1` makes the same.
    session_id = event.session_id if event.key_scope == "session" else ""
    name = f"{len(session_id)}:{session_id}{event.idempotency_key}".encode()
    digest = int.from_bytes(hashlib.sha256(event.user_id.bytes + name).digest()[:16])
    version_and_variant = (0x8 << 76) | (0b10 << 62)
    return UUID(int=digest & ~((0xF << 76) | (0b11 << 62)) | version_and_variant)
