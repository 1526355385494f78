"""A bucket moves between servers while programs write into it: nothing is lost, doubled or hidden."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from session_lifecycle import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    Run,
    RunFilters,
    SchemaError,
    SessionDatabase,
    SessionLifecycleError,
    SessionListFilters,
    TransactionConflictError,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.buckets import execution, moving
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.entities import metadata
from session_lifecycle.postgres.notes import sends_notes
from session_lifecycle.statements.buckets.moving import arriving_schema, left_schema
from support.buckets import BucketServers, user_in
from support.commands import run, run_raw, succeed

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def event(user: UUID, number: int, session_id: str = "s") -> UsageEvent:
    return UsageEvent(session_id=session_id, user_id=user, model="m", tokens_in=1, idempotency_key=str(number))


class Writers:
    """Programs that write into a bucket, each by a database of its own, and know what was acknowledged."""

    def __init__(self, user: UUID) -> None:
        self.user = user
        self.numbers = count()
        self.acknowledged: list[int] = []
        self.longest = 0.0
        self.is_over = False

    async def write(self, db: BucketDatabase) -> None:
        while not self.is_over:
            number = next(self.numbers)
            began = time.monotonic()
            receipt = await db.lifecycle.record(
                [
                    event(self.user, number, f"s{number % 7}"),
                    Run(run_id=f"r{number % 50}", user_id=self.user, session_id=f"s{number % 7}", started_at=BEGAN),
                ]
            )
            self.longest = max(self.longest, time.monotonic() - began)
            assert isinstance(receipt[0], UsageReceipt)
            assert receipt[0].outcome == "applied"
            self.acknowledged.append(number)
            # What was acknowledged is there for every later reader.
            if number % 5 == 0:
                found = await db.lifecycle.aggregate_stats(self.user)
                assert found.tokens_in >= len(self.acknowledged) - 50

    async def record(self, db: BucketDatabase) -> None:
        async with db.recorder() as recorder:
            while not self.is_over:
                number = next(self.numbers)
                receipt = await recorder.record([event(self.user, number)])
                assert receipt[0].outcome == "applied"
                self.acknowledged.append(number)


async def rows_of(url: str, schema: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    try:
        return {
            table.name: await connection.fetchval(f'SELECT count(*) FROM "{schema}".{table.name}')
            for table in metadata.sorted_tables
        }
    finally:
        await connection.close()


async def storm(places_of: BucketServers, seconds: float, moves: int) -> None:
    async with (
        places_of.cloned() as places,
        SessionDatabase.buckets(places) as operator,
        SessionDatabase.buckets(places) as one,
        SessionDatabase.buckets(places) as another,
    ):
        user, beside = user_in(operator, 0), user_in(operator, 1)
        writers = Writers(user)
        await operator.lifecycle.record([event(user, number, f"old{number}") for number in range(-400, 0)])
        await operator.lifecycle.ensure_and_touch_session("s", beside)
        await operator.maintenance.roll_up()
        tasks = [
            asyncio.create_task(work) for work in (writers.write(one), writers.write(another), writers.record(one))
        ]
        ends = [str(places[0].url), str(places[-1].url)]
        reports = []
        for number in range(moves):
            await asyncio.sleep(seconds)
            reports.append(await operator.placement.move(0, ends[(number + 1) % 2]))
            assert not any(task.done() for task in tasks)
        await asyncio.sleep(seconds)
        writers.is_over = True
        await asyncio.gather(*tasks)
        assert all(report.paused_seconds < 1 for report in reports), reports
        assert sum(report.changes for report in reports) > 0
        async with SessionDatabase.buckets(places) as fresh:  # it knows the first place only
            for db in (operator, one, another, fresh):
                stats = await db.lifecycle.aggregate_stats(user)
                assert stats.tokens_in == len(writers.acknowledged) + 400
                assert (await db.lifecycle.aggregate_stats(beside)).sessions == 1
                assert (await db.lifecycle.list_session_rows(SessionListFilters(user_id=user))).total == 8 + 400
        report = await operator.maintenance.reconcile()
        assert report.mismatch_count == 0, report.mismatches
        assert await operator.check() == []
        ledger = Counter((await asyncio.gather(*(keys_of(end, str(places[0].schema)) for end in ends)))[moves % 2])
        assert set(ledger.values()) == {1}
        assert {int(key) for key in ledger} == {*writers.acknowledged, *range(-400, 0)}


async def keys_of(url: str, schema: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        table = await connection.fetchval("SELECT to_regclass($1)::text", f"{schema}.session_usage_events")
        if table is None:
            return []
        rows = await connection.fetch(f"SELECT idempotency_key FROM {table} WHERE idempotency_key IS NOT NULL")
        return [row[0] for row in rows]
    finally:
        await connection.close()


async def test_nothing_is_lost_while_a_bucket_moves_there_and_back(four_buckets: BucketServers) -> None:
    await storm(four_buckets, 0.3, 2)


@pytest.mark.soak
async def test_nothing_is_lost_in_many_moves(four_buckets: BucketServers) -> None:
    await storm(four_buckets, 3, 20)


async def test_a_moved_bucket_is_complete_and_leaves_nothing_behind(four_buckets: BucketServers) -> None:
    async with four_buckets.cloned() as places, SessionDatabase.buckets(places) as db:
        user, schema = user_in(db, 0), str(places[0].schema)
        old, new = str(places[0].url), str(places[-1].url)
        await db.lifecycle.record([event(user, 1), Run(run_id="r", user_id=user, session_id="s", started_at=BEGAN)])
        await db.lifecycle.end_session("s", user, "completed")
        await db.maintenance.roll_up()
        await db.maintenance.erase_user(user_in(db, 0, 1), tombstone=True)
        before = await rows_of(old, schema)
        said: list[str] = []
        report = await db.placement.move(0, new, on_progress=said.append)
        assert await rows_of(new, schema) == before
        assert report.rows == sum(before.values()) - before["session_buckets"]
        assert any(one.startswith("session_records: 1 rows") for one in said)
        where = await db.placement.where()
        parsed = make_url(new)
        assert where[0] == f"postgresql://{parsed.host}:{parsed.port}/{parsed.database}#{schema}"
        with pytest.raises(SchemaError):  # a plain database on the old place finds nothing either
            async with SessionDatabase.connect(old, schema=schema) as plain:
                await plain.lifecycle.get_session_row("s", user)
        # The sequence goes on, and the trigger takes a changed session out of the roll-ups.
        await db.lifecycle.record([Run(run_id="q", user_id=user, session_id="s", started_at=BEGAN)])
        await db.lifecycle.reopen_session("s", user)
        assert [
            run.run_id for run in (await db.activity.list_runs(RunFilters(user_id=user, include_open=True))).runs
        ] == ["q", "r"]
        assert (await db.maintenance.reconcile()).mismatch_count == 0
        # Moved again to where it is, it stays.
        assert (await db.placement.move(0, new)).rows == 0
        # A host that lists the new place opens it there.
        moved = [type(places[0])(schema, new), *places[1:]]
        async with SessionDatabase.buckets(moved) as fresh:
            assert await fresh.check() == []
            assert (await fresh.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 1


async def test_a_move_that_is_interrupted_changes_nothing_and_begins_anew(
    four_buckets: BucketServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with four_buckets.cloned() as places, SessionDatabase.buckets(places) as db:
        user, new = user_in(db, 0), str(places[-1].url)
        await db.lifecycle.record([event(user, number) for number in range(5)])

        def stop(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await db.placement.move(0, new, on_progress=stop)
        await db.lifecycle.record([event(user, 5)])
        elsewhere = [type(places[0])(places[0].schema, new), *places[1:]]
        async with SessionDatabase.buckets(elsewhere) as wrong:
            with pytest.raises(ConfigurationError, match="is being copied to this place"):
                await wrong.lifecycle.aggregate_stats(user)
        async with SessionDatabase.connect(str(places[0].url)) as host, host.engine.begin() as holder:
            await holder.exec_driver_sql(f"SELECT FROM {places[0].schema}.session_records FOR UPDATE")
            monkeypatch.setattr(moving, "LOCK_ATTEMPTS", 2)
            with pytest.raises(TransactionConflictError, match="was not moved"):
                await db.placement.move(0, new)
        monkeypatch.undo()
        await db.placement.move(0, new)
        assert (await db.lifecycle.aggregate_stats(user)).tokens_in == 6
        with pytest.raises(ConfigurationError, match="both places are the same database"):
            await db.placement.move(1, f"{places[0].url!s}?target_session_attrs=any")
        with pytest.raises(InvalidValueError, match="expected a bucket from 0 to 3"):
            await db.placement.move(4, new)


async def test_an_operator_lists_and_moves_buckets(four_buckets: BucketServers) -> None:
    async with four_buckets.cloned() as places, SessionDatabase.buckets(places) as db:
        user = user_in(db, 1)
        await db.lifecycle.ensure_and_touch_session("s", user)
        named = [word for place in places for word in ("--place", f"{place.url}#{place.schema}")]
        moved = succeed("db", "buckets", "move", "1", "--to", str(places[-1].url), "--yes", "--json", *named)
        assert json.loads(moved)["changes"] == 0
        assert json.loads(moved)["rows"] >= 1
        after = [json.loads(line)["place"] for line in succeed("db", "buckets", "list", *named, "--json").splitlines()]
        assert after[1].partition("#")[0] == after[3].partition("#")[0]
        assert (await db.lifecycle.aggregate_stats(user)).sessions == 1
        assert all("@" not in place for place in after)
        # A command on the old place does not ask for a migration.
        for words in (["db", "upgrade"], ["db", "check"], ["stats"]):
            left = run(*words, "--database-url", str(places[1].url), "--schema", str(places[1].schema))
            assert (left.returncode, "a bucket was that has moved" in left.stderr) == (1, True), left.stderr
        again = succeed("db", "buckets", "move", "1", "--to", str(places[-1].url), "--yes", *named)
        assert again == "Bucket 1 is there already.\n"
        for command in ("migrate", "list"):
            swapped = run("db", "buckets", command, *named[2:4], *named[:2], *named[4:])
            assert (swapped.returncode, swapped.stdout) == (1, "")
            assert "the order of the places differs" in swapped.stderr
            assert "postgres:" not in swapped.stderr
        fewer = run("db", "buckets", "list", *named[:4])
        assert (fewer.returncode, "the number of buckets differs" in fewer.stderr) == (1, True)


def test_the_database_of_buckets_is_named_as_that_of_every_command(session_database_url: str) -> None:
    places = ("--place", "sessions_0", "--place", "sessions_1")
    nowhere = run("db", "buckets", "list", *places)
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert nowhere.stderr.startswith("error: no database is named: give --database-url, or places as URL#schema")
    ran = run_raw("db", "buckets", "migrate", *places, "--database-url", session_database_url)
    assert (ran.returncode, ran.stdout) == (0, "The schemas of 2 buckets are up to date.\n")
    assert ran.stderr.startswith("database: postgresql://")
    assert ran.stderr.splitlines()[0].endswith("; buckets: 2")


class CrashError(Exception):
    """What a killed program does: nothing any more."""


CALLS = ("execute", "fetch", "fetchval", "fetchrow", "prepare", "copy_from_query", "copy_to_table")
IsTime = Callable[[int, str], bool]


@contextmanager
def crash_when(is_time: IsTime) -> Iterator[list[str]]:
    """Ends calls to databases as if the program had been killed, from the one on for which it is time.

    `is_time` gets the number of the calls before and the text. Yields the texts of the calls that were made.
    """
    made: list[str] = []
    is_dead = False

    def crashing(call: Any) -> Any:
        async def crash_or_call(connection: Any, text: str, *values: Any, **named: Any) -> Any:
            nonlocal is_dead
            is_dead = is_dead or is_time(len(made), text)
            if is_dead:
                raise CrashError
            made.append(text)
            return await call(connection, text, *values, **named)

        return crash_or_call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(asyncpg.Connection, name, crashing(getattr(asyncpg.Connection, name)))
        yield made


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came from: a call that SQLAlchemy makes ends with an error of ours."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def crash_on_the_way_back(four_buckets: BucketServers, time_of: Callable[[list[str]], IsTime]) -> bool:
    """A bucket moves away, and its move back crashes.

    Args:
        four_buckets: The servers.
        time_of: When it crashes, from the texts of the calls of the first move.

    Returns:
        Whether the bucket was neither here nor there until the next move.
    """
    async with (
        four_buckets.cloned() as places,
        SessionDatabase.buckets(places) as idle,
        SessionDatabase.buckets(places) as busy,
    ):
        user, away, home = user_in(idle, 0), str(places[-1].url), str(places[0].url)
        await idle.lifecycle.record([event(user, 0)])
        async with SessionDatabase.buckets(places) as operator:
            with crash_when(lambda *_: False) as there:
                await operator.placement.move(0, away)
        await busy.lifecycle.record([event(user, 1)])
        with pytest.raises((CrashError, SessionLifecycleError)) as died, crash_when(time_of(there)):
            async with SessionDatabase.buckets(places) as crashed:
                await crashed.placement.move(0, home)
        assert any(isinstance(one, CrashError) for one in causes(died.value))
        kept, is_between = {0, 1}, False
        # One program knows the bucket from its first stay at home, one knows that it went away, one begins now.
        async with SessionDatabase.buckets(places) as fresh:
            for number, db in enumerate((idle, busy, fresh), start=2):
                try:
                    await db.lifecycle.record([event(user, number)])
                    assert (await db.lifecycle.aggregate_stats(user)).tokens_in == len(kept) + 1
                except DatabaseUnavailableError:
                    is_between = True
                else:
                    kept.add(number)
            async with SessionDatabase.buckets(places) as operator:
                await operator.placement.move(0, home)
            for number, db in enumerate((idle, busy, fresh), start=5):
                await db.lifecycle.record([event(user, number)])
                kept.add(number)
                assert (await db.lifecycle.aggregate_stats(user)).tokens_in == len(kept)
            assert await fresh.check() == []
        assert sorted(map(int, await keys_of(home, str(places[0].schema)))) == sorted(kept)
        return is_between


@pytest.mark.parametrize(
    ("before", "is_between"),
    [("INSERT INTO", False), ("ANALYZE", False), ("SET moved_to", False), ("REVOKE SELECT", True)],
)
async def test_a_move_that_crashes_loses_nothing(
    four_buckets: BucketServers, monkeypatch: pytest.MonkeyPatch, before: str, is_between: bool
) -> None:
    monkeypatch.setattr(execution, "ARRIVAL_SECONDS", 0.1)

    def is_time(_: int, text: str) -> bool:
        return before in text and ("(arriving)" in text or "moved_to" in text)

    assert await crash_on_the_way_back(four_buckets, lambda _: is_time) is is_between


@pytest.mark.soak
async def test_a_move_that_crashes_anywhere_loses_nothing(
    four_buckets: BucketServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "ARRIVAL_SECONDS", 0.1)

    def at(percent: int, there: list[str]) -> IsTime:
        return lambda number, _: number >= len(there) * percent / 100

    was_between = [await crash_on_the_way_back(four_buckets, partial(at, percent)) for percent in range(100)]
    assert any(was_between)


async def test_a_move_keeps_notes_and_refuses_row_level_security(four_buckets: BucketServers) -> None:
    async with four_buckets.cloned() as places, SessionDatabase.buckets(places) as db:
        user, new, schema = user_in(db, 0), str(places[-1].url), str(places[0].schema)
        await db.lifecycle.record([event(user, 0)])
        async with SessionDatabase.connect(str(places[0].url), schema=schema) as here:
            await here.migrate(notes=True)
        async with SessionDatabase.connect(str(places[1].url)) as host, host.engine.begin() as connection:
            await connection.exec_driver_sql(
                f"ALTER TABLE {places[1].schema}.session_records ENABLE ROW LEVEL SECURITY"
            )
        await db.placement.move(0, new)
        async with SessionDatabase.connect(new, schema=schema) as there, there.engine.connect() as connection:
            assert await sends_notes(connection, schema)
        with pytest.raises(ConfigurationError, match="has row-level security"):
            await db.placement.move(1, new)


def test_schemas_beside_schemas_of_long_names_have_names_of_their_own() -> None:
    names = ["s" * 62 + end for end in "abé"] + ["é" * 31 + end for end in "ab"] + ["short"]
    beside = [name for one in names for name in (left_schema(one), arriving_schema(one))]
    assert len(set(beside)) == 2 * len(names)
    assert all(len(name.encode()) <= 63 for name in beside)
