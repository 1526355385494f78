"""A node of Citus is lost, or does not answer. A caller is told whether the write may have happened."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import cast
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from session_lifecycle import (
    DatabaseUnavailableError,
    End,
    InvalidValueError,
    Message,
    Run,
    SessionDatabase,
    Settings,
    Step,
    Touch,
    UsageEvent,
    UsageReceipt,
)
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.models import Item
from session_lifecycle.writing import waves
from support.buckets import user_in
from support.citus import CitusBuckets
from support.every_call import CALLS, PRICES, Call, Caller, Round
from support.faulty_proxy import FaultyProxy

from .test_moving import BEGAN, event

CONNECT_BY = (
    "INSERT INTO pg_dist_poolinfo SELECT nodeid, 'host=127.0.0.1 port=' || $1::text FROM pg_dist_node "
    "WHERE nodename = $2 AND nodeport = $3"
)


OF_ALL_BUCKETS = {
    "database.check",
    "database.migrate",
    "maintenance.reprice",
    "maintenance.roll_up",
    "maintenance.reconcile",
    "maintenance.export",
    "maintenance.import_export",
}
"""The calls that are not about certain users."""
NOT_OVER_BUCKETS = {"database.diagnose", "database.measure", "database.migration_sql"}
BINDABLE = ("lifecycle.", "activity.", "reports.", "budgets.", "maintenance.")


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


@asynccontextmanager
async def unreachable(cluster: CitusBuckets, node: int) -> AsyncIterator[None]:
    """No other node reaches the node of this number, as if it had stopped."""
    lost = make_url((await cluster.node_urls())[node])
    others = [cluster.url, *(url for url in await cluster.node_urls() if make_url(url) != lost)]
    async with AsyncExitStack() as stack:
        # Nobody listens at a port that is taken and not listened at.
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        for url in others:
            connection = await asyncpg.connect(url)
            stack.push_async_callback(connection.close)
            await connection.execute(CONNECT_BY, str(taken.getsockname()[1]), lost.host, lost.port)
            stack.push_async_callback(connection.execute, "DELETE FROM pg_dist_poolinfo")
        yield


def new_users(db: BucketDatabase, number: int) -> Callable[[], UUID]:
    """Makes users of a bucket."""
    users = (user for user in iter(uuid4, None) if db.bucket_of(user) == number)
    return lambda: next(users)


class BoundRound(Round):
    """Each call in a transaction of a host, one after another on one connection."""

    host: SessionDatabase
    turn = asyncio.Lock()

    async def _call(self, call: Call, user: UUID) -> object:
        async with self.turn, self.host.engine.begin() as connection:
            return await call.run(Caller(cast("SessionDatabase", self._caller.db.bind(connection))), user)


@pytest.mark.parametrize("kind", [Round, BoundRound])
async def test_a_lost_node_stops_the_calls_of_its_own_users_only(
    kind: type[Round], on_citus: BucketDatabase, citus_cluster: CitusBuckets
) -> None:
    urls = await citus_cluster.node_urls()
    for number, node in enumerate(await citus_cluster.nodes()):
        await on_citus.placement.move_to_node(number, node)
        await on_citus.placement.move_to_node(number + 2, node)
    names = [name for name in CALLS if name not in NOT_OVER_BUCKETS]
    if kind is BoundRound:
        names = [name for name in names if name.startswith(BINDABLE) and name not in OF_ALL_BUCKETS]
    settings = Settings(pool_size=90, retries=1, statement_timeout_seconds=20)
    async with (
        SessionDatabase.buckets(citus_cluster.places, settings=settings, prices=PRICES) as db,
        SessionDatabase.connect(citus_cluster.url, settings=settings) as BoundRound.host,
    ):
        # A recorder of the lost bucket need not try for long.
        callers = [Caller(cast("SessionDatabase", db), give_up_after=seconds) for seconds in (60, 2)]
        rounds = [
            kind(callers[number], urls[number], names, schema=citus_cluster.schemas[number], new_user=users)
            for number, users in enumerate([new_users(db, 0), new_users(db, 1)])
        ]
        for round_ in rounds:
            await round_.prepare_on(cast("SessionDatabase", on_citus))
        async with unreachable(citus_cluster, 1):
            for round_ in rounds:
                round_.begin()
                await round_.end(within_seconds=60)
        lives, lost = rounds
        failed = lives.failed()
        assert {name: error for name, error in failed.items() if name not in OF_ALL_BUCKETS} == {}
        assert failed.keys() == OF_ALL_BUCKETS & {*names}
        for error in failed.values():
            assert isinstance(error, DatabaseUnavailableError)
            assert "bucket 1: " in str(error)
            assert "bucket 0: " not in str(error)
        # A job is done in every bucket that is there.
        assert {name: share for name, share in lives.stored.items() if share != 1} == {}
        assert {type(error) for error in lost.failed().values()} == {DatabaseUnavailableError}
        assert {name for name in names if lost.calls[name].waits} - lost.failed().keys() == (
            set() if kind is BoundRound else {"recorder.submit", "synchronous.submit"}
        )
        assert {name: share for name, share in lost.stored.items() if share != 0} == {}


async def test_every_kind_of_item_is_written_while_another_node_is_lost(
    on_citus: BucketDatabase, citus_cluster: CitusBuckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a batch that is written by several statements in one transaction."""
    [node, lost_node] = await citus_cluster.nodes()
    await on_citus.placement.move_to_node(0, node)
    await on_citus.placement.move_to_node(1, lost_node)
    user = user_in(on_citus, 0)
    of = {"user_id": user, "session_id": "s"}
    items: list[Item] = [
        Touch(session_id="parent", user_id=user, agent_name="a"),
        Touch(**of, parent_session_id="parent", metadata={"k": 1}, tags={"t": "1"}, waiting=True),
        UsageEvent(**of, model="m", tokens_in=1, idempotency_key="k", key_scope="user"),
        Run(**of, run_id="root", started_at=BEGAN, reported_cost_usd=Decimal(2)),
        Run(**of, run_id="child", parent_run_id="root", started_at=BEGAN, ended_at=BEGAN, status="completed"),
        UsageEvent(**of, model="m", tokens_in=1, cost_usd=1, run_id="child", idempotency_key="l", revision=1),
        UsageEvent(**of, model="m", tokens_in=1, billing="plan"),
        Step(user_id=user, run_id="child", step_id="st", kind="tool", started_at=BEGAN),
        Message(**of, message_id="me", role="user", content="c", created_at=BEGAN),
        End(**of, status="completed"),
    ]
    async with unreachable(citus_cluster, 1), SessionDatabase.buckets(citus_cluster.places) as db:
        receipts = await db.lifecycle.record(items)
        assert [receipt.outcome if isinstance(receipt, UsageReceipt) else receipt for receipt in receipts] == [
            *(
                "created",
                "created",
                "applied",
                "created",
                "created",
                "applied",
                "applied",
                "created",
                "created",
                "ended",
            )
        ]
        assert await db.lifecycle.reopen_session("s", user) == "reopened"
        with pytest.raises(InvalidValueError, match="parent_session_id"):
            await db.lifecycle.record([Touch(session_id="parent", user_id=user, parent_session_id="s")])
        monkeypatch.setattr(waves, "PART_BYTES", 1)
        again = await db.lifecycle.record([item for item in items if isinstance(item, UsageEvent | Run | Message)])
        assert [getattr(one, "outcome", one) for one in again] == [
            *("duplicate", "unchanged", "unchanged", "duplicate", "applied", "unchanged")
        ]
        monkeypatch.undo()
        row = await db.lifecycle.get_session_row("s", user)
        assert row is not None
        assert (row.record.tokens_in, row.record.cost_usd) == (4, Decimal(3))
        assert (await db.maintenance.erase_user(user, tombstone=True)).sessions == 2
        with pytest.raises(InvalidValueError, match="erased"):
            await db.lifecycle.record(items)
