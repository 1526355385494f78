"""The SQL that creates what a schema has beside its tables, and creating what it lacks."""

from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import Connection, Table, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex

from session_lifecycle.entities import metadata, quoted
from session_lifecycle.postgres.function_files import function_files
from session_lifecycle.postgres.schema_check import SEARCH_INDEX, TRIGGER, Kind, SchemaObject

INDEX_KINDS = {Kind.INDEX, Kind.UNIQUE_INDEX}
SAFE_SEARCH_PATH = "pg_catalog, pg_temp"
# Searching gives the same answers without this index, more slowly. Not every database lets us have the extension.
_CREATE_TRIGRAMS = """
    BEGIN
        CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public;
    EXCEPTION
        -- Another migration created it at the same time: a database with two of our schemas has one pg_trgm.
        WHEN unique_violation THEN NULL;
        WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR invalid_schema_name THEN
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


def create_objects(connection: Connection, schema: str, objects: list[SchemaObject]) -> None:
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
            elif name in (keys := primary_keys()):
                table = keys[name]
                columns = ", ".join(quoted(column.name) for column in table.primary_key.columns)
                on_table = f"ALTER TABLE {quoted(schema)}.{quoted(table.name)} ADD CONSTRAINT {quoted(name)}"
                connection.execute(text(as_text(f"{on_table} PRIMARY KEY ({columns})")))
            elif name == SEARCH_INDEX:
                connection.execute(text(create_search_index_sql(schema)))
            elif name in indexes:
                connection.execute(text(as_text(f"DROP INDEX IF EXISTS {quoted(schema)}.{quoted(name)}")))
                indexes[name].create(connection)


def primary_keys() -> dict[str, Table]:
    """The tables by the names of their primary keys. A restore that was interrupted leaves tables without one."""
    return {str(table.primary_key.name): table for table in metadata.tables.values()}


async def create_index_sql(connection: AsyncConnection, schema: str, name: str) -> str | None:
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
