"""A node of Citus is lost, or does not answer. A caller is told whether the write may have happened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, Settings, UsageEvent
from session_lifecycle.buckets.database import BucketDatabase
from support.buckets import user_in
from support.citus import CitusBuckets
from support.faulty_proxy import FaultyProxy

from .test_moving import event

CONNECT_BY = (
    "INSERT INTO pg_dist_poolinfo SELECT nodeid, 'host=127.0.0.1 port=' || $1::text FROM pg_dist_node "
    "WHERE nodename = $2 AND nodeport = $3"
)


@pytest_asyncio.fixture
async def way(on_citus: BucketDatabase, citus_cluster: CitusBuckets) -> AsyncIterator[FaultyProxy]:
    """The way by which the coordinator reaches the node of bucket 0."""
    url = make_url((await citus_cluster.node_urls())[0])
    assert url.host is not None
    assert url.port is not None
    await on_citus.placement.move_to_node(0, f"{url.host}:{url.port}")
    proxy = FaultyProxy(url.port, 0)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(proxy.running())
        connection = await stack.enter_async_context(citus_cluster.connected())
        await connection.execute(CONNECT_BY, str(proxy.port), url.host, url.port)
        try:
            yield proxy
        finally:
            await connection.execute("DELETE FROM pg_dist_poolinfo")


async def stored(cluster: CitusBuckets, events: int) -> None:
    """Waits until bucket 0 has so many events. The node is asked, as the way to it is not to be trusted."""
    connection = await asyncpg.connect((await cluster.node_urls())[0])
    try:
        async with asyncio.timeout(5):
            while True:
                found = await connection.fetchval(f"SELECT count(*) FROM {cluster.schemas[0]}.session_usage_events")
                assert found <= events
                if found == events:
                    return
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def test_a_use_whose_node_is_lost_may_have_been_written(way: FaultyProxy, citus_cluster: CitusBuckets) -> None:
    """The coordinator says ERROR, and nevertheless the node has committed."""
    async with SessionDatabase.buckets(citus_cluster.places, settings=Settings(pool_size=1)) as db:
        user = user_in(db, 0)
        await db.lifecycle.record([event(user, 1)])
        async with way.withholding(0):
            calling = asyncio.create_task(
                db.lifecycle.record([UsageEvent(session_id="s", user_id=user, model="m", tokens_in=1)])
            )
            await stored(citus_cluster, 2)
            way.cut()
            with pytest.raises(DatabaseUnavailableError, match="lost its connection to a node") as lost:
                await calling
        assert lost.value.may_have_written
        async with way.withholding(0):
            calling = asyncio.create_task(db.lifecycle.record([event(user, 3)]))
            await asyncio.sleep(0.3)
            way.cut()
        assert (await calling)[0].outcome in {"applied", "duplicate"}  # by its key it was made again
        assert (await db.lifecycle.aggregate_stats(user)).tokens_in == 3


async def test_a_use_that_the_coordinator_cancels_may_have_been_written(
    way: FaultyProxy, citus_cluster: CitusBuckets
) -> None:
    settings = Settings(pool_size=1, statement_timeout_seconds=2)
    async with SessionDatabase.buckets(citus_cluster.places, settings=settings) as db:
        user = user_in(db, 0)
        await db.lifecycle.record([event(user, 1)])
        async with way.withholding(0):
            with pytest.raises(DatabaseUnavailableError, match="cancelled the statement") as lost:
                await db.lifecycle.record([UsageEvent(session_id="s", user_id=user, model="m", tokens_in=1)])
            await stored(citus_cluster, 2)
            way.cut()
        assert lost.value.may_have_written
        with pytest.raises(DatabaseUnavailableError) as refused:
            async with way.silent():
                await db.lifecycle.aggregate_stats(user)
        assert not refused.value.may_have_written
