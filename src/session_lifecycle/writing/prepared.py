"""PreparedItem: the stored fields of one item, and the ids of usage events."""

import hashlib
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from session_lifecycle.models import End, Item, Message, Run, Step, Touch, UsageEvent
from session_lifecycle.models.json_payloads import folded
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.pricing.catalogue import PriceCatalogue

WritableItem = Item | Reopen

# A field is sent only if it is set: not None, zero, False or empty. `record_v1` has the same defaults.
_USAGE_FIELDS = (
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
    Touch: ("at", "dataset_id", "agent_name", "title", "metadata", "tags", "parent_session_id", "waiting"),
    End: ("at", "status", "reason"),
    Reopen: ("at",),
}
_KINDS = {Touch: "touch", End: "end", Reopen: "reopen", Run: "run", Step: "step", Message: "message"}
# A usage event with one of these fields depends on more than its session, or changes totals that few sessions have.
_NOT_PLAIN = {"revision", "key_scope", "run_id", "parts", "billing", "usage_kind", "service_tier", "partial"}
# A touch with one of these fields is not plain: only the long way writes them.
_NOT_PLAIN_OF_TOUCH = {"metadata", "tags", "parent_session_id", "waiting"}


class PreparedItem(NamedTuple):
    """An item and its stored fields, in the shape that the database function `record_v1` reads."""

    item: WritableItem
    fields: dict[str, Any] | None
    """The fields of what the item does to its session; None for an item that names no session."""
    activity: dict[str, Any] | None
    """The fields of the run, step or message; None for other items."""
    key: Hashable
    """At most one item of a wave may have this key: the id of a keyed event, run, step or message; else None."""
    latest_at: datetime | None
    """The latest time that the item names; None if it names none."""
    is_alone: bool
    """Whether no other item of its session may be in its wave: true for an end, a reopening, metadata and tags."""
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
    fields: dict[str, Any] = {"user_id": event.user_id, "session_id": event.session_id}
    is_nothing, has_use, parts = event.is_nothing, event.has_use, event.rare_parts
    if is_nothing:
        fields |= {"kind": "nothing", "cost_usd": 0}
        return PreparedItem(event, fields, None, None, event.at, is_alone=False, is_plain=False, is_repeatable=True)
    fields |= _given(event, _USAGE_FIELDS)
    fields["kind"] = "usage"
    fields["event_id"] = event_id_of(event)
    if not event.touch:
        fields["touch"] = False
    if not event.measured:
        fields["measured"] = False
    has_key = event.idempotency_key is not None
    if event.key_scope == "user" and has_key:
        fields["key_scope"] = "user"
    if parts:
        fields["parts"] = parts
    if event.kind != "llm":
        fields["usage_kind"] = event.kind
    if event.service_tier != "standard":
        fields["service_tier"] = event.service_tier
    if event.partial:
        fields["partial"] = True
    _add_cost(fields, event, parts, prices, has_use=has_use)
    if event.billing == "plan":
        # The price of plan usage is no cost.
        fields["billing"] = "plan"
        fields["plan_cost_usd"] = fields.get("cost_usd")
        fields["cost_usd"] = 0
    key = fields["event_id"] if has_key else None
    is_plain = _NOT_PLAIN.isdisjoint(fields)
    return PreparedItem(event, fields, None, key, event.at, is_alone=False, is_plain=is_plain, is_repeatable=has_key)


def _prepare_session_item(item: Touch | End | Reopen) -> PreparedItem:
    fields = {"kind": _KINDS[type(item)], "user_id": item.user_id, "session_id": item.session_id}
    fields |= _given(item, _SESSION_FIELDS[type(item)])
    is_touch = isinstance(item, Touch)
    is_alone = not is_touch or "metadata" in fields or "tags" in fields
    is_plain = is_touch and _NOT_PLAIN_OF_TOUCH.isdisjoint(fields)
    return PreparedItem(item, fields, None, None, item.at, is_alone=is_alone, is_plain=is_plain, is_repeatable=True)


def _prepare_activity(item: Run | Step | Message) -> PreparedItem:
    given = vars(item)  # not by iterating, which looks at each name: this is done for every item of an agent
    activity = {name: value for name in type(item).model_fields if (value := given[name]) is not None}
    activity["kind"] = _KINDS[type(item)]
    parent_session_id = activity.pop("parent_session_id", None)  # of the session, not of the run
    if not item.revision:
        del activity["revision"]
    touch: dict[str, Any] | None = None
    match item:
        case Run():
            key: Hashable = (Run, item.user_id, item.run_id)
            latest_at = max(item.started_at, item.ended_at or item.started_at)
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
    if touch is not None:
        touch |= {"kind": "touch", "user_id": item.user_id, "at": latest_at, "answers": False}
    return PreparedItem(item, touch, activity, key, latest_at, is_alone=False, is_plain=False, is_repeatable=True)


def _given(item: UsageEvent | Touch | End | Reopen, names: Sequence[str]) -> dict[str, Any]:
    given = vars(item)
    return {name: value for name in names if (value := given[name])}


def _add_cost(
    fields: dict[str, Any], event: UsageEvent, parts: dict[str, int], prices: PriceCatalogue, *, has_use: bool
) -> None:
    """Adds the event's cost and the unit prices it was computed with (rule R07); no cost if the price is unknown."""
    if event.cost_usd is not None:
        fields["cost_usd"] = fields["given_cost_usd"] = event.cost_usd
        fields["price_source"] = "given"
    elif not has_use:
        if event.measured:
            fields["cost_usd"] = 0
    else:
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
            **parts,
        )
        if price is not None:
            fields["cost_usd"] = price.cost_usd
            fields["price_source"] = price.source
            fields["unit_prices"] = price.unit_prices


def event_id_of(event: UsageEvent) -> UUID:
    """The event's id: with a key, a UUIDv8 (RFC 9562) derived from the key and its scope; else a random UUID."""
    if event.idempotency_key is None:
        return uuid4()
    # No session id is empty, so a key of the user's scope never equals a key of a session's scope. The length prefix
    # separates session id and key unambiguously. The database function `keyed_event_id` derives the same id.
    session_id = event.session_id if event.key_scope == "session" else ""
    name = f"{len(session_id)}:{session_id}{event.idempotency_key}".encode()
    digest = int.from_bytes(hashlib.sha256(event.user_id.bytes + name).digest()[:16])
    version_and_variant = (0x8 << 76) | (0b10 << 62)
    return UUID(int=digest & ~((0xF << 76) | (0b11 << 62)) | version_and_variant)
