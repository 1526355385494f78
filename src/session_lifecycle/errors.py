"""Every error this library raises.

Their tree::

    SessionLifecycleError
    ├── InvalidValueError            (also ValueError) a value was refused; nothing was written
    ├── ConfigurationError           a setting, an argument or the environment does not work
    ├── SchemaError                  the schema is not migrated, lacks something this version uses, or is newer and
    │                                does not serve this version
    ├── DatabaseUnavailableError     the database cannot be reached, did not answer, or is out of a resource
    ├── TransactionConflictError     lost a conflict with a concurrent transaction; retry the call
    ├── PartlyWrittenError           a call over several buckets failed in some of them
    ├── BudgetExceededError          a call of a model would exceed a budget
    ├── RecorderFullError            the recorder has no room, and the call does not wait for room
    ├── RecorderClosedError          the recorder is closed or not yet open
    └── SpoolError                   the spool cannot be written or read, or another drainer is at work
        └── SpoolFullError           the spool has no room

A failure of Postgres without a class of its own is raised as `SessionLifecycleError`. The driver's error is always kept
as `__cause__`.
"""

from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID


class SessionLifecycleError(Exception):
    """The root of all errors of this library."""


class InvalidValueError(SessionLifecycleError, ValueError):
    """A value was refused, and nothing was written.

    Attributes:
        field: The argument or field that the value was given for.
        value: The value, as given.
        expected: A description of the values that are accepted.
    """

    def __init__(self, field: str, value: Any, expected: str) -> None:
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(field, value, expected)

    def __str__(self) -> str:
        return f"{self.field}: got {shortened(self.value)}, expected {self.expected}"


class ConfigurationError(SessionLifecycleError):
    """A setting, an argument or the environment does not work, or the database refuses the user or the access.

    The message says what was found.
    """


class SchemaError(SessionLifecycleError):
    """The schema is not migrated, lacks something this version uses, or is newer and does not serve this version.

    The message names what to do, in most cases a command to run.
    """


class DatabaseUnavailableError(SessionLifecycleError):
    """The database cannot be reached, did not answer, cancelled the statement, is out of a resource, or is read-only.

    The caller can safely repeat every call but a recording of usage without an `idempotency_key`. Outside a host's
    transaction, a failure that may pass has already been retried where that is safe, up to `Settings.retries` times.

    Attributes:
        may_have_written: Whether a write may have taken effect although its answer was lost. False: it wrote nothing. A
            job of several transactions speaks of its last one; those before it are committed.
    """

    def __init__(self, message: str, *, may_have_written: bool = False) -> None:
        self.may_have_written = may_have_written
        super().__init__(message)


class TransactionConflictError(SessionLifecycleError):
    """The call lost a conflict with a concurrent transaction; nothing was written. Retry the call.

    A conflict is a deadlock, a serialization failure, a lock timeout, or the deletion of the session. On the pool, the
    error is raised after all retries. Inside a host's transaction, it is raised at once, as nothing can be retried
    there; it is also raised if that transaction is not READ COMMITTED.
    """


class PartlyWrittenError(SessionLifecycleError):
    """A call over several buckets failed in some of them, and wrote what belongs to the others.

    Items with an idempotency key can safely be recorded again, all of them. The error of the first bucket that failed
    is the cause.

    Attributes:
        receipts: A receipt for each item that was written, in the order of the items; None for every other item.
        errors: The error of each item that was not written, by its position. Where it is a `DatabaseUnavailableError`,
            its `may_have_written` says whether the item may have been written all the same.
    """

    def __init__(self, receipts: Sequence[Any], errors: Mapping[int, SessionLifecycleError]) -> None:
        self.receipts = tuple(receipts)
        self.errors = dict(errors)
        super().__init__(receipts, errors)

    @property
    def may_have_written(self) -> tuple[int, ...]:
        """The positions of the items of which nobody knows whether they were written."""
        return tuple(at for at, error in self.errors.items() if getattr(error, "may_have_written", False))

    def __str__(self) -> str:
        first = next(iter(self.errors.values()), None)
        unknown = f" ({len(self.may_have_written)} may have been written)" if self.may_have_written else ""
        return f"{len(self.errors)} of {len(self.receipts)} items were not written{unknown}: {first}"


class BudgetExceededError(SessionLifecycleError):
    """A call of a model would exceed a budget, so nothing was reserved for it.

    `Reservation.raise_if_refused` raises it, and the adapters of runtimes do that are given `budgets`. No call of this
    library does.

    Attributes:
        budget_ids: The budgets that refuse the call. Empty where an adapter could not ask them, and the host wants that
            to be refused.
    """

    def __init__(self, budget_ids: Sequence[str], message: str) -> None:
        self.budget_ids = tuple(budget_ids)
        super().__init__(message)


class RecorderFullError(SessionLifecycleError):
    """The recorder has `max_pending` items and the call does not wait for room. The items were not queued."""


class RecorderClosedError(SessionLifecycleError):
    """The recorder is closing, closed or not yet open.

    New items are not queued. Items that were pending when the recorder closed may have been written.
    """


class SpoolError(SessionLifecycleError):
    """The spool cannot be written or read, is locked for too long, is damaged, or another drainer is at work.

    The message says which. Items of an `append` that raises it were not kept.
    """


class SpoolFullError(SpoolError):
    """The items do not fit into the spool's `max_bytes`, or the disk is full. None of them was kept."""


def shortened(value: Any, limit: int = 80) -> str:
    """The value as a message shows it, in ASCII, cut after `limit` characters.

    A time is shown as ISO 8601 text, an id and a number as they are written, anything else as its repr.
    """
    try:
        text = _readable(value)
    except Exception as error:  # noqa: BLE001 - a broken repr must not hide the refusal it is quoted in
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _readable(value: Any) -> str:
    match value:
        case date() | time():
            return value.isoformat()
        case UUID() | Decimal() | timedelta():
            return str(value)
        case Enum():
            return _readable(value.value)
        case _:
            return ascii(value)


def described(cause: BaseException) -> str:
    """The cause as a message quotes it: its class and its text, or its class alone where it has no text."""
    name, text = type(cause).__name__, str(cause)
    return f"{name}: {text}" if text else name
