"""Buckets in one server, and on two servers."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from session_lifecycle import SessionDatabase
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.postgres.embedded import EmbeddedPostgres, temporary_data_dir
from session_lifecycle.testing import TemplateServer, folder_in_memory
from support.buckets import BucketServers, prepare_buckets
from support.citus import MISSING, CitusBuckets, coordinator_url


@pytest.fixture(scope="session")
def second_server() -> Iterator[TemplateServer]:
    """Another server than that of the other tests, with a template database."""
    with temporary_data_dir(folder_in_memory()) as data_dir:
        running = asyncio.run(EmbeddedPostgres.start(data_dir, durable=False, tcp=True))
        try:
            with TemplateServer(running.url, "second_template") as server:
                asyncio.run(server.prepare())
                yield server
        finally:
            asyncio.run(running.stop())


@pytest.fixture(scope="session")
def eight_buckets(session_template_server: TemplateServer) -> Iterator[BucketServers]:
    """Eight buckets in one database."""
    found = asyncio.run(prepare_buckets([session_template_server], 8))
    yield found
    asyncio.run(found.drop())


@pytest.fixture(scope="session")
def four_buckets(session_template_server: TemplateServer, second_server: TemplateServer) -> Iterator[BucketServers]:
    """Four buckets on two servers."""
    found = asyncio.run(prepare_buckets([session_template_server, second_server], 4))
    yield found
    asyncio.run(found.drop())


@pytest_asyncio.fixture
async def on_one_server(eight_buckets: BucketServers) -> AsyncIterator[BucketDatabase]:
    """A database over eight buckets in one database."""
    async with eight_buckets.cloned() as places, SessionDatabase.buckets(places) as db:
        yield db


@pytest_asyncio.fixture
async def on_two_servers(four_buckets: BucketServers) -> AsyncIterator[BucketDatabase]:
    """A database over four buckets on two servers."""
    async with four_buckets.cloned() as places, SessionDatabase.buckets(places) as db:
        yield db


@pytest.fixture(scope="session")
def citus_cluster() -> Iterator[CitusBuckets]:
    """Four buckets on a Citus cluster."""
    url = coordinator_url()
    if url is None:
        pytest.skip(MISSING)
    found = CitusBuckets(url, 4)
    asyncio.run(found.prepare())
    yield found
    asyncio.run(found.drop())


@pytest_asyncio.fixture
async def on_citus(citus_cluster: CitusBuckets) -> AsyncIterator[BucketDatabase]:
    """A database over four empty buckets on a Citus cluster."""
    await citus_cluster.empty()
    async with SessionDatabase.buckets(citus_cluster.places) as db:
        yield db
