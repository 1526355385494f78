"""Notes of changed sessions: the triggers that send them, and a connection that listens.

A note says whose sessions a transaction has changed: ids of owners and datasets, and no content. Postgres sends it when
the transaction commits. The triggers are there only where a host asks for them. Without them, no statement pays
anything.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import asyncpg
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_lifecycle.entities import quoted
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours

CHANNEL = "session_lifecycle"
"""The channel of the notes of all schemas of a database. A schema's name may be longer than that of a channel."""
MOST_IDS = 10_000
"""How many ids a listener keeps that nobody has taken yet. With more, anybody's sessions may have changed."""
CHECK_SECONDS = 15.0
"""How long a listener hears nothing before it asks whether the server is still there."""
CLOSE_SECONDS = 2.0
_TRIGGERS = {
    "notify_of_insert": "INSERT ON {table} REFERENCING NEW TABLE AS changed",
    "notify_of_update": "UPDATE ON {table} REFERENCING OLD TABLE AS before NEW TABLE AS changed",
    "notify_of_delete": "DELETE ON {table} REFERENCING OLD TABLE AS changed",
}
_FOUND = text("""
SELECT pg_catalog.count(*)
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = 'session_records' AND t.tgname::text = ANY (CAST(:names AS text[]))
    AND t.tgenabled <> 'D'
""")


def drop_trigger_sql(schema: str) -> list[str]:
    """`DROP TRIGGER` of each trigger, where it is there."""
    return [f"DROP TRIGGER IF EXISTS {name} ON {quoted(schema)}.session_records" for name in _TRIGGERS]


def create_trigger_sql(schema: str) -> list[str]:
    """`CREATE TRIGGER` of each trigger."""
    table = f"{quoted(schema)}.session_records"
    return [
        f"CREATE TRIGGER {name} AFTER {event.replace('{table}', table)} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {quoted(schema)}.notify_of_changes_v1()"
        for name, event in _TRIGGERS.items()
    ]


def set_notes(connection: Connection, schema: str, *, on: bool) -> None:
    """Creates or drops the triggers. Takes no lock where they are as they should be."""
    found = connection.scalar(_FOUND, {"schema": schema, "names": list(_TRIGGERS)})
    if found == (len(_TRIGGERS) if on else 0):
        return
    for sql in (*drop_trigger_sql(schema), *(create_trigger_sql(schema) if on else ())):
        connection.execute(text(sql.replace(":", "\\:")))


async def sends_notes(connection: AsyncConnection, schema: str) -> bool:
    """Whether all triggers are there."""
    return bool(await connection.scalar(_FOUND, {"schema": schema, "names": list(_TRIGGERS)}) == len(_TRIGGERS))


class Notes:
    """What one connection hears. Made by `listening`."""

    def __init__(self, engine: AsyncEngine, driver: "asyncpg.Connection", schema: str) -> None:
        self._engine = engine
        self._driver = driver
        self._schema = schema
        self._ids: set[UUID] = set()
        self._concerns_everybody = False
        self._is_lost = False
        self._heard = asyncio.Event()

    async def start(self) -> None:
        """Begins to listen."""
        self._driver.add_termination_listener(self._lose)
        await self._driver.add_listener(CHANNEL, self._hear)

    def _lose(self, _driver: Any) -> None:
        self._is_lost = True
        self._heard.set()

    def _hear(self, _driver: Any, _pid: int, _channel: str, payload: str) -> None:
        schema, _, ids = payload.partition("\n")
        if schema != self._schema:
            return
        try:
            self._ids.update(map(UUID, ids.split()))
        except ValueError:  # `*`, or the note of somebody else
            self._concerns_everybody = True
        if len(self._ids) > MOST_IDS:
            self._concerns_everybody = True
        if self._concerns_everybody:
            self._ids.clear()
        self._heard.set()

    async def next(self) -> frozenset[UUID] | None:
        """Waits for notes. Returns the owners and datasets whose sessions changed; None: they may be anybody's.

        Raises:
            DatabaseUnavailableError: The connection is lost. Notes may have been missed.
            ConfigurationError: The database sends no notes any more.
        """
        while not self._heard.is_set():
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._heard.wait()
            except TimeoutError:
                await self._check()
        if self._is_lost:
            raise DatabaseUnavailableError("the connection that listens for changed sessions was lost")
        self._heard.clear()
        ids, everybody = frozenset(self._ids), self._concerns_everybody
        self._ids.clear()
        self._concerns_everybody = False
        return None if everybody else ids

    async def _check(self) -> None:
        """Notices a server that is silently gone, and notes that were switched off."""
        try:
            async with self._engine.connect() as connection:
                await refuse_without_notes(connection, self._schema)
            # Listening again changes nothing. `pg_stat_activity` shows it as the last statement of this connection.
            await self._driver.execute(f"LISTEN {CHANNEL}", timeout=CHECK_SECONDS)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)


async def refuse_without_notes(connection: AsyncConnection, schema: str) -> None:
    """Refuses to listen where nothing would be heard.

    Raises:
        ConfigurationError: The database sends no notes.
    """
    if not await sends_notes(connection, schema):
        raise ConfigurationError(
            "the database sends no notes of changed sessions: run `session-lifecycle db upgrade --notes`, or "
            "`db.migrate(notes=True)`"
        )


@asynccontextmanager
async def listening(engine: AsyncEngine, schema: str) -> AsyncGenerator[Notes]:
    """Listens on one connection beside the pool, until the block is left.

    Raises:
        ConfigurationError: The database sends no notes, or a pooler stands before it, through which none arrive.
        DatabaseUnavailableError: The database cannot be reached.
    """
    driver = None
    try:
        try:
            async with engine.connect() as connection:
                await refuse_without_notes(connection, schema)
            # It is held for long, so the pool lets go of it and may open another one.
            pooled = await engine.raw_connection()
            driver = cast("asyncpg.Connection", pooled.driver_connection)
            pooled.detach()
            # A pooler cannot give a client the process number of one backend.
            if driver.get_server_pid() != await driver.fetchval("SELECT pg_catalog.pg_backend_pid()"):
                raise ConfigurationError("a pooler stands before the database, and no note arrives through it")
            notes = Notes(engine, driver, schema)
            await notes.start()
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        yield notes
    finally:
        if driver is not None:
            await _close(driver)


async def _close(driver: "asyncpg.Connection") -> None:
    try:
        await driver.close(timeout=CLOSE_SECONDS)
    except DRIVER_FAILURES:
        driver.terminate()  # the server is gone, so there is nobody to say goodbye to
