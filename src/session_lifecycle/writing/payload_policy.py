"""PayloadPolicy: applies the host's redaction, then the size limit, before anything is stored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.models import End, Item, Message, Run, Step
from session_lifecycle.models.fields import beginning
from session_lifecycle.models.json_payloads import PAYLOAD_BYTES, json_size, safe_json

Redact = Callable[[Item], Item]
"""The host's hook: returns the item without content that must not be stored, often by `item.model_copy(update=…)`."""

# The fields that identify an item. A redaction must not change them.
_IDENTITY = ("user_id", "session_id", "run_id", "step_id", "message_id", "idempotency_key", "key_scope", "revision")
_WITH_PAYLOADS = (Run, Step, Message)
# The payloads that are text; the others are JSON.
_TEXTS = ("error", "content")


@dataclass(frozen=True)
class PayloadPolicy:
    """What a `SessionDatabase` does to an item before it is stored.

    Attributes:
        limit_bytes: The largest size of one payload, as UTF-8 text or JSON.
        when_larger: Whether a larger payload is truncated or its item refused.
        redact: The host's redaction; None: the items are stored as they are.
    """

    limit_bytes: int
    when_larger: Literal["truncate", "refuse"]
    redact: Redact | None = None

    def apply(self, item: Item) -> Item:
        """Returns the item as it may be stored.

        Raises:
            InvalidValueError: A payload is larger than `limit_bytes` and `when_larger` is `refuse`, or the redaction
                returned another item.
            SessionLifecycleError: The redaction raised; its error is the cause.
        """
        # An end without a reason has no content.
        if self.redact is not None and not (isinstance(item, End) and item.reason is None):
            item = _redact(item, self.redact)
        if isinstance(item, _WITH_PAYLOADS):
            changes = self._truncations(item)
            return item.model_copy(update=changes) if changes else item
        return item

    def _truncations(self, item: Run | Step | Message) -> dict[str, Any]:
        """The truncated values of the fields that are too large, by field name."""
        sizes = _sizes(item)
        limit = self.limit_bytes
        if sum(min(size, limit) for size in sizes.values()) > PAYLOAD_BYTES:
            # The item is one JSON value, and Postgres holds 256 MB in one.
            limit = PAYLOAD_BYTES // len(sizes)
        changes: dict[str, Any] = {}
        for name, size in sizes.items():
            if size > limit:
                if self.when_larger == "refuse":
                    raise InvalidValueError(name, f"{size} bytes", f"at most {limit} bytes")
                changes[name] = _truncated(name, getattr(item, name), size, limit)
        return changes


def _sizes(item: Run | Step | Message) -> dict[str, int]:
    """The size of each payload of the item in bytes, of text in UTF-8 and of all else as JSON, by field name."""
    match item:
        case Run():
            texts: dict[str, str | None] = {"error": item.error}
            values = {"input": item.input, "output": item.output, "metadata": item.metadata}
        case Step():
            texts = {}
            values = {
                "inputs": item.inputs,
                "output": item.output,
                "prompt": item.prompt,
                "errors": item.errors,
                "metadata": item.metadata,
            }
        case Message():
            texts = {"content": item.content}
            values = {"metadata": item.metadata}
    sizes = {name: len(text.encode()) for name, text in texts.items() if text}
    return sizes | {name: json_size(value) for name, value in values.items() if value is not None}


def _truncated(name: str, payload: Any, size: int, limit: int) -> Any:
    """The beginning of the payload with a mark. JSON is written about as far as it is kept, and not whole."""
    if name in _TEXTS:
        return f"{beginning(payload, limit)}… (truncated, {size} bytes)"
    kept = to_json(safe_json(payload, most_bytes=2 * limit))
    return {"truncated": True, "bytes": size, "beginning": kept[:limit].decode(errors="ignore")}


def _redact(item: Item, redact: Redact) -> Item:
    try:
        redacted = redact(item)
    except Exception as error:
        # The item and the error's text may hold the content to be redacted, so neither goes into this message.
        raise SessionLifecycleError(f"redact failed ({type(error).__name__}), and nothing was stored") from error
    is_same_item = type(redacted) is type(item) and all(
        getattr(redacted, name, None) == getattr(item, name, None) for name in _IDENTITY
    )
    if not is_same_item:
        found = f"another {type(redacted).__name__}"
        raise InvalidValueError("redact", found, "the same item with the same ids; only its content may change")
    # `model_copy` does not validate, so the redacted fields are validated here.
    return type(item).of_call(**dict(redacted))
