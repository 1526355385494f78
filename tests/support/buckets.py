"""Databases over buckets for tests: templates of migrated buckets, which each test clones."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from uuid import UUID

import asyncpg

from session_lifecycle import SessionDatabase
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.buckets.places import Place
from session_lifecycle.testing import INSTALL_CLOCK, TemplateServer

_numbers = count(1)
# The part of `INSTALL_CLOCK` that gives our functions the clock, for another schema.
_GIVE_CLOCK = INSTALL_CLOCK[INSTALL_CLOCK.index("DO $$") :]


@dataclass(frozen=True)
class BucketServers:
    """Servers with a template of some buckets each.

    Attributes:
        servers: Each with the name of its template.
        schemas: The schemas of each server.
    """

    servers: Sequence[TemplateServer]
    schemas: Sequence[Sequence[str]]

    @property
    def bucket_count(self) -> int:
        return sum(map(len, self.schemas))

    def places(self, databases: Sequence[str]) -> list[Place]:
        """The places of the buckets in databases of these names, one on each server."""
        return [
            Place(schema, server.url_of(database))
            for server, schemas, database in zip(self.servers, self.schemas, databases, strict=True)
            for schema in schemas
        ]

    @asynccontextmanager
    async def cloned(self) -> AsyncIterator[list[Place]]:
        """The places of empty, migrated buckets, which are dropped at the end."""
        name = f"buckets_{os.getpid()}_{next(_numbers)}"
        try:
            for server in self.servers:
                await server.clone(name)
            yield self.places([name] * len(self.servers))
        finally:
            for server in self.servers:
                await server.drop(name)

    async def drop(self) -> None:
        """Drops the templates, and leaves the servers."""
        for server in self.servers:
            with server:
                await server.drop(server.template)


async def prepare_buckets(servers: Sequence[TemplateServer], count: int) -> BucketServers:
    """Makes a template on each server. The buckets are spread over the servers, neighbours together."""
    template = f"bucket_template_{os.getpid()}_{next(_numbers)}"
    each = count // len(servers)
    schemas = [[f"bucket_{number * each + one}" for one in range(each)] for number in range(len(servers))]
    found = BucketServers([TemplateServer(server.url, template) for server in servers], schemas)
    for server in servers:
        await server.clone(template)
    async with SessionDatabase.buckets(found.places([template] * len(servers))) as db:
        await db.migrate()
    for server, names in zip(found.servers, schemas, strict=True):
        connection = await asyncpg.connect(server.url_of(template))
        try:
            for name in names:
                await connection.execute(_GIVE_CLOCK.replace("'session_lifecycle'", f"'{name}'"))
        finally:
            await connection.close()
    return found


def user_in(db: BucketDatabase, number: int, which: int = 0) -> UUID:
    """A user of this bucket; `which` counts them."""
    found = -1
    for one in range(1, 100_000):
        if db.bucket_of(UUID(int=one)) == number:
            found += 1
            if found == which:
                return UUID(int=one)
    raise AssertionError(f"no user in bucket {number}")
