"""Writers, deletions and repricing at once: no deadlock, no error that is internal, every total right."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from session_lifecycle import (
    InvalidValueError,
    Run,
    SessionDatabase,
    Touch,
    TransactionConflictError,
    UsageEvent,
    UsageReceipt,
)
from session_lifecycle.models import PriceOverride
from support.eventually import eventually
from support.stored_rows import ask, deadlocks, lock_waits

A, B = UUID(int=1), UUID(int=2)
NOW = datetime.now(UTC) - timedelta(minutes=1)
SESSIONS = tuple(f"s{number}" for number in range(10))
PLACEHOLDERS = "SELECT user_id, run_id FROM session_runs WHERE started_at IS NULL"


def priced(usd_per_million: int) -> list[PriceOverride]:
    return [
        PriceOverride(
            model_pattern="m",
            input_usd_per_million=usd_per_million,
            output_usd_per_million=usd_per_million,
            web_search_usd_per_thousand=usd_per_million,
        )
    ]


def copied(session_id: str, key: int, **more: Any) -> UsageEvent:
    """An event with a key of the user's scope, as the copies of a conversation have it."""
    return UsageEvent(
        session_id=session_id,
        user_id=A,
        model="m",
        tokens_in=key + 1,
        idempotency_key=str(key),
        key_scope="user",
        at=NOW,
        **more,
    )


async def test_X37_keys_of_the_users_scope_beside_deletions_end_in_no_deadlock(
    session_database: SessionDatabase,
) -> None:
    db = session_database

    async def write(caller: int) -> None:
        chance = random.Random(caller)
        for _ in range(40):
            await db.lifecycle.record(
                [copied(chance.choice(SESSIONS), chance.randrange(20)) for _ in range(chance.randint(1, 12))]
            )

    async def delete(caller: int) -> None:
        chance = random.Random(-caller)
        for _ in range(120):
            await db.maintenance.delete_session(chance.choice(SESSIONS), A)

    await asyncio.gather(*(write(caller) for caller in range(8)), *(delete(caller) for caller in range(1, 4)))
    assert await deadlocks(db) == 0
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_X37_the_session_that_gets_the_event_is_locked_when_the_owner_of_the_key_is_deleted(
    session_database: SessionDatabase,
) -> None:
    """The event of the key goes into the session that the call names, while somebody else uses that session."""
    db = session_database
    await db.lifecycle.record([copied("2", 1)])
    await db.lifecycle.ensure_and_touch_session("1", A)
    async with db.engine.connect() as deleter, db.engine.connect() as user:
        await db.bind(user).lifecycle.ensure_and_touch_session("1", A)
        await db.bind(deleter).maintenance.delete_session("2", A)
        # The key's event is in "2". Its lock comes after that of "1", and "0" does not exist.
        writing = asyncio.create_task(db.lifecycle.record([Touch(session_id="0", user_id=A), copied("1", 1)]))
        await eventually(lambda: _waits(db, 1))
        await deleter.commit()
        await asyncio.sleep(0.2)
        await asyncio.wait_for(db.bind(user).lifecycle.ensure_and_touch_session("2", A), 5)
        await user.commit()
        *_, receipt = await writing
    assert isinstance(receipt, UsageReceipt)
    assert receipt.outcome == "applied"
    assert await deadlocks(db) == 0
    assert await ask(db, "SELECT session_id, tokens_in FROM session_records WHERE tokens_in > 0") == [("1", 2)]


async def test_X08_X51_keys_that_move_beside_deletions_leave_every_total_right(session_database_url: str) -> None:
    """Copies of forks take their events from session to session, while lower bounds grow and sessions go."""

    def copy(chance: random.Random) -> UsageEvent:
        key = chance.randrange(20)
        # The content follows from the key; the lower bounds of the final count are smaller.
        content: dict[str, Any] = {"tokens_out": 9, "web_searches": key % 3, "billing": "plan" if key % 2 else "api"}
        if chance.random() < 0.5:
            content |= {"tokens_out": chance.randrange(9), "partial": True}
        found = copied(chance.choice(SESSIONS), key, **content)
        return found.model_copy(update={"at": NOW - timedelta(minutes=chance.randrange(90))})

    async with (
        SessionDatabase.connect(session_database_url, prices=priced(1)) as db,
        SessionDatabase.connect(session_database_url, prices=priced(2)) as other,
    ):

        async def write(caller: int) -> None:
            chance = random.Random(caller)
            for _ in range(30):
                await db.lifecycle.record([copy(chance) for _ in range(chance.randint(1, 8))])

        async def take_care(one: SessionDatabase) -> None:
            chance = random.Random(8)
            for number in range(12):
                await one.maintenance.delete_session(chance.choice(SESSIONS), A)
                await one.maintenance.prune_sessions(timedelta(minutes=45), batch=3)
                await one.maintenance.reprice(batch=7)
                await one.maintenance.roll_up()
                if number % 4 == 3:
                    await one.maintenance.erase_user(A, usage=chance.choice(("delete", "anonymise")))

        await asyncio.gather(*(write(caller) for caller in range(6)), *(take_care(one) for one in (db, other)))
        assert await deadlocks(db) == 0
        assert (await db.maintenance.reconcile()).mismatches == []
        # What is left after all that has one event for each key and no more.
        held = "SELECT count(*), count(DISTINCT event_id) FROM session_usage_events WHERE user_id = :user"
        [(events, keys)] = await ask(db, held, user=A)
        assert events == keys
        await write(1)
        assert (await db.maintenance.reconcile()).mismatches == []


async def _waits(db: SessionDatabase, connections: int) -> bool:
    return await lock_waits(db) == connections


async def test_X37_repricing_beside_writers_of_runs_shows_nothing_internal(session_database_url: str) -> None:
    """The session of a run changes while its price is written: the parent is recorded after the child."""
    async with (
        SessionDatabase.connect(session_database_url, prices=priced(1)) as db,
        SessionDatabase.connect(session_database_url, prices=priced(2)) as other,
    ):

        async def write(caller: int) -> None:
            for number in range(12):
                child, root = f"child {caller} {number}", f"root {caller} {number % 3}"
                event = UsageEvent(
                    session_id=f"session {caller} {number % 2}", user_id=A, model="m", tokens_in=1000, run_id=child
                )
                run = Run(run_id=child, user_id=A, parent_run_id=root, started_at=NOW, reported_cost_usd=1, model="m")
                await db.lifecycle.record([event])
                await db.lifecycle.record([run])
                await db.lifecycle.record(
                    [Run(run_id=root, user_id=A, started_at=NOW, session_id=f"of root {number % 3}")]
                )

        async def reprice(one: SessionDatabase) -> None:
            for _ in range(8):
                await one.maintenance.reprice(batch=5)

        await asyncio.gather(*(write(caller) for caller in range(4)), *(reprice(one) for one in (db, other)))
        assert await deadlocks(db) == 0
        assert (await db.maintenance.reconcile()).mismatch_count == 0


async def changes_of(db: SessionDatabase) -> str:
    """All events, as `reprice_v1` takes them, each with a cost of 5."""
    [(changes,)] = await ask(
        db,
        """
        SELECT jsonb_agg(jsonb_build_object(
                   'user_id', user_id, 'session_id', session_id, 'event_id', event_id, 'recorded_at', recorded_at,
                   'run_id', run_id, 'old_cost_usd', cost_usd, 'cost_usd', '5', 'price_source', 'test'
               ))::text
        FROM session_usage_events WHERE given_cost_usd IS NULL
        """,
    )
    return str(changes)


async def test_X37_a_run_that_changed_its_session_is_settled_by_repricing(session_database: SessionDatabase) -> None:
    """The sessions to lock are known once the locks are held: `reprice_v1` begins again, and raises no SL002."""
    db = session_database
    await db.lifecycle.record(
        [
            Run(run_id="r", user_id=A, session_id="of run", started_at=NOW, reported_cost_usd=9, model="m"),
            UsageEvent(session_id="of run", user_id=A, model="m", tokens_in=1, run_id="r"),
        ]
    )
    # The adjustment of the run is in another session than the run, as before its thread was known.
    for statement in (
        "UPDATE session_usage_events SET session_id = 'elsewhere' WHERE key_scope = 'run'",
        "UPDATE session_records SET cost_usd = 0",
        "UPDATE session_model_usage SET cost_usd = 0",
        f"INSERT INTO session_records (user_id, session_id, cost_usd) VALUES ('{A}', 'elsewhere', 9)",
        f"INSERT INTO session_model_usage (user_id, session_id, model, cost_usd) VALUES ('{A}', 'elsewhere', 'm', 9)",
        "UPDATE session_model_usage SET events = 1",
    ):
        await ask(db, statement)
    assert [one.field for one in (await db.maintenance.reconcile()).mismatches] == ["session_id"]
    changes = await changes_of(db)
    written = await ask(db, "SELECT reprice_v1(CAST(:changes AS jsonb), gen_random_uuid())", changes=changes)
    assert written == [(1,)]
    moved = await ask(db, "SELECT session_id, cost_usd FROM session_usage_events WHERE key_scope = 'run'")
    assert moved == [("of run", 4)]
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_X37_repricing_leaves_the_users_alone_who_are_erased_meanwhile(session_database: SessionDatabase) -> None:
    db = session_database
    for user in (A, B):
        await db.lifecycle.record(
            [
                Run(run_id="r", user_id=user, session_id="s", started_at=NOW, model="m"),
                UsageEvent(session_id="s", user_id=user, model="m", tokens_in=1, run_id="r"),
            ]
        )
    changes = await changes_of(db)
    await db.maintenance.erase_user(A, tombstone=True)
    await ask(db, "SELECT reprice_v1(CAST(:changes AS jsonb), gen_random_uuid())", changes=changes)
    assert await ask(db, "SELECT user_id, cost_usd FROM session_records") == [(B, 5)]
    assert await ask(db, "SELECT DISTINCT user_id FROM session_runs") == [(B,)]
    await db.maintenance.erase_user(B)
    # Without a tombstone nothing is refused. No row comes back for the run that the erased events named.
    await ask(db, "SELECT reprice_v1(CAST(:changes AS jsonb), gen_random_uuid())", changes=changes)
    assert await ask(db, PLACEHOLDERS) == []


async def test_X37_repricing_beside_erasing(session_database_url: str) -> None:
    async with (
        SessionDatabase.connect(session_database_url, prices=priced(1)) as db,
        SessionDatabase.connect(session_database_url, prices=priced(2)) as other,
    ):
        users = [UUID(int=number) for number in range(10, 22)]

        async def live(user: UUID) -> None:
            for number in range(6):
                event = UsageEvent(
                    session_id=f"s{number % 3}", user_id=user, model="m", tokens_in=1, run_id=f"r{number}"
                )
                try:
                    await db.lifecycle.record([event])
                except InvalidValueError:
                    return
            await db.maintenance.erase_user(user, tombstone=user.int % 2 == 0)

        async def reprice(one: SessionDatabase) -> None:
            for _ in range(6):
                await one.maintenance.reprice(batch=7)

        try:
            await asyncio.gather(*(live(user) for user in users), *(reprice(one) for one in (db, other)))
        except TransactionConflictError as conflict:
            raise AssertionError(f"no call may lose every retry here: {conflict}") from conflict
        assert await deadlocks(db) == 0
        assert (await db.maintenance.reconcile()).mismatch_count == 0
        assert await ask(db, "SELECT count(*) FROM session_runs") == [(0,)]
