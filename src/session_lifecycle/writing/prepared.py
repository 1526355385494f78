"""PreparedItem: what is stored of one item, and the ids of usage events."""

import hashlib
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic_core import to_json

from session_lifecycle.models import End, Item, Message, Run, Step, Touch, UsageEvent
from session_lifecycle.models.json_payloads import folded
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.pricing.catalogue import PriceCatalogue

WritableItem = Item | Reopen

# A field is sent only if it is set: not None, zero, False or empty. `record_v1` has the same defaults.
_USAGE_FIELDS = (
    "user_id",
    "session_id",
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
)
_SESSION_FIELDS: dict[type, tuple[str, ...]] = {
    Touch: (
        "user_id",
        "session_id",
        "at",
        "dataset_id",
        "agent_name",
        "title",
        "metadata",
        "tags",
        "parent_session_id",
        "waiting",
    ),
    End: ("user_id", "session_id", "at", "status", "reason"),
    Reopen: ("user_id", "session_id", "at"),
}
_KINDS = {Touch: "touch", End: "end", Reopen: "reopen", Run: "run", Step: "step", Message: "message"}
# A usage event with one of these fields depends on more than its session, or changes totals that few sessions have.
_NOT_PLAIN = {"revision", "key_scope", "run_id", "parts", "billing", "usage_kind", "service_tier", "partial"}
# A touch with one of these fields is not plain: only the long way writes them.
_NOT_PLAIN_OF_TOUCH = {"metadata", "tags", "parent_session_id", "waiting"}
# The digit with the variant of RFC 9562, by the digit that was there.
_VARIANT = {f"{digit:x}": f"{0b1000 | digit & 0b0011:x}" for digit in range(16)}


class DependsOn(Enum):
    """What an item must not overtake, and what must not overtake it."""

    SESSION = auto()
    """The other items of its session."""
    SESSION_ALONE = auto()
    """The same, and no other item of its session may be in its wave: an end, a reopening, metadata and tags."""
    RUN = auto()
    """The items of its run's session, which may be another session than the one it names."""
    USER = auto()
    """All items of its user: the first event with its key may belong to any session of the user."""


class PreparedItem(NamedTuple):
    """An item and what is stored of it, in the shape that the database function `record_v1` reads."""

    item: WritableItem
    session_id: str | None
    """The session that the item names; None for an item that names none."""
    change: bytes
    """What the item does to its session, as JSON; empty for an item that names no session."""
    activity: dict[str, Any] | None
    """The fields of the run, step or message; None for other items."""
    key: Hashable
    """At most one item of a wave may have this key: the id of a keyed event, run, step or message; else None."""
    latest_at: datetime | None
    """The latest time that the item names; None if it names none."""
    depends_on: DependsOn
    """Says nothing for an item that names no session."""
    is_plain: bool
    """Whether it is a touch or a usage event that depends on nothing but its session and whether its key is new."""
    is_repeatable: bool
    """Whether the item can safely be recorded again when its first recording may have been committed."""


def needs_price(item: WritableItem) -> bool:
    """Whether the price catalogue must be loaded before the item is prepared."""
    return isinstance(item, UsageEvent) and item.cost_usd is None and item.has_use


def prepare(item: WritableItem, prices: PriceCatalogue) -> PreparedItem:
    """Prices the item and collects its stored fields. If `needs_price` holds, the catalogue must be loaded."""
    match item:
        case UsageEvent():
            return _prepare_usage(item, prices)
        case Touch() | End() | Reopen():
            return _prepare_session_item(item)
        case Run() | Step() | Message():
            return _prepare_activity(item)


def _prepare_usage(event: UsageEvent, prices: PriceCatalogue) -> PreparedItem:
    if event.is_nothing:
        nothing = {"kind": "nothing", "user_id": event.user_id, "session_id": event.session_id, "cost_usd": 0}
        return PreparedItem(
            event,
            event.session_id,
            to_json(nothing),
            None,
            None,
            event.at,
            DependsOn.SESSION,
            is_plain=False,
            is_repeatable=True,
        )
    depends_on = _depends_on(event)
    fields = _given(event, _USAGE_FIELDS)
    fields["kind"] = "usage"
    event_id = event_id_of(event)
    fields["event_id"] = event_id
    if not event.touch:
        fields["touch"] = False
    if not event.measured:
        fields["measured"] = False
    has_key = event.idempotency_key is not None
    if depends_on is DependsOn.USER:
        fields["key_scope"] = "user"
    if parts := event.rare_parts:
        fields["parts"] = parts
    if event.kind != "llm":
        fields["usage_kind"] = event.kind
    if event.service_tier != "standard":
        fields["service_tier"] = event.service_tier
    if event.partial:
        fields["partial"] = True
    fields |= cost_fields(event, prices)
    if event.billing == "plan":
        # The price of plan usage is no cost.
        fields["billing"] = "plan"
        fields["plan_cost_usd"] = fields.get("cost_usd")
        fields["cost_usd"] = 0
    key = event_id if has_key else None
    is_plain = _NOT_PLAIN.isdisjoint(fields)
    return PreparedItem(
        event, event.session_id, to_json(fields), None, key, event.at, depends_on, is_plain, is_repeatable=has_key
    )


def _depends_on(event: UsageEvent) -> DependsOn:
    if event.key_scope == "user" and event.idempotency_key is not None:
        return DependsOn.USER
    return DependsOn.SESSION if event.run_id is None else DependsOn.RUN


def _prepare_session_item(item: Touch | End | Reopen) -> PreparedItem:
    fields = _given(item, _SESSION_FIELDS[type(item)])
    fields["kind"] = _KINDS[type(item)]
    is_touch = isinstance(item, Touch)
    is_alone = not is_touch or "metadata" in fields or "tags" in fields
    return PreparedItem(
        item,
        item.session_id,
        to_json(fields),
        None,
        None,
        item.at,
        DependsOn.SESSION_ALONE if is_alone else DependsOn.SESSION,
        is_plain=is_touch and _NOT_PLAIN_OF_TOUCH.isdisjoint(fields),
        is_repeatable=True,
    )


def _prepare_activity(item: Run | Step | Message) -> PreparedItem:
    given = vars(item)  # not by iterating, which looks at each name: this is done for every item of an agent
    activity = {name: value for name in type(item).model_fields if (value := given[name]) is not None}
    activity["kind"] = _KINDS[type(item)]
    parent_session_id = activity.pop("parent_session_id", None)  # of the session, not of the run
    if not item.revision:
        del activity["revision"]
    touch: dict[str, Any] | None = None
    depends_on = DependsOn.SESSION
    match item:
        case Run():
            key: Hashable = (Run, item.user_id, item.run_id)
            latest_at = max(item.started_at, item.ended_at or item.started_at)
            depends_on = DependsOn.RUN
            if item.session_id is not None:
                touch = {"session_id": item.session_id, "began_at": item.started_at, "run_id": item.run_id}
                touch |= {name: activity[name] for name in ("dataset_id", "agent_name") if name in activity}
                if parent_session_id is not None:
                    touch["parent_session_id"] = parent_session_id
        case Step():
            key = (Step, item.user_id, item.run_id, item.step_id)
            latest_at = max(item.started_at, item.ended_at or item.started_at)
            activity["step_kind"] = item.kind
        case Message():
            key = (Message, item.user_id, item.session_id, item.message_id)
            latest_at = item.created_at
            activity["content_folded"] = folded(item.content)
            touch = {"session_id": item.session_id}
    session_id, change = None, b""
    if touch is not None:
        session_id = touch["session_id"]
        change = to_json(touch | {"kind": "touch", "user_id": item.user_id, "at": latest_at, "answers": False})
    return PreparedItem(
        item, session_id, change, activity, key, latest_at, depends_on, is_plain=False, is_repeatable=True
    )


def _given(item: UsageEvent | Touch | End | Reopen, names: Sequence[str]) -> dict[str, Any]:
    given = vars(item)
    return {name: value for name in names if (value := given[name])}


def cost_fields(event: UsageEvent, prices: PriceCatalogue) -> dict[str, Any]:
    """The event's cost, and the unit prices it was computed with (rule R07); no cost if the price is unknown."""
    if event.cost_usd is not None:
        return {"cost_usd": event.cost_usd, "given_cost_usd": event.cost_usd, "price_source": "given"}
    if not event.has_use:
        return {"cost_usd": 0} if event.measured else {}
    price = prices.price(
        model=event.model,
        provider=event.provider,
        # The database's clock is unknown here. Prices change by the day, and the clocks differ by less.
        at=event.at or datetime.now(UTC),
        service_tier=event.service_tier,
        tokens_in=event.tokens_in,
        tokens_out=event.tokens_out,
        cache_read_tokens=event.cache_read_tokens,
        cache_write_tokens=event.cache_write_tokens,
        reasoning_tokens=event.reasoning_tokens,
        **event.rare_parts,
    )
    if price is None:
        return {}
    return {"cost_usd": price.cost_usd, "price_source": price.source, "unit_prices": price.unit_prices}


def event_id_of(event: UsageEvent) -> str:
    """The event's id in hexadecimal: with a key, a UUIDv8 (RFC 9562) of the key and its scope; else a random UUID."""
    if event.idempotency_key is None:
        return uuid4().hex
    # No session id is empty, so a key of the user's scope never equals a key of a session's scope. The length prefix
    # separates session id and key unambiguously. The database function `keyed_event_id` derives the same id.
    session_id = event.session_id if event.key_scope == "session" else ""
    name = f"{len(session_id)}:{session_id}{event.idempotency_key}".encode()
    digest = hashlib.sha256(event.user_id.bytes + name).hexdigest()
    # The version and the variant take the place of a digit and of the two high bits of another one.
    return f"{digest[:12]}8{digest[13:16]}{_VARIANT[digest[16]]}{digest[17:32]}"
