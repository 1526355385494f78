"""Reconciling: every total beside the ledger, told where it differs, put right where that is asked for."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from recount import Stored
from session_lifecycle import (
    End,
    InvalidValueError,
    Mismatch,
    SessionDatabase,
    SessionListFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models.maintenance import MOST_MISMATCHES
from session_lifecycle.settings import DEFAULT_ABANDON_AFTER
from session_lifecycle.statements import reconciling_rollups, rolling_up
from session_lifecycle.statements.reconciling import SessionKey
from stored_rows import ask, store_run

A, B = UUID(int=1), UUID(int=2)
DATASET, ANOTHER = UUID(int=11), UUID(int=12)
NOW = datetime.now(UTC)
OF_S = f"WHERE user_id = '{A}' AND session_id = 's'"
# What no trigger sees.
UNSEEN = "ALTER TABLE session_records {} TRIGGER leave_rollups"
WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
LEVELS = ("quarter_hour", "day", "month", "year")


async def live(db: SessionDatabase, user: UUID = A) -> None:
    """Every kind of event: revised, unpriced, unmeasured, failed, late, and without a model."""
    await db.lifecycle.record(
        [
            UsageEvent("s", user, "gpt-4o", 10, 5, Decimal("0.1"), idempotency_key="k", cache_read_tokens=3),
            UsageEvent("s", user, "gpt-4o-mini", 20, 5, 2, idempotency_key="k", revision=1, reasoning_tokens=2),
            UsageEvent("s", user, "unpriced", 7),
            UsageEvent("s", user, measured=False),
            UsageEvent("s", user, errored=True),
            UsageEvent("s", user, "only named"),
            UsageEvent("s", user, "only named", errored=True, idempotency_key="named"),
            UsageEvent("s", user, None, 1, cost_usd=Decimal("1e-12")),
            UsageEvent("t", user, "gpt-4o", 1, cost_usd=1),
            Touch("u", user),
            End("t", user, "failed"),
            UsageEvent("t", user, "gpt-4o", 50, cost_usd=Decimal("0.7")),
        ]
    )


def told(mismatch: Mismatch) -> tuple[Any, ...]:
    return (
        mismatch.session_id or mismatch.run_id,
        mismatch.model,
        mismatch.field,
        mismatch.found,
        mismatch.expected,
    )


async def test_what_was_written_by_us_agrees(session_database: SessionDatabase) -> None:
    for user in (A, B):
        await live(session_database, user)
    report = await session_database.maintenance.reconcile()
    assert (report.sessions_looked_at, report.mismatch_count, report.mismatches, report.repaired) == (6, 0, [], 0)


async def test_what_differs_is_told_and_put_right(session_database: SessionDatabase) -> None:
    db = session_database
    await live(db)
    await store_run(db, A, "r", NOW, session_id="s", events_tokens_in=8)
    await db.lifecycle.record([UsageEvent("t", A, "m", 4, 2, run_id="unknown")])
    await ask(db, "UPDATE session_usage_events SET run_id = 'r' WHERE session_id = 's' AND model = 'unpriced'")
    good = await ask(db, "SELECT * FROM session_records ORDER BY 1, 2")
    await ask(db, "UPDATE session_records SET tokens_in = 1, cost_usd = cost_usd + 3 WHERE session_id = 's'")
    await ask(db, "UPDATE session_records SET late_cost_usd = 9, late_events = 5 WHERE session_id = 't'")
    await ask(db, "UPDATE session_model_usage SET events = 8 WHERE model = 'gpt-4o-mini'")
    await ask(db, "DELETE FROM session_model_usage WHERE model = 'unpriced'")
    await ask(
        db, "INSERT INTO session_model_usage (user_id, session_id, model, tokens_out) VALUES (:a, 'u', 'x', 2)", a=A
    )
    report = await db.maintenance.reconcile()
    assert sorted(map(told, report.mismatches), key=str) == sorted(
        [
            ("s", None, "tokens_in", 1, 28),
            ("s", None, "cost_usd", Decimal("5.000000000001"), Decimal("2.000000000001")),
            ("t", None, "late_cost_usd", 9, Decimal("0.7")),
            ("t", None, "late_events", 5, 2),
            ("s", "gpt-4o-mini", "events", 8, 1),
            ("s", "unpriced", "tokens_in", None, 7),
            ("s", "unpriced", "events", None, 1),
            ("s", "unpriced", "unpriced_events", None, 1),
            ("u", "x", "tokens_out", 2, 0),
            ("r", None, "events_tokens_in", 8, 7),
        ],
        key=str,
    )
    assert (report.mismatch_count, report.repaired) == (10, 0)
    repaired = await db.maintenance.reconcile(repair=True)
    assert (repaired.mismatches, repaired.repaired) == (report.mismatches, 10)
    assert await ask(db, "SELECT * FROM session_records ORDER BY 1, 2") == good
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_the_report_lists_the_first_hundred(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(f"{number:04}", A) for number in range(1200)])
    await ask(session_database, "UPDATE session_records SET tokens_in = 1")
    report = await session_database.maintenance.reconcile(repair=True)
    assert (report.sessions_looked_at, report.mismatch_count, report.repaired) == (1200, 1200, 1200)
    assert [mismatch.session_id for mismatch in report.mismatches] == [f"{number:04}" for number in range(100)]


async def test_writers_go_on_while_it_repairs(session_database: SessionDatabase) -> None:
    db = session_database

    async def write(caller: int) -> None:
        for number in range(40):
            event = UsageEvent(f"s{number % 3}", A, "m", number + 1, idempotency_key=f"{caller}", revision=number)
            await db.lifecycle.record([event, UsageEvent("s0", A, f"m{number % 2}", 1, cost_usd=1)])

    async def disturb() -> None:
        for _ in range(10):
            await ask(db, "UPDATE session_records SET tokens_in = tokens_in + 5 WHERE session_id = 's0'")
            await ask(db, "DELETE FROM session_model_usage WHERE session_id = 's0' AND model = 'm1'")
            await db.maintenance.reconcile(repair=True)

    await asyncio.gather(*(write(caller) for caller in range(4)), disturb())
    await db.maintenance.reconcile(repair=True)
    assert (await db.maintenance.reconcile()).mismatch_count == 0
    assert (await db.lifecycle.aggregate_stats(A)).total_spend_usd == 160


async def live_and_roll_up(db: SessionDatabase) -> None:
    """Sessions of all kinds that are rolled up and in the sums, one that lives again, and changes to come."""
    await db.lifecycle.record(
        [
            UsageEvent("s", A, "m", 3, 4, 2),
            UsageEvent("s", A, None, 1, 0, Decimal("0.5")),
            End("s", A, "completed"),
            UsageEvent("s", A, "m", 1, cost_usd=7),
            UsageEvent("s", B, "m", 10, 20, Decimal("0.25"), dataset_id=DATASET),
            End("s", B, "failed"),
            UsageEvent("shared", A, "m", 5, cost_usd=1, dataset_id=DATASET),
            UsageEvent("shared", A, "unknown", 6, cost_usd=1),
            UsageEvent("shared", A, None, 7, cost_usd=1),
            End("shared", A, "completed"),
            UsageEvent("again", A, "m", 100, cost_usd=9),
            Touch("never over", A),
        ]
    )
    await db.lifecycle.end_session("again", A, "completed")
    await db.maintenance.roll_up()
    await db.lifecycle.reopen_session("again", A)
    await db.lifecycle.record([UsageEvent("new", A, "m", 2, cost_usd=3), End("new", A, "completed")])
    async with db.engine.begin() as connection:
        await roll_up_one(connection, A, "new")


async def roll_up_one(connection: AsyncConnection, user: UUID, session: str) -> None:
    """Rolls up an ended session, and leaves its changes to be put into the sums."""
    bound = {"keys": f'[{{"user_id": "{user}", "session_id": "{session}"}}]', "idle_before": NOW}
    await connection.execute(rolling_up.roll_up_sessions("session_lifecycle"), bound)


async def meddle(db: SessionDatabase, *statements: str) -> None:
    """Does to the tables what is not ours, in one transaction."""
    async with db.engine.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL search_path = session_lifecycle")
        for statement in statements:
            await connection.execute(text(statement))


async def check_answers(db: SessionDatabase) -> None:
    """Every answer is what the rows add up to."""
    stored = await Stored.of(db)
    for viewer in (Viewer(A), Viewer(A, [DATASET]), Viewer(None, [DATASET, ANOTHER]), Viewer.auditor()):
        stats = await db.lifecycle.aggregate_stats(viewer)
        assert stats == stored.stats(viewer, None, None, DEFAULT_ABANDON_AFTER)
        assert await db.lifecycle.cost_by_model(viewer) == stored.cost_by_model(viewer, None, None)
        assert (await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer))).total == stats.sessions


def difference(mismatch: Mismatch) -> tuple[Any, ...]:
    """What it is about, and what is found and expected; of a bucket by how much it is wrong."""
    if mismatch.family is None:
        key = (mismatch.user_id, mismatch.session_id, mismatch.model)
        return (mismatch.table, key, mismatch.field, mismatch.found, mismatch.expected)
    assert mismatch.starts_at is not None
    place = (mismatch.family, mismatch.user_id, mismatch.dataset_id, mismatch.level, mismatch.status or mismatch.model)
    found, expected = Decimal(mismatch.found or 0), Decimal(mismatch.expected or 0)
    return (mismatch.table, place, mismatch.field, found - expected)


def of_session(field: str, found: Any, expected: Any, *, session: str = "s", model: str | None = None) -> Any:
    return ("rolled_up_sessions", (A, session, model), field, found, expected)


def in_buckets(table: str, told_apart: str, dataset: UUID | None = None, **by: Any) -> list[tuple[Any, ...]]:
    """The buckets that what is wrong with a session of A makes wrong."""
    families: list[tuple[Any, ...]] = [("all", None, None), ("user", A, None)]
    if dataset is not None:
        families += [("dataset", None, dataset), ("user_dataset", A, dataset)]
    return [
        (table, (*family, level, told_apart), field, Decimal(amount))
        for family in families
        for level in LEVELS
        for field, amount in by.items()
    ]


DRIFTS: dict[str, tuple[list[str], list[tuple[Any, ...]]]] = {
    "said to be rolled up": (
        [f"INSERT INTO session_records (user_id, session_id, rolled_up) VALUES ('{A}', 'foreign', true)"],
        [of_session("rolled_up", "False", "True", session="foreign")],
    ),
    "not there any more": (
        [f"DELETE FROM rolled_up_sessions {OF_S}"],
        [
            of_session("rolled_up", "False", "True"),
            *in_buckets(
                "session_rollups",
                "completed",
                sessions=1,
                cost_usd="2.5",
                tokens_in=4,
                tokens_out=4,
                late_events=1,
                late_cost_usd=7,
            ),
            *in_buckets("session_model_rollups", "m", sessions=1, cost_usd=2, tokens_in=3, tokens_out=4, events=1),
            *in_buckets("session_model_rollups", "unknown", sessions=1, cost_usd="0.5", tokens_in=1, events=1),
        ],
    ),
    "said not to be rolled up": (
        [
            UNSEEN.format("DISABLE"),
            f"UPDATE session_records SET rolled_up = false {OF_S}",
            UNSEEN.format("ENABLE"),
        ],
        [of_session("rolled_up", "True", "False")],
    ),
    "deleted unseen": (
        [UNSEEN.format("DISABLE"), f"DELETE FROM session_records {OF_S}", UNSEEN.format("ENABLE")],
        [of_session("rolled_up", "True", "False")],
    ),
    "changed unseen": (
        [
            UNSEEN.format("DISABLE"),
            f"UPDATE session_records SET status = 'failed', dataset_id = '{ANOTHER}', agent_name = 'a' {OF_S}",
            UNSEEN.format("ENABLE"),
        ],
        [
            of_session("dataset_id", None, str(ANOTHER)),
            of_session("agent_name", None, "a"),
            of_session("status", "completed", "failed"),
        ],
    ),
    "changed, and triggers still off": (
        [UNSEEN.format("DISABLE"), f"UPDATE session_records SET agent_name = 'a' {OF_S}"],
        [of_session("agent_name", None, "a")],
    ),
    "kept otherwise": (
        ["UPDATE rolled_up_sessions SET cost_usd = cost_usd + 5 WHERE session_id = 'shared'"],
        [
            of_session("cost_usd", 8, 3, session="shared"),
            *in_buckets("session_rollups", "completed", DATASET, cost_usd=-5),
        ],
    ),
    "kept with another model": (
        [f"UPDATE rolled_up_sessions SET models = replace(models::text, 'unknown', 'm')::jsonb {OF_S}"],
        [
            *(
                of_session(field, found, expected, model="m")
                for field, found, expected in (("sessions", 2, 1), ("cost_usd", Decimal("2.5"), 2), ("tokens_in", 4, 3))
            ),
            of_session("events", 2, 1, model="m"),
            *(
                of_session(field, None, expected, model="unknown")
                for field, expected in (("sessions", 1), ("cost_usd", Decimal("0.5")), ("tokens_in", 1), ("events", 1))
            ),
            *in_buckets("session_model_rollups", "m", sessions=-1, cost_usd="-0.5", tokens_in=-1, events=-1),
            *in_buckets("session_model_rollups", "unknown", sessions=1, cost_usd="0.5", tokens_in=1, events=1),
        ],
    ),
    "used by another model since": (
        [
            f"UPDATE {table} SET model = 'n' {OF_S} AND model = 'm'"
            for table in ("session_usage_events", "session_model_usage")
        ],
        [
            of_session(field, *((found, 0) if model == "m" else (None, found)), model=model)
            for model in ("m", "n")
            for field, found in (("sessions", 1), ("cost_usd", 2), ("tokens_in", 3), ("tokens_out", 4), ("events", 1))
        ],
    ),
    "a bucket that is wrong": (
        ["UPDATE session_rollups SET sessions = sessions + 1 WHERE family = 'user_dataset' AND level = 'day'"],
        [
            ("session_rollups", ("user_dataset", user, DATASET, "day", status), "sessions", 1)
            for user, status in ((A, "completed"), (B, "failed"))
        ],
    ),
    "a bucket that should not be": (
        [
            f"""
            INSERT INTO session_model_rollups
                (family, user_id, dataset_id, level, starts_at, model, sessions, cost_usd)
            SELECT 'dataset', '{UUID(int=0)}', '{ANOTHER}', 'month', min(starts_at), 'x', 2, 1
            FROM session_model_rollups
            """
        ],
        [
            ("session_model_rollups", ("dataset", None, ANOTHER, "month", "x"), field, by)
            for field, by in (("sessions", 2), ("cost_usd", 1))
        ],
    ),
    "buckets that are gone": (
        ["DELETE FROM session_rollups WHERE family = 'dataset' AND level NOT IN ('month', 'year')"],
        [
            ("session_rollups", ("dataset", None, DATASET, level, status), field, -Decimal(by))
            for level in LEVELS[:2]
            for status, figures in (
                ("completed", {"sessions": 1, "cost_usd": 3, "tokens_in": 18}),
                ("failed", {"sessions": 1, "cost_usd": "0.25", "tokens_in": 10, "tokens_out": 20}),
            )
            for field, by in figures.items()
        ],
    ),
    "changes that are wrong": (
        ["UPDATE session_rollup_changes SET tokens_in = tokens_in + 1 WHERE sessions > 0"],
        in_buckets("session_rollups", "completed", tokens_in=1),
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
async def test_what_the_roll_ups_have_wrong_is_told_and_put_right(
    session_database: SessionDatabase, drift: str
) -> None:
    db = session_database
    await live_and_roll_up(db)
    statements, expected = DRIFTS[drift]
    await meddle(db, *statements)
    report = await db.maintenance.reconcile()
    told = set(map(difference, report.mismatches))
    assert len(told) == min(len(expected), MOST_MISMATCHES)
    assert told <= set(expected)
    assert (report.mismatch_count, report.repaired) == (len(expected), 0)
    repaired = await db.maintenance.reconcile(repair=True)
    assert repaired.mismatches == report.mismatches
    assert repaired.repaired == len(expected)
    assert (await db.maintenance.reconcile()).mismatches == []
    await check_answers(db)
    await meddle(db, UNSEEN.format("ENABLE"))
    await db.maintenance.roll_up()
    assert (await db.maintenance.reconcile()).mismatches == []
    await check_answers(db)
    assert (await Stored.of(db)).faults() == []


@pytest.mark.parametrize(
    "table",
    [
        "session_records",
        "rolled_up_sessions",
        "session_rollups",
        "session_model_rollups",
        "session_rollup_changes",
        "session_model_rollup_changes",
    ],
)
async def test_a_table_that_was_emptied_is_made_good(session_database: SessionDatabase, table: str) -> None:
    db = session_database
    await live_and_roll_up(db)
    await meddle(db, f"TRUNCATE {table}")
    report = await db.maintenance.reconcile(repair=True)
    assert report.mismatch_count == report.repaired > 0
    assert (await db.maintenance.reconcile()).mismatches == []
    await check_answers(db)
    await db.maintenance.roll_up()
    await check_answers(db)
    assert (await Stored.of(db)).faults() == []


@pytest.mark.parametrize("drift", ["said not to be rolled up", "changed unseen and not rolled up"])
async def test_what_is_kept_of_a_session_that_is_not_rolled_up_does_not_stop_roll_up(
    session_database: SessionDatabase, drift: str
) -> None:
    db = session_database
    await live_and_roll_up(db)
    more = ", cost_usd = 9, last_activity_at = last_activity_at + interval '1 day'" if "changed" in drift else ""
    update = f"UPDATE session_records SET rolled_up = false{more} {OF_S}"
    await meddle(db, UNSEEN.format("DISABLE"), update, UNSEEN.format("ENABLE"))
    assert (await db.maintenance.roll_up()).sessions == 1
    assert (await db.maintenance.reconcile()).mismatch_count == (
        1 if more else 0
    )  # the cost, which is not the ledger's
    assert (await Stored.of(db)).faults() == []


async def test_roll_ups_that_are_right_are_left_alone(session_database: SessionDatabase) -> None:
    db = session_database
    await live_and_roll_up(db)
    tables = ("rolled_up_sessions", "session_rollups", "session_model_rollups", "session_rollup_changes")
    versions = " UNION ALL ".join(f"SELECT xmin::text, ctid::text FROM {name}" for name in tables)
    before = await ask(db, versions)
    assert len(await ask(db, "SELECT 1 FROM session_rollup_changes")) == 2
    report = await db.maintenance.reconcile(repair=True)
    assert (report.sessions_looked_at, report.mismatches, report.repaired) == (6, [], 0)
    assert await ask(db, versions) == before
    await check_answers(db)


async def test_more_is_wrong_than_is_listed(session_database: SessionDatabase) -> None:
    db = session_database
    users = [UUID(int=number) for number in range(1, 131)]
    await db.lifecycle.record([Touch("s", user, at=NOW) for user in users])
    await db.lifecycle.record([End("s", user, "failed", at=NOW) for user in users])
    await db.maintenance.roll_up()
    await meddle(db, "TRUNCATE session_rollups", "UPDATE rolled_up_sessions SET tokens_in = 1")
    report = await db.maintenance.reconcile(repair=True)
    first = [(one.user_id, one.table) for one in report.mismatches]
    assert first == [(user, "rolled_up_sessions") for user in users[:100]]
    # Each session's tokens, and in each level of each user and of everybody their number and their tokens.
    assert report.mismatch_count == report.repaired == 130 + len(LEVELS) * 2 * (130 + 1)
    await check_answers(db)


async def test_a_session_that_is_rolled_up_just_then_stays(session_database: SessionDatabase) -> None:
    db = session_database
    await db.lifecycle.record([UsageEvent("s", A, "m", 1), End("s", A, "completed")])
    await meddle(
        db,
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(1); RETURN NULL; END'",
        "CREATE TRIGGER pause AFTER UPDATE ON session_records EXECUTE FUNCTION pause()",
    )

    async def take_out() -> bool:
        async with db.engine.begin() as connection:
            key = SessionKey(A, "s")
            return bool(await connection.scalar(reconciling_rollups.take_out("session_lifecycle", key)))

    async with db.engine.begin() as host:
        await host.execute(text("SELECT pg_advisory_xact_lock(1)"))
        taking_out = asyncio.create_task(take_out())
        # It has looked whether the session is rolled up, and goes on when we are done.
        while not await ask(db, WAITING):
            assert not taking_out.done()
        await roll_up_one(host, A, "s")
    assert await taking_out is False
    assert (await db.maintenance.reconcile()).mismatches == []
    assert await ask(db, "SELECT 1 FROM rolled_up_sessions")


async def test_it_repairs_beside_writers_and_others_who_roll_up(session_database: SessionDatabase) -> None:
    db = session_database

    async def write(caller: int) -> None:
        for number in range(25):
            name, user = f"s{(caller + number) % 4}", (A, B)[number % 2]
            await db.lifecycle.record([UsageEvent(name, user, f"m{number % 2}", 1, cost_usd=1, dataset_id=DATASET)])
            await db.lifecycle.end_session(name, user, "completed")
            await db.lifecycle.reopen_session(name, user)
            await db.lifecycle.end_session(name, user, "failed")

    async def roll_up() -> None:
        for _ in range(25):
            await db.maintenance.roll_up()

    async def disturb() -> None:
        for number in range(8):
            await ask(db, "DELETE FROM rolled_up_sessions WHERE session_id = 's0'")
            await ask(db, "UPDATE rolled_up_sessions SET cost_usd = cost_usd + 1 WHERE session_id = 's1'")
            await ask(db, "UPDATE session_rollups SET tokens_in = tokens_in + 1 WHERE family = 'user'")
            await ask(db, f"DELETE FROM session_model_rollups WHERE level = '{LEVELS[number % len(LEVELS)]}'")
            await db.maintenance.reconcile(repair=True)

    await asyncio.gather(*(write(caller) for caller in range(3)), roll_up(), disturb(), disturb())
    await db.maintenance.reconcile(repair=True)
    assert (await db.maintenance.reconcile()).mismatches == []
    await check_answers(db)
    await db.maintenance.roll_up()
    assert (await Stored.of(db)).faults() == []


async def test_what_cannot_be_meant_is_refused(session_database: SessionDatabase) -> None:
    with pytest.raises(InvalidValueError, match="repair"):
        await session_database.maintenance.reconcile(repair="yes")
