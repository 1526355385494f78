"""Reservations: exact under concurrency, settled by recording, returned when their owner is gone (rule R28)."""

import asyncio
import re
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import InvalidValueError, SessionDatabase, Settings, Spool, Touch, UsageEvent
from session_lifecycle.models import Budget, PriceOverride
from session_lifecycle.postgres.function_files import function_files
from session_lifecycle.testing import SessionClock
from support import budget_process
from support.budgets import AUDITOR, limit, reserved, spent, used
from support.eventually import eventually
from support.usage import A, usage

B, D1 = UUID(int=2), UUID(int=3)
LEASE = timedelta(minutes=15)
WITHIN_SECONDS = 120
"""Against hanging; far longer than anything here takes."""


async def stored(db: SessionDatabase) -> int:
    async with db.engine.connect() as connection:
        counted = await connection.execute(text("SELECT count(*) FROM session_lifecycle.session_reservations"))
        return int(counted.scalar_one())


async def reserve_until_clean(db: SessionDatabase) -> None:
    """Reserves and releases: one call in sixteen cleans up, and of a hundred one does for certain."""
    for number in range(100):
        await db.budgets.reserve("s", A, cost_usd=0, idempotency_key=f"clean {number}")
        await db.budgets.release("s", A, f"clean {number}")


@pytest.mark.parametrize("rounds", [1, 3])
async def test_R28_64_callers_on_64_connections_never_pass_a_limit(session_database_url: str, rounds: int) -> None:
    """In each round a caller reserves, records what it reserved, and reserves again. Exactly the limit is spent."""
    callers, most = 64, 64 * rounds - 20
    async with AsyncExitStack() as stack:
        settings = Settings(pool_size=16, max_overflow=0, pool_timeout_seconds=60, retries=0)
        pools = [
            await stack.enter_async_context(SessionDatabase.connect(session_database_url, settings=settings))
            for _ in range(4)
        ]
        db = pools[0]
        await limit(db, limit_usd=most, user_id=None, agent_name="x", window="day")
        await db.lifecycle.record([Touch(session_id=f"s{one % 5}", user_id=A, agent_name="x") for one in range(5)])
        passed: list[Decimal] = []

        async def call(caller: int) -> int:
            pool, admitted = pools[caller % 4], 0
            for number in range(rounds):
                key, session = f"{caller}-{number}", f"s{caller % 5}"
                answer = await pool.budgets.reserve(session, A, cost_usd=1, idempotency_key=key)
                if answer.admitted:
                    admitted += 1
                    # Half of them leave their reservations in flight.
                    if caller % 2:
                        await pool.lifecycle.accumulate_usage(session, A, "m", 1, cost_usd=1, idempotency_key=key)
                found = await used(pool)
                passed.extend([found.spent_usd + found.reserved_usd] if found.over_usd else [])
            return admitted

        async with asyncio.timeout(WITHIN_SECONDS):
            admitted = await asyncio.gather(*map(call, range(callers)))
        assert sum(admitted) == most
        assert passed == []
        found = await used(db)
        assert found.spent_usd + found.reserved_usd == most
        assert found.reserved_usd == sum(admitted[::2])


async def test_R28_processes_never_pass_a_limit_and_what_a_killed_one_reserved_returns(
    session_database: SessionDatabase, session_database_url: str, session_clock: SessionClock
) -> None:
    db = session_database
    await limit(db, limit_usd=20)
    program = [sys.executable, str(Path(budget_process.__file__)), session_database_url, str(A), "16"]
    processes = [
        await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, start_new_session=True)
        for _ in range(2)
    ]
    try:
        async with asyncio.timeout(WITHIN_SECONDS):
            said = [int(await one.stdout.readline()) for one in processes if one.stdout is not None]
        assert sum(said) == 20
    finally:
        for one in processes:
            one.send_signal(signal.SIGKILL)
            await one.wait()
    assert await reserved(db) == 20
    assert not (await db.budgets.reserve("s", A, cost_usd=1, idempotency_key="k")).admitted
    await session_clock.advance(LEASE)
    assert await reserved(db) == 0
    assert (await db.budgets.reserve("s", A, cost_usd=20, idempotency_key="k")).admitted
    await reserve_until_clean(db)
    assert await stored(db) == 1, "what has expired is deleted"


async def test_R28_a_lease_ends_to_the_microsecond(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    db = session_database
    now = await session_clock.freeze(datetime(2026, 1, 1, tzinfo=UTC))
    await limit(db)
    lease = timedelta(days=1, microseconds=1)
    answer = await db.budgets.reserve("s", A, cost_usd=1, idempotency_key="k", lease=lease)
    assert answer.expires_at == now + lease
    await session_clock.advance(timedelta(days=1))
    assert await reserved(db) == 1
    await session_clock.advance(timedelta(microseconds=1))
    assert await reserved(db) == 0


async def test_R28_overlapping_budgets_never_deadlock_and_all_hold(session_database_url: str) -> None:
    """Sessions of three users with three agents in three datasets: each call is in up to seven budgets."""
    random = Random(7)
    users, agents, datasets = ([UUID(int=20 + one) for one in range(3)], "xyz", [UUID(int=30 + n) for n in range(3)])
    kinds = [(user, agent, data) for user in users for agent in agents for data in datasets]
    # A conflict is not repeated here, so a deadlock would be an error.
    settings = Settings(pool_size=24, max_overflow=0, pool_timeout_seconds=60, retries=0)
    async with SessionDatabase.connect(session_database_url, settings=settings) as db:
        named: list[dict[str, Any]] = [{"user_id": user} for user in users]
        named += [{"user_id": None, "agent_name": agent} for agent in agents]
        named += [{"user_id": None, "dataset_id": data} for data in datasets]
        named += [{"user_id": user, "agent_name": agent} for user in users for agent in agents]
        named += [{"user_id": None, "agent_name": one, "dataset_id": data} for one in agents for data in datasets]
        limits = {f"{random.random()}": fields for fields in named}
        for budget_id, fields in limits.items():
            await limit(db, budget_id, limit_usd=random.randint(3, 12), **fields)
        sessions = [f"{number}" for number in range(len(kinds))]
        await db.lifecycle.record(
            [
                Touch(session_id=one, user_id=user, agent_name=agent, dataset_id=data)
                for one, (user, agent, data) in zip(sessions, kinds, strict=True)
            ]
        )

        async def call(number: int) -> str:
            place = random.randrange(len(kinds))
            ids = (sessions[place], kinds[place][0])
            answer = await db.budgets.reserve(*ids, cost_usd=1, idempotency_key=str(number))
            if answer.admitted and number % 3 == 0:
                await db.lifecycle.accumulate_usage(*ids, "m", 1, cost_usd=1, idempotency_key=str(number))
            elif answer.admitted and number % 3 == 1:
                await db.budgets.release(*ids, str(number))
            return answer.outcome

        async with asyncio.timeout(WITHIN_SECONDS):
            outcomes = Counter(await asyncio.gather(*map(call, range(200))))
        assert set(outcomes) == {"reserved", "refused"}
        for budget_id in limits:
            found = await used(db, budget_id)
            assert found.budget.limit_usd is not None
            assert found.spent_usd + found.reserved_usd <= found.budget.limit_usd


async def test_R28_who_waited_sees_what_was_committed_meanwhile_and_counts_it_after_midnight_too(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    db = session_database
    await session_clock.freeze(datetime(2026, 1, 1, 23, 59, 59, tzinfo=UTC))
    await limit(db, window="day")
    async with db.engine.connect() as connection, connection.begin():
        roles = db.bind(connection)
        assert (await roles.budgets.reserve("s", A, cost_usd=6, idempotency_key="1")).admitted
        waiting = asyncio.ensure_future(db.budgets.reserve("s", A, cost_usd=6, idempotency_key="2"))

        async def waits() -> bool:
            asked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            return bool((await connection.execute(text(asked))).scalar_one())

        await eventually(waits)
        await session_clock.freeze(datetime(2026, 1, 2, 0, 0, 1, tzinfo=UTC))
        await roles.lifecycle.record([usage(cost_usd=6, idempotency_key="1")])
    answer = await waiting
    [by] = answer.refused_by
    assert by.spent_usd == 6
    assert by.reserved_usd == 0


async def test_R28_a_reservation_is_part_of_the_hosts_transaction(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db)
    async with db.engine.connect() as connection:
        for end, left in (("rollback", 0), ("commit", 10)):
            transaction = await connection.begin()
            roles = db.bind(connection)
            assert (await roles.budgets.reserve("s", A, cost_usd=10, idempotency_key="k")).outcome == "reserved"
            assert len(await roles.budgets.would_exceed("s", A, cost_usd=1)) == 1
            assert await db.budgets.would_exceed("s", A, cost_usd=1) == []
            await getattr(transaction, end)()
            assert await reserved(db) == left


async def test_R28_reserving_again_replaces_the_reservation(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db)
    answers = [await db.budgets.reserve("s", A, cost_usd=cost, idempotency_key="k") for cost in (10, 4, 11, 6)]
    assert [answer.outcome for answer in answers] == ["reserved", "reserved", "refused", "reserved"]
    assert (await reserved(db), await stored(db)) == (6, 1)
    assert await db.budgets.release("s", A, "k")
    assert not await db.budgets.release("s", A, "k")
    assert await reserved(db) == 0
    await db.lifecycle.record([usage(cost_usd=10, idempotency_key="k")])
    again = await db.budgets.reserve("s", A, cost_usd=10, idempotency_key="k")
    assert (again.outcome, again.admitted) == ("recorded", True)
    assert await stored(db) == 0


async def by_direct(db: SessionDatabase, event: UsageEvent, _: Path) -> None:
    await db.lifecycle.record([event])


async def by_recorder(db: SessionDatabase, event: UsageEvent, _: Path) -> None:
    async with db.recorder() as recorder:
        recorder.submit(event)


async def by_synchronous_recorder(db: SessionDatabase, event: UsageEvent, _: Path) -> None:
    def write() -> None:
        with db.synchronous_recorder() as recorder:
            recorder.record([event])

    await asyncio.to_thread(write)


async def by_spool(db: SessionDatabase, event: UsageEvent, folder: Path) -> None:
    with Spool(folder / "spool") as spool:
        spool.append([{"kind": "usage", **event.model_dump(mode="json", exclude={"kind"})}])
        assert await reserved(db) == 3, "it is not in the ledger yet"
        await spool.drain(db.lifecycle)


async def by_bound(db: SessionDatabase, event: UsageEvent, _: Path) -> None:
    async with db.engine.connect() as connection, connection.begin():
        await db.bind(connection).lifecycle.record([event])


async def by_run_block(db: SessionDatabase, event: UsageEvent, _: Path) -> None:
    async with db.session("s", A) as session:
        with session.run("answer") as run:
            run.usage("m", 1, cost_usd=2, idempotency_key=event.idempotency_key)


WAYS: list[Callable[[SessionDatabase, UsageEvent, Path], Awaitable[None]]] = [
    by_direct,
    by_recorder,
    by_synchronous_recorder,
    by_spool,
    by_bound,
    by_run_block,
]


@pytest.mark.parametrize("write", WAYS)
async def test_R28_recording_settles_a_reservation_whichever_way_it_is_written(
    session_database: SessionDatabase, tmp_path: Path, write: Callable[..., Awaitable[None]]
) -> None:
    db = session_database
    await limit(db, limit_tokens=10)
    await db.budgets.reserve("s", A, "m", 2, cost_usd=3, idempotency_key="k")
    await write(db, usage(cost_usd=2, idempotency_key="k"), tmp_path)
    found = await used(db)
    assert (found.spent_usd, found.spent_tokens, found.reserved_usd, found.reserved_tokens) == (2, 1, 0, 0)
    assert await stored(db) == 1, "recording writes nothing for a budget"
    await reserve_until_clean(db)
    assert await stored(db) == 0, "a later call deletes what is settled"


async def test_R28_late_frozen_and_replaced_usage_settles(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db)
    await db.budgets.reserve("s", A, cost_usd=3, idempotency_key="k")
    await db.lifecycle.ensure_and_touch_session("s", A)
    await db.lifecycle.end_session("s", A, "completed")
    await db.lifecycle.record([usage(cost_usd=2, idempotency_key="k")])
    assert (await reserved(db), await spent(db)) == (0, 2)
    await db.lifecycle.record([usage(cost_usd=4, idempotency_key="k", revision=1)])
    assert (await reserved(db), await spent(db)) == (0, 4)


async def test_R28_a_key_of_the_users_scope_settles_in_whichever_session_has_it(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    await limit(db)
    await db.budgets.reserve("fork", A, cost_usd=3, idempotency_key="k", key_scope="user")
    await db.budgets.reserve("fork", A, cost_usd=4, idempotency_key="k")
    at = datetime(2026, 1, 1, tzinfo=UTC)
    copy: dict[str, Any] = {"cost_usd": 2, "idempotency_key": "k", "key_scope": "user"}
    await db.lifecycle.record([usage(session_id="fork", at=at + timedelta(1), **copy)])
    await db.lifecycle.record([usage(session_id="first", at=at, **copy)])
    assert (await reserved(db), await spent(db)) == (4, 2)
    assert not await db.budgets.release("first", A, "k", key_scope="user")
    assert await db.budgets.release("fork", A, "k", key_scope="user")
    # The event moved to this session: deleting it does not bring the reservation back.
    await db.budgets.reserve("fork", A, cost_usd=3, idempotency_key="l", key_scope="user")
    await db.lifecycle.record([usage(session_id="first", **{**copy, "idempotency_key": "l"})])
    await db.maintenance.delete_session("first", A)
    assert (await reserved(db), await spent(db)) == (4, 0)


async def test_R28_deleting_a_session_deletes_what_is_settled_and_keeps_what_is_in_flight(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    db = session_database
    await limit(db)
    for job in ("delete", "prune"):
        for key in ("settled", "in flight"):
            await db.budgets.reserve("s", A, cost_usd=3, idempotency_key=key)
        await db.lifecycle.record([usage(cost_usd=2, idempotency_key="settled")])
        assert (await reserved(db), await spent(db)) == (3, 2)
        if job == "delete":
            await db.maintenance.delete_session("s", A)
        else:
            await session_clock.advance(timedelta(minutes=1))
            await db.maintenance.prune_sessions(timedelta(seconds=30))
        assert (await reserved(db), await spent(db)) == (3, 0)
        assert (await db.maintenance.reconcile()).mismatch_count == 0


@pytest.mark.parametrize("how", ["delete", "anonymise"])
async def test_R28_nothing_is_left_of_an_erased_user(session_database: SessionDatabase, how: Any) -> None:
    db = session_database
    await limit(db, "of A")
    await limit(db, "of all", user_id=None, dataset_id=D1)
    await limit(db, "of B", user_id=B)
    for user in (A, B):
        await db.lifecycle.ensure_and_touch_session("s", user, D1)
        for key in ("settled", "in flight"):
            await db.budgets.reserve("s", user, cost_usd=1, idempotency_key=key)
        await db.lifecycle.record([usage(user_id=user, cost_usd=2, idempotency_key="settled")])
    await db.maintenance.erase_user(A, usage=how, tombstone=True)
    assert [one.budget_id for one in await db.budgets.list_budgets(AUDITOR)] == ["of B", "of all"]
    assert (await reserved(db, "of B"), await spent(db, "of B")) == (1, 2)
    assert (await reserved(db, "of all"), await spent(db, "of all")) == (1, 4 if how == "anonymise" else 2)
    async with db.engine.connect() as connection:
        for table in ("session_budgets", "session_reservations"):
            asked = text(f"SELECT count(*) FROM session_lifecycle.{table} WHERE user_id = :user")
            assert (await connection.execute(asked, {"user": A})).scalar_one() == 0
    for call in (
        db.budgets.reserve("s", A, cost_usd=1, idempotency_key="k", dataset_id=D1),
        db.budgets.set_budget(Budget(budget_id="again", user_id=A, limit_usd=1)),
    ):
        with pytest.raises(InvalidValueError, match=r"^user_id: got .* expected a user who was not erased"):
            await call
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_R28_budgets_hold_beside_everything_else(session_database_url: str) -> None:
    """Callers reserve and record while sessions are deleted, pruned, repriced, rolled up and users erased."""
    prices = [PriceOverride(model_pattern="priced", input_usd_per_million=1_000_000, output_usd_per_million=1)]
    random = Random(11)
    users = [UUID(int=40 + one) for one in range(4)]
    settings = Settings(pool_size=24, max_overflow=0, pool_timeout_seconds=60)
    async with SessionDatabase.connect(session_database_url, settings=settings, prices=prices) as db:
        await limit(db, limit_usd=60, user_id=None, dataset_id=D1)
        for number, user in enumerate(users):
            await limit(db, f"{number}", limit_usd=30, user_id=user, window="day")
        is_over = asyncio.Event()

        async def call(number: int) -> None:
            ids = (f"s{random.randrange(3)}", random.choice(users))
            # What an erased user has in flight goes with the user, so the budget of all does not count that one.
            key, dataset = str(number), None if ids[1] == users[3] else D1
            answer = await db.budgets.reserve(*ids, "priced", 1, idempotency_key=key, dataset_id=dataset)
            if answer.admitted:
                used_now: dict[str, Any] = {"model": "priced", "tokens_in": 1, "idempotency_key": key}
                event = UsageEvent(session_id=ids[0], user_id=ids[1], dataset_id=dataset, **used_now)
                await db.lifecycle.record([event])

        async def disturb(job: Callable[[], Awaitable[object]]) -> None:
            while not is_over.is_set():
                await job()

        jobs: list[Callable[[], Awaitable[object]]] = [
            lambda: db.maintenance.delete_session("s0", random.choice(users)),
            lambda: db.maintenance.erase_user(users[3], usage="anonymise"),
            lambda: db.maintenance.prune_sessions(timedelta(milliseconds=50), user_ids=[users[0]]),
            lambda: db.maintenance.reprice("priced"),
            db.maintenance.roll_up,
        ]
        async with asyncio.timeout(WITHIN_SECONDS):
            disturbing = [asyncio.ensure_future(disturb(job)) for job in jobs]
            for begin in range(0, 300, 30):
                await asyncio.gather(*map(call, range(begin, begin + 30)))
            is_over.set()
            await asyncio.gather(*disturbing)
        report = await db.maintenance.reconcile()
        assert report.mismatch_count == 0
        for budget in await db.budgets.list_budgets(AUDITOR):
            found = await used(db, budget.budget_id)
            assert found.reserved_usd == 0, "every call has recorded what it reserved, and no deletion brings it back"
            assert found.budget.limit_usd is not None
            assert found.spent_usd <= found.budget.limit_usd


def test_R28_recording_pays_nothing_for_budgets() -> None:
    """No function that recording calls names a table of budgets, so the write path has not one statement more."""
    files = {name: one.source for name, one in function_files().items()}
    called = {"record_v1", "lock_items_v1", "update_session_v1", "reprice_v1", "leave_roll_ups_v1"}
    while (
        more := {name for one in called for name in re.findall(r"\{schema\}\.(\w+)\(", files[one])}
        & files.keys() - called
    ):
        called |= more
    assert len(called) > 15
    assert [name for name in called if re.search(r"session_(budgets|reservations)", files[name])] == []
