"""A database of one schema adds nothing to a bucket. A schema with users of other buckets becomes no bucket."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import ConfigurationError, SessionDatabase, SessionLifecycleError, UsageEvent
from session_lifecycle.cli.commands.demo import record_fleet
from session_lifecycle.entities import metadata
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.statements.buckets import directory
from support.buckets import user_in
from support.every_call import CALLS, PRICES, Caller

PLACES = ["bucket_0", "bucket_1"]
REFUSAL = r"schema 'bucket_0' is bucket 0 of 2, and a database of one schema does not know which users belong to it"
# An operator may erase a user in one bucket. The tombstone stays there.
ERASES = {"maintenance.erase_user"}


async def users_of(db: SessionDatabase, schema: str) -> set[UUID]:
    async with db.engine.connect() as connection:
        found = await connection.execute(
            directory.users(), execution_options={"schema_translate_map": {metadata.schema: schema}}
        )
        return {row.user_id for row in found}


async def outcomes(db: SessionDatabase, schema: str) -> tuple[set[str], set[str]]:
    """Makes every call for a new user. Returns the calls that left something of the user, and those that were refused.

    An item that was handed over is refused where `on_lost` gets it.
    """
    caller = Caller(db)
    users = {name: uuid4() for name in CALLS}
    refused = set()
    for name, call in CALLS.items():
        try:
            await call.run(caller, users[name])
        except ConfigurationError:
            refused.add(name)
        except SessionLifecycleError:
            pass  # what a call needs is not there
    await caller.close_recorders()
    stored = await users_of(db, schema)
    return (
        {name for name, user in users.items() if user in stored} - ERASES,
        refused | {name for name, user in users.items() if user in caller.lost},
    )


async def test_the_demo_is_refused_in_a_bucket_and_nothing_of_it_goes_on(session_database_url: str) -> None:
    async with SessionDatabase.buckets(PLACES, url=session_database_url) as buckets:
        await buckets.migrate()
    async with SessionDatabase.connect(session_database_url, schema="bucket_0") as bucket:
        before = asyncio.all_tasks()
        with pytest.raises(ExceptionGroup) as refused:
            await record_fleet(bucket, 1, as_json=True)
        assert asyncio.all_tasks() == before
    assert refused.group_contains(ConfigurationError, match=REFUSAL)


async def test_no_call_of_one_schema_writes_into_a_bucket(session_database_url: str) -> None:
    async with SessionDatabase.buckets(PLACES, url=session_database_url) as buckets:
        await buckets.migrate()
    async with SessionDatabase.connect(session_database_url, prices=PRICES) as plain:
        writing, refused = await outcomes(plain, "session_lifecycle")
        assert refused == set()
        assert len(writing) >= 20
    async with SessionDatabase.connect(session_database_url, schema="bucket_0", prices=PRICES) as bucket:
        written, refused = await outcomes(bucket, "bucket_0")
        assert written == set()
        assert writing <= refused
        # It is read and maintained as ever.
        assert (await bucket.maintenance.reconcile()).mismatch_count == 0


async def test_a_bound_write_is_refused_and_the_transaction_goes_on(session_database_url: str) -> None:
    engine = create_async_engine(asyncpg_url(session_database_url))
    async with SessionDatabase.buckets(PLACES, engine=engine) as buckets:
        await buckets.migrate()
        bucket = SessionDatabase.from_engine(engine, schema="bucket_0")
        plain = SessionDatabase.from_engine(engine)
        await plain.migrate()
        for savepoints in (True, False):
            user = user_in(buckets, 0, which=int(savepoints))
            event = UsageEvent(session_id="s", user_id=user, model="m", tokens_in=1, cost_usd=1)
            async with engine.begin() as connection:
                roles = bucket.bind(connection, savepoints=savepoints)
                with pytest.raises(ConfigurationError, match=REFUSAL):
                    await roles.lifecycle.record([event])
                with pytest.raises(ConfigurationError, match=REFUSAL):
                    await roles.budgets.reserve("s", user, cost_usd=1, idempotency_key="k")
                assert (await roles.lifecycle.aggregate_stats(user)).sessions == 0
                await plain.bind(connection, savepoints=savepoints).lifecycle.record([event])
                await buckets.bind(connection, savepoints=savepoints).lifecycle.record([event])
            assert (await plain.lifecycle.aggregate_stats(user)).tokens_in == 1
            assert (await buckets.lifecycle.aggregate_stats(user)).tokens_in == 1
    await engine.dispose()


async def test_a_schema_with_users_of_another_bucket_becomes_no_bucket(session_database_url: str) -> None:
    places = ["session_lifecycle", "bucket_1"]
    async with (
        SessionDatabase.connect(session_database_url) as plain,
        SessionDatabase.buckets(places, url=session_database_url) as buckets,
    ):
        mine, stranger = user_in(buckets, 0), user_in(buckets, 1)
        await plain.lifecycle.ensure_and_touch_session("s", mine)
        # All that is left of the stranger is the tombstone.
        await plain.maintenance.erase_user(stranger, tombstone=True)
        with pytest.raises(ConfigurationError, match=f"the user {stranger} of bucket 1, so it cannot become bucket 0"):
            await buckets.migrate()
        # Nothing says that it is a bucket, so it goes on as before.
        await plain.lifecycle.ensure_and_touch_session("s2", mine)


async def test_a_schema_becomes_the_bucket_of_its_users(session_database_url: str) -> None:
    places = ["session_lifecycle", "bucket_1"]
    async with (
        SessionDatabase.connect(session_database_url) as plain,
        SessionDatabase.buckets(places, url=session_database_url) as buckets,
    ):
        mine = user_in(buckets, 0)
        await plain.lifecycle.ensure_and_touch_session("s", mine)
        await buckets.migrate()
        assert await buckets.lifecycle.get_session_row("s", mine) is not None
    async with SessionDatabase.connect(session_database_url) as plain:
        with pytest.raises(ConfigurationError, match="is bucket 0 of 2"):
            await plain.lifecycle.ensure_and_touch_session("s", mine)
