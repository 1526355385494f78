"""What the errors of the driver become: which of ours, with which sentence, and without content."""

import asyncio
from typing import Any

import asyncpg
import pytest
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from session_lifecycle.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    SchemaError,
    SessionLifecycleError,
    TransactionConflictError,
)
from session_lifecycle.postgres.failures import is_transient, raise_as_ours, wrote_nothing

SECRET = "the patient's diagnosis"
TIMED_OUT = "Postgres cancelled the statement, because of its statement timeout or at an operator's request"
DISK_FULL = "the disk of the database is full"
LOST = "the connection to the database was lost"
UNREACHABLE = "the database cannot be reached or did not answer"
AT_A_POOLER = "behind pgbouncer pass pgbouncer=True, and give commands a direct URL"


def from_server(sqlstate: str, message: str, **fields: str) -> asyncpg.PostgresError:
    """An error as asyncpg makes it of the server's fields, named by their letters in the protocol."""
    return asyncpg.PostgresError.new({"C": sqlstate, "M": message, **fields})


def raised(error: BaseException, **options: Any) -> SessionLifecycleError:
    with pytest.raises(SessionLifecycleError) as caught:
        raise_as_ours(error, **options)
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            from_server("57014", "canceling statement due to statement timeout"),
            f"{TIMED_OUT}: QueryCanceledError (57014): canceling statement due to statement timeout",
        ),
        (
            from_server("53100", "could not extend file", H="Check free disk space."),
            f"{DISK_FULL}: DiskFullError (53100): could not extend file",
        ),
        (
            from_server("53300", "sorry, too many clients already"),
            "the database has run out of a resource: TooManyConnectionsError (53300): sorry, too many clients already",
        ),
        (
            from_server("57P01", "terminating connection due to administrator command"),
            f"{LOST}: AdminShutdownError (57P01): terminating connection due to administrator command",
        ),
        (
            asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
            f"{LOST}: ConnectionDoesNotExistError (08003): connection was closed in the middle of operation",
        ),
        (asyncpg.InterfaceError("connection is closed"), f"{LOST}: InterfaceError: connection is closed"),
        (
            asyncpg.InternalClientError("cannot switch to state 15"),
            f"{LOST}: InternalClientError: cannot switch to state 15",
        ),
        (
            from_server("57P03", "the database system is starting up"),
            f"{UNREACHABLE}: CannotConnectNowError (57P03): the database system is starting up",
        ),
        (
            from_server("08P01", "unsupported startup parameter: x"),
            f"{UNREACHABLE}; {AT_A_POOLER}: ProtocolViolationError (08P01): unsupported startup parameter: x",
        ),
        (ConnectionRefusedError(111, "refused"), f"{UNREACHABLE}: ConnectionRefusedError: [Errno 111] refused"),
        (TimeoutError(), f"{UNREACHABLE}: TimeoutError"),
    ],
)
def test_X47_a_statement_timeout_a_full_disk_and_a_lost_connection_have_sentences_of_their_own(
    error: Exception, message: str
) -> None:
    ours = raised(error, may_have_written=True)
    assert isinstance(ours, DatabaseUnavailableError)
    assert (str(ours), ours.may_have_written) == (message, True)


FAILING_ROW = f"Failing row contains (1, {SECRET})."


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            from_server("23514", f"new row {SECRET}", D=FAILING_ROW, H=SECRET, n="ck_session_messages_content"),
            SessionLifecycleError,
            'Postgres rejected the statement: CheckViolationError (23514, constraint "ck_session_messages_content")',
        ),
        (
            from_server(
                "23505", "duplicate key", D=f"Key (content)=({SECRET}) already exists.", n="pk_session_messages"
            ),
            SessionLifecycleError,
            'Postgres rejected the statement: UniqueViolationError (23505, constraint "pk_session_messages")',
        ),
        (
            from_server("P0001", f"a host's trigger says {SECRET}", D=SECRET),
            SessionLifecycleError,
            "Postgres rejected the statement: RaiseError (P0001)",
        ),
        (
            from_server("22P02", f'invalid input syntax for type integer: "{SECRET}"', D=SECRET),
            InvalidValueError,
            "value: got 'InvalidTextRepresentationError (22P02)', expected a value whose totals the database can hold",
        ),
        (
            asyncpg.DataError(f"invalid input for query argument $1: {SECRET!r} (expected int)"),
            InvalidValueError,
            "value: got 'DataError (22000)', expected a value whose totals the database can hold",
        ),
        (
            from_server("40P01", "deadlock detected", D=f"Process 1: {SECRET}"),
            TransactionConflictError,
            "lost a conflict with a concurrent transaction (deadlock); retry the call (SQLSTATE 40P01)",
        ),
        (
            from_server("SL003", "a session was deleted meanwhile"),
            TransactionConflictError,
            "lost a conflict with a concurrent transaction (session deleted); retry the call (SQLSTATE SL003)",
        ),
        (
            from_server("42501", "permission denied for table t", D=SECRET),
            ConfigurationError,
            "the database refuses access: InsufficientPrivilegeError (42501): permission denied for table t",
        ),
        (
            from_server("42883", "function record_v1(text) does not exist", H=SECRET),
            SchemaError,
            (
                "the schema does not fit this version of the library: run `session-lifecycle db upgrade`; "
                "UndefinedFunctionError (42883): function record_v1(text) does not exist"
            ),
        ),
        (
            from_server("25006", "cannot execute INSERT", D=SECRET),
            DatabaseUnavailableError,
            "the database is read-only, as a replica is: ReadOnlySQLTransactionError (25006): cannot execute INSERT",
        ),
        (
            exc.ResourceClosedError(SECRET),
            SessionLifecycleError,
            "Postgres rejected the statement: ResourceClosedError",
        ),
    ],
)
def test_X47_no_content_gets_into_a_message(error: Exception, kind: type[Exception], message: str) -> None:
    ours = raised(error)
    assert type(ours) is kind
    assert str(ours) == message
    assert SECRET not in repr(ours)


def test_X47_no_content_gets_into_a_message_through_SQLAlchemy() -> None:
    """SQLAlchemy's own error quotes the statement, its parameters and the driver's text."""
    original = from_server("23514", "new row", D=FAILING_ROW, n="ck_session_messages_content")
    adapt: Any = AsyncAdapt_asyncpg_dbapi.IntegrityError  # its constructor is untyped
    adapted = adapt(str(original), original)
    adapted.__cause__ = original
    for error in (adapted, exc.IntegrityError(f"INSERT {SECRET}", {"content": SECRET}, adapted)):
        assert str(raised(error)) == (
            'Postgres rejected the statement: CheckViolationError (23514, constraint "ck_session_messages_content")'
        )


def test_a_user_who_was_erased_is_named() -> None:
    ours = raised(from_server("SL004", "the user was erased", D="00000000-0000-0000-0000-000000000001"))
    assert isinstance(ours, InvalidValueError)
    assert (ours.field, ours.value) == ("user_id", "00000000-0000-0000-0000-000000000001")


def test_a_pool_without_a_free_connection_is_named() -> None:
    ours = raised(exc.TimeoutError("QueuePool limit of size 1 overflow 0 reached"))
    assert isinstance(ours, DatabaseUnavailableError)
    assert str(ours) == "no connection of the pool became free in time: QueuePool limit of size 1 overflow 0 reached"


def test_a_timeout_of_the_event_loop_is_an_unreachable_database() -> None:
    async def wait() -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(1)

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(wait())
    assert str(raised(caught.value)).startswith(UNREACHABLE)


@pytest.mark.parametrize(
    "fields",
    [
        {"C": "57P01", "R": "ReportResultError"},
        {"C": "08006", "R": "ReportConnectionError"},
        {"C": "XX000", "R": "ReportResultError"},
        {"C": "XX000", "R": "MarkRemoteTransactionFailed"},
        {"C": "XX000", "R": "ReportCopyError"},
        {"C": "58030", "R": "ReportCopyError"},
    ],
)
def test_what_a_coordinator_says_of_a_lost_node_may_have_been_written(fields: dict[str, str]) -> None:
    """An ERROR, by which any other server says that it wrote nothing."""
    error = from_server(fields.pop("C"), SECRET, S="FEHLER", V="ERROR", **fields)
    assert not wrote_nothing(error)
    assert is_transient(error)
    found = raised(error)
    assert isinstance(found, DatabaseUnavailableError)
    assert "the coordinator lost its connection to a node" in str(found)


@pytest.mark.parametrize("state", ["XX000", "23514", "57014", "40001"])
def test_an_error_of_one_server_wrote_nothing(state: str) -> None:
    assert wrote_nothing(from_server(state, SECRET, V="ERROR", R="ProcessInterrupts"))
    assert is_transient(from_server(state, SECRET, V="ERROR", R="ProcessInterrupts")) == (state == "40001")


@pytest.mark.parametrize(
    ("sqlstate", "message"),
    [
        ("26000", 'prepared statement "__asyncpg_stmt_1__" does not exist'),
        ("42P05", 'prepared statement "__asyncpg_stmt_1__" already exists'),
    ],
)
def test_a_statement_of_another_connection_is_told_of_a_pooler(sqlstate: str, message: str) -> None:
    ours = raised(from_server(sqlstate, message))
    assert isinstance(ours, ConfigurationError)
    assert "pgbouncer=True" in str(ours)
    assert message in str(ours)
