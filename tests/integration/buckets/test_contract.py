"""The contract suite over buckets: directly, through a recorder, and in a host's transactions."""

from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from session_lifecycle import SessionDatabase, SessionLifecycleDb
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.buckets.recorder import BucketRecorder
from support.buckets import BucketServers
from support.contract import SessionLifecycleContract


class Recorded:
    """Writes through a recorder and reads directly."""

    def __init__(self, lifecycle: SessionLifecycleDb, recorder: BucketRecorder) -> None:
        self._ways = (recorder, lifecycle)

    def __getattr__(self, name: str) -> object:
        return getattr(next(way for way in self._ways if hasattr(way, name)), name)


class TestOverEightBuckets(SessionLifecycleContract):
    @pytest.fixture
    def lifecycle(self, on_one_server: BucketDatabase) -> SessionLifecycleDb:
        return on_one_server.lifecycle


class TestOverFourBucketsOnTwoServers(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(self, on_two_servers: BucketDatabase) -> AsyncIterator[SessionLifecycleDb]:
        async with on_two_servers.recorder() as recorder:
            yield cast("SessionLifecycleDb", Recorded(on_two_servers.lifecycle, recorder))


class InHostTransactions:
    """Makes each call in a transaction of its own, which the host commits."""

    def __init__(self, db: BucketDatabase, host: SessionDatabase) -> None:
        self._db = db
        self._host = host

    def __getattr__(self, name: str) -> object:
        async def call(*arguments: object, **more: object) -> object:
            async with self._host.engine.begin() as connection:
                return await getattr(self._db.bind(connection).lifecycle, name)(*arguments, **more)

        return call


@pytest.mark.soak
class TestOverEightBucketsInAHostsTransactions(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(self, eight_buckets: BucketServers) -> AsyncIterator[SessionLifecycleDb]:
        async with (
            eight_buckets.cloned() as places,
            SessionDatabase.buckets(places) as db,
            SessionDatabase.connect(places[0].url) as host,
        ):
            yield cast("SessionLifecycleDb", InHostTransactions(db, host))
