"""What the host's payloads go through before anything is stored: its own redaction, then a limit of size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.models import End, Item, Message, Run, Step

Redact = Callable[[Item], Item]
"""A host's hook: the item with what must not be stored taken out or replaced, often by `item.model_copy(update=…)`."""

# What an item is known by, which a redaction leaves alone.
_IDENTITY = ("user_id", "session_id", "run_id", "step_id", "message_id", "idempotency_key", "key_scope", "revision")
_TEXTS = {Run: ("name", "error"), Step: ("name", "server_url"), Message: ("content",)}
_JSON = {
    Run: ("input", "output", "metadata"),
    Step: ("inputs", "output", "prompt", "errors", "metadata"),
    Message: ("metadata",),
}


@dataclass(frozen=True)
class PayloadPolicy:
    """What is done to payloads, of a database's items."""

    limit_bytes: int
    when_larger: Literal["truncate", "refuse"]
    redact: Redact | None = None

    def applied(self, item: Item) -> Item:
        """The item as it may be stored.

        Raises:
            InvalidValueError: A payload is too large and is to be refused, or the redaction made another item of it.
            SessionLifecycleError: The redaction failed; its error is the cause.
        """
        if self.redact is not None and not isinstance(item, End):
            item = self._redacted(item, self.redact)
        if isinstance(item, Run | Step | Message):
            changes = self._cut(item)
            return item.model_copy(update=changes) if changes else item
        return item

    def _redacted(self, item: Item, redact: Redact) -> Item:
        try:
            redacted = redact(item)
        except Exception as error:
            # Neither the item nor the error's own words: they may hold what was to be taken out.
            raise SessionLifecycleError(f"redact failed ({type(error).__name__}), and nothing was stored") from error
        same = type(redacted) is type(item) and all(
            getattr(redacted, name, None) == getattr(item, name, None) for name in _IDENTITY
        )
        if not same:
            told = f"another {type(redacted).__name__}"
            raise InvalidValueError("redact", told, "the same item, of the same ids, with other content")
        # A copy is not validated: once more, so that what is stored is what may be.
        return type(item).of_call(**dict(redacted))

    def _cut(self, item: Run | Step | Message) -> dict[str, Any]:
        """The fields that are too large, cut."""
        changes: dict[str, Any] = {}
        for name in _TEXTS[type(item)]:
            text = getattr(item, name)
            # No character takes more than four bytes.
            if text and len(text) * 4 > self.limit_bytes and (size := len(text.encode())) > self.limit_bytes:
                self._check(name, size)
                beginning = text.encode()[: self.limit_bytes].decode(errors="ignore")
                changes[name] = f"{beginning}… (truncated, {size} bytes)"
        for name in _JSON[type(item)]:
            value = getattr(item, name)
            if value is not None and (size := len(json := to_json(value))) > self.limit_bytes:
                self._check(name, size)
                beginning = json[: self.limit_bytes].decode(errors="ignore")
                changes[name] = {"truncated": True, "bytes": size, "beginning": beginning}
        return changes

    def _check(self, name: str, size: int) -> None:
        if self.when_larger == "refuse":
            raise InvalidValueError(name, f"{size} bytes", f"at most {self.limit_bytes} bytes")
