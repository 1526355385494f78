"""Random histories over eight buckets: every answer equals that of the plain-Python model of the rules."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from integration.writing.test_state_machine import BEGINNING, EMPTY, OVERRIDES, Histories, run_histories
from session_lifecycle import SessionDatabase, SessionLifecycleDb, Settings
from session_lifecycle.testing import SessionClock
from support.buckets import BucketServers
from support.lifecycle_model import ABANDON_AFTER

LEDGER = (
    "SELECT user_id, session_id, coalesce(idempotency_key, ''), revision, late, tokens_in, coalesce(cost_usd, -1) "
    "FROM {schema}.session_usage_events"
)


class OverBuckets(Histories):
    """The same steps over buckets. The host's transactions are in the database that has all of them."""

    db: Any
    host: SessionDatabase
    schemas: list[str]

    async def _empty(self) -> None:
        async with self.host.engine.begin() as connection:
            for schema in self.schemas:
                await connection.execute(text(EMPTY.replace("session_lifecycle.", f"{schema}.")))
        await self.clock.freeze(BEGINNING)

    async def _write(self, way: str, write: Callable[[SessionLifecycleDb], Awaitable[Any]]) -> Any:
        if way == "direct":
            return await write(self.db.lifecycle)
        async with self.host.engine.connect() as connection:
            answer = await write(self.db.bind(connection).lifecycle)
            await (connection.commit() if way == "bound" else connection.rollback())
            return answer

    async def _ledger(self) -> list[tuple[Any, ...]]:
        every = " UNION ALL ".join(LEDGER.format(schema=schema) for schema in self.schemas)
        async with self.host.engine.connect() as connection:
            return sorted(tuple(row) for row in await connection.execute(text(every)))


@pytest.fixture
def histories(eight_buckets: BucketServers) -> Iterator[Any]:
    """The state machine over eight buckets in one database."""
    with asyncio.Runner() as runner:
        cloned = eight_buckets.cloned()
        places = runner.run(cloned.__aenter__())
        url = str(places[0].url)
        db = SessionDatabase.buckets(places, prices=OVERRIDES, settings=Settings(abandon_after=ABANDON_AFTER))
        fields = {
            "db": db,
            "host": SessionDatabase.connect(url),
            "schemas": [place.schema for place in places],
            "clock": SessionClock(url),
            "runner": runner,
        }
        yield type("HistoriesHere", (OverBuckets,), fields)
        runner.run(db.close())
        runner.run(fields["host"].close())  # type: ignore[attr-defined]  # the values are of many types
        runner.run(cloned.__aexit__(None, None, None))


def test_every_answer_is_the_models(histories: Any) -> None:
    run_histories(histories, examples=2, steps=12)


@pytest.mark.soak
def test_every_answer_is_the_models_in_many_long_histories(histories: Any) -> None:
    run_histories(histories, examples=300, steps=50)
