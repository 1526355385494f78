"""Every error this library raises.

    SessionLifecycleError
    ├── InvalidValueError            (also ValueError) a value was refused; nothing was written
    ├── ConfigurationError           the library, or what it was given to work with, is set up wrongly
    ├── SchemaError                  the database is not migrated, or migrated further than this version knows
    ├── DatabaseUnavailableError     the database cannot be reached, or stopped answering
    ├── TransactionConflictError     another transaction was in the way, and repeating is the caller's to do
    ├── RecorderFullError            the recorder's queue is full and it was told not to wait
    └── RecorderClosedError          the recorder takes nothing more

Anything Postgres refuses that has no better name is raised as `SessionLifecycleError` itself. The driver's own error is
always kept as `__cause__`.
"""

from typing import Any


class SessionLifecycleError(Exception):
    """The root of all errors of this library."""


class InvalidValueError(SessionLifecycleError, ValueError):
    """A value was refused, and nothing was written.

    Attributes:
        field: The argument or field the value was given for.
        value: The value, as given.
        expected: What would have been accepted.
    """

    def __init__(self, field: str, value: Any, expected: str) -> None:
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(field, value, expected)

    def __str__(self) -> str:
        return f"{self.field}: got {shortened(self.value)}, expected {self.expected}"


class ConfigurationError(SessionLifecycleError):
    """The library, or what it was given to work with, is set up wrongly. The message names the setting."""


class SchemaError(SessionLifecycleError):
    """The database's schema is not the one this version works with. The message names the command to run."""


class DatabaseUnavailableError(SessionLifecycleError):
    """The database could not be reached, or the connection was lost before it answered.

    Repeating is safe for everything but usage without an `idempotency_key`; what is safe has already been repeated a
    few times before this is raised.

    Attributes:
        may_have_written: Whether a write may have taken effect, its answer being lost. False: certainly nothing.
    """

    def __init__(self, message: str, *, may_have_written: bool = False) -> None:
        self.may_have_written = may_have_written
        super().__init__(message)


class TransactionConflictError(SessionLifecycleError):
    """Another transaction was in the way (a deadlock, a serialization failure, a lock timeout); nothing was written.

    Raised after the repeats are used up, or at once inside a host's transaction, where nothing can be repeated.
    """


class RecorderFullError(SessionLifecycleError):
    """The recorder's queue is full and it was told not to wait. The item was not taken in."""


class RecorderClosedError(SessionLifecycleError):
    """The recorder is closing or closed. The item was not taken in."""


def shortened(value: Any, limit: int = 80) -> str:
    """The value as a message may show it: its repr, printable everywhere and cut to `limit` characters."""
    try:
        text = ascii(value)
    except Exception as error:  # noqa: BLE001 - a broken repr must not hide the refusal it is quoted in
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
