"""What is written: items, priced and put into waves, as `record_v3` reads them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from pydantic_core import to_json

from session_lifecycle.models import End, Item, Touch, UsageEvent
from session_lifecycle.models.items import Reopen
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
_KINDS = {Touch: "touch", End: "end", Reopen: "reopen"}


def is_repeatable(item: Writable) -> bool:
    """Whether recording it once more, after nobody knows whether it was, leaves the same."""
    return not isinstance(item, UsageEvent) or item.idempotency_key is not None or item.is_nothing


class Prepared(NamedTuple):
    """An item and, as JSON will have it, what is written of it."""

    item: Writable
    written: dict[str, Any]
    key: UUID | None
    """Its event's id, where an idempotency key makes it."""
    is_alone: bool
    """No other item of its session may be in its wave: an end, a reopening, and metadata."""
    is_plain: bool
    """A touch or a use that depends on nothing but its session and, with a key, on that being new."""


def is_to_be_priced(item: Writable) -> bool:
    """Whether the catalogue is needed for it."""
    return isinstance(item, UsageEvent) and item.cost_usd is None and item.has_tokens


def prepare(item: Writable, prices: PriceCatalogue) -> Prepared:
    """The item with its price; the catalogue is loaded, where it is needed."""
    written = _written(item, prices)
    key = written["event_id"] if "idempotency_key" in written else None
    is_alone = isinstance(item, End | Reopen) or "metadata" in written
    is_plain = not is_alone and not {"revision", "key_scope"} & written.keys() and written["kind"] != "nothing"
    return Prepared(item, written, key, is_alone, is_plain)


def parameters(prepared: Sequence[Prepared]) -> dict[str, Any]:
    """What `statements.recording.record` binds for these items."""
    waves: list[list[dict[str, Any]]] = [[]]
    of_key: dict[UUID, int] = {}
    of_user: dict[UUID, _UsersWaves] = defaultdict(_UsersWaves)
    latest_at: datetime | None = None
    is_plain = True
    for position, (item, written, key, is_alone, is_plain_item) in enumerate(prepared):
        not_before = 0 if key is None else of_key.get(key, -1) + 1
        wave = of_user[item.user_id].next_wave(
            item.session_id, not_before, is_alone=is_alone, is_anywhere="key_scope" in written
        )
        if key is not None:
            of_key[key] = wave
        while wave >= len(waves):
            waves.append([])
        written["position"] = position
        waves[wave].append(written)
        is_plain = is_plain and is_plain_item
        if item.at is not None and (latest_at is None or item.at > latest_at):
            latest_at = item.at
    return {"waves": to_json(waves).decode(), "latest_at": latest_at, "is_plain": is_plain and len(waves) == 1}


class _UsersWaves:
    """Which wave each of a user's items is in: the first in which nothing overtakes what it may depend on."""

    def __init__(self) -> None:
        # Of each session the wave of its last item, and whether that is alone with it.
        self._of_session: dict[str, tuple[int, bool]] = {}
        self._first = 0
        self._last = 0
        self._last_alone = -1
        self._last_anywhere = -1

    def next_wave(self, session_id: str, not_before: int, *, is_alone: bool, is_anywhere: bool) -> int:
        """The wave of the next item.

        Args:
            session_id: The session it names.
            not_before: The first wave in which its key is free.
            is_alone: No other item of its session may be in its wave.
            is_anywhere: Its key is of the user's scope: it may turn out to be of any session of the user.
        """
        wave, follows_alone = self._of_session.get(session_id, (0, False))
        if follows_alone or (is_alone and session_id in self._of_session):
            wave += 1
        wave = max(wave, self._first, not_before)
        if is_anywhere:
            wave = max(wave, self._last, self._last_alone + 1)
            self._first = self._last_anywhere = wave
        elif is_alone:
            wave = max(wave, self._last_anywhere + 1)
            self._last_alone = max(self._last_alone, wave)
        self._last = max(self._last, wave)
        self._of_session[session_id] = (wave, is_alone)
        return wave


def _written(item: Writable, prices: PriceCatalogue) -> dict[str, Any]:
    written: dict[str, Any] = {"user_id": item.user_id, "session_id": item.session_id}
    if isinstance(item, UsageEvent) and item.is_nothing:
        return written | {"kind": "nothing", "cost_usd": 0}
    for name in _OF_KIND[type(item)]:
        if value := getattr(item, name):
            written[name] = value
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
    # No session id is empty, so a key of the user's scope is never one of a session's; lengths keep the parts apart.
    session_id = event.session_id if event.key_scope == "session" else ""
    name = f"{len(session_id)}:{session_id}{event.idempotency_key}".encode()
    digest = int.from_bytes(hashlib.sha256(event.user_id.bytes + name).digest()[:16])
    version_and_variant = (0x8 << 76) | (0b10 << 62)
    return UUID(int=digest & ~((0xF << 76) | (0b11 << 62)) | version_and_variant)
