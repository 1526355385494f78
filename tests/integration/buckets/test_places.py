"""Which places are refused, what a place that is away stops, and what a host's transaction takes."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    SchemaError,
    SessionDatabase,
    SessionListFilters,
    Settings,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.buckets.places import Place
from session_lifecycle.errors import PartlyWrittenError
from session_lifecycle.models import Budget
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.testing import SessionClock
from support.buckets import BucketServers, user_in
from support.eventually import eventually

AWAY = "postgresql://nobody@127.0.0.1:1/nothing"
QUICKLY = Settings(retries=0, connect_timeout_seconds=2)
DATASET = UUID(int=77)
MOMENT = timedelta(microseconds=1)


def event(user: UUID, session_id: str = "s", **fields: object) -> UsageEvent:
    more = {"idempotency_key": "k", "tokens_in": 1, "model": "m", **fields}
    return UsageEvent(session_id=session_id, user_id=user, **more)


async def test_another_number_order_or_function_is_refused(eight_buckets: BucketServers) -> None:
    async with eight_buckets.cloned() as places:
        swapped = [places[1], places[0], *places[2:]]
        wrong = {
            "number of buckets": SessionDatabase.buckets(places[:4]),
            "order of the places": SessionDatabase.buckets(swapped),
            "function of users": SessionDatabase.buckets(places, of=lambda _: 0),
        }
        for what, db in wrong.items():
            async with db:
                with pytest.raises(ConfigurationError, match=f"the {what} differs"):
                    await db.check()
                with pytest.raises(ConfigurationError, match=f"the {what} differs"):
                    await db.lifecycle.ensure_and_touch_session("s", user_in(db, 0))
        async with SessionDatabase.buckets(places) as db:
            assert await db.check() == []


async def test_buckets_of_another_deployment_are_refused(eight_buckets: BucketServers) -> None:
    async with eight_buckets.cloned() as places:
        connection = await asyncpg.connect(places[3].url)
        await connection.execute(f"UPDATE {places[3].schema}.session_buckets SET deployment_id = gen_random_uuid()")
        await connection.close()
        async with SessionDatabase.buckets(places) as db:
            with pytest.raises(ConfigurationError, match=r"bucket 3: the deployment differs"):
                await db.check()


async def test_a_schema_that_is_no_bucket_is_refused_until_it_is_migrated(session_database_url: str) -> None:
    async with SessionDatabase.buckets([Place("session_lifecycle"), "b"], url=session_database_url) as db:
        user = user_in(db, 0)
        with pytest.raises(SchemaError, match="is no bucket yet"):
            await db.lifecycle.ensure_and_touch_session("s", user)
        with pytest.raises(SchemaError, match="not migrated"):
            await db.lifecycle.ensure_and_touch_session("s", user_in(db, 1))
        await db.migrate()
        assert await db.lifecycle.ensure_and_touch_session("s", user) == "created"
        assert await db.lifecycle.ensure_and_touch_session("s", user_in(db, 1)) == "created"


@pytest.mark.parametrize("places", [[], "bucket", ["b", "b"], [3], [f"b{number}" for number in range(65)]])
def test_what_is_no_list_of_places_is_refused(places: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="places"):
        SessionDatabase.buckets(places, url=AWAY)


async def test_the_host_chooses_the_bucket_of_a_user(eight_buckets: BucketServers) -> None:
    tenants = {UUID(int=1): 5, UUID(int=2): 8}
    async with eight_buckets.cloned() as places:
        connection = await asyncpg.connect(places[0].url)
        for place in places:
            await connection.execute(f"UPDATE {place.schema}.session_buckets SET hash_name = 'tenant'")
        await connection.close()
        async with SessionDatabase.buckets(places, of=lambda user: tenants[user], of_name="tenant") as db:
            await db.lifecycle.ensure_and_touch_session("s", UUID(int=1))
            async with SessionDatabase.connect(places[5].url, schema=places[5].schema) as bucket:
                assert await bucket.lifecycle.get_session_row("s", UUID(int=1)) is not None
            with pytest.raises(ConfigurationError, match="got 8 for the user"):
                await db.lifecycle.ensure_and_touch_session("s", UUID(int=2))


async def test_what_is_no_bucket_and_no_user_is_refused(on_one_server: BucketDatabase) -> None:
    user = UUID(int=7)
    assert on_one_server.bucket_of(str(user)) == on_one_server.bucket_of(user)
    with pytest.raises(InvalidValueError, match="user_id: got 'nobody', expected"):
        on_one_server.bucket_of("nobody")
    calls = (
        on_one_server.placement.node_of,
        partial(on_one_server.placement.move, to="postgresql://elsewhere/sessions"),
        partial(on_one_server.placement.move_to_node, node="elsewhere:5432"),
    )
    for call in calls:
        for number in (-1, on_one_server.bucket_count, True, "0"):
            with pytest.raises(InvalidValueError, match=f"number: got {number!r}, expected a bucket from 0 to 7"):
                await call(number)  # type: ignore[arg-type]  # what a caller without a type checker gives


async def test_a_place_that_is_away_stops_its_own_users_only(eight_buckets: BucketServers) -> None:
    async with eight_buckets.cloned() as places:
        places[2] = Place(places[2].schema, AWAY)
        async with SessionDatabase.buckets(places, settings=QUICKLY) as db:
            here, there, other = user_in(db, 1), user_in(db, 2), user_in(db, 3)
            assert await db.lifecycle.ensure_and_touch_session("s", here, DATASET) == "created"
            assert (await db.lifecycle.aggregate_stats(here)).sessions == 1
            assert (await db.lifecycle.list_session_rows(SessionListFilters(user_id=here))).total == 1
            away = "bucket 2: the database cannot be reached"
            with pytest.raises(DatabaseUnavailableError, match=away):
                await db.lifecycle.ensure_and_touch_session("s", there)
            # Whoever asks for more than one bucket is told, and never shown less than there is.
            for viewer in (Viewer.auditor(), Viewer(here, [DATASET]), Viewer(here, (), [there])):
                with pytest.raises(DatabaseUnavailableError, match=away):
                    await db.lifecycle.aggregate_stats(viewer)
            assert (await db.lifecycle.aggregate_stats(Viewer(here, (), [other]))).sessions == 1
            with pytest.raises(DatabaseUnavailableError, match=r"1 of 8 buckets were away.*bucket 2"):
                await db.maintenance.roll_up()
            with pytest.raises(DatabaseUnavailableError, match=r"^bucket 2: "):
                await db.check()

            items = [event(here, "a"), event(there, "b"), event(other, "c"), event(there, "d")]
            with pytest.raises(PartlyWrittenError, match="2 of 4 items were not written") as failed:
                await db.lifecycle.record(items)
            assert [receipt and receipt.outcome for receipt in failed.value.receipts] == [
                "applied", None, "applied", None,
            ]  # fmt: skip
            assert list(failed.value.errors) == [1, 3]
            assert failed.value.may_have_written == ()
            with pytest.raises(DatabaseUnavailableError):
                await db.lifecycle.record([event(there, "b"), event(there, "d")])


async def test_a_place_that_is_away_stops_its_own_queue_only(eight_buckets: BucketServers) -> None:
    lost: list[str] = []
    async with eight_buckets.cloned() as places:
        places[2] = Place(places[2].schema, AWAY)
        async with SessionDatabase.buckets(places, settings=QUICKLY) as db:
            here, there = user_in(db, 1), user_in(db, 2)
            recorder = db.recorder(
                give_up_after=60,
                drain_within=0.1,
                on_lost=lambda items, _: lost.extend(str(getattr(one, "session_id", None)) for one in items),
            )
            async with recorder:
                recorder.submit(event(there, "lost"))
                waiting = asyncio.create_task(recorder.record([event(there, "waits"), event(here, "beside")]))
                for number in range(20):
                    assert (await recorder.accumulate_usage(f"s{number}", here, "m", 1)).outcome == "applied"
                recorder.submit(event(here, "submitted"))
                snapshots = recorder.snapshots()
                assert snapshots[2].pending == 2
                assert snapshots[1].items >= 21
                assert recorder.snapshot().pending == sum(one.pending for one in snapshots.values())
                assert recorder.snapshot().oldest_waiting_seconds >= snapshots[2].oldest_waiting_seconds > 0
                await eventually(lambda: recorder.snapshots()[1].pending == 0)
            with pytest.raises(PartlyWrittenError) as failed:
                await waiting
            assert list(failed.value.errors) == [0]
            assert lost == ["lost"]
            assert (await db.lifecycle.aggregate_stats(here)).sessions == 22


async def test_an_item_that_is_refused_keeps_every_bucket_from_writing(on_one_server: BucketDatabase) -> None:
    db = on_one_server
    here, there = user_in(db, 0), user_in(db, 1)
    wrong = event(there).model_copy(update={"tokens_in": -1})
    async with db.recorder() as recorder:
        for writer in (db.lifecycle, recorder):
            with pytest.raises(InvalidValueError) as refused:
                await writer.record([event(here), wrong])
            assert refused.value.field == "items.1.tokens_in"
    assert (await db.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 0


async def test_a_data_set_is_found_in_a_bucket_that_had_none_before(on_two_servers: BucketDatabase) -> None:
    """A bucket without the data set is looked at again every time: nothing is hidden by what was there before."""
    db = on_two_servers
    viewer = Viewer(None, [DATASET])
    for number in range(db.bucket_count):
        assert (await db.lifecycle.aggregate_stats(viewer)).sessions == number
        await db.lifecycle.ensure_and_touch_session("s", user_in(db, number), DATASET)
        assert (await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer))).total == number + 1
    assert await db.maintenance.delete_session("s", user_in(db, 0))
    assert (await db.lifecycle.aggregate_stats(viewer)).sessions == 3


async def test_a_hosts_transaction_takes_the_buckets_of_its_database(four_buckets: BucketServers) -> None:
    async with (
        four_buckets.cloned() as places,
        SessionDatabase.buckets(places) as db,
        SessionDatabase.connect(places[0].url) as host,
    ):
        here, beside, there = user_in(db, 0), user_in(db, 1), user_in(db, 2)
        async with host.engine.begin() as connection:
            bound = db.bind(connection)
            assert await bound.lifecycle.record([Touch(session_id="s", user_id=one) for one in (here, beside)]) == [
                "created", "created",
            ]  # fmt: skip
            with pytest.raises(ConfigurationError, match="bind: bucket 2 is not in the database"):
                await bound.lifecycle.ensure_and_touch_session("s", there)
            with pytest.raises(ConfigurationError, match="bind: bucket 2 is not in the database"):
                await bound.lifecycle.record([Touch(session_id="t", user_id=one) for one in (here, there)])
            stats = await bound.lifecycle.aggregate_stats(Viewer.of_users([here, beside]))
            assert stats.sessions == 2  # of the refused call nothing stays
        assert (await db.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 2
        async with host.engine.connect() as connection:
            await db.bind(connection).lifecycle.ensure_and_touch_session("u", here)
        assert (await db.lifecycle.aggregate_stats(here)).sessions == 1


async def test_budgets_are_a_users(on_one_server: BucketDatabase) -> None:
    db = on_one_server
    here, there = user_in(db, 0), user_in(db, 1)
    with pytest.raises(InvalidValueError, match="user_id"):
        await db.budgets.set_budget(Budget(budget_id="all", agent_name="coder", limit_usd=1))
    assert await db.budgets.set_budget(Budget(budget_id="b", user_id=here, limit_tokens=10))
    assert not await db.budgets.set_budget(Budget(budget_id="b", user_id=there, limit_tokens=5))
    assert [one.user_id for one in await db.budgets.list_budgets(Viewer.auditor())] == [there]
    assert (await db.budgets.reserve("s", there, "m", 6, idempotency_key="k")).outcome == "refused"
    assert (await db.budgets.reserve("s", here, "m", 6, idempotency_key="k")).outcome == "unlimited"
    async with db.session("s", there) as session:
        assert not (await session.reserve("m", 6, idempotency_key="l")).admitted
    assert await db.budgets.delete_budget("b")
    assert await db.budgets.get_budget("b", Viewer.auditor()) is None


async def test_a_job_of_all_buckets_refuses_what_cannot_be_called_before_it_begins(
    on_one_server: BucketDatabase,
) -> None:
    jobs = on_one_server.maintenance
    await on_one_server.lifecycle.record([event(user_in(on_one_server, number)) for number in range(8)])
    calls: list[Callable[[Any], Awaitable[object]]] = [
        lambda given: jobs.reprice(on_progress=given),
        lambda given: jobs.roll_up(on_progress=given),
        lambda given: jobs.prune_sessions(MOMENT, on_progress=given),
        lambda given: jobs.prune_payloads(MOMENT, on_progress=given),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="on_progress: got 5, expected a callable"):
            await call(5)
    assert (await on_one_server.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 8


@pytest.mark.parametrize("narrowing", ["user_ids", "agent_names", "dataset_ids"])
async def test_every_bucket_is_pruned_by_all_that_an_iterator_gives(
    on_one_server: BucketDatabase, narrowing: str
) -> None:
    db = on_one_server
    users = [user_in(db, number) for number in range(8)]
    await db.lifecycle.record(
        [Touch(session_id="s", user_id=user, agent_name="a", dataset_id=DATASET) for user in users]
    )
    given: dict[str, list[Any]] = {"user_ids": users, "agent_names": ["a"], "dataset_ids": [DATASET]}
    for dry_run in (True, False):
        asked: dict[str, Any] = {narrowing: iter(given[narrowing]), "dry_run": dry_run}
        assert (await db.maintenance.prune_sessions(MOMENT, **asked)).sessions == 8


async def test_an_erased_user_is_anonymous_in_the_same_bucket(on_one_server: BucketDatabase) -> None:
    db = on_one_server
    user = user_in(db, 3)
    await db.lifecycle.record([event(user, tokens_in=7)])
    receipt = await db.maintenance.erase_user(user, usage="anonymise", tombstone=True)
    assert receipt.pseudonym is not None
    assert db.bucket_of(receipt.pseudonym) == 3
    assert (await db.lifecycle.aggregate_stats(receipt.pseudonym)).tokens_in == 7
    with pytest.raises(InvalidValueError, match="tombstone"):
        await db.lifecycle.record([event(user)])
    report = await db.maintenance.reconcile()
    assert (report.sessions_looked_at, report.mismatch_count) == (1, 0)


def test_R23_buckets_work_in_one_event_loop_after_another(eight_buckets: BucketServers) -> None:
    """Each loop has pools of its own, which are closed with it; a recorder writes what is pending first."""
    name, [server] = "buckets_of_loops", eight_buckets.servers

    async def write(db: BucketDatabase, session_id: str) -> None:
        recorder = db.recorder()
        await recorder.open()
        for number in range(8):
            recorder.submit(event(user_in(db, number), session_id))
        await db.lifecycle.record([event(user_in(db, number), session_id + "'") for number in range(8)])

    async def end(db: BucketDatabase) -> int:
        sessions = (await db.lifecycle.aggregate_stats(Viewer.auditor())).sessions
        await db.close()
        return sessions

    asyncio.run(server.clone(name))
    try:
        db = SessionDatabase.buckets(eight_buckets.places([name]))
        asyncio.run(write(db, "a"))
        asyncio.run(write(db, "b"))
        with db.synchronous_recorder() as synchronous:
            users = [user_in(db, number) for number in range(8)]
            synchronous.record([event(user, "c") for user in users])
            synchronous.submit(event(users[0], "d"))
            with synchronous.session("e", users[1]) as session, session.run("answer") as run:
                run.message("user", "hi")
        assert asyncio.run(end(db)) == 32 + 8 + 2
    finally:
        asyncio.run(server.drop(name))


async def test_buckets_on_the_engine_of_a_host(eight_buckets: BucketServers) -> None:
    async with eight_buckets.cloned() as places:
        engine = create_async_engine(asyncpg_url(str(places[0].url)))
        async with SessionDatabase.buckets([str(place.schema) for place in places], engine=engine) as db:
            here, there = user_in(db, 0), user_in(db, 1)
            await db.lifecycle.record([event(here), event(there)])
            async with engine.begin() as connection:
                await db.bind(connection).lifecycle.record([event(here, "t"), event(there, "t")])
            assert (await db.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 4
            with pytest.raises(ConfigurationError, match="synchronous_recorder: places are on the host's engine"):
                db.synchronous_recorder()
        async with engine.connect() as connection:  # the host's engine stays open
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()


async def test_R14_all_buckets_of_a_walk_judge_by_its_first_clock(four_buckets: BucketServers) -> None:
    async with four_buckets.cloned() as places, SessionDatabase.buckets(places) as db:
        first, second = SessionClock(str(places[0].url)), SessionClock(str(places[-1].url))
        now = await first.freeze()
        await second.freeze(now)
        users = [user_in(db, number) for number in range(4)]
        await db.lifecycle.record([Touch(session_id="s", user_id=user) for user in users])
        await second.advance(timedelta(hours=1))
        own = await db.lifecycle.list_session_rows(SessionListFilters(user_id=users[3]))
        assert own.sessions[0].effective_status == "abandoned"
        filters = SessionListFilters(viewer=Viewer.auditor(), status_filter="running", limit=1)
        page = await db.lifecycle.list_session_rows(filters)
        assert page.total == 4
        assert (await db.lifecycle.aggregate_stats(Viewer.auditor())).running == 4
        await first.advance(timedelta(hours=1))
        walked = page.sessions
        while page.next_cursor is not None:
            page = await db.lifecycle.list_session_rows(filters.model_copy(update={"cursor": page.next_cursor}))
            walked += page.sessions
        assert {row.record.user_id for row in walked} == set(users)
        assert len(walked) == 4
        assert (await db.lifecycle.aggregate_stats(Viewer.auditor())).abandoned == 4
        summaries = SummaryFilters(viewer=Viewer.auditor(), order_by="error_count", limit=3)
        listed = await db.activity.list_session_summaries(summaries)
        assert {one.effective_status for one in listed.sessions} == {"abandoned"}
