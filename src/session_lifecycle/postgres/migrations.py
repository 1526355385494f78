"""Running Alembic: its locks, the SQL of a script, and mending what a schema lacks.

A statement that waits for a table's lock makes every later writer of that table wait behind it. So a migration gives up
a lock after `LOCK_TIMEOUT_SECONDS`, lets the writers through and tries again, and it builds an index on a table that is
in use without locking out writers.

Alembic is imported only when migrations run.
"""

import asyncio
import importlib
import io
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from asyncpg import LockNotAvailableError
from sqlalchemy import Connection, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateIndex

from session_lifecycle.entities import metadata, quoted
from session_lifecycle.errors import SchemaError, TransactionConflictError, shortened
from session_lifecycle.models.schema import SchemaRevision, SchemaRevisions
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.failures import DRIVER_FAILURES, driver_error
from session_lifecycle.postgres.function_files import directory, function_files
from session_lifecycle.postgres.notes import set_notes
from session_lifecycle.postgres.row_level_security import disable_sql
from session_lifecycle.postgres.schema_check import (
    HEAD,
    REVISIONS,
    SEARCH_INDEX,
    TRIGGER,
    UPGRADE_COMMAND,
    Kind,
    SchemaObject,
    find_lack,
    refuse_unserved,
    take_inventory,
)

if TYPE_CHECKING:
    from alembic.config import Config

LOCK_SEED = 3
INDEX_KINDS = {Kind.INDEX, Kind.UNIQUE_INDEX}
LOCK_TIMEOUT_SECONDS = 0.5
LOCK_ATTEMPTS = 60
"""How often a migration tries to get its locks: for more than a minute."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
SAFE_SEARCH_PATH = "pg_catalog, pg_temp"
# Searching gives the same answers without this index, more slowly. Not every database lets us have the extension.
_CREATE_TRIGRAMS = """
    BEGIN
        CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public;
    EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR invalid_schema_name THEN
        RAISE NOTICE 'pg_trgm cannot be created here: a search will read all messages it may find';
    END;
"""
_CREATE_SEARCH_INDEX = """
DO $do$
DECLARE
    trigrams text;
BEGIN
    {create_trigrams}
    SELECT quote_ident(n.nspname) INTO trigrams
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'pg_trgm';
    IF trigrams IS NOT NULL THEN
        EXECUTE format(
            'CREATE INDEX {index} ON %s.session_messages USING gin (content_folded %s.gin_trgm_ops)',
            {schema_literal}, trigrams
        );
    END IF;
END
$do$
"""

_SCHEMA_OF_TRIGRAMS = """
SELECT pg_catalog.quote_ident(n.nspname)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_trgm'
"""

_OLDEST_TRANSACTION = """
SELECT pid, application_name, round(extract(epoch FROM clock_timestamp() - xact_start))::bigint AS seconds
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND xact_start IS NOT NULL
    AND backend_type = 'client backend'
ORDER BY xact_start
LIMIT 1
"""

Migrated = TypeVar("Migrated")

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


@contextmanager
def safe_search_path(connection: Connection) -> Generator[None]:
    """Keeps foreign schemas out of the names that migrations write, and restores the transaction's path afterwards."""
    path = "SELECT pg_catalog.set_config('search_path', :path, true)"
    before = connection.scalar(text("SELECT pg_catalog.current_setting('search_path')"))
    connection.execute(text(path), {"path": SAFE_SEARCH_PATH})
    yield
    connection.execute(text(path), {"path": before})


def as_text(sql: str) -> str:
    """The SQL for `text()`, in which an unescaped colon would begin a parameter."""
    return sql.replace(":", "\\:")


def create_schema_sql(schema: str) -> str:
    """`CREATE SCHEMA`, for `text()`."""
    return as_text(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")


def create_function_sql(name: str, schema: str) -> str:
    """`CREATE FUNCTION` of the file of this name in `alembic/functions/`, for `text()`."""
    return as_text(function_files()[name].create_sql(schema))


def create_trigger_sql(schema: str) -> str:
    """`CREATE TRIGGER` that takes a changed session out of the roll-ups, for `text()`."""
    return as_text(
        f"CREATE TRIGGER {TRIGGER} BEFORE UPDATE OR DELETE ON {quoted(schema)}.session_records "
        f"FOR EACH ROW WHEN (OLD.rolled_up) EXECUTE FUNCTION {quoted(schema)}.leave_roll_ups_v1()"
    )


def create_search_index_sql(schema: str) -> str:
    """Creates the extension pg_trgm and the index for searching messages where the database allows it, for `text()`."""
    name, tag = quoted(schema), "$do$"
    while tag in name:
        tag = f"{tag[:-1]}_$"
    literal = "'{}'".format(name.replace("'", "''"))
    sql = _CREATE_SEARCH_INDEX.replace("{create_trigrams}", _CREATE_TRIGRAMS.strip())
    sql = sql.replace("$do$", tag).replace("{index}", SEARCH_INDEX)
    return as_text(sql.replace("{schema_literal}", literal))


def prepare_schema(connection: Connection, schema: str) -> None:
    """Creates the schema unless it is there: `IF NOT EXISTS` would ask for the right to create one even then."""
    exists = connection.scalar(text("SELECT true FROM pg_namespace WHERE nspname = :schema"), {"schema": schema})
    if not exists:
        connection.execute(text(create_schema_sql(schema)))


def run(
    connection: Connection, schema: str, direction: Literal["upgrade", "downgrade", "stamp"], revision: str
) -> None:
    """Migrates on this connection, inside the transaction it is in or begins; the caller commits."""
    from alembic import command

    if not connection.in_transaction():
        # Alembic would begin one of its own, and commit it.
        connection.begin()
    getattr(command, direction)(configuration(schema, connection=connection), revision)


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


OnProgress = Callable[[str], object]
"""Gets a sentence at each step of a migration that takes longer."""


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
        await connection.run_sync(_create, schema, indexes)
        return []

    if await with_short_locks(engine, migrate, on_progress):
        await _create_beside_writers(engine, schema, on_progress)


async def downgrade_on(engine: AsyncEngine, schema: str, revision: str, on_progress: OnProgress | None = None) -> None:
    """Migrates back to a revision, or to `base`, in one transaction. What later revisions added is dropped.

    Raises:
        SchemaError: The schema is not migrated or is newer, or the revision is not one before its own.
        TransactionConflictError: See `upgrade_on`.
    """

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


async def stamp_on(engine: AsyncEngine, schema: str, revision: str) -> None:
    """Notes a revision as applied, and runs nothing. `base` notes none.

    Raises:
        SchemaError: This version does not know the revision, or the schema lacks the tables of it.
    """

    async def stamp(connection: AsyncConnection) -> None:
        await connection.run_sync(lock_migrations, schema)
        inventory = await take_inventory(connection, schema)
        known = ("base", *REVISIONS)
        if revision not in known:
            raise SchemaError(f"revision {revision!r} is not one of this version: {', '.join(known)}")
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


async def with_short_locks(
    engine: AsyncEngine, migrate: Callable[[AsyncConnection], Awaitable[Migrated]], on_progress: OnProgress | None
) -> Migrated:
    """Runs a migration in one transaction, again and again until it gets its locks.

    A lock that it does not get within `LOCK_TIMEOUT_SECONDS` it gives up, with all others, so that the writers behind
    it go on.
    """
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            async with engine.begin() as connection:
                # A migration may take longer than the statement timeout, which is for requests.
                await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                return await migrate(connection)
        except DRIVER_FAILURES as error:
            if not isinstance(driver_error(error), LockNotAvailableError):
                raise
            holder = await _oldest_transaction(engine)
            if attempt == LOCK_ATTEMPTS:
                raise TransactionConflictError(
                    f"the migration did not get its locks in {LOCK_ATTEMPTS} attempts (lock timeout). Nothing was "
                    f"changed, and the database works as before. {holder} Wait for it or end it, then run "
                    f"`{UPGRADE_COMMAND}` again"
                ) from error
        _tell(on_progress, f"attempt {attempt} of {LOCK_ATTEMPTS} did not get its locks, and writers go on. {holder}")
        await asyncio.sleep(with_jitter(pause))
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _tell(on_progress: OnProgress | None, sentence: str) -> None:
    if on_progress is not None:
        on_progress(sentence)


async def _oldest_transaction(engine: AsyncEngine) -> str:
    """A sentence on the oldest transaction of the database, which most likely holds the lock."""
    async with engine.connect() as connection:
        found = (await connection.exec_driver_sql(_OLDEST_TRANSACTION)).first()
    if found is None:
        return "No transaction is open now."
    application = shortened(found.application_name)
    return f"The oldest transaction is of process {found.pid} ({application}), open for {found.seconds} s."


async def upgrade(connection: AsyncConnection, schema: str, *, notes: bool | None = None) -> None:
    """Migrates to the newest revision and creates what the schema lacks, in the transaction of this connection.

    The caller commits, and sets the `lock_timeout`. A schema that is newer and serves this version is left as it is.

    Raises:
        SchemaError: The schema is newer and does not serve this version, or has our tables without a revision.
    """
    indexes = await _upgrade_all_but_indexes(connection, schema)
    await connection.run_sync(_create, schema, indexes)
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
    lack = find_lack(await take_inventory(connection, schema), schema)
    lacking = [*lack.missing, *lack.replaced, *lack.optional]
    indexes = [one for one in lacking if one.kind in INDEX_KINDS and one.name not in _primary_keys()]
    await connection.run_sync(_create, schema, [one for one in lacking if one not in indexes])
    return indexes


def _create(connection: Connection, schema: str, objects: list[SchemaObject]) -> None:
    """Creates functions, indexes and the trigger. A lost table or column is for a backup: its data would be missing."""
    if not objects:
        return
    connection = connection.execution_options(schema_translate_map={metadata.schema: schema})
    indexes = {str(index.name): index for table in metadata.tables.values() for index in table.indexes}
    functions = {one.signature: one for one in function_files().values()}
    with safe_search_path(connection):
        for kind, name in objects:
            if kind is Kind.FUNCTION:
                connection.execute(text(as_text(functions[name].create_sql(schema, replace=True))))
            elif kind is Kind.TRIGGER:
                on_table = f"DROP TRIGGER IF EXISTS {TRIGGER} ON {quoted(schema)}.session_records"
                connection.execute(text(as_text(on_table)))
                connection.execute(text(create_trigger_sql(schema)))
            elif name in (keys := _primary_keys()):
                table = keys[name]
                columns = ", ".join(quoted(column.name) for column in table.primary_key.columns)
                on_table = f"ALTER TABLE {quoted(schema)}.{quoted(table.name)} ADD CONSTRAINT {quoted(name)}"
                connection.execute(text(as_text(f"{on_table} PRIMARY KEY ({columns})")))
            elif name == SEARCH_INDEX:
                connection.execute(text(create_search_index_sql(schema)))
            elif name in indexes:
                connection.execute(text(as_text(f"DROP INDEX IF EXISTS {quoted(schema)}.{quoted(name)}")))
                indexes[name].create(connection)


def _primary_keys() -> dict[str, Table]:
    """The tables by the names of their primary keys. A restore that was interrupted leaves tables without one."""
    return {str(table.primary_key.name): table for table in metadata.tables.values()}


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
                    if kind not in INDEX_KINDS or (create := await _create_index_sql(connection, schema, name)) is None:
                        continue
                    place = f"{quoted(schema)}.{quoted(name)}"
                    _tell(on_progress, f"builds index {name} beside the writers, after the transactions of now")
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


async def _create_index_sql(connection: AsyncConnection, schema: str, name: str) -> str | None:
    """`CREATE INDEX` of one of our indexes; None for a primary key, and where the index cannot be had here."""
    if name == SEARCH_INDEX:
        await connection.exec_driver_sql(f"DO $do$ BEGIN {_CREATE_TRIGRAMS} END $do$")
        trigrams = (await connection.exec_driver_sql(_SCHEMA_OF_TRIGRAMS)).scalar()
        on = f"{quoted(schema)}.session_messages USING gin (content_folded {trigrams}.gin_trgm_ops)"
        return f"CREATE INDEX {name} ON {on}" if trigrams is not None else None
    for table in metadata.tables.values():
        for index in table.indexes:
            if index.name == name:
                compiled = CreateIndex(index).compile(
                    dialect=connection.dialect,
                    schema_translate_map={metadata.schema: schema},
                    render_schema_translate=True,
                )
                return str(compiled)
    return None


async def offline_sql(schema: str, since: str = "base") -> str:
    """The SQL that migrates a database from a revision to the newest, for those who run it themselves.

    Raises:
        SchemaError: This version does not know the revision.
    """
    known = ("base", *REVISIONS)
    if since not in known:
        raise SchemaError(f"revision {since!r} is not one of this version: {', '.join(known)}")
    async with _alembic():
        from alembic import command

        output = io.StringIO()
        config = configuration(schema)
        config.output_buffer = output
        await asyncio.to_thread(command.upgrade, config, "head" if since == "base" else f"{since}:head", sql=True)
        return output.getvalue()
