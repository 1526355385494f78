"""Rolling up: interrupted, several at once, beside writers; and after users are erased."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import (
    End,
    SessionDatabase,
    SessionListFilters,
    SessionStatus,
    Settings,
    Touch,
    UsageEvent,
    UsageOutcome,
    Viewer,
)
from session_lifecycle.entities import metadata
from session_lifecycle.models import RollUpReport
from session_lifecycle.statements.maintenance import roll_up
from session_lifecycle.testing import SessionClock
from support import roll_up_process
from support.recount import Key, Stored
from support.stored_rows import ask, deadlocks, keep_buckets, table

A, B = UUID(int=1), UUID(int=2)
D = UUID(int=11)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MANY = 350
HOUR = timedelta(hours=1)
MODELS = 2
KEYS = "SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'session_id', session_id))::text FROM session_records"


async def live(db: SessionDatabase) -> None:
    """More sessions than the first batch takes, of two users, in one hour, with two models each."""
    keys = [{"user_id": B if number % 2 else A, "session_id": f"s{number}"} for number in range(1, MANY + 1)]
    rows = [
        {
            **key,
            "dataset_id": None if number % 3 else D,
            "status": "completed",
            "started_at": NOON,
            "last_activity_at": NOON + timedelta(minutes=number % 40),
            "ended_at": NOON,
            "cost_usd": 3,
            "tokens_in": 30,
        }
        for number, key in enumerate(keys, 1)
    ]
    used = [
        {**key, "model": model, "cost_usd": Decimal("1.5"), "tokens_in": 15, "events": 1}
        for key in keys
        for model in ("", "m")
    ]
    async with db.engine.begin() as connection:
        await connection.execute(insert(table("session_records")).values(rows))
        await connection.execute(insert(table("session_model_usage")).values(used))


async def roll_up_sessions(host: Any, keys: str) -> None:
    """Runs the first half of a roll-up in the host's open transaction."""
    bound = {"keys": keys, "idle_before": NOON}
    await host.execute(roll_up.roll_up_sessions("session_lifecycle")(), bound)


async def assert_all_rolled_up(db: SessionDatabase) -> None:
    """Every session is rolled up, and the buckets hold every change."""
    stored = await Stored.of(db)
    assert stored.faults() == []
    assert all(session["rolled_up"] for session in stored.sessions)
    assert not stored.tables["session_roll_up_changes"]
    assert not stored.tables["session_model_roll_up_changes"]


async def agree(db: SessionDatabase, *viewers: Viewer) -> Stored:
    """The figures equal the sums of the rows; needs a stopped clock and no writers."""
    stored = await Stored.of(db)
    assert stored.faults() == []
    ago = timedelta(minutes=30)
    for viewer in viewers:
        for since, until in ((None, None), (None, stored.now - ago), (stored.now - 2 * ago, stored.now)):
            stats = await db.lifecycle.aggregate_stats(viewer, (), since, until=until)
            assert stats == stored.stats(viewer, since, until, ago)
            costs = await db.lifecycle.cost_by_model(viewer, (), since, until=until)
            assert costs == stored.cost_by_model(viewer, since, until)
    return stored


@pytest_asyncio.fixture(autouse=True, params=[0, 0.2, 64], ids=["every bucket", "some buckets", "rows"])
async def density(request: pytest.FixtureRequest, session_database: SessionDatabase) -> None:
    """Whether there are buckets of every length, of dense times only, or none for so few sessions."""
    await keep_buckets(session_database, density=request.param)


@pytest_asyncio.fixture
async def impatient(session_database_url: str) -> AsyncIterator[SessionDatabase]:
    """The same database, where waiting for a lock raises after a second."""
    engine = create_async_engine(
        session_database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
        connect_args={"server_settings": {"lock_timeout": "1s"}},
    )
    yield SessionDatabase.from_engine(engine)
    await engine.dispose()


async def test_a_rolled_up_session_runs_for_a_reader_with_a_longer_threshold(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    now = datetime.now(UTC)
    for number, idle in enumerate((timedelta(hours=1), timedelta(hours=1), timedelta(days=2))):
        await session_database.lifecycle.ensure_and_touch_session(f"s{number}", A, D, at=now - idle)
    assert (await session_database.maintenance.roll_up()).sessions == 3
    viewer, yesterday = Viewer(A, [D]), now - timedelta(days=1)
    async with SessionDatabase.connect(session_database_url, settings=Settings(abandon_after=6 * HOUR)) as patient:
        for db, since, expected in (
            (session_database, None, (0, 3)),
            (patient, None, (2, 1)),
            (patient, yesterday, (2, 0)),
        ):
            stats = await db.lifecycle.aggregate_stats(viewer, since=since)
            assert (stats.running, stats.abandoned) == expected
            for status, counted in zip(("running", "abandoned"), expected, strict=True):
                filters = SessionListFilters(viewer=viewer, since=since, status_filter=status)
                assert (await db.lifecycle.list_session_rows(filters)).total == counted


async def test_an_interrupted_roll_up_is_finished_by_the_next(session_database: SessionDatabase) -> None:
    await live(session_database)
    progress: list[RollUpReport] = []

    def give_up(report: RollUpReport) -> None:
        progress.append(report)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await session_database.maintenance.roll_up(on_progress=give_up)
    assert 0 < progress[0].sessions < MANY
    await agree(session_database, Viewer.auditor(), Viewer(A), Viewer(B, [D]))
    report = await session_database.maintenance.roll_up()
    # A second batch was on its way, and may have been committed.
    assert report.sessions in {MANY - progress[0].sessions, MANY - 2 * progress[0].sessions}
    # The first roll-up makes the buckets of the sessions, not of changes.
    assert report.changes == 0
    await assert_all_rolled_up(session_database)
    await agree(session_database, Viewer.auditor(), Viewer(A), Viewer(B, [D]))


async def test_progress_is_reported_after_each_batch(session_database: SessionDatabase) -> None:
    await live(session_database)
    progress: list[RollUpReport] = []
    report = await session_database.maintenance.roll_up(on_progress=progress.append)
    assert progress[-1] == report
    counts = [one.sessions for one in progress]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == MANY
    again = await session_database.maintenance.roll_up()
    assert (again.sessions, again.changes) == (0, 0)


async def test_several_at_once_share_the_work(session_database: SessionDatabase) -> None:
    await live(session_database)
    reports = await asyncio.gather(*(session_database.maintenance.roll_up() for _ in range(4)))
    assert sum(report.sessions for report in reports) == MANY
    # One of them makes the buckets; those that roll up after that append changes.
    assert sum(report.changes for report in reports) <= MANY * (1 + MODELS)
    await assert_all_rolled_up(session_database)


async def test_those_who_roll_up_sessions_do_not_wait_for_each_other(
    session_database: SessionDatabase, impatient: SessionDatabase
) -> None:
    await live(session_database)
    of_a, of_b = [(await ask(session_database, f"{KEYS} WHERE user_id = :user", user=user))[0][0] for user in (A, B)]
    async with session_database.engine.begin() as one, impatient.engine.begin() as other:
        await roll_up_sessions(one, of_a)
        await roll_up_sessions(other, of_b)
    assert (await session_database.maintenance.roll_up()).sessions == 0
    await assert_all_rolled_up(session_database)


async def test_the_first_roll_up_in_a_hosts_transaction(session_database: SessionDatabase) -> None:
    await live(session_database)
    async with session_database.engine.begin() as host:
        report = await session_database.bind(host).maintenance.roll_up()
    assert report.sessions == MANY
    await assert_all_rolled_up(session_database)


async def test_a_roll_up_waits_for_no_writer(session_database: SessionDatabase, impatient: SessionDatabase) -> None:
    await live(session_database)
    async with session_database.engine.begin() as host:
        await session_database.bind(host).lifecycle.reopen_session("s2", A)
        assert (await impatient.maintenance.roll_up()).sessions == MANY - 1
    # The session runs again and was active just now.
    assert (await impatient.maintenance.roll_up()).sessions == 0
    await session_database.lifecycle.end_session("s2", A, SessionStatus.FAILED)
    assert (await impatient.maintenance.roll_up()).sessions == 1
    await assert_all_rolled_up(session_database)


async def test_no_writer_of_other_sessions_waits_for_a_roll_up(
    session_database: SessionDatabase, impatient: SessionDatabase
) -> None:
    await live(session_database)
    [(keys,)] = await ask(session_database, f"{KEYS} WHERE user_id = :a", a=A)
    async with session_database.engine.begin() as host:
        await roll_up_sessions(host, keys)
        # These sessions are in the same hour and in the same dataset.
        for number in range(1, 41, 2):
            await impatient.lifecycle.reopen_session(f"s{number}", B, at=NOON)
        await impatient.lifecycle.accumulate_usage("another", A, "m", 1)
    assert (await Stored.of(session_database)).faults() == []


async def test_no_writer_waits_while_the_sums_are_written(
    session_database: SessionDatabase, impatient: SessionDatabase
) -> None:
    await live(session_database)
    [(keys,)] = await ask(session_database, KEYS)
    async with session_database.engine.begin() as host:
        await roll_up_sessions(host, keys)
    async with session_database.engine.begin() as host:
        await host.execute(roll_up.compact("session_lifecycle")(), {"most": MANY})
        for number in range(2, 42, 2):
            await impatient.lifecycle.reopen_session(f"s{number}", A, at=NOON)
        # No reader waits either, and changes that are not committed count once.
        await agree(impatient, Viewer.auditor())
    stored = await Stored.of(session_database)
    assert stored.faults() == []
    assert Counter(session["rolled_up"] for session in stored.sessions) == {True: MANY - 20, False: 20}


async def test_changes_that_cancel_out_so_far_make_no_bucket_by_model(session_database: SessionDatabase) -> None:
    db = session_database
    await keep_buckets(db, density=0.01)

    def used(session_id: str) -> list[UsageEvent | End]:
        key = {"session_id": session_id, "user_id": A, "at": NOON}
        return [*(UsageEvent(**key, model=one, cost_usd=1) for one in "mn"), End(**key, status=SessionStatus.COMPLETED)]

    await db.lifecycle.record(used("leaves"))
    await db.maintenance.roll_up()
    await db.lifecycle.reopen_session("leaves", A, at=NOON)
    await db.lifecycle.record(used("comes"))
    [(keys,)] = await ask(db, f"{KEYS} WHERE session_id = 'comes'")
    async with db.engine.begin() as host:
        await roll_up_sessions(host, keys)
    # One session goes out of the buckets and one comes in: two changes in all, and four by model.
    for _ in range(4):
        async with db.engine.begin() as host:
            await host.execute(roll_up.compact("session_lifecycle")(), {"most": 1})
        assert (await Stored.of(db)).faults() == []
        await agree(db, Viewer.auditor())
    assert await ask(db, "SELECT FROM session_roll_up_changes") == []
    assert await ask(db, "SELECT FROM session_model_roll_up_changes") == []


async def test_no_timeout_ends_the_sums_of_all_sessions(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    """Their time grows with the data."""
    await live(session_database)
    settings = Settings(statement_timeout_seconds=0.5, retries=0)
    async with SessionDatabase.connect(session_database_url, settings=settings) as db:
        async with session_database.engine.begin() as holder:
            await holder.exec_driver_sql("LOCK TABLE session_lifecycle.session_roll_ups IN SHARE MODE")
            rolling_up = asyncio.create_task(db.maintenance.roll_up())
            await asyncio.wait([rolling_up], timeout=1.5)
            assert not rolling_up.done()
        assert (await rolling_up).sessions == MANY
    await assert_all_rolled_up(session_database)


async def test_a_vacuum_that_a_timeout_ends_is_left_to_postgres(
    session_database: SessionDatabase, session_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await live(session_database)
    async with session_database.engine.begin() as host:
        await host.exec_driver_sql(
            "CREATE FUNCTION public.slow(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
            "IF current_query() LIKE 'VACUUM%' THEN PERFORM pg_sleep(1); END IF; RETURN $1; END $$"
        )
        await host.exec_driver_sql("CREATE INDEX ON session_lifecycle.rolled_up_sessions (public.slow(session_id))")
    settings = Settings(statement_timeout_seconds=0.5, retries=0)
    async with SessionDatabase.connect(session_database_url, settings=settings) as db:
        assert (await db.maintenance.roll_up()).sessions == MANY
    [warning] = caplog.messages
    assert "rolled_up_sessions was not vacuumed" in warning
    await assert_all_rolled_up(session_database)


@pytest.mark.parametrize("usage", ["delete", "anonymise"])
async def test_no_row_of_an_erased_user_is_left(session_database: SessionDatabase, usage: Any) -> None:
    db = session_database
    await live(db)
    await db.maintenance.roll_up()
    # Some sessions are in the buckets with changes that take them out again; some have changes still to be put in.
    for number in range(1, 20):
        user = A if number % 2 == 0 else B
        await db.lifecycle.reopen_session(f"s{number}", user)
        await db.lifecycle.record([End(session_id=f"s{number}", user_id=user, status=SessionStatus.FAILED)])
    [(keys,)] = await ask(db, f"{KEYS} WHERE session_id < 's14'")
    async with db.engine.begin() as host:
        await roll_up_sessions(host, keys)
    assert str(A) in await everything(db)
    await db.maintenance.erase_user(A, usage=usage)
    assert str(A) not in await everything(db)
    await agree(db, Viewer.auditor(), Viewer(B, [D]), Viewer(None, [D]))
    await db.maintenance.roll_up()
    assert str(A) not in await everything(db)
    await agree(db, Viewer.auditor(), Viewer(B, [D]), Viewer(None, [D]))


async def everything(db: SessionDatabase) -> str:
    """All rows of all tables, as text."""
    rows = [await ask(db, f"SELECT to_jsonb(t)::text FROM {one.name} t") for one in metadata.sorted_tables]
    return str(rows)


@pytest.mark.parametrize(
    "wrong", ["UPDATE {} SET cost_usd = cost_usd + 1", "UPDATE {} SET model = ''", "DELETE FROM {}"]
)
async def test_a_repaired_total_by_model_is_repaired_in_the_buckets(
    session_database: SessionDatabase, wrong: str
) -> None:
    db = session_database
    await use_and_end(db)
    await ask(db, wrong.format("session_model_usage"))
    await db.maintenance.roll_up()
    assert (await db.maintenance.reconcile(repair=True)).repaired > 0
    assert (await db.maintenance.reconcile()).mismatch_count == 0
    await agree(db, Viewer.auditor())


@pytest.mark.parametrize("wrong", ["UPDATE {} SET cost_usd = cost_usd + 1", "DELETE FROM {}"])
async def test_a_repair_waits_for_a_roll_up_of_the_wrong_total(session_database: SessionDatabase, wrong: str) -> None:
    db = session_database
    await use_and_end(db)
    await ask(db, wrong.format("session_model_usage"))
    [(keys,)] = await ask(db, KEYS)
    async with db.engine.begin() as host:
        await roll_up_sessions(host, keys)
        repairing = asyncio.create_task(db.maintenance.reconcile(repair=True))
        done, _ = await asyncio.wait([repairing], timeout=0.3)
        assert not done
    assert (await repairing).repaired > 0
    await agree(db, Viewer.auditor())


async def use_and_end(db: SessionDatabase) -> None:
    used = UsageEvent(session_id="s", user_id=A, model="m", tokens_in=3, cost_usd=Decimal("0.5"), at=NOON)
    await db.lifecycle.record([used, End(session_id="s", user_id=A, status=SessionStatus.COMPLETED)])


class Storm:
    """Writers that revive sessions, roll-ups that take them in again, and readers that know the bounds of each answer.

    A reader knows the number of sessions, since none is deleted. It sees at least the tokens that were acknowledged
    before its question, and at most the tokens whose writing began before its answer.
    """

    def __init__(self, db: SessionDatabase, clock: SessionClock, url: str, *, sessions: int) -> None:
        self.db, self.clock, self.url = db, clock, url
        self.over = asyncio.Event()
        self.users = [UUID(int=number) for number in range(1, 6)]
        shared = [None, None, UUID(int=11), UUID(int=12)]
        # Every user has the same session ids.
        keys = [(user, f"s{number}") for number in range(sessions // 5) for user in self.users]
        self.datasets = {key: shared[number % 4] for number, key in enumerate(keys)}
        self.keys = keys
        self.begun: Counter[Key] = Counter()
        self.acknowledged: Counter[Key] = Counter()
        self.read = 0

    async def live(self, *, writers: int, kills: int) -> None:
        """Runs until `kills` processes that roll up were killed."""
        await self.db.lifecycle.record(
            [Touch(session_id=name, user_id=user, dataset_id=self.datasets[user, name]) for user, name in self.keys]
        )
        rolling = SessionDatabase.connect(self.url, settings=roll_up_process.AT_ONCE)
        async with rolling, asyncio.TaskGroup() as tasks:
            endless = [
                *(tasks.create_task(roll_up_process.roll_up_until_killed(rolling)) for _ in range(2)),
                tasks.create_task(self._kill_connections()),
                tasks.create_task(self._let_time_pass()),
            ]
            for number in range(writers):
                tasks.create_task(self._write(Random(number)))
            for viewer in self.viewers():
                tasks.create_task(self._read(viewer))
            tasks.create_task(self._look())
            await self._kill_processes(kills)
            self.over.set()
            for task in endless:
                task.cancel()

    def viewers(self) -> list[Viewer]:
        one, two, *_ = self.users
        datasets = [UUID(int=11), UUID(int=12)]
        return [Viewer.auditor(), Viewer(one, datasets, [two]), Viewer(None, datasets[:1])]

    async def _write(self, chance: Random) -> None:
        lifecycle = self.db.lifecycle
        while not self.over.is_set():
            user, name = key = chance.choice(self.keys)
            match chance.randrange(6):
                case 0:
                    await lifecycle.ensure_and_touch_session(name, user, self.datasets[key])
                case 1:
                    await lifecycle.end_session(name, user, SessionStatus.COMPLETED)
                    await lifecycle.reopen_session(name, user)
                case 2:
                    async with self.db.engine.begin() as host:
                        used = await self._use(self.db.bind(host).lifecycle, [key], chance)
                    # Acknowledged only now: before the host commits, no reader sees it.
                    self.acknowledged.update(used)
                case 3:
                    self.acknowledged.update(await self._use(lifecycle, chance.sample(self.keys, 5), chance))
                case _:
                    self.acknowledged.update(await self._use(lifecycle, [key], chance))

    async def _use(self, lifecycle: Any, keys: list[Key], chance: Random) -> Counter[Key]:
        events = [
            UsageEvent(
                session_id=name,
                user_id=user,
                model=chance.choice(("m", None)),
                tokens_in=chance.randrange(1, 9),
                cost_usd=Decimal("0.01"),
            )
            for user, name in keys
        ]
        self.begun.update({key: event.tokens_in for key, event in zip(keys, events, strict=True)})
        receipts = await lifecycle.record(events)
        # A session that another writer has just ended counts no more usage.
        taken = [receipt.outcome is UsageOutcome.APPLIED for receipt in receipts]
        return Counter(
            {key: event.tokens_in for key, event, is_taken in zip(keys, events, taken, strict=True) if is_taken}
        )

    async def _read(self, viewer: Viewer) -> None:
        seen = [
            key
            for key in self.keys
            if viewer.sees_all or key[0] in viewer.owner_ids or self.datasets[key] in viewer.permitted_dataset_ids
        ]
        while not self.over.is_set():
            least = sum(self.acknowledged[key] for key in seen)
            stats = await self.db.lifecycle.aggregate_stats(viewer)
            costs = await self.db.lifecycle.cost_by_model(viewer)
            page = await self.db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer, limit=1))
            most = sum(self.begun[key] for key in seen)
            assert stats.sessions == page.total == len(seen)
            assert stats.sessions == stats.running + stats.abandoned + stats.completed + stats.failed
            assert least <= stats.tokens_in <= most
            assert least <= sum(row.tokens_in for row in costs) <= most
            assert max((row.session_count for row in costs), default=0) <= len(seen)
            self.read += 1

    async def _look(self) -> None:
        """The roll-ups are right in every snapshot."""
        while not self.over.is_set():
            assert (await Stored.of(self.db)).faults() == []

    async def _let_time_pass(self) -> None:
        while True:
            await self.clock.advance(timedelta(minutes=5))
            await asyncio.sleep(0.1)

    async def _kill_connections(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            await ask(
                self.db,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = :name ORDER BY random() LIMIT 1",
                name=roll_up_process.AT_ONCE.application_name,
            )

    async def _kill_processes(self, kills: int) -> None:
        chance = Random(kills)
        for _ in range(kills):
            process = await asyncio.create_subprocess_exec(
                sys.executable, roll_up_process.__file__, self.url, stdout=asyncio.subprocess.PIPE
            )
            try:
                assert process.stdout is not None
                assert await process.stdout.readline()
                await asyncio.sleep(chance.uniform(0.05, 0.5))
            finally:
                process.kill()
                await process.wait()


async def storm(db: SessionDatabase, clock: SessionClock, url: str, *, sessions: int, writers: int, kills: int) -> None:
    weather = Storm(db, clock, url, sessions=sessions)
    await weather.live(writers=writers, kills=kills)
    assert weather.read > 0
    await clock.freeze()
    stored = await agree(db, *weather.viewers())
    assert {key: sum(row["tokens_in"] for row in rows) for key, rows in stored.models_of(stored.sessions).items()} == {
        key: weather.acknowledged[key] for key in weather.keys
    }
    async with SessionDatabase.connect(url, settings=roll_up_process.AT_ONCE) as rolling:
        await clock.advance(timedelta(seconds=1))
        await rolling.maintenance.roll_up()
    await assert_all_rolled_up(db)
    await agree(db, *weather.viewers())
    assert await deadlocks(db) == 0


@pytest.mark.parametrize("density", [0.2], indirect=True, ids=["some buckets"])
async def test_a_storm_of_roll_ups_changes_no_answer(
    session_database: SessionDatabase, session_clock: SessionClock, session_database_url: str
) -> None:
    await storm(session_database, session_clock, session_database_url, sessions=200, writers=6, kills=4)


@pytest.mark.soak
async def test_a_long_storm_of_roll_ups_changes_no_answer(
    session_database: SessionDatabase, session_clock: SessionClock, session_database_url: str
) -> None:
    await storm(session_database, session_clock, session_database_url, sessions=400, writers=16, kills=200)
