"""Driver failures: which may be retried, and which of our errors each one becomes.

A failure is recognised by its SQLSTATE or by the driver's class, never by its text. Our messages hold the SQLSTATE and
the constraint's name. They never hold a DETAIL or a value that Postgres quotes, as those may be message content. The
driver's error stays as `__cause__`.
"""

from typing import NoReturn

import asyncpg
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from session_lifecycle.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    SchemaError,
    SessionLifecycleError,
    TransactionConflictError,
    described,
)
from session_lifecycle.postgres.schema_check import UPGRADE_COMMAND

# https://www.postgresql.org/docs/current/errcodes-appendix.html
CONFLICTS = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55P03": "lock timeout",
    # Raised by our database functions, as are those of REFUSED.
    "SL001": "session ended or not there",
    "SL002": "another session to lock",
    "SL003": "session deleted",
}
FAR_AHEAD = "at most five minutes ahead of the database's clock"
# What our functions refuse: the field, and what is expected.
REFUSED = {
    "SL004": ("user_id", "a user who was not erased with a tombstone"),
    "SL005": ("parent_session_id", "the id of a session that does not descend from this one"),
    "SL006": ("timezone", "the name of a time zone that Postgres knows"),
    "SL007": ("budget_id", "at most 20 budgets of the same user, session, agent and dataset"),
    "SL008": ("at", FAR_AHEAD),
}
# Two transactions made the same row: the next attempt finds it.
UNIQUE_VIOLATION = "23505"
READ_ONLY = "25006"
MISSING = {"42P01", "42883", "42703", "3F000", "42704"}
REFUSED_ACCESS = {"42501", "3D000"}
# The server shuts down, crashed, starts up, or has no free connection.
TRANSIENT = {"57P01", "57P02", "57P03", "53300"}
CANCELLED = "57014"
# No server says so of its client's own connection as an ERROR, which keeps that connection. As an ERROR it is what a
# coordinator (Citus) says of its connection to a node, and the node may have committed.
LOST_NODE = {"08000", "08003", "08006", "57P01", "57P02"}
# Citus has no SQLSTATE of its own for a connection that ended without a word of the node, and says "internal error" or
# "I/O error". These functions of Citus say so. The reports of a result and of a COPY also hand on what is wrong there.
WITHOUT_STATE = {"XX000", "58030"}
SAY_LOST_NODE = {
    "CheckRemoteTransactionsHealth",
    "EndRemoteCopy",
    "ErrorIfPostCommitFailedShardPlacements",
    "FetchRemoteIntermediateResult",
    "FinishRemoteTransactionPrepare",
    "InitializeCopyShardState",
    "MarkRemoteTransactionFailed",
    "ReportCopyError",
    "ReportResultError",
    "ScheduleNextPlacementExecution",
    "SendCopyDataToPlacement",
    "fetch_intermediate_results",
}

_UNREACHABLE = "the database cannot be reached or did not answer"
_LOST = "the connection to the database was lost"
_LOST_NODE = "the coordinator lost its connection to a node of the database, or the node failed"
# By SQLSTATE, else by the class of the SQLSTATE: its first two characters.
UNAVAILABLE = {
    CANCELLED: "Postgres cancelled the statement, because of its statement timeout or at an operator's request",
    "53100": "the disk of the database is full",
    "53": "the database has run out of a resource",
    "08": _LOST,
    "08001": _UNREACHABLE,
    "08004": _UNREACHABLE,
    # A pooler refuses what it does not know of a connection.
    "08P01": f"{_UNREACHABLE}; behind pgbouncer pass pgbouncer=True, and give commands a direct URL",
    "57P01": _LOST,
    "57P02": _LOST,
    "57P05": _LOST,
    "57": _UNREACHABLE,
    "58": _UNREACHABLE,
}
OF_OTHER_CONNECTION = {"26000", "42P05"}
"""A prepared statement is missing, or is there already: a pooler gave the transaction another connection."""
# The classes in which Postgres's message names objects of the database, and no values.
CLASSES_WITHOUT_VALUES = {"08", "25", "26", "28", "3D", "3F", "42", "53", "57", "58"}

# SQLAlchemy adapts the driver's errors, and wraps the adapted error again only around its own statements.
AdaptedError = AsyncAdapt_asyncpg_dbapi.Error
DRIVER_FAILURES = (
    exc.SQLAlchemyError,
    AdaptedError,
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresError,
)


def is_connection_lost(driver: "asyncpg.Connection", error: BaseException) -> bool:
    """Whether the connection must not be used again.

    If a backend dies while a statement is being prepared, asyncpg may raise InternalClientError ("cannot switch to
    state") without closing the connection.
    """
    return isinstance(driver_error(error), asyncpg.InternalClientError | OSError | TimeoutError) or driver.is_closed()


def is_too_large(error: BaseException) -> bool:
    """Whether Postgres refused to build a value of more than 1 GB (program_limit_exceeded)."""
    return error.__cause__ is not None and _sqlstate(error.__cause__) == "54000"


def driver_error(error: BaseException) -> BaseException:
    """The error of asyncpg or of the network, unwrapped from SQLAlchemy's."""
    adapted = getattr(error, "orig", None) or error
    return adapted.__cause__ or adapted if isinstance(adapted, AdaptedError) else adapted


def _sqlstate(error: BaseException) -> str | None:
    return getattr(driver_error(error), "sqlstate", None)


def wrote_nothing(error: BaseException) -> bool:
    """Whether a statement that was sent certainly had no effect."""
    cause = driver_error(error)
    if isinstance(cause, asyncpg.PostgresError) and getattr(cause, "severity_en", None) == "ERROR":
        # The server rolled its transaction back and kept the connection.
        return not _lost_node(cause)
    return _sqlstate(error) in {*CONFLICTS, READ_ONLY, UNIQUE_VIOLATION} or _was_not_sent(cause)


def is_transient(error: BaseException) -> bool:
    """Whether the next attempt may succeed."""
    if isinstance(error, exc.TimeoutError):
        return False  # the pool has already waited for a free connection as long as it may
    cause, state = driver_error(error), _sqlstate(error) or ""
    is_lost = isinstance(cause, OSError | asyncpg.InternalClientError) or _was_not_sent(cause)
    is_lost = is_lost or _lost_node(cause)
    return is_lost or state[:2] == "08" or state in {*TRANSIENT, *CONFLICTS, READ_ONLY, UNIQUE_VIOLATION}


def was_cancelled(error: BaseException) -> bool:
    """Whether the server cancelled the statement."""
    return _sqlstate(error) == CANCELLED


def _lost_node(cause: BaseException) -> bool:
    """Whether the server lost its connection to another one, which may have committed."""
    if not isinstance(cause, asyncpg.PostgresError) or getattr(cause, "severity_en", None) != "ERROR":
        return False
    state = _sqlstate(cause)
    is_said = state in WITHOUT_STATE and getattr(cause, "server_source_function", None) in SAY_LOST_NODE
    return state in LOST_NODE or is_said


def _was_not_sent(cause: BaseException) -> bool:
    """Whether the plan was made for an older schema, or the driver knew that the connection was closed."""
    return isinstance(cause, asyncpg.InvalidCachedStatementError | asyncpg.InterfaceError)


def raise_as_ours(error: BaseException, *, may_have_written: bool = False) -> NoReturn:
    """Raises the error of this library that names the failure; the original is its cause.

    Raises:
        DatabaseUnavailableError: The database cannot be reached, lost the connection, cancelled the statement, is out
            of a resource, or is read-only.
        TransactionConflictError: A concurrent transaction won.
        InvalidValueError: Postgres cannot store a value, the user was erased, or a session would descend from itself;
            or a budget is refused, or a time is too far ahead.
        SchemaError: A table, column or function is missing.
        ConfigurationError: The database refuses the user or the access, or a pooler shares connections.
        SessionLifecycleError: Any other failure.
    """
    cause, state = driver_error(error), _sqlstate(error)
    failure = _describe(cause)
    if isinstance(error, exc.PendingRollbackError):
        raise SessionLifecycleError("the host's transaction failed before this call: roll it back") from error
    if isinstance(error, exc.TimeoutError):
        raise DatabaseUnavailableError(f"no connection of the pool became free in time: {error}") from error
    if (sentence := _unavailable(cause, state)) is not None:
        raise DatabaseUnavailableError(f"{sentence}: {failure}", may_have_written=may_have_written) from error
    if state == READ_ONLY:
        raise DatabaseUnavailableError(f"the database is read-only, as a replica is: {failure}") from error
    if state in REFUSED:
        # Our functions put nothing but the refused value into the detail.
        raise InvalidValueError(REFUSED[state][0], getattr(cause, "detail", None), REFUSED[state][1]) from error
    if state in CONFLICTS:
        raise TransactionConflictError(
            f"lost a conflict with a concurrent transaction ({CONFLICTS[state]}); retry the call (SQLSTATE {state})"
        ) from error
    if state in MISSING:
        raise SchemaError(
            f"the schema does not fit this version of the library: run `{UPGRADE_COMMAND}`; {failure}"
        ) from error
    if (sentence := _misconfigured(state)) is not None:
        raise ConfigurationError(f"{sentence}: {failure}") from error
    if state is not None and state[:2] == "22":  # asyncpg's own refusal of an argument as well
        raise InvalidValueError("value", failure, "a value whose totals the database can hold") from error
    raise SessionLifecycleError(f"Postgres rejected the statement: {failure}") from error


def _describe(cause: BaseException) -> str:
    """Error class, SQLSTATE and constraint; Postgres's message only where it quotes no value."""
    name = type(cause).__name__
    if isinstance(cause, asyncpg.PostgresError):
        state, constraint_name = _sqlstate(cause) or "", getattr(cause, "constraint_name", None)
        constraint = f', constraint "{constraint_name}"' if constraint_name else ""
        # Not `str(cause)`, which appends DETAIL and HINT.
        message = f": {cause.args[0]}" if state[:2] in CLASSES_WITHOUT_VALUES else ""
        return f"{name} ({state}{constraint}){message}"
    # Errors of SQLAlchemy quote the statement and its parameters.
    quotes_no_value = isinstance(cause, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)
    return described(cause) if quotes_no_value else name


def _unavailable(cause: BaseException, state: str | None) -> str | None:
    """The sentence for a database that does not serve; None for other failures."""
    if _lost_node(cause):
        return _LOST_NODE
    if state is not None:
        return UNAVAILABLE.get(state) or UNAVAILABLE.get(state[:2])
    if isinstance(cause, OSError | asyncpg.ClientConfigurationError | asyncpg.TargetServerAttributeNotMatched):
        return _UNREACHABLE
    return _LOST if isinstance(cause, asyncpg.InterfaceError | asyncpg.InternalClientError) else None


def _misconfigured(state: str | None) -> str | None:
    """The sentence for a set-up that the database refuses; None for other failures."""
    if state in OF_OTHER_CONNECTION:
        return (
            "a pooler gave this transaction another connection than the one that prepared the statement: pass "
            'pgbouncer=True, or connect_args={"statement_cache_size": 0} to an engine of your own'
        )
    if state in REFUSED_ACCESS:
        return "the database refuses access"
    return "the database refuses this user" if state is not None and state[:2] == "28" else None
