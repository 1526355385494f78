"""PayloadPolicy: applies the host's redaction, then the size limit, before anything is stored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.models import End, Item, Message, Run, Step

Redact = Callable[[Item], Item]
"""The host's hook: returns the item without content that must not be stored, often by `item.model_copy(update=…)`."""

# The fields that identify an item. A redaction must not change them.
_IDENTITY = ("user_id", "session_id", "run_id", "step_id", "message_id", "idempotency_key", "key_scope", "revision")
_TEXTS = {Run: ("name", "error"), Step: ("name", "server_url"), Message: ("content",)}
_JSON = {
    Run: ("input", "output", "metadata"),
    Step: ("inputs", "output", "prompt", "errors", "metadata"),
    Message: ("metadata",),
}


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
        if self.redact is not None and not isinstance(item, End):
            item = _redact(item, self.redact)
        if isinstance(item, Run | Step | Message):
            changes = self._truncations(item)
            return item.model_copy(update=changes) if changes else item
        return item

    def _truncations(self, item: Run | Step | Message) -> dict[str, Any]:
        """The truncated values of the fields that are too large, by field name."""
        changes: dict[str, Any] = {}
        for name in _TEXTS[type(item)]:
            text = getattr(item, name)
            # UTF-8 takes at most four bytes a character, so most texts need no encoding here.
            if text and len(text) * 4 > self.limit_bytes and (size := len(text.encode())) > self.limit_bytes:
                self._refuse_if_asked(name, size)
                beginning = text.encode()[: self.limit_bytes].decode(errors="ignore")
                changes[name] = f"{beginning}… (truncated, {size} bytes)"
        for name in _JSON[type(item)]:
            value = getattr(item, name)
            if value is not None and (size := len(json := to_json(value))) > self.limit_bytes:
                self._refuse_if_asked(name, size)
                beginning = json[: self.limit_bytes].decode(errors="ignore")
                changes[name] = {"truncated": True, "bytes": size, "beginning": beginning}
        return changes

    def _refuse_if_asked(self, name: str, size: int) -> None:
        if self.when_larger == "refuse":
            raise InvalidValueError(name, f"{size} bytes", f"at most {self.limit_bytes} bytes")


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
