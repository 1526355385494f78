"""Reconciling: every total is compared with the ledger, differences are reported, and repaired on request."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle import (
    End,
    InvalidValueError,
    SessionDatabase,
    SessionListFilters,
    SessionStatus,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import Mismatch
from session_lifecycle.models.maintenance import MOST_MISMATCHES
from session_lifecycle.settings import DEFAULT_ABANDON_AFTER
from session_lifecycle.statements.maintenance import reconcile_roll_ups, roll_up
from session_lifecycle.statements.maintenance.reconcile import SessionKey
from support.recount import Stored
from support.stored_rows import ask, keep_buckets, lock_waits, store_run

A, B = UUID(int=1), UUID(int=2)
DATASET, ANOTHER = UUID(int=11), UUID(int=12)
NOW = datetime.now(UTC)
OF_S = f"WHERE user_id = '{A}' AND session_id = 's'"
# Switches the trigger, so that changes are not noticed.
UNSEEN = "ALTER TABLE session_records {} TRIGGER leave_roll_ups"
LEVELS = ("hour", "6 hours", "36 hours", "9 days", "54 days", "324 days")


async def live(db: SessionDatabase, user: UUID = A) -> None:
    """Records every kind of event: revised, unpriced, unmeasured, failed, late, and without a model."""
    await db.lifecycle.record(
        [
            UsageEvent(
                session_id="s",
                user_id=user,
                model="gpt-4o",
                tokens_in=10,
                tokens_out=5,
                cost_usd=Decimal("0.1"),
                idempotency_key="k",
                cache_read_tokens=3,
            ),
            UsageEvent(
                session_id="s",
                user_id=user,
                model="gpt-4o-mini",
                tokens_in=20,
                tokens_out=5,
                cost_usd=2,
                idempotency_key="k",
                revision=1,
                reasoning_tokens=2,
            ),
            UsageEvent(session_id="s", user_id=user, model="unpriced", tokens_in=7),
            UsageEvent(session_id="s", user_id=user, measured=False),
            UsageEvent(session_id="s", user_id=user, errored=True),
            UsageEvent(session_id="s", user_id=user, model="only named"),
            UsageEvent(session_id="s", user_id=user, model="only named", errored=True, idempotency_key="named"),
            UsageEvent(session_id="s", user_id=user, model=None, tokens_in=1, cost_usd=Decimal("1e-12")),
            UsageEvent(session_id="t", user_id=user, model="gpt-4o", tokens_in=1, cost_usd=1),
            Touch(session_id="u", user_id=user),
            End(session_id="t", user_id=user, status="failed"),
            UsageEvent(session_id="t", user_id=user, model="gpt-4o", tokens_in=50, cost_usd=Decimal("0.7")),
        ]
    )


def difference_in_ledger(mismatch: Mismatch) -> tuple[Any, ...]:
    return (
        mismatch.session_id or mismatch.run_id,
        mismatch.model,
        mismatch.field,
        mismatch.found,
        mismatch.expected,
    )


async def test_totals_written_by_the_library_agree(session_database: SessionDatabase) -> None:
    for user in (A, B):
        await live(session_database, user)
    report = await session_database.maintenance.reconcile()
    assert (report.sessions_looked_at, report.mismatch_count, report.mismatches, report.repaired) == (6, 0, [], 0)


async def test_wrong_totals_are_reported_and_repaired(session_database: SessionDatabase) -> None:
    db = session_database
    await live(db)
    await store_run(db, A, "r", NOW, session_id="s", events_tokens_in=8)
    await db.lifecycle.record(
        [UsageEvent(session_id="t", user_id=A, model="m", tokens_in=4, tokens_out=2, run_id="unknown")]
    )
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
    assert sorted(map(difference_in_ledger, report.mismatches), key=str) == sorted(
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


async def test_the_report_lists_the_first_hundred_mismatches(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_lifecycle.maintenance.reconcile.SESSIONS_AT_ONCE", 50)
    await session_database.lifecycle.record([Touch(session_id=f"{number:04}", user_id=A) for number in range(120)])
    await ask(session_database, "UPDATE session_records SET tokens_in = 1")
    report = await session_database.maintenance.reconcile(repair=True)
    assert (report.sessions_looked_at, report.mismatch_count, report.repaired) == (120, 120, 120)
    assert [mismatch.session_id for mismatch in report.mismatches] == [f"{number:04}" for number in range(100)]


async def with_further_totals(db: SessionDatabase) -> None:
    """Records usage under a plan, revised so that its price has fewer zeros, searches and a lower bound; rolls up."""
    plan = UsageEvent(
        session_id="s", user_id=A, model="m", cost_usd=Decimal("0.10"), billing="plan", idempotency_key="k"
    )
    fewer_zeros = plan.model_copy(update={"revision": 1, "cost_usd": Decimal("0.1")})
    searches = UsageEvent(session_id="s", user_id=A, model="m", tokens_in=5, web_searches=2, partial=True)
    await db.lifecycle.record([plan, fewer_zeros, searches])
    await db.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    await db.maintenance.roll_up()


@pytest.mark.parametrize("wrong", ["NULL", """'{"plan_events": 7, "plan_cost_usd": 1.5, "web_searches": 2}'"""])
@pytest.mark.parametrize(
    "table",
    ["session_records", "session_model_usage", "rolled_up_sessions", "session_roll_ups", "session_model_roll_ups"],
)
async def test_X10_X51_wrong_further_totals_are_reported_and_repaired(
    session_database: SessionDatabase, table: str, wrong: str
) -> None:
    await keep_buckets(session_database)
    await with_further_totals(session_database)
    stats = await session_database.lifecycle.aggregate_stats(A)
    costs = await session_database.lifecycle.cost_by_model(A)
    assert (stats.plan_events, stats.plan_cost_usd, stats.partial_events) == (1, Decimal("0.1"), 1)
    assert (await session_database.maintenance.reconcile()).mismatches == []
    await ask(session_database, f"UPDATE {table} SET further_totals = {wrong}")
    report = await session_database.maintenance.reconcile(repair=True)
    assert {(one.table, one.field) for one in report.mismatches} >= {(table, "further_totals")}
    assert {one.field for one in report.mismatches} == {"further_totals"}
    assert (await session_database.maintenance.reconcile()).mismatches == []
    await session_database.maintenance.roll_up()
    assert await session_database.lifecycle.aggregate_stats(A) == stats
    assert await session_database.lifecycle.cost_by_model(A) == costs


async def test_X10_equal_further_totals_are_no_mismatch(session_database: SessionDatabase) -> None:
    """The stored sum and that of the ledger are equal numbers with more or fewer zeros."""
    await with_further_totals(session_database)
    await ask(session_database, "UPDATE session_records SET cost_usd = 1")
    [mismatch] = (await session_database.maintenance.reconcile()).mismatches
    assert mismatch.field == "cost_usd"
    assert (mismatch.found, mismatch.expected) == (Decimal(1), Decimal(0))


async def test_writers_go_on_while_it_repairs(session_database: SessionDatabase) -> None:
    db = session_database

    async def write(caller: int) -> None:
        for number in range(40):
            event = UsageEvent(
                session_id=f"s{number % 3}",
                user_id=A,
                model="m",
                tokens_in=number + 1,
                idempotency_key=f"{caller}",
                revision=number,
            )
            await db.lifecycle.record(
                [event, UsageEvent(session_id="s0", user_id=A, model=f"m{number % 2}", tokens_in=1, cost_usd=1)]
            )

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
    """Sessions of all kinds in the buckets, one that was reopened, and one whose changes are not in the buckets yet."""
    await keep_buckets(db)
    await db.lifecycle.record(
        [
            UsageEvent(session_id="s", user_id=A, model="m", tokens_in=3, tokens_out=4, cost_usd=2),
            UsageEvent(session_id="s", user_id=A, model=None, tokens_in=1, tokens_out=0, cost_usd=Decimal("0.5")),
            End(session_id="s", user_id=A, status="completed"),
            UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1, cost_usd=7),
            UsageEvent(
                session_id="s",
                user_id=B,
                model="m",
                tokens_in=10,
                tokens_out=20,
                cost_usd=Decimal("0.25"),
                dataset_id=DATASET,
            ),
            End(session_id="s", user_id=B, status="failed"),
            UsageEvent(session_id="shared", user_id=A, model="m", tokens_in=5, cost_usd=1, dataset_id=DATASET),
            UsageEvent(session_id="shared", user_id=A, model="unknown", tokens_in=6, cost_usd=1),
            UsageEvent(session_id="shared", user_id=A, model=None, tokens_in=7, cost_usd=1),
            End(session_id="shared", user_id=A, status="completed"),
            UsageEvent(session_id="again", user_id=A, model="m", tokens_in=100, cost_usd=9),
            Touch(session_id="never over", user_id=A),
        ]
    )
    await db.lifecycle.end_session("again", A, SessionStatus.COMPLETED)
    await db.maintenance.roll_up()
    await db.lifecycle.reopen_session("again", A)
    await db.lifecycle.record(
        [
            UsageEvent(session_id="new", user_id=A, model="m", tokens_in=2, cost_usd=3),
            End(session_id="new", user_id=A, status="completed"),
        ]
    )
    async with db.engine.begin() as connection:
        await roll_up_one(connection, A, "new")


async def roll_up_one(connection: AsyncConnection, user: UUID, session: str) -> None:
    """Rolls up an ended session, and leaves its changes for a later roll-up to put into the buckets."""
    bound = {"keys": f'[{{"user_id": "{user}", "session_id": "{session}"}}]', "idle_before": NOW}
    await connection.execute(roll_up.roll_up_sessions("session_lifecycle")(), bound)


async def meddle(db: SessionDatabase, *statements: str) -> None:
    """Changes the tables as another program would, in one transaction."""
    async with db.engine.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL search_path = session_lifecycle")
        for statement in statements:
            await connection.execute(text(statement))


async def check_answers(db: SessionDatabase) -> None:
    """Every answer equals the sums of the rows."""
    stored = await Stored.of(db)
    for viewer in (Viewer(A), Viewer(A, [DATASET]), Viewer(None, [DATASET, ANOTHER]), Viewer.auditor()):
        stats = await db.lifecycle.aggregate_stats(viewer)
        assert stats == stored.stats(viewer, None, None, DEFAULT_ABANDON_AFTER)
        assert await db.lifecycle.cost_by_model(viewer) == stored.cost_by_model(viewer, None, None)
        assert (await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer))).total == stats.sessions


def difference(mismatch: Mismatch) -> tuple[Any, ...]:
    """The place, the field, and the found and expected value; for a bucket their difference."""
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
    """The buckets that a wrong session of A makes wrong, with the differences."""
    families: list[tuple[Any, ...]] = [("all", None, None), ("user", A, None)]
    if dataset is not None:
        families += [("dataset", None, dataset), ("user_dataset", A, dataset)]
    return [
        (table, (*family, level, told_apart), field, Decimal(amount))
        for family in families
        for level in LEVELS
        for field, amount in by.items()
    ]


DELETED: dict[str, int | str] = {"sessions": 1, "cost_usd": "0.25", "tokens_in": 10, "tokens_out": 20}
DRIFTS: dict[str, tuple[list[str], list[tuple[Any, ...]]]] = {
    "marked as rolled up without a kept row": (
        [f"INSERT INTO session_records (user_id, session_id, rolled_up) VALUES ('{A}', 'foreign', true)"],
        [of_session("rolled_up", "False", "True", session="foreign")],
    ),
    "the kept row deleted": (
        [f"DELETE FROM rolled_up_sessions {OF_S}"],
        [
            of_session("rolled_up", "False", "True"),
            *in_buckets(
                "session_roll_ups",
                "completed",
                sessions=1,
                cost_usd="2.5",
                tokens_in=4,
                tokens_out=4,
                late_events=1,
                late_cost_usd=7,
            ),
            *in_buckets("session_model_roll_ups", "m", sessions=1, cost_usd=2, tokens_in=3, tokens_out=4, events=1),
            *in_buckets("session_model_roll_ups", "unknown", sessions=1, cost_usd="0.5", tokens_in=1, events=1),
        ],
    ),
    "not marked as rolled up": (
        [
            UNSEEN.format("DISABLE"),
            f"UPDATE session_records SET rolled_up = false {OF_S}",
            UNSEEN.format("ENABLE"),
        ],
        [of_session("rolled_up", "True", "False")],
    ),
    "deleted without the trigger": (
        [UNSEEN.format("DISABLE"), f"DELETE FROM session_records {OF_S}", UNSEEN.format("ENABLE")],
        [of_session("rolled_up", "True", "False")],
    ),
    "changed without the trigger": (
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
    "changed, with the trigger still off": (
        [UNSEEN.format("DISABLE"), f"UPDATE session_records SET agent_name = 'a' {OF_S}"],
        [of_session("agent_name", None, "a")],
    ),
    "kept with another cost": (
        ["UPDATE rolled_up_sessions SET cost_usd = cost_usd + 5 WHERE session_id = 'shared'"],
        [
            of_session("cost_usd", 8, 3, session="shared"),
            *in_buckets("session_roll_ups", "completed", DATASET, cost_usd=-5),
        ],
    ),
    "kept with another model": (
        [f"UPDATE rolled_up_sessions SET models = replace(models::text, 'unknown', 'm')::json {OF_S}"],
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
            *in_buckets("session_model_roll_ups", "m", sessions=-1, cost_usd="-0.5", tokens_in=-1, events=-1),
            *in_buckets("session_model_roll_ups", "unknown", sessions=1, cost_usd="0.5", tokens_in=1, events=1),
        ],
    ),
    "renamed the model in the ledger": (
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
    "a wrong bucket": (
        ["UPDATE session_roll_ups SET sessions = sessions + 1 WHERE family = 'user_dataset' AND level = '36 hours'"],
        [
            ("session_roll_ups", ("user_dataset", user, DATASET, "36 hours", status), "sessions", 1)
            for user, status in ((A, "completed"), (B, "failed"))
        ],
    ),
    "a bucket without sessions": (
        [
            f"""
            INSERT INTO session_model_roll_ups
                (family, user_id, dataset_id, level, starts_at, model, sessions, cost_usd)
            SELECT 'dataset', '{UUID(int=0)}', '{ANOTHER}', '54 days', min(starts_at), 'x', 2, 1
            FROM session_model_roll_ups
            """
        ],
        [
            ("session_model_roll_ups", ("dataset", None, ANOTHER, "54 days", "x"), field, by)
            for field, by in (("sessions", 2), ("cost_usd", 1))
        ],
    ),
    "deleted buckets": (
        ["DELETE FROM session_roll_ups WHERE family = 'dataset' AND level <> '324 days' AND status = 'failed'"],
        [
            ("session_roll_ups", ("dataset", None, DATASET, level, "failed"), field, -Decimal(by))
            for level in LEVELS[:5]
            for field, by in DELETED.items()
        ],
    ),
    "wrong changes": (
        ["UPDATE session_roll_up_changes SET tokens_in = tokens_in + 1 WHERE sessions > 0"],
        in_buckets("session_roll_ups", "completed", tokens_in=1),
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
async def test_wrong_roll_ups_are_reported_and_repaired(session_database: SessionDatabase, drift: str) -> None:
    db = session_database
    await live_and_roll_up(db)
    statements, expected = DRIFTS[drift]
    await meddle(db, *statements)
    report = await db.maintenance.reconcile()
    reported = set(map(difference, report.mismatches))
    assert len(reported) == min(len(expected), MOST_MISMATCHES)
    assert reported <= set(expected)
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
        "session_roll_ups",
        "session_model_roll_ups",
        "session_roll_up_changes",
        "session_model_roll_up_changes",
    ],
)
async def test_an_emptied_table_is_filled_again(session_database: SessionDatabase, table: str) -> None:
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


@pytest.mark.parametrize("drift", ["not marked as rolled up", "changed unseen and not marked"])
async def test_a_kept_row_of_a_session_not_rolled_up_does_not_stop_roll_up(
    session_database: SessionDatabase, drift: str
) -> None:
    db = session_database
    await live_and_roll_up(db)
    more = ", cost_usd = 9, last_activity_at = last_activity_at + interval '1 day'" if "changed" in drift else ""
    update = f"UPDATE session_records SET rolled_up = false{more} {OF_S}"
    await meddle(db, UNSEEN.format("DISABLE"), update, UNSEEN.format("ENABLE"))
    assert (await db.maintenance.roll_up()).sessions == 1
    assert (await db.maintenance.reconcile()).mismatch_count == (1 if more else 0)  # the cost differs from the ledger's
    assert (await Stored.of(db)).faults() == []


async def test_right_roll_ups_are_not_rewritten(session_database: SessionDatabase) -> None:
    db = session_database
    await live_and_roll_up(db)
    tables = ("rolled_up_sessions", "session_roll_ups", "session_model_roll_ups", "session_roll_up_changes")
    versions = " UNION ALL ".join(f"SELECT xmin::text, ctid::text FROM {name}" for name in tables)
    before = await ask(db, versions)
    assert len(await ask(db, "SELECT 1 FROM session_roll_up_changes")) == 2
    report = await db.maintenance.reconcile(repair=True)
    assert (report.sessions_looked_at, report.mismatches, report.repaired) == (6, [], 0)
    assert await ask(db, versions) == before
    await check_answers(db)


async def test_more_mismatches_than_the_report_lists_are_repaired(session_database: SessionDatabase) -> None:
    db = session_database
    await keep_buckets(db)
    users = [UUID(int=number) for number in range(1, 131)]
    await db.lifecycle.record([Touch(session_id="s", user_id=user, at=NOW) for user in users])
    await db.lifecycle.record([End(session_id="s", user_id=user, status="failed", at=NOW) for user in users])
    await db.maintenance.roll_up()
    wrong = "UPDATE session_roll_ups SET sessions = sessions + 1"
    await meddle(db, wrong, "UPDATE rolled_up_sessions SET tokens_in = 1")
    report = await db.maintenance.reconcile(repair=True)
    first = [(one.user_id, one.table) for one in report.mismatches]
    assert first == [(user, "rolled_up_sessions") for user in users[:100]]
    # The tokens of each session; and, for each bucket length, the sessions and tokens of each user and of all users.
    assert report.mismatch_count == report.repaired == 130 + len(LEVELS) * 2 * (130 + 1)
    await check_answers(db)


async def test_a_session_rolled_up_meanwhile_is_not_taken_out(session_database: SessionDatabase) -> None:
    db = session_database
    await db.lifecycle.record(
        [
            UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1),
            End(session_id="s", user_id=A, status="completed"),
        ]
    )
    await meddle(
        db,
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(1); RETURN NULL; END'",
        "CREATE TRIGGER pause AFTER UPDATE ON session_records EXECUTE FUNCTION pause()",
    )

    async def take_out() -> bool:
        async with db.engine.begin() as connection:
            key = SessionKey(A, "s")
            return bool(await connection.scalar(reconcile_roll_ups.take_out("session_lifecycle", key)))

    async with db.engine.begin() as host:
        await host.execute(text("SELECT pg_advisory_xact_lock(1)"))
        taking_out = asyncio.create_task(take_out())
        # The call has read that the session is not rolled up, and waits for the lock held here.
        while not await lock_waits(db):
            assert not taking_out.done()
        await roll_up_one(host, A, "s")
    assert await taking_out is False
    assert (await db.maintenance.reconcile()).mismatches == []
    assert await ask(db, "SELECT 1 FROM rolled_up_sessions")


async def test_a_repair_runs_beside_writers_and_roll_ups(session_database: SessionDatabase) -> None:
    db = session_database
    await keep_buckets(db)

    async def write(caller: int) -> None:
        for number in range(25):
            name, user = f"s{(caller + number) % 4}", (A, B)[number % 2]
            await db.lifecycle.record(
                [
                    UsageEvent(
                        session_id=name,
                        user_id=user,
                        model=f"m{number % 2}",
                        tokens_in=1,
                        cost_usd=1,
                        dataset_id=DATASET,
                    )
                ]
            )
            await db.lifecycle.end_session(name, user, SessionStatus.COMPLETED)
            await db.lifecycle.reopen_session(name, user)
            await db.lifecycle.end_session(name, user, SessionStatus.FAILED)

    async def roll_up() -> None:
        for _ in range(25):
            await db.maintenance.roll_up()

    async def disturb() -> None:
        for number in range(8):
            await ask(db, "DELETE FROM rolled_up_sessions WHERE session_id = 's0'")
            await ask(db, "UPDATE rolled_up_sessions SET cost_usd = cost_usd + 1 WHERE session_id = 's1'")
            await ask(db, "UPDATE session_roll_ups SET tokens_in = tokens_in + 1 WHERE family = 'user'")
            await ask(db, f"DELETE FROM session_model_roll_ups WHERE level = '{LEVELS[number % len(LEVELS)]}'")
            await db.maintenance.reconcile(repair=True)

    await asyncio.gather(*(write(caller) for caller in range(3)), roll_up(), disturb(), disturb())
    await db.maintenance.reconcile(repair=True)
    assert (await db.maintenance.reconcile()).mismatches == []
    await check_answers(db)
    await db.maintenance.roll_up()
    assert (await Stored.of(db)).faults() == []


async def test_wrong_arguments_are_refused_by_name(session_database: SessionDatabase) -> None:
    not_a_flag: Any = "yes"
    with pytest.raises(InvalidValueError, match="repair"):
        await session_database.maintenance.reconcile(repair=not_a_flag)
