"""What this library needs of a database and of a host's engine, looked at before the first call."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Double,
    Numeric,
    Text,
    Uuid,
    cast,
    column,
    exc,
    func,
    literal,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from session_lifecycle.errors import ConfigurationError
from session_lifecycle.postgres.engines import DEADLINE_MARGIN_SECONDS
from session_lifecycle.postgres.failures import driver_error

ENCODING = "UTF8"
_ID = UUID("0192f0c1-5f3a-7b6e-8c11-0242ac120002")
_MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
# No float holds this number.
_NUMBER = Decimal("12345678901234567890.123456789012345678901234567891")
_RATIO = 0.1 + 0.2


class _Probe(NamedTuple):
    """A value that the database sends back as it came, unless the engine has a codec of its own."""

    name: str
    type: TypeEngine[Any]
    value: Any


_PROBES = (
    _Probe("numeric", Numeric(), _NUMBER),
    _Probe("uuid", Uuid(), _ID),
    _Probe("uuid[]", ARRAY(Uuid()), [_ID]),
    _Probe("timestamptz", DateTime(timezone=True), _MOMENT),
    _Probe("text", Text(), "é"),
    _Probe("text[]", ARRAY(Text()), ["é"]),
    _Probe("bigint", BigInteger(), 2**62),
    _Probe("boolean", Boolean(), True),
    _Probe("double precision", Double(), _RATIO),
    _Probe("jsonb", JSONB(), {"a": [1, _RATIO, "é", None]}),
)


class HostSettings(NamedTuple):
    """What a host's engine makes of our statements."""

    isolation: str
    """The isolation level of a statement outside a transaction, in Postgres's words."""
    deadline_seconds: float | None
    """How long a client waits for a statement: a little longer than the server's timeout; None without a timeout."""


def check_encoding(connection: AsyncConnection) -> None:
    """Checks the encoding of the database, without a round trip.

    Raises:
        ConfigurationError: The encoding is not UTF8, so the database cannot hold every text.
    """
    settings = driver_connection(connection).get_settings()
    encoding = getattr(settings, "server_encoding", ENCODING)  # a pooler may keep it to itself
    if encoding != ENCODING:
        raise ConfigurationError(
            f"the database has the encoding {encoding}, expected {ENCODING}: another one cannot hold every text. "
            f"Create a database with `ENCODING '{ENCODING}'`"
        )


async def look_at_host_engine(connection: AsyncConnection) -> HostSettings:
    """Sends one value of each type through the engine and reads the settings that matter. One round trip.

    Raises:
        ConfigurationError: A value comes back as another one: the engine has a codec of its own, or the session has
            other settings.
    """
    timeout = (
        select(cast(column("setting", Text), BigInteger))
        .select_from(table("pg_settings", schema="pg_catalog"))
        .where(column("name", Text) == "statement_timeout")
        .scalar_subquery()
    )
    # Our answers come as JSON, which holds a float as the session's extra_float_digits says.
    in_json: ColumnElement[Any] = func.json_build_object("ratio", cast(literal(_RATIO, Double()), Double()), type_=JSON)
    echoes = [cast(literal(probe.value, probe.type), probe.type) for probe in _PROBES]
    isolation = func.current_setting("transaction_isolation", type_=Text)
    try:
        row = (await connection.execute(select(isolation, timeout, in_json, *echoes))).one()
    except exc.DBAPIError as error:
        cause = driver_error(error)
        if not isinstance(cause, asyncpg.DataError):  # class 22 of the server, or asyncpg's own refusal
            raise
        raise ConfigurationError(
            f"the host's engine cannot send our values ({type(cause).__name__}): remove its codecs, or use "
            "SessionDatabase.connect"
        ) from error
    found: Sequence[Any] = tuple(row)
    found_isolation, timeout_ms, found_json, *values = found
    for probe, got in zip(_PROBES, values, strict=True):
        if not isinstance(got, type(probe.value)) or got != probe.value:
            raise ConfigurationError(
                f"the host's engine returns {got!r} for {probe.value!r} of the type {probe.name}: remove its codec for "
                "this type, or use SessionDatabase.connect"
            )
    if found_json != {"ratio": _RATIO}:
        raise ConfigurationError(
            f"the host's engine returns {found_json!r} for the float {_RATIO!r} in JSON: set extra_float_digits to 1 "
            "and remove its codec for json, or use SessionDatabase.connect"
        )
    return HostSettings(found_isolation, timeout_ms / 1000 + DEADLINE_MARGIN_SECONDS if timeout_ms else None)


def driver_connection(connection: AsyncConnection) -> Any:
    """The connection of asyncpg, without a round trip."""
    pooled = connection.sync_connection
    return None if pooled is None else pooled.connection.driver_connection
