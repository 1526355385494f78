"""QuietWriter: hands over the items of instrumentation, and never raises into the host."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.models import Item

_logger = logging.getLogger(__name__)


_IDS = ("session_id", "run_id", "step_id", "message_id", "idempotency_key")


class Abandonable(Protocol):
    """An open attempt."""

    def cancel(self) -> None:
        """Closes it without usage."""
        ...


class QuietWriter:
    """Makes items and hands them over. A failure is given to `lose`, and never raised.

    Attributes:
        open: The attempts that are open, so that they are closed when the recorder closes.
    """

    def __init__(
        self,
        submit: Callable[[Item], object],
        lose: Callable[[Sequence[Item], SessionLifecycleError], object],
    ) -> None:
        """Makes a writer.

        Args:
            submit: Takes an item and returns at once. May be called from any thread.
            lose: Counts and tells what could not be handed over. There is no item where a value was refused.
        """
        self._submit = submit
        self._lose = lose
        self.open: set[Abandonable] = set()
        self._changing = threading.Lock()

    def write(self, kind: type[Item], /, **fields: Any) -> SessionLifecycleError | None:
        """Makes the item and hands it over. Returns why that failed; None where it did not fail."""
        items: list[Item] = []
        try:
            items.append(kind.of_call(**fields))
            self._submit(items[0])
        except SessionLifecycleError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a bug of this library must not end the host's work
            failure = SessionLifecycleError(f"recording failed unexpectedly ({type(error).__name__})")
            failure.__cause__ = error
        else:
            return None
        if not items:
            refused = failure.field if isinstance(failure, InvalidValueError) else None
            failure.add_note(_named(kind, {name: text for name, text in fields.items() if name != refused}))
        self.fail(failure, items)
        return failure

    def fail(self, failure: SessionLifecycleError, items: Sequence[Item] = ()) -> None:
        """Counts and tells what is not recorded. There is no item where none could be made."""
        try:
            self._lose(items, failure)
        except Exception:
            _logger.exception("a loss could not be told")

    def opened(self, attempt: Abandonable) -> None:
        """Remembers an open attempt."""
        with self._changing:
            self.open.add(attempt)

    def closed(self, attempt: Abandonable) -> None:
        """Forgets an attempt that is closed, after what its end records was handed over."""
        with self._changing:
            self.open.discard(attempt)

    def cancel_open(self) -> None:
        """Closes every open attempt without usage."""
        for attempt in list(self.open):
            attempt.cancel()

    def forget(self) -> None:
        """In a forked child: the open attempts are the parent's."""
        self.open = set()
        self._changing = threading.Lock()


def _named(kind: type[Item], fields: dict[str, Any]) -> str:
    """Which item could not be made: its kind and its ids, and no content."""
    ids = [f"{name} {fields[name]!a}" for name in _IDS if isinstance(fields.get(name), str)]
    return ", ".join([kind.__name__, *ids])
