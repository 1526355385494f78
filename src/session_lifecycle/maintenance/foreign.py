"""Reads the tables of another system in its own Postgres, by a cursor and in one snapshot."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from decimal import Decimal
from typing import Any, NoReturn

from sqlalchemy import Select
from sqlalchemy.exc import DBAPIError

from session_lifecycle.errors import ConfigurationError
from session_lifecycle.postgres.engines import asyncpg_url, create_engine
from session_lifecycle.postgres.failures import DRIVER_FAILURES, driver_error, raise_as_ours
from session_lifecycle.settings import Settings, settings_of
from session_lifecycle.statements.maintenance.foreign import reference_sessions, spend_logs

ROWS_AT_ONCE = 200
_MISSING = {"42P01", "42703", "3F000"}
"""SQLSTATEs of a table, a column or a schema that does not exist."""
JsonRow = Mapping[str, Any]


async def reference_rows(
    url: str, schema: str, settings: Settings
) -> AsyncGenerator[tuple[JsonRow, Sequence[JsonRow]]]:
    """Yields the sessions of the reference's database, each with the rows of its models.

    Raises:
        ConfigurationError: The URL or the name of the schema is wrong, or the database has no such tables.
        DatabaseUnavailableError: The database cannot be reached.
    """
    async with aclosing(
        _rows(url, reference_sessions(settings_of(settings, schema).database_schema), settings)
    ) as rows:
        async for session, models in rows:
            yield _json(session), [] if models is None else _json(models)


async def spend_log_rows(url: str, schema: str, settings: Settings) -> AsyncGenerator[JsonRow]:
    """Yields the rows of LiteLLM's spend logs. It raises what `reference_rows` raises."""
    async with aclosing(_rows(url, spend_logs(settings_of(settings, schema).database_schema), settings)) as rows:
        async for (row,) in rows:
            yield _json(row)


def _json(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


async def _rows(url: str, statement: Select[*tuple[Any, ...]], settings: Settings) -> AsyncGenerator[Any]:
    engine = create_engine(asyncpg_url(url), settings, pgbouncer=False)
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    try:
        connection = await _connected(snapshot)
        try:
            batches = _batches(connection, statement)
            async with aclosing(batches):
                async for batch in batches:
                    for row in batch:
                        yield row
        finally:
            await connection.close()
    finally:
        await engine.dispose()


async def _connected(engine: Any) -> Any:
    try:
        return await engine.connect()
    except DRIVER_FAILURES as error:
        raise_as_ours(error)


async def _batches(connection: Any, statement: Select[*tuple[Any, ...]]) -> AsyncGenerator[Sequence[Any]]:
    try:
        result = await connection.stream(statement)
    except DRIVER_FAILURES as error:
        _raise(error)
    while True:
        try:
            batch = await result.fetchmany(ROWS_AT_ONCE)
        except DRIVER_FAILURES as error:
            _raise(error)
        if not batch:
            return
        yield batch


def _raise(error: Exception) -> NoReturn:
    state = getattr(driver_error(error), "sqlstate", None)
    if state in _MISSING:
        said = str(error.orig if isinstance(error, DBAPIError) else error).partition("\n")[0]
        raise ConfigurationError(f"the database has not the tables that are imported: {said}") from error
    raise_as_ours(error)
