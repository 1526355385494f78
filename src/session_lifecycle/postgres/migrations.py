"""Running Alembic: one process at a time, and without locking out writers.

A migration gives up a lock that it does not get (`short_locks.py`), and it builds an index on a table that is in use
without locking out writers.

Alembic is imported only when migrations run.
"""

import asyncio
import importlib
import io
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_lifecycle.entities import VERSION_TABLE, quoted
from session_lifecycle.errors import InvalidValueError, SchemaError
from session_lifecycle.models.schema import SchemaRevision, SchemaRevisions
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.function_files import directory
from session_lifecycle.postgres.notes import set_notes
from session_lifecycle.postgres.row_level_security import disable_sql
from session_lifecycle.postgres.schema_check import (
    HEAD,
    LIBRARY_COMMAND,
    REVISIONS,
    UPGRADE_COMMAND,
    Kind,
    SchemaObject,
    find_lack,
    refuse_left,
    refuse_lost_data,
    refuse_unserved,
    take_inventory,
)
from session_lifecycle.postgres.schema_objects import (
    INDEX_KINDS,
    SAFE_SEARCH_PATH,
    as_text,
    create_index_sql,
    create_objects,
    primary_keys,
)
from session_lifecycle.postgres.short_locks import (
    LOCK_TIMEOUT_SECONDS,
    LONGEST_PAUSE_SECONDS,
    OnProgress,
    tell,
    with_short_locks,
)

if TYPE_CHECKING:
    from alembic.config import Config

LOCK_SEED = 3
_alembic_lock = threading.Lock()


def configuration(schema: str, **attributes: Any) -> "Config":
    """Alembic's configuration for our revisions in this schema."""
    from alembic.config import Config

    config = Config(stdout=attributes.pop("output", None) or io.StringIO())
    config.set_main_option("script_location", str(directory()).replace("%", "%%"))
    config.attributes.update(schema=schema, **attributes)
    return config


def lock_migrations(connection: Connection, schema: str) -> None:
    """Lets one process at a time migrate a schema; another one waits and then finds nothing left to do.

    The lock is one of the transaction, so it also holds behind a pooler that shares connections.
    """
    # The one advisory lock that no function of ours takes: on an empty database there is no function yet.
    lock = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(:schema, :seed))"
    connection.execute(text(lock), {"schema": schema, "seed": LOCK_SEED})


def run(
    connection: Connection, schema: str, direction: Literal["upgrade", "downgrade", "stamp"], revision: str
) -> None:
    """Migrates on this connection, inside the transaction it is in or begins; the caller commits.

    Raises:
        SchemaError: The version table names a revision that this version does not know, or several revisions.
    """
    from alembic import command
    from alembic.util import CommandError

    if not connection.in_transaction():
        # Alembic would begin one of its own, and commit it.
        connection.begin()
    try:
        getattr(command, direction)(configuration(schema, connection=connection), revision)
    except (CommandError, AssertionError) as error:  # an empty name fails an assertion of Alembic, without a text
        found = str(error) or "a row of it names none, delete that row"
        raise SchemaError(
            f"the table {VERSION_TABLE} of schema {schema!r} does not name one revision that this version knows: "
            f"{found}; where a newer version wrote it, run `{LIBRARY_COMMAND}`"
        ) from error


@asynccontextmanager
async def _alembic() -> AsyncGenerator[None]:
    """Alembic, imported without blocking the event loop, for one user at a time: it keeps its context in a global."""
    # Shared by the loops of all threads. Waited for in a thread, it would be taken, and kept, after a cancellation.
    while not _alembic_lock.acquire(blocking=False):  # noqa: ASYNC110 - threads share it, so there is no event of one loop to await
        await asyncio.sleep(0.02)
    try:
        await asyncio.to_thread(importlib.import_module, "alembic.command")
        yield
    finally:
        _alembic_lock.release()


async def upgrade_on(
    engine: AsyncEngine, schema: str, on_progress: OnProgress | None = None, *, notes: bool | None = None
) -> None:
    """Migrates to the newest revision and creates what the schema lacks, in transactions of its own.

    No writer waits for longer than `LOCK_TIMEOUT_SECONDS`. Indexes that are missing are built after the migration is
    committed, beside the writers. Another call does the rest of an interrupted one. Behind a pooler that shares
    connections the build is part of the migration and locks out writers.

    Raises:
        SchemaError: The schema is newer and does not serve this version, or has our tables without a revision.
        TransactionConflictError: Another transaction kept a lock for longer than all attempts; nothing was changed.
    """

    async def migrate(connection: AsyncConnection) -> list[SchemaObject]:
        indexes = await _upgrade_all_but_indexes(connection, schema, LOCK_TIMEOUT_SECONDS)
        if notes is not None:
            await connection.run_sync(set_notes, schema, on=notes)
        if await is_direct(connection):
            return indexes
        await connection.run_sync(create_objects, schema, indexes)
        return []

    if await with_short_locks(engine, migrate, on_progress):
        await _create_beside_writers(engine, schema, on_progress)


async def downgrade_on(engine: AsyncEngine, schema: str, revision: str, on_progress: OnProgress | None = None) -> None:
    """Migrates back to a revision, or to `base`, in one transaction. What later revisions added is dropped.

    Raises:
        InvalidValueError: This version does not know the revision.
        SchemaError: The schema is not migrated or is newer, or the revision is not one before its own.
        TransactionConflictError: See `upgrade_on`.
    """
    _check_revision(revision)

    async def migrate(connection: AsyncConnection) -> None:
        await connection.run_sync(lock_migrations, schema)
        await connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT_SECONDS * 1000)}")
        applied = (await take_inventory(connection, schema)).revision
        earlier = ("base", *REVISIONS[: REVISIONS.index(applied)]) if applied in REVISIONS else ()
        if revision not in earlier:
            raise SchemaError(
                f"schema {schema!r} is at revision {applied or 'base'}, from which this version goes back to "
                f"{', '.join(earlier) or 'nothing'}: got {revision!r}"
            )
        if revision == "base":
            # An operator enables row-level security, so it is in no revision.
            for statement in disable_sql(schema).splitlines():
                await connection.exec_driver_sql(statement)
        async with _alembic():
            await connection.run_sync(run, schema, "downgrade", revision)

    await with_short_locks(engine, migrate, on_progress)


def _check_revision(revision: str) -> None:
    known = ("base", *REVISIONS)
    if revision not in known:
        raise InvalidValueError("revision", revision, f"one of this version: {', '.join(known)}")


async def stamp_on(engine: AsyncEngine, schema: str, revision: str) -> None:
    """Notes a revision as applied, and runs nothing. `base` notes none.

    Raises:
        InvalidValueError: This version does not know the revision.
        SchemaError: The schema lacks the tables of it, or is at a revision that this version does not know.
    """
    _check_revision(revision)

    async def stamp(connection: AsyncConnection) -> None:
        await connection.run_sync(lock_migrations, schema)
        inventory = await take_inventory(connection, schema)
        if revision != "base" and SchemaObject(Kind.TABLE, "session_records") not in inventory.objects:
            raise SchemaError(f"schema {schema!r} has no table session_records: run `{UPGRADE_COMMAND}` instead")
        async with _alembic():
            await connection.run_sync(run, schema, "stamp", revision)

    async with engine.begin() as connection:
        await stamp(connection)


async def revisions(connection: AsyncConnection, schema: str) -> SchemaRevisions:
    """The revision of the schema, and the revisions that this version knows with what each does, oldest first."""
    from alembic.script import ScriptDirectory

    inventory = await take_inventory(connection, schema)

    def read() -> list[tuple[str, str]]:
        scripts = ScriptDirectory.from_config(configuration(schema)).walk_revisions()
        return [(one.revision, (one.doc or "").partition("\n")[0]) for one in scripts]

    known = reversed(await asyncio.to_thread(read))
    return SchemaRevisions(
        applied=inventory.revision,
        newest=HEAD,
        oldest_served_version=inventory.oldest_served_version,
        known=tuple(SchemaRevision(revision=revision, does=does) for revision, does in known),
    )


def index_beside_writers(sql: str) -> None:
    """Says in a revision that an index of `entities.py` is built beside the writers, after the revision is committed.

    `upgrade_on` builds every index that `entities.py` has and the schema lacks, so nothing is done here. In the printed
    SQL, which has no such step, it writes the statement outside the transaction.

    Args:
        sql: `CREATE INDEX CONCURRENTLY …`, with the schema in its name.
    """
    from alembic import op

    context = op.get_context()
    if context.as_sql:
        with context.autocommit_block():
            op.execute(text(as_text(sql)))


async def upgrade(connection: AsyncConnection, schema: str, *, notes: bool | None = None) -> None:
    """Migrates to the newest revision and creates what the schema lacks, in the transaction of this connection.

    The caller commits, and sets the `lock_timeout`. A schema that is newer and serves this version is left as it is.

    Raises:
        SchemaError: The schema is newer and does not serve this version, has our tables without a revision, lost a
            table or a column, or a bucket has left it.
    """
    indexes = await _upgrade_all_but_indexes(connection, schema)
    await connection.run_sync(create_objects, schema, indexes)
    if notes is not None:
        await connection.run_sync(set_notes, schema, on=notes)


async def _upgrade_all_but_indexes(
    connection: AsyncConnection, schema: str, lock_timeout_seconds: float | None = None
) -> list[SchemaObject]:
    """Migrates, and creates what the schema lacks except indexes. Returns the indexes that it lacks."""
    # Before Alembic is taken: whoever has it must not wait for a transaction whose owner waits for Alembic.
    await connection.run_sync(lock_migrations, schema)
    if lock_timeout_seconds is not None:
        # After the lock of migrations: another process may need longer for its migration.
        await connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(lock_timeout_seconds * 1000)}")
    inventory = await take_inventory(connection, schema)
    refuse_left(schema, inventory)
    if inventory.revision is None and SchemaObject(Kind.TABLE, "session_records") in inventory.objects:
        raise SchemaError(
            f"schema {schema!r} has our tables and no revision, as before 0.1.0: drop it, or name another one; or, if "
            f"only the version table was lost, run `session-lifecycle db stamp {HEAD}`"
        )
    if inventory.is_newer:
        refuse_unserved(schema, inventory)
        return []
    async with _alembic():
        await connection.run_sync(run, schema, "upgrade", "head")
    inventory = await take_inventory(connection, schema)
    lack = find_lack(inventory, schema)
    refuse_lost_data(schema, inventory, lack.missing)
    lacking = [*lack.missing, *lack.replaced, *lack.optional]
    indexes = [one for one in lacking if one.kind in INDEX_KINDS and one.name not in primary_keys()]
    await connection.run_sync(create_objects, schema, [one for one in lacking if one not in indexes])
    return indexes


async def is_direct(connection: AsyncConnection) -> bool:
    """Whether no pooler stands before the server. A setting of a session would stay on a connection of the pooler."""
    driver = (await connection.get_raw_connection()).driver_connection
    backend = (await connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()")).scalar_one()
    # A pooler cannot give a client the process number of one backend.
    return driver is not None and bool(driver.get_server_pid() == backend)


async def _create_beside_writers(engine: AsyncEngine, schema: str, on_progress: OnProgress | None) -> None:
    """Creates the missing indexes without locking out writers. It waits for the transactions that are under way.

    An interrupted build leaves an invalid index, which counts as missing: the next call drops it and begins again.
    """
    # https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY: outside a transaction.
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    settings = {"statement_timeout": "0", "lock_timeout": "0", "search_path": SAFE_SEARCH_PATH}
    async with autocommit.connect() as connection:
        try:
            for name, value in settings.items():
                await connection.exec_driver_sql(f"SET {name} = {value}")
            async with _only_builder(connection, schema):
                lack = find_lack(await take_inventory(connection, schema), schema)
                for kind, name in (*lack.missing, *lack.optional):
                    if kind not in INDEX_KINDS or (create := await create_index_sql(connection, schema, name)) is None:
                        continue
                    place = f"{quoted(schema)}.{quoted(name)}"
                    tell(on_progress, f"builds index {name} beside the writers, after the transactions of now")
                    await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {place}")
                    await connection.exec_driver_sql(create.replace("INDEX ", "INDEX CONCURRENTLY ", 1))
        finally:
            for name in settings:
                await connection.exec_driver_sql(f"RESET {name}")


@asynccontextmanager
async def _only_builder(connection: AsyncConnection, schema: str) -> AsyncGenerator[None]:
    """Lets one process at a time build the indexes of a schema: two that build on one table end in a deadlock."""
    # A lock of the session, and never waited for: the build waits for every transaction, so also for one that waits.
    key = func.pg_catalog.hashtextextended(f"{schema} indexes", LOCK_SEED)
    while not await connection.scalar(select(func.pg_catalog.pg_try_advisory_lock(key))):  # noqa: ASYNC110 - an event of another process
        await asyncio.sleep(with_jitter(LONGEST_PAUSE_SECONDS))
    try:
        yield
    finally:
        await connection.execute(select(func.pg_catalog.pg_advisory_unlock(key)))


async def offline_sql(schema: str, since: str = "base") -> str:
    """The SQL that migrates a database from a revision to the newest, for those who run it themselves.

    Raises:
        InvalidValueError: This version does not know the revision.
    """
    _check_revision(since)
    async with _alembic():
        from alembic import command

        output = io.StringIO()
        config = configuration(schema)
        config.output_buffer = output
        await asyncio.to_thread(command.upgrade, config, "head" if since == "base" else f"{since}:head", sql=True)
        return output.getvalue()
