"""The schema's revisions: where they are, running them, and telling whether a database has them.

Alembic is imported only when migrations are run; looking whether a database is up to date does not need it.
"""

import asyncio
import importlib
import io
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.entities import metadata
from session_lifecycle.errors import SchemaError
from session_lifecycle.statements.schema_version import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""Every revision this version knows, oldest first."""
HEAD = REVISIONS[-1]
UPGRADE_COMMAND = "session-lifecycle db upgrade"
SEARCH_INDEX = "ix_session_messages_search"
"""The one part of the schema that not every database has: it needs the extension pg_trgm."""
LOCK_SEED = 3

_alembic_lock = threading.Lock()


def quoted(schema: str) -> str:
    """The schema's name as SQL writes it."""
    return '"{}"'.format(schema.replace('"', '""'))


def include_object(obj: Any, _name: str | None, type_: str, _reflected: bool, _compare_to: Any, /) -> bool:
    """For a host's `context.configure(include_object=…)`: keeps its autogenerate away from our tables.

    False for our tables and their parts, in whichever named schema they are; True for everything else. A table is ours
    by its name and the columns of its key, so a host's own `session_records` stays the host's.
    """
    table = obj if type_ == "table" else getattr(obj, "table", None)
    if table is None or table.schema is None:
        return True
    keys = {ours.name: set(ours.primary_key.columns.keys()) for ours in metadata.tables.values()}
    keys[VERSION_TABLE] = {"version_num"}
    return not (table.name in keys and keys[table.name] <= set(table.columns.keys()))


def directory() -> Path:
    """Where the revisions are: inside an installed package, or at the top of a clone."""
    installed = Path(__file__).parent / "_alembic"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "alembic"


def configuration(schema: str, **attributes: Any) -> "Config":
    """Alembic's configuration for our revisions in this schema."""
    from alembic.config import Config

    config = Config(stdout=attributes.pop("output", None) or io.StringIO())
    config.set_main_option("script_location", str(directory()).replace("%", "%%"))
    config.attributes.update(schema=schema, **attributes)
    return config


def lock_migrations(connection: Connection, schema: str) -> None:
    """One process migrates a schema at a time; the others wait, and then find nothing left to do.

    A lock of the transaction, which also holds behind a pooler that shares connections.
    """
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:schema, :seed))"), {"schema": schema, "seed": LOCK_SEED}
    )


def create_schema_sql(schema: str) -> str:
    """`CREATE SCHEMA` for scripts, colons escaped for `text()`."""
    return f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}".replace(":", "\\:")


def create_function_sql(name: str, schema: str) -> str:
    """`CREATE FUNCTION` of the file of this name in `alembic/functions/`, colons escaped for `text()`."""
    tag = "$body$"
    while tag in schema:
        tag = f"{tag[:-1]}_$"
    source = (directory() / "functions" / f"{name}.sql").read_text("utf-8")
    return source.replace("$body$", tag).replace("{schema}", quoted(schema)).replace(":", "\\:")


def prepare_schema(connection: Connection, schema: str) -> None:
    """Creates the schema unless it is there: `IF NOT EXISTS` would ask for the right to create one even then."""
    exists = connection.scalar(text("SELECT true FROM pg_namespace WHERE nspname = :schema"), {"schema": schema})
    if not exists:
        connection.execute(text(create_schema_sql(schema)))


def run(connection: Connection, schema: str, direction: Literal["upgrade", "downgrade"], revision: str) -> None:
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


async def upgrade(connection: AsyncConnection, schema: str) -> None:
    """Migrates to the newest revision on this connection, inside its transaction; the caller commits."""
    # Before Alembic is taken: whoever has it must not wait for a transaction whose owner waits for Alembic.
    await connection.run_sync(lock_migrations, schema)
    async with _alembic():
        await connection.run_sync(run, schema, "upgrade", "head")


async def offline_sql(schema: str, revision: str = "head") -> str:
    """The SQL that migrates an empty database, for those who run it themselves."""
    async with _alembic():
        from alembic import command

        output = io.StringIO()
        config = configuration(schema)
        config.output_buffer = output
        await asyncio.to_thread(command.upgrade, config, revision, sql=True)
        return output.getvalue()


def check_revisions(schema: str, found: list[str] | None) -> None:
    """Whether a database at these revisions is one this version works with.

    Raises:
        SchemaError: It is not; names what was found, what is expected and the command to run.
    """
    if found == [HEAD]:
        return
    where = f"schema {schema!r}"
    if not found:
        raise SchemaError(f"{where} is not migrated, expected revision {HEAD}: run `{UPGRADE_COMMAND}`")
    if set(found) <= set(REVISIONS):
        raise SchemaError(f"{where} is at revision {', '.join(found)}, expected {HEAD}: run `{UPGRADE_COMMAND}`")
    raise SchemaError(
        f"{where} is at revision {', '.join(found)}, further than the {HEAD} this version knows: "
        "run `pip install --upgrade session-lifecycle`"
    )
