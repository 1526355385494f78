"""Buckets on a Citus cluster for tests. The cluster is there already: an environment variable names its coordinator.

Its user is a superuser, and every node that keeps data has been added. Two workers at least.
"""

import os
from collections.abc import Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy.engine import make_url

from session_lifecycle import SessionDatabase
from session_lifecycle.buckets.places import Place
from session_lifecycle.entities import metadata
from session_lifecycle.statements.buckets import citus
from session_lifecycle.testing import SessionClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

VARIABLE = "SESSION_LIFECYCLE_TEST_CITUS_URL"
MISSING = f"needs a Citus cluster with two workers: set {VARIABLE} to the URL of its coordinator"
KEPT = {"session_buckets"}

_numbers = count(1)


def coordinator_url() -> str | None:
    return os.environ.get(VARIABLE)


class CitusBuckets:
    """Some distributed buckets in one database of a cluster.

    Attributes:
        url: The URL of the coordinator's database.
        schemas: The schemas of the buckets.
    """

    def __init__(self, url: str, bucket_count: int) -> None:
        self.url = url
        run = f"{os.getpid()}_{next(_numbers)}"
        self.schemas: Sequence[str] = [f"citus_{run}_{number}" for number in range(bucket_count)]
        self.clock_schema = f"citus_clock_{run}"

    @property
    def places(self) -> list[Place]:
        return [Place(schema, self.url) for schema in self.schemas]

    async def prepare(self) -> None:
        """Makes the buckets: migrated, distributed and empty."""
        async with SessionDatabase.buckets(self.places) as db:
            await db.migrate()
            await db.placement.distribute()

    async def empty(self) -> None:
        """Deletes every row."""
        tables = ", ".join(
            f"{schema}.{table.name}"
            for schema in self.schemas
            for table in metadata.sorted_tables
            if table.name not in KEPT
        )
        async with self.connected() as connection:
            await connection.execute(f"TRUNCATE {tables}")

    async def drop(self) -> None:
        async with self.connected() as connection:
            for schema in (*self.schemas, self.clock_schema):
                await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")

    @asynccontextmanager
    async def connected(self) -> "AsyncGenerator[asyncpg.Connection]":
        connection = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close()

    async def nodes(self) -> list[str]:
        """The nodes that keep data, as host:port."""
        async with self.connected() as connection:
            return [row["node"] for row in await connection.fetch(citus.NODES)]

    async def node_urls(self) -> list[str]:
        """The URLs of the same database on the nodes that keep data."""
        url = make_url(self.url)
        hosts = [node.rpartition(":") for node in await self.nodes()]
        return [url.set(host=host, port=int(port)).render_as_string(hide_password=False) for host, _, port in hosts]

    async def install_clock(self) -> "CitusClock":
        """Gives the buckets a clock that a test can move. Connections need `clock_path` as their search path."""
        setting = f"{self.clock_schema}.setting"
        table = f"CREATE TABLE {setting} (ahead interval NOT NULL, frozen_at timestamptz)"
        row = f"INSERT INTO {setting} VALUES ('0', NULL)"
        name = f"{self.clock_schema}.statement_timestamp()"
        async with self.connected() as connection:
            await connection.execute(f"CREATE SCHEMA {self.clock_schema}")
            # A table for each node, which no statement has to leave its node for.
            await connection.execute("SET citus.enable_ddl_propagation = off")
            for sql in (table, row):
                await connection.execute(sql)
            await connection.execute("RESET citus.enable_ddl_propagation")
            for sql in (table, row):
                found = await connection.fetch("SELECT * FROM run_command_on_workers($1)", sql)
                assert all(one["success"] for one in found), found
            await connection.execute(
                f"CREATE FUNCTION {name} RETURNS timestamptz STABLE LANGUAGE sql AS $$ SELECT coalesce(frozen_at, "
                f"pg_catalog.statement_timestamp() + ahead) FROM {setting} $$"
            )
            await connection.execute("SELECT create_distributed_function($1::text::regprocedure)", name)
            ours = await connection.fetch(
                "SELECT oid::regprocedure::text AS signature FROM pg_proc WHERE pronamespace::regnamespace::text = "
                "ANY ($1::text[]) AND prosrc LIKE '%statement_timestamp()%'",
                self.schemas,
            )
            for one in ours:
                await connection.execute(f"ALTER FUNCTION {one['signature']} SET search_path = {self.clock_path}")
        return CitusClock(self)

    async def remove_clock(self) -> None:
        """Gives the functions their own path again."""
        async with self.connected() as connection:
            for one in await connection.fetch(
                "SELECT oid::regprocedure::text AS signature FROM pg_proc WHERE proconfig::text LIKE $1",
                f"%{self.clock_schema}%",
            ):
                await connection.execute(f"ALTER FUNCTION {one['signature']} SET search_path = pg_catalog, pg_temp")
            await connection.execute(f"DROP SCHEMA {self.clock_schema} CASCADE")
            found = await connection.fetch(
                "SELECT * FROM run_command_on_workers($1)", f"DROP SCHEMA IF EXISTS {self.clock_schema} CASCADE"
            )
            assert all(one["success"] for one in found), found

    @property
    def clock_path(self) -> str:
        return f"{self.clock_schema}, pg_catalog, pg_temp"


class CitusClock(SessionClock):
    """The clock of every node."""

    def __init__(self, buckets: CitusBuckets) -> None:
        super().__init__(buckets.url)
        self._buckets = buckets

    async def _ask(self, sql: str, *arguments: Any) -> Any:
        sql = sql.replace("session_lifecycle_clock", self._buckets.clock_schema)
        async with self._buckets.connected() as connection:
            if not sql.startswith("UPDATE"):
                return await connection.fetchval(sql.replace("SELECT ", f"SELECT {self._buckets.clock_schema}."))
            for number, value in enumerate(arguments, 1):
                sql = sql.replace(f"${number}", _literal(value))
            found = await connection.fetch("SELECT * FROM run_command_on_all_nodes($1)", sql)
            assert all(one["success"] for one in found), found
            return None


def _literal(value: datetime | timedelta) -> str:
    if isinstance(value, timedelta):
        return f"'{value.total_seconds()} seconds'::interval"
    return f"'{value.isoformat()}'::timestamptz"
