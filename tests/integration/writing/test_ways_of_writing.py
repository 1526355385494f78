"""Each way of writing inside `record_v1` leaves the same rows, and answers the same."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import RFC_4122, UUID

import asyncpg
import pytest

from session_lifecycle import End, SessionDatabase, Touch, UsageEvent
from session_lifecycle.entities import metadata
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.testing import SessionClock
from session_lifecycle.writing.prepared import event_id_of, prepare
from session_lifecycle.writing.waves import parts

AT, DATASET = datetime(2026, 1, 1, tzinfo=UTC), UUID(int=11)
WAYS = {
    "one by one": set(),
    "plain": {"record_plain"},
    "locked": {"record_locked", "record_wave", "lock_sessions", "replaces_run_events"},
    "locked, with runs": {
        *("record_locked", "record_wave", "lock_sessions"),
        *("lock_runs", "follow_runs", "record_activity", "settle_runs"),
    },
}
# What each way calls besides, where one of the sessions does not exist yet.
CREATING = {way: {"lock_session", "refuse_erased"} for way in WAYS}
CREATING["plain"] |= {"create_sessions", "lock_sessions"}
RECORD = "SELECT * FROM session_lifecycle.record_v1($1::jsonb, $2::jsonb, $3, $4)"
WITH_RUNS = "SELECT * FROM session_lifecycle.record_locked($1::jsonb, '[]', '[]', true, $2)"
CALLED = """
    SELECT funcname FROM pg_stat_xact_user_functions
    WHERE schemaname = 'session_lifecycle' AND calls > 0 AND funcname <> 'record_v1'
"""


def items(user: UUID) -> list[Touch | UsageEvent]:
    """What every way can write: signs of life and new usage of sessions that run, with all that can be said of them."""
    return [
        UsageEvent(
            session_id="s",
            user_id=user,
            model="gpt-4o",
            tokens_in=120,
            tokens_out=40,
            cache_read_tokens=7,
            cache_write_tokens=3,
            reasoning_tokens=5,
        ),
        Touch(session_id="s", user_id=user, dataset_id=DATASET, agent_name="coder", title="first"),
        UsageEvent(
            session_id="s",
            user_id=user,
            model="gpt-4o",
            tokens_in=1,
            tokens_out=1,
            cost_usd=Decimal("0.1"),
            idempotency_key="k",
            details={"a": 1},
            provider="openai",
        ),
        UsageEvent(session_id="t", user_id=user, model="nobody knows its price", tokens_in=10, errored=True),
        UsageEvent(session_id="t", user_id=user, model=None, tokens_in=3, tokens_out=4, cost_usd=Decimal("1e-12")),
        UsageEvent(session_id="t", user_id=user, measured=False),
        Touch(session_id="t", user_id=user, agent_name="coder", at=AT - timedelta(days=2)),
        UsageEvent(session_id="s", user_id=user, model="older", tokens_in=5, at=AT - timedelta(days=1), cost_usd=1),
        UsageEvent(
            session_id="s",
            user_id=user,
            model="without a sign of life",
            tokens_in=6,
            at=AT - timedelta(days=9),
            touch=False,
            dataset_id=UUID(int=12),
        ),
        UsageEvent(session_id="t", user_id=user, model="gpt-4o-mini", tokens_in=9, tokens_out=9, idempotency_key="k"),
        Touch(session_id="s", user_id=user, title="second", agent_name="planner", at=AT + timedelta(days=1)),
    ]


async def written_by(url: str, way: str, user: UUID, now: datetime, *, creates: bool) -> list[tuple[Any, ...]]:
    """Writes the items, and says what became of each."""
    prices = PriceCatalogue()
    await prices.load()
    batches: Sequence[list[Any]] = [[item] for item in items(user)] if way == "one by one" else [items(user)]
    connection = await asyncpg.connect(url)
    receipts: list[tuple[Any, ...]] = []
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL track_functions = 'all'")
            for batch in batches:
                [(_, bound)] = parts([prepare(item, prices) for item in batch])
                assert bound["is_plain"]
                if way == "locked, with runs":
                    rows = await connection.fetch(WITH_RUNS, bound["waves"], now)
                else:
                    is_plain = way != "locked"
                    values = (bound["waves"], bound["activity"], bound["latest_at"], is_plain)
                    rows = await connection.fetch(RECORD, *values)
                in_order = sorted(rows, key=lambda row: row["item_position"])
                # The figures of a touch are not part of its answer.
                receipts += [tuple(row)[1:] if row["outcome"] == "applied" else (row["outcome"],) for row in in_order]
            called = {row[0] for row in await connection.fetch(CALLED)}
    finally:
        await connection.close()
    assert called == WAYS[way] | (CREATING[way] if creates else set())
    return receipts


# The user's own id, the ids that are made of it or by chance, and the place of an event among the items of its call.
LEFT_OUT = ("user_id", "event_id", "recorded_at")


async def stored(url: str, user: UUID) -> dict[str, Counter[tuple[tuple[str, Any], ...]]]:
    """The user's rows in every table, without `LEFT_OUT`."""
    connection = await asyncpg.connect(url)
    try:
        return {
            table.name: Counter(
                tuple((name, value) for name, value in row.items() if name not in LEFT_OUT)
                for row in await connection.fetch(f"SELECT * FROM {table.fullname} WHERE user_id = $1", user)
            )
            for table in metadata.tables.values()
            if "user_id" in table.c
        }
    finally:
        await connection.close()


@pytest.mark.parametrize("existing", [("s", "t"), ("t",), ()], ids=["of sessions", "of a new session", "of new ones"])
async def test_every_way_of_writing_leaves_the_same(
    session_database: SessionDatabase,
    session_database_url: str,
    session_clock: SessionClock,
    existing: Sequence[str],
) -> None:
    now = await session_clock.freeze(AT + timedelta(hours=1, days=1))
    receipts, rows = {}, {}
    for number, way in enumerate(WAYS, 1):
        user = UUID(int=number)
        await session_database.lifecycle.record([Touch(session_id=name, user_id=user, at=AT) for name in existing])
        receipts[way] = await written_by(session_database_url, way, user, now, creates=len(existing) < 2)
        rows[way] = await stored(session_database_url, user)
    assert len(receipts["plain"]) == len(items(UUID(int=1)))
    assert rows["plain"]["session_usage_events"].total() == 8
    for way in WAYS:
        assert receipts[way] == receipts["plain"], way
        assert rows[way] == rows["plain"], way


@pytest.mark.parametrize("way", ["one by one", "plain"])
async def test_a_short_way_that_does_not_fit_goes_the_long_one(
    session_database: SessionDatabase, session_database_url: str, way: str
) -> None:
    """One session has ended and another one is new, so both short ways leave the items to the long one."""
    prices = PriceCatalogue()
    await prices.load()
    found = []
    count = 3 if way == "plain" else 1
    for number, is_plain in enumerate((True, False), 1):
        user = UUID(int=number)
        await session_database.lifecycle.record(
            [Touch(session_id="s", user_id=user, at=AT), End(session_id="s", user_id=user, status="failed", at=AT)]
        )
        given: list[Touch | UsageEvent] = [
            UsageEvent(session_id="s", user_id=user, model="m", tokens_in=1, cost_usd=1, at=AT)
        ]
        if way == "plain":
            given += [Touch(session_id="t", user_id=user, at=AT), Touch(session_id="s", user_id=user, at=AT)]
        [(_, bound)] = parts([prepare(item, prices) for item in given])
        connection = await asyncpg.connect(session_database_url)
        try:
            values = (bound["waves"], bound["activity"], bound["latest_at"], is_plain)
            rows = [tuple(row) for row in await connection.fetch(RECORD, *values)]
        finally:
            await connection.close()
        usage = await stored(session_database_url, user)
        del usage["session_usage_events"]  # recorded at two moments
        found.append((sorted(rows), usage))
    assert found[0] == found[1]
    assert [row[1] for row in found[0][0]] == ["applied", "created", "terminal"][:count]


async def test_the_database_derives_the_id_of_a_key_as_the_library_does(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    """Each of the sixteen digits that the variant takes the place of is met, and text that is not ASCII."""
    del session_database  # migrated
    sessions = [*("s" * length for length in range(1, 60)), "Gespräch \N{SNOWMAN}"]
    connection = await asyncpg.connect(session_database_url)
    try:
        for scope in ("session", "user"):
            for session_id in sessions:
                event = UsageEvent.model_validate(
                    {
                        "session_id": session_id,
                        "user_id": UUID(int=7),
                        "model": "m",
                        "idempotency_key": f"key of {session_id}",
                        "key_scope": scope,
                    }
                )
                of_session = session_id if scope == "session" else ""
                values = (event.user_id, of_session, event.idempotency_key)
                derived = await connection.fetchval("SELECT session_lifecycle.keyed_event_id($1, $2, $3)", *values)
                assert UUID(event_id_of(event)) == derived
                assert (derived.version, derived.variant) == (8, RFC_4122)
    finally:
        await connection.close()
