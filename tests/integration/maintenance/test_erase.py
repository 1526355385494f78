"""Erasing: all rows of one session or one user, no row of another user, and no link back."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Message, Run, SessionDatabase, SessionStatus, Touch, UsageEvent, Viewer
from session_lifecycle.entities import metadata
from session_lifecycle.models import PriceOverride
from support.stored_rows import TABLES, ask, counts, store_message, store_run, store_step

A, B, D = UUID(int=1), UUID(int=2), UUID(int=3)
NOW = datetime.now(UTC)
NOTHING = dict.fromkeys(TABLES, 0)
PRIVATE = "very private"


async def live(db: SessionDatabase, session_id: str, user: UUID) -> None:
    """A session in which every text contains PRIVATE."""
    name = f"{PRIVATE} {session_id}"
    await db.lifecycle.record(
        [
            Touch(
                session_id=name,
                user_id=user,
                dataset_id=D,
                agent_name=PRIVATE,
                title=PRIVATE,
                metadata={PRIVATE: PRIVATE},
                at=NOW,
            ),
            UsageEvent(
                session_id=name,
                user_id=user,
                model="gpt-4o",
                tokens_in=10,
                tokens_out=5,
                cost_usd=2,
                idempotency_key=name,
                details={PRIVATE: 1},
                at=NOW,
            ),
            UsageEvent(
                session_id=name,
                user_id=user,
                model=None,
                tokens_in=7,
                cost_usd=1,
                idempotency_key=name + "!",
                key_scope="user",
                at=NOW,
            ),
        ]
    )
    await store_run(db, user, name, NOW, session_id=name, name=PRIVATE, input=PRIVATE, project=PRIVATE)
    await store_step(db, user, name, PRIVATE, NOW, output=PRIVATE)
    await store_message(db, user, name, PRIVATE, run_id=name)


async def stored(db: SessionDatabase) -> str:
    """All stored rows, as text."""
    rows = [await ask(db, f"SELECT to_jsonb(t) FROM {name} t") for name in TABLES.values()]
    return str(rows)


async def test_a_session_is_deleted_with_all_its_rows(session_database: SessionDatabase) -> None:
    for session_id, user in (("one", A), ("two", A), ("one", B)):
        await live(session_database, session_id, user)
    delete = session_database.maintenance.delete_session
    assert await delete(f"{PRIVATE} one", A) is True
    assert await delete(f"{PRIVATE} one", A) is False
    assert await delete("unknown", A) is False
    each = {"sessions": 1, "runs": 1, "steps": 1, "messages": 1, "events": 2, "model_rows": 2}
    assert await counts(session_database, user_id=A) == each
    assert await counts(session_database, user_id=B) == each


async def test_one_user_is_erased_and_no_other(session_database: SessionDatabase) -> None:
    for session_id, user in (("one", A), ("two", A), ("one", B)):
        await live(session_database, session_id, user)
    await store_run(session_database, A, "waiting", NOW, parent_run_id="placeholder", root_run_id=None)
    await store_run(session_database, A, "placeholder", None)
    await store_step(session_database, A, "placeholder", "1", NOW)
    before = await counts(session_database, user_id=B)
    receipt = await session_database.maintenance.erase_user(A)
    assert (receipt.sessions, receipt.runs, receipt.steps, receipt.messages, receipt.events) == (2, 3, 3, 2, 4)
    assert (receipt.user_id, receipt.pseudonym, receipt.tombstoned) == (A, None, False)
    assert abs(receipt.erased_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert await counts(session_database, user_id=A) == NOTHING
    assert await counts(session_database) == before
    again = await session_database.maintenance.erase_user(A)
    assert (again.sessions, again.runs, again.events) == (0, 0, 0)


async def test_anonymised_usage_keeps_the_spend_and_no_personal_data(session_database: SessionDatabase) -> None:
    db = session_database
    for session_id in ("one", "two"):
        await live(db, session_id, A)
    await db.lifecycle.end_session(f"{PRIVATE} one", A, SessionStatus.COMPLETED)
    await db.lifecycle.record(
        [UsageEvent(session_id=f"{PRIVATE} one", user_id=A, model="gpt-4o", tokens_in=3, cost_usd=4)]
    )
    await store_run(db, A, PRIVATE, None, events_tokens_in=3)
    before = [
        await db.lifecycle.aggregate_stats(Viewer.auditor()),
        await db.lifecycle.cost_by_model(Viewer.auditor()),
        await db.lifecycle.aggregate_stats(Viewer(B, [D])),
        await db.reports.spend(Viewer.auditor()),
    ]
    receipt = await db.maintenance.erase_user(A, usage="anonymise")
    assert (receipt.sessions, receipt.runs, receipt.steps, receipt.messages, receipt.events) == (2, 2, 2, 2, 5)
    assert receipt.pseudonym not in {None, A}
    assert [
        await db.lifecycle.aggregate_stats(Viewer.auditor()),
        await db.lifecycle.cost_by_model(Viewer.auditor()),
        await db.lifecycle.aggregate_stats(Viewer(B, [D])),
        await db.reports.spend(Viewer.auditor()),
    ] == before
    assert await counts(db, user_id=A) == NOTHING
    left = await stored(db)
    assert PRIVATE not in left
    assert str(A) not in left
    assert (await db.maintenance.reconcile()).mismatch_count == 0
    sessions = await ask(db, "SELECT user_id, agent_name, title, metadata, dataset_id FROM session_records")
    assert sessions == [(receipt.pseudonym, None, None, {}, D)] * 2


async def everything(db: SessionDatabase) -> str:
    """All rows of all tables, as text."""
    names = await ask(
        db, "SELECT tablename FROM pg_tables WHERE schemaname = 'session_lifecycle' AND tablename LIKE '%session%'"
    )
    assert len(names) == len(metadata.tables) + 1  # with the version table
    return str([await ask(db, f'SELECT to_jsonb(t) FROM "{name}" t') for (name,) in names])


async def test_X50_no_table_names_an_erased_user_or_the_users_own_model(session_database_url: str) -> None:
    def priced(usd: int) -> list[PriceOverride]:
        return [
            PriceOverride(model_pattern=model, input_usd_per_million=usd, output_usd_per_million=usd)
            for model in (PRIVATE, "shared")
        ]

    async with SessionDatabase.connect(session_database_url, prices=priced(1)) as db:
        for user, models in ((A, [PRIVATE, "shared"]), (B, ["shared"])):
            await live(db, f"of {user}", user)
            for model in models:
                await db.lifecycle.accumulate_usage(f"{PRIVATE} of {user}", user, model, 1_000_000)
            await db.lifecycle.end_session(f"{PRIVATE} of {user}", user, SessionStatus.COMPLETED)
        await db.maintenance.roll_up()
    async with SessionDatabase.connect(session_database_url, prices=priced(2)) as db:
        for model, events in ((PRIVATE, 1), ("shared", 2), ("gpt-4o", 0)):
            assert (await db.maintenance.reprice(model)).events == events
        await db.maintenance.roll_up()
        await db.maintenance.erase_user(B)
        repriced = {model for (model,) in await ask(db, "SELECT model FROM session_repricings")}
        assert repriced == {"gpt-4o", "shared", PRIVATE}
        assert str(B) not in await everything(db)
        await db.maintenance.erase_user(A)
        left = await everything(db)
        assert PRIVATE not in left
        assert str(A) not in left
        assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_nothing_is_recorded_for_a_user_with_a_tombstone(session_database: SessionDatabase) -> None:
    db = session_database
    for user in (A, B):
        await live(db, "one", user)
    receipt = await db.maintenance.erase_user(A, tombstone=True)
    assert (receipt.sessions, receipt.tombstoned) == (1, True)
    for item in (
        Touch(session_id="one", user_id=A),
        UsageEvent(session_id="one", user_id=A, model="m", tokens_in=1, run_id="r"),
        UsageEvent(session_id="one", user_id=A, model="m", tokens_in=1, idempotency_key="k", key_scope="user"),
        Run(run_id="r", user_id=A, started_at=NOW),
        Run(run_id="waiting", user_id=A, parent_run_id="r", started_at=NOW),
        Message(message_id="m", user_id=A, session_id="one", role="user", content="hi", created_at=NOW),
    ):
        with pytest.raises(InvalidValueError, match="erased"):
            await db.lifecycle.record([item])
    assert await counts(db, user_id=A) == NOTHING
    await live(db, "two", B)
    again = await db.maintenance.erase_user(A, tombstone=True)
    assert (again.sessions, again.tombstoned) == (0, True)


async def test_a_session_created_while_the_tombstone_is_written_is_erased(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    async with db.engine.begin() as host:
        await db.bind(host).lifecycle.ensure_and_touch_session("just in time", A)
        erasing = asyncio.create_task(db.maintenance.erase_user(A, tombstone=True))
        done, _ = await asyncio.wait([erasing], timeout=0.3)
        assert not done
    assert (await erasing).sessions == 1
    assert await counts(db) == NOTHING


async def test_erasing_waits_for_a_writer(session_database: SessionDatabase) -> None:
    await live(session_database, "one", A)
    async with session_database.engine.begin() as host:
        name = f"{PRIVATE} one"
        await session_database.bind(host).lifecycle.record(
            [UsageEvent(session_id=name, user_id=A, model="m", tokens_in=1, cost_usd=1)]
        )
        erasing = asyncio.create_task(session_database.maintenance.erase_user(A))
        done, _ = await asyncio.wait([erasing], timeout=0.3)
        assert not done
    assert (await erasing).events == 3
    assert await counts(session_database) == NOTHING


async def test_a_writer_goes_on_in_a_new_session(session_database: SessionDatabase) -> None:
    async def write() -> None:
        for number in range(60):
            await session_database.lifecycle.record(
                [UsageEvent(session_id=f"s{number % 4}", user_id=A, model="m", tokens_in=1, cost_usd=1)]
            )

    async def delete(**how: Any) -> int:
        return sum([(await session_database.maintenance.erase_user(A, **how)).events for _ in range(8)])

    *_, deleted, anonymous = await asyncio.gather(write(), write(), delete(), delete(usage="anonymise"))
    left = await counts(session_database)
    # Anonymised events belong to the pseudonyms, so no later call deletes them.
    assert left["events"] == 120 - deleted
    assert (await counts(session_database, user_id=A))["events"] == 120 - deleted - anonymous
    assert (await session_database.maintenance.reconcile()).mismatch_count == 0


async def test_wrong_arguments_are_refused_by_name(session_database: SessionDatabase) -> None:
    maintenance: Any = session_database.maintenance  # as a host without a type checker has it
    for field, call in (
        ("user_id", maintenance.erase_user("me")),
        ("usage", maintenance.erase_user(A, usage="keep")),
        ("tombstone", maintenance.erase_user(A, tombstone=1)),
        ("session_id", maintenance.delete_session("", A)),
        ("user_id", maintenance.delete_session("s", None)),
    ):
        with pytest.raises(InvalidValueError, match=field):
            await call
