"""Runs the migrations: from Python on a given connection, from the command line on the configured database, or as SQL.

`session_lifecycle.postgres.migrations` builds the configuration. A plain `alembic` in a clone has none and reads the
settings.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle.entities import VERSION_TABLE, metadata
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.postgres.migrations import lock_migrations
from session_lifecycle.postgres.schema_objects import (
    SAFE_SEARCH_PATH,
    create_schema_sql,
    prepare_schema,
    safe_search_path,
)
from session_lifecycle.settings import Settings

attributes = context.config.attributes
settings = Settings.load()
schema = attributes.get("schema") or settings.database_schema

COMMON = {
    "target_metadata": metadata,
    "version_table": VERSION_TABLE,
    "version_table_schema": schema,
    "include_schemas": True,
}


def run_on(connection: Connection) -> None:
    """Migrates in one transaction, one process at a time."""
    context.configure(connection=connection, **COMMON)
    with context.begin_transaction():
        lock_migrations(connection, schema)
        with safe_search_path(connection):
            prepare_schema(connection, schema)
            context.run_migrations()


async def run_on_configured_database() -> None:
    if settings.database_url is None:
        raise ConfigurationError("no database to migrate: set SESSION_LIFECYCLE_DATABASE_URL to postgresql://…")
    engine = create_async_engine(asyncpg_url(settings.database_url.get_secret_value()), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run_on)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, literal_binds=True, **COMMON)
    with context.begin_transaction():
        context.execute(f"SET LOCAL search_path = {SAFE_SEARCH_PATH}")
        context.execute(create_schema_sql(schema))
        context.run_migrations()
elif (given := attributes.get("connection")) is not None:
    run_on(given)
else:
    asyncio.run(run_on_configured_database())
