"""A batch too large for one statement is written by several in one transaction (rule R25, finding X21)."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import (
    End,
    InvalidValueError,
    Message,
    Run,
    SessionDatabase,
    Settings,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
)
from session_lifecycle.models import Item
from session_lifecycle.writing import pipeline, waves
from session_lifecycle.writing.pipeline import WritePipeline
from support.stored_rows import deadlocks

A, B = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waves, "PART_BYTES", 2_000)


def life(user: UUID) -> list[Item]:
    """A batch whose items depend on each other, across all parts."""
    items: list[Item] = [
        Touch(session_id="s", user_id=user, metadata={"a": 1}, at=NOON),
        Run(run_id="child", user_id=user, parent_run_id="root", started_at=NOON, input="x" * 1_500),
        UsageEvent(session_id="s", user_id=user, model="m", tokens_in=1, cost_usd=1, idempotency_key="k", at=NOON),
    ]
    for number in range(20):
        at = NOON + timedelta(seconds=number)
        items += [
            Step(
                step_id=f"t{number}",
                run_id="root",
                user_id=user,
                kind="tool",
                started_at=at,
                output="y" * 700,
            ),
            UsageEvent(session_id="s", user_id=user, model="m", tokens_in=2, cost_usd=2, run_id="root", at=at),
            Message(
                message_id=f"m{number % 7}",
                user_id=user,
                session_id="s",
                role="user",
                content="z" * 600,
                created_at=at,
            ),
        ]
    return [
        *items,
        UsageEvent(session_id="s", user_id=user, model="m", tokens_in=1, cost_usd=1, idempotency_key="k", at=NOON),
        Run(run_id="root", user_id=user, session_id="s", started_at=NOON, reported_cost_usd=50),
        End(session_id="s", user_id=user, status="completed", at=NOON + timedelta(hours=1)),
        UsageEvent(session_id="s", user_id=user, model="m", tokens_in=9, at=NOON + timedelta(hours=2)),
        Touch(session_id="other", user_id=user, at=NOON),
    ]


async def scalar(db: SessionDatabase, sql: str) -> Any:
    async with db.engine.connect() as connection:
        return (await connection.execute(text(sql))).scalar_one()


async def rows_of(db: SessionDatabase, user: UUID) -> Any:
    page = await db.activity.list_session_summaries(SummaryFilters(user_id=user))
    return [row.model_dump(exclude={"record": {"user_id"}}) for row in page.sessions]


async def test_X21_parts_answer_and_store_what_one_statement_does(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await session_database.lifecycle.record(life(A))
    monkeypatch.setattr(waves, "PART_BYTES", 2_000)
    assert len(list(waves.parts(await prepared(session_database, life(B))))) > 20
    parts = await session_database.lifecycle.record(life(B))
    assert await rows_of(session_database, A) == await rows_of(session_database, B)
    assert [outcome(one) for one in parts] == [outcome(one) for one in whole]
    report = await session_database.maintenance.reconcile()
    assert not report.mismatches


def outcome(receipt: Any) -> Any:
    return getattr(receipt, "outcome", receipt)


async def prepared(db: SessionDatabase, items: Sequence[Item]) -> Any:
    return await cast("WritePipeline", db.lifecycle).prepare(items)


async def test_X21_a_batch_in_parts_is_one_transaction(session_database: SessionDatabase, small_parts: None) -> None:
    far = datetime.now(UTC) + timedelta(minutes=7)
    with pytest.raises(InvalidValueError, match=r"^items\.68\.at: .* at most five minutes ahead"):
        await session_database.lifecycle.record([*life(A), Touch(session_id="s", user_id=A, at=far)])
    await session_database.maintenance.erase_user(B, tombstone=True)
    with pytest.raises(InvalidValueError, match="erased"):
        await session_database.lifecycle.record([*life(A), Touch(session_id="s", user_id=B)])
    assert await scalar(session_database, "SELECT count(*) FROM session_lifecycle.session_records") == 0
    assert await scalar(session_database, "SELECT count(*) FROM session_lifecycle.session_runs") == 0


async def test_X21_a_batch_in_parts_is_in_the_hosts_transaction(
    session_database: SessionDatabase, small_parts: None
) -> None:
    async with session_database.engine.connect() as connection, connection.begin() as transaction:
        await session_database.bind(connection).lifecycle.record(life(A))
        await transaction.rollback()
    assert await scalar(session_database, "SELECT count(*) FROM session_lifecycle.session_records") == 0
    async with session_database.engine.begin() as connection:
        receipts = await session_database.bind(connection, savepoints=False).lifecycle.record(life(A))
    assert len(receipts) == len(life(A))
    async with session_database.recorder() as recorder:
        again = await recorder.record(life(A))
    assert len(again) == len(life(A))
    assert await scalar(session_database, "SELECT count(*) FROM session_lifecycle.session_messages") == 7


async def test_R10_X21_batches_in_parts_never_deadlock(session_database: SessionDatabase, small_parts: None) -> None:
    """The batches name the same sessions and runs in opposite orders, each in a part of its own."""

    def batch(numbers: Sequence[int]) -> list[Item]:
        return [Run(run_id=f"r{n}", user_id=A, session_id=f"s{n}", started_at=NOON, input="x" * 1_500) for n in numbers]

    forth = list(range(12))
    await session_database.lifecycle.record(batch(forth))
    for _ in range(5):
        await asyncio.gather(
            *(session_database.lifecycle.record(batch(order)) for order in (forth, forth[::-1]) for _ in range(3))
        )
    assert await deadlocks(session_database) == 0


async def test_R25_X21_a_batch_has_a_bound_in_items_and_bytes(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    touches = [Touch(session_id="s", user_id=A)] * (pipeline.MOST_ITEMS + 1)
    with pytest.raises(InvalidValueError, match=r"^items: got '100001 items', expected at most 100,000 items$"):
        await session_database.lifecycle.record(touches)
    monkeypatch.setattr(waves, "MOST_BYTES", 5_000)
    monkeypatch.setattr(waves, "PART_BYTES", 2_000)
    with pytest.raises(InvalidValueError, match=r"^items: got 'more than 5,000 bytes', expected at most 5,000 bytes"):
        await session_database.lifecycle.record(life(A))
    assert await scalar(session_database, "SELECT count(*) FROM session_lifecycle.session_records") == 0


async def test_R25_every_item_of_many_waves_has_its_receipt(session_database: SessionDatabase) -> None:
    """Each revision of one event is a wave of its own; the run is settled after the last one."""
    revisions = [
        UsageEvent(
            session_id="s", user_id=A, tokens_in=number, cost_usd=1, idempotency_key="k", run_id="r", revision=number
        )
        for number in range(1, 201)
    ]
    run = Run(run_id="r", user_id=A, session_id="s", started_at=NOON, reported_cost_usd=3)
    receipts = await session_database.lifecycle.record([run, *revisions])
    found = [(one.outcome, one.session_tokens_in, one.session_cost_usd) for one in cast("list[Any]", receipts[1:])]
    assert found == [("replaced" if number > 1 else "applied", number, 3) for number in range(1, 201)]


@pytest.mark.soak
async def test_X21_more_than_postgres_holds_in_one_value(session_database: SessionDatabase) -> None:
    runs = [
        Run(run_id=f"r{number}", user_id=A, session_id="s", started_at=NOON, output="x" * 1_000_000)
        for number in range(275)
    ]
    assert set(await session_database.lifecycle.record(runs)) == {"created"}


@pytest.mark.soak
async def test_R25_X21_one_item_is_cut_to_what_postgres_holds(session_database_url: str) -> None:
    large = Settings(payload_limit_bytes=100_000_000)
    payload = "x" * 70_000_000  # four of them are more than the 256 MB that Postgres takes as one jsonb
    step = Step(
        step_id="t",
        run_id="r",
        user_id=A,
        kind="tool",
        started_at=NOON,
        inputs=payload,
        output=payload,
        prompt=payload,
        errors=payload,
    )
    async with SessionDatabase.connect(session_database_url, settings=large) as db:
        assert await db.lifecycle.record([Run(run_id="r", user_id=A, session_id="s", started_at=NOON), step])
        sizes = "SELECT length(output #>> '{beginning}') FROM session_lifecycle.session_steps"
        assert await scalar(db, sizes) == 25_000_000
