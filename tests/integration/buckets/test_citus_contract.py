"""The contract suite and the state machine over buckets that Citus keeps on its nodes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
import pytest_asyncio

from integration.buckets.test_contract import InHostTransactions, Recorded
from integration.buckets.test_state_machine import OverBuckets
from integration.writing.test_state_machine import OVERRIDES, run_histories
from session_lifecycle import SessionDatabase, SessionLifecycleDb, Settings
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.postgres.engines import SERVER_SETTINGS
from support.citus import CitusBuckets
from support.contract import SessionLifecycleContract
from support.lifecycle_model import ABANDON_AFTER


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


@pytest.fixture
def histories(citus_cluster: CitusBuckets, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The state machine over buckets on Citus."""
    with asyncio.Runner() as runner:
        runner.run(citus_cluster.empty())
        clock = runner.run(citus_cluster.install_clock())
        monkeypatch.setitem(SERVER_SETTINGS, "search_path", citus_cluster.clock_path)
        db = SessionDatabase.buckets(
            citus_cluster.places, prices=OVERRIDES, settings=Settings(abandon_after=ABANDON_AFTER)
        )
        host = SessionDatabase.connect(citus_cluster.url)
        fields = {"db": db, "host": host, "schemas": citus_cluster.schemas, "clock": clock, "runner": runner}
        yield type("HistoriesHere", (OverBuckets,), fields)
        runner.run(db.close())
        runner.run(host.close())
        runner.run(citus_cluster.remove_clock())


def test_every_answer_is_the_models(histories: Any) -> None:
    run_histories(histories, examples=2, steps=12)


@pytest.mark.soak
def test_every_answer_is_the_models_in_many_long_histories(histories: Any) -> None:
    run_histories(histories, examples=50, steps=50)
