"""Database roles of a test, with the rights that `db roles` grants."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy.engine import make_url

from session_lifecycle import SessionDatabase
from session_lifecycle.postgres.permissions import DatabaseRole, role_sql
from session_lifecycle.testing import TemplateServer


@asynccontextmanager
async def database_roles(server: TemplateServer, *roles: DatabaseRole) -> AsyncGenerator[dict[DatabaseRole, str]]:
    """Roles that may connect, by what they do. The databases with their rights are dropped before they are."""
    names = {role: f"test_{role}_{os.getpid()}" for role in roles}
    for name in names.values():
        await server.run(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    try:
        yield names
    finally:
        for name in names.values():
            await server.run(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


async def grant(db: SessionDatabase, role: DatabaseRole, name: str, schema: str = "session_lifecycle") -> None:
    """Runs what `db roles` prints for the role."""
    async with db.engine.begin() as connection:
        for statement in role_sql(schema, role, name).split(";\n"):
            await connection.exec_driver_sql(statement)


def url_as(url: str, name: str) -> str:
    """The URL for this role."""
    return make_url(url).set(username=name, password="x").render_as_string(hide_password=False)
