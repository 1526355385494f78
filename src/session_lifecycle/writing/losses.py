"""Losses: what becomes of items that could not be written."""

import logging
from collections.abc import Callable, Iterable, Sequence

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.models import Item, Message, Run, Step, UsageEvent
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.writing.prepared import WritableItem

MOST_NAMED = 20
"""How many sessions and keys one line of the log names."""

OnLost = Callable[[Sequence[Item], SessionLifecycleError], object]
"""Called with items that could not be written, and with the error. There is no item where a value was refused."""

_logger = logging.getLogger(__name__)


def tell_loss(items: Sequence[WritableItem], error: SessionLifecycleError, on_lost: OnLost | None) -> None:
    """Logs a loss in one line, and calls the host's function.

    The line names sessions and keys, and quotes no content. What `on_lost` raises is logged, and goes no further.

    Args:
        items: What is lost. There is none where a value was refused before it was an item.
        error: Why.
        on_lost: The host's function.
    """
    reason = reason_of(error)
    sessions = _named(getattr(item, "session_id", None) for item in items)
    if items:
        keys = _named(map(_key, items))
        _logger.error("%d items could not be written: %s; sessions: %s; keys: %s", len(items), reason, sessions, keys)
    else:
        _logger.error("an item could not be made: %s", reason)
    if on_lost is None:
        return
    try:
        on_lost([item for item in items if not isinstance(item, Reopen)], error)
    except Exception:
        _logger.exception("on_lost failed for %d items of the sessions %s", len(items), sessions)


def reason_of(error: SessionLifecycleError) -> str:
    """What the log says of an error: no refused value, as that may be content, and which item it was of."""
    reason = f"{error.field}: expected {error.expected}" if isinstance(error, InvalidValueError) else str(error)
    return "; ".join([reason, *getattr(error, "__notes__", ())])


def _key(item: WritableItem) -> str | None:
    """What identifies an item beside its session."""
    match item:
        case UsageEvent():
            return item.idempotency_key
        case Run():
            return item.run_id
        case Step():
            return item.step_id
        case Message():
            return item.message_id
        case _:
            return None


def _named(names: Iterable[str | None]) -> str:
    """The different names as one text, at most `MOST_NAMED` of them."""
    different = list(dict.fromkeys(name for name in names if name is not None))
    text = ", ".join(ascii(name) for name in different[:MOST_NAMED]) or "none"
    return f"{text} and {len(different) - MOST_NAMED} more" if len(different) > MOST_NAMED else text
