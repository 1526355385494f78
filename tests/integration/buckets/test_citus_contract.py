"""The contract suite and the state machine over buckets that Citus keeps on its nodes."""

from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from integration.buckets.test_contract import InHostTransactions, Recorded
from session_lifecycle import SessionDatabase, SessionLifecycleDb
from session_lifecycle.buckets.database import BucketDatabase
from support.citus import CitusBuckets
from support.contract import SessionLifecycleContract


class TestOnCitus(SessionLifecycleContract):
    @pytest.fixture
    def lifecycle(self, on_citus: BucketDatabase) -> SessionLifecycleDb:
        return on_citus.lifecycle


class TestOnCitusThroughARecorder(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(self, on_citus: BucketDatabase) -> AsyncIterator[SessionLifecycleDb]:
        async with on_citus.recorder() as recorder:
            yield cast("SessionLifecycleDb", Recorded(on_citus.lifecycle, recorder))


class TestOnCitusInAHostsTransactions(SessionLifecycleContract):
    @pytest_asyncio.fixture
    async def lifecycle(
        self, on_citus: BucketDatabase, citus_cluster: CitusBuckets
    ) -> AsyncIterator[SessionLifecycleDb]:
        async with SessionDatabase.connect(citus_cluster.url) as host:
            yield cast("SessionLifecycleDb", InHostTransactions(on_citus, host))
