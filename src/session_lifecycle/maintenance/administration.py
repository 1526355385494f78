"""SchemaAdministration: what an operator does with the schema beside migrating it."""

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.schema import RoleReport, RowLevelSecurityReport, SchemaRevisions
from session_lifecycle.postgres import migrations, permissions
from session_lifecycle.postgres import row_level_security as rls
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.schema_check import check_schema
from session_lifecycle.postgres.short_locks import with_short_locks
from session_lifecycle.settings import Settings


class SchemaAdministration:
    """Revisions, rights and row-level security of the schema. Made by `SessionDatabase.administration`.

    Each call that changes something is one transaction of its own. It gives up a lock that it does not get within half
    a second, lets the writers through and tries again, for more than a minute. Every call raises:

    - `ConfigurationError`: the database refuses the user or the access.
    - `TransactionConflictError`: a long transaction of somebody else kept a lock; nothing was changed.
    - `DatabaseUnavailableError`: the database cannot be reached or lost the connection.
    """

    def __init__(self, engine: Callable[[], AbstractAsyncContextManager[AsyncEngine]], settings: Settings) -> None:
        """Use `SessionDatabase.administration` instead."""
        self._engine = engine
        self._settings = settings
        self._schema = settings.database_schema

    async def revisions(self) -> SchemaRevisions:
        """The revision of the schema, and the revisions that this version knows. Changes nothing."""
        async with self._connection() as connection:
            return await migrations.revisions(connection, self._schema)

    async def downgrade(self, revision: str, *, on_progress: Callable[[str], object] | None = None) -> None:
        """Migrates back to an earlier revision. What later revisions added is dropped, with its data.

        Args:
            revision: The revision, or `base`: everything is dropped.
            on_progress: Called with a sentence each time that the locks are not free.

        Raises:
            InvalidValueError: This version does not know the revision.
            SchemaError: The schema is not migrated or is newer, or the revision is not an earlier one.
        """
        async with self._patient() as engine:
            await migrations.downgrade_on(engine, self._schema, revision, on_progress)

    async def stamp(self, revision: str) -> None:
        """Notes a revision as applied and runs nothing: for a schema whose version table was lost.

        Args:
            revision: The revision; `base` notes none.

        Raises:
            InvalidValueError: This version does not know the revision.
            SchemaError: The schema lacks our tables.
        """
        async with self._patient() as engine:
            await migrations.stamp_on(engine, self._schema, revision)

    async def check_role(self, role: str) -> RoleReport:
        """Compares the rights of the role that is connected with those that its work needs. Changes nothing.

        Args:
            role: What the role does: `migrator`, `worker`, `roller`, `operator` or `reader`.

        Raises:
            InvalidValueError: `role` is another text.
            SchemaError: The schema is not migrated, so only `migrator` can be checked.
        """
        kind = role_of(role)
        async with self._connection() as connection:
            return await permissions.check_role(connection, self._schema, kind)

    async def check_row_level_security(self) -> RowLevelSecurityReport:
        """The state of row-level security, for the role that is connected. Changes nothing."""
        async with self._connection() as connection:
            return await self._report(connection)

    async def enable_row_level_security(
        self,
        trusted_roles: Collection[str] | None = None,
        *,
        on_progress: Callable[[str], object] | None = None,
    ) -> RowLevelSecurityReport:
        """Enables row-level security, or gives it another key or other trusted roles. For the owner of the schema.

        Args:
            trusted_roles: The roles that see every row, as they write; None: those to which changes of sessions are
                granted now.
            on_progress: See `downgrade`.

        Raises:
            ConfigurationError: The settings have no `row_level_security_key`.
            SchemaError: The schema is not migrated, lacks something, or does not serve this version.
        """

        async def enable(connection: AsyncConnection) -> None:
            await check_schema(connection, self._schema)
            found = await rls.roles_that_write(connection, self._schema) if trusted_roles is None else trusted_roles
            await _run_script(connection, rls.enable_sql(self._schema, self._settings, sorted(found)))

        async with self._patient() as engine:
            await with_short_locks(engine, enable, on_progress)
            async with engine.connect() as connection:
                return await self._report(connection)

    async def disable_row_level_security(self, *, on_progress: Callable[[str], object] | None = None) -> None:
        """Drops the policies and the key. Afterwards every role sees the rows of all users that it may read."""

        async def disable(connection: AsyncConnection) -> None:
            await _run_script(connection, rls.disable_sql(self._schema))

        async with self._patient() as engine:
            await with_short_locks(engine, disable, on_progress)

    async def _report(self, connection: AsyncConnection) -> RowLevelSecurityReport:
        return await rls.row_level_security(connection, self._schema, self._settings)

    @asynccontextmanager
    async def _patient(self) -> AsyncGenerator[AsyncEngine]:
        try:
            async with self._engine() as engine:
                yield engine
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection]:
        async with self._patient() as engine, engine.connect() as connection:
            yield connection


def role_of(name: str) -> permissions.DatabaseRole:
    """The role of this name.

    Raises:
        InvalidValueError: There is none.
    """
    try:
        return permissions.DatabaseRole(name)
    except ValueError:
        raise InvalidValueError("role", name, f"one of {', '.join(permissions.DatabaseRole)}") from None


async def _run_script(connection: AsyncConnection, sql: str) -> None:
    """Runs several statements in the transaction. SQLAlchemy prepares each statement, and a script cannot be."""
    driver = cast("asyncpg.Connection", (await connection.get_raw_connection()).driver_connection)
    await driver.execute(sql)


def role_sql(
    schema: str, prefix: str, role: permissions.DatabaseRole | None = None, *, create: bool = False
) -> list[str]:
    """The statements of one role, or of each.

    Args:
        schema: The Postgres schema of the tables.
        prefix: What the names of the roles begin with.
        role: The role; None: all of them, the one that migrates first.
        create: Whether the roles are created as well.
    """
    wanted = permissions.DatabaseRole if role is None else [role]
    return [permissions.role_sql(schema, one, f"{prefix}{one}", create=create) for one in wanted]


def row_level_security_sql(schema: str, settings: Settings, trusted_roles: Collection[str]) -> str:
    """The SQL that enables row-level security.

    Raises:
        ConfigurationError: The settings have no `row_level_security_key`.
    """
    return rls.enable_sql(schema, settings, sorted(trusted_roles))
