"""Row L46 on Citus: the storm over two buckets on two nodes, with killed connections on every node."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from session_lifecycle import SessionDatabase
from session_lifecycle.buckets.database import BucketDatabase
from support.buckets import user_in
from support.citus import CitusBuckets
from support.storm import Stormed, storm


@pytest_asyncio.fixture
async def stormed(on_citus: BucketDatabase, citus_cluster: CitusBuckets) -> AsyncIterator[Stormed]:
    """Two users on two nodes."""
    first, second = await citus_cluster.nodes()
    await on_citus.placement.move_to_node(0, first)
    await on_citus.placement.move_to_node(1, second)
    async with SessionDatabase.connect(citus_cluster.url) as host:
        yield Stormed(
            on_citus,
            host,
            (user_in(on_citus, 0), user_in(on_citus, 1)),
            [citus_cluster.url, *await citus_cluster.node_urls()],
            citus_cluster.schemas,
            lambda: SessionDatabase.buckets(citus_cluster.places),
        )


async def test_L46_a_storm_loses_and_doubles_nothing(stormed: Stormed) -> None:
    await storm(stormed, tasks=6, uses=10)


@pytest.mark.soak
async def test_L46_a_long_storm_loses_and_doubles_nothing(stormed: Stormed) -> None:
    await storm(stormed, tasks=40, uses=40)
