"""The storm of row L46: many tasks on few sessions, killed connections, and callers that repeat until answered."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from session_lifecycle import (
    DatabaseUnavailableError,
    End,
    SessionDatabase,
    SessionStatus,
    TransactionConflictError,
    UsageEvent,
    Viewer,
)
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.postgres.failures import DRIVER_FAILURES
from support.usage import random_use

TOTALS_DISAGREE = """
    WITH stored AS (
             SELECT user_id, session_id, tokens_in, tokens_out, cost_usd FROM {schema}.session_records
             WHERE tokens_in > 0
         ),
         by_model AS (
             SELECT user_id, session_id, sum(tokens_in), sum(tokens_out), sum(cost_usd)
             FROM {schema}.session_model_usage WHERE tokens_in > 0 GROUP BY user_id, session_id
         ),
         by_event AS (
             SELECT user_id, session_id, sum(tokens_in), sum(tokens_out), sum(cost_usd)
             FROM {schema}.session_usage_events WHERE NOT late GROUP BY user_id, session_id
         )
    SELECT count(*) AS sessions FROM
        ((SELECT * FROM stored EXCEPT SELECT * FROM by_model) UNION ALL
         (SELECT * FROM stored EXCEPT SELECT * FROM by_event)) differing
"""
KILL_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    ORDER BY random() LIMIT 1
"""


DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@dataclass(frozen=True)
class Stormed:
    """A database for a storm.

    Attributes:
        db: What the callers call.
        host: The engine of the hosts' transactions, in which `db` is bound.
        users: Two users.
        urls: The servers whose connections are killed. The first one is asked what is stored.
        schemas: Where the sessions are stored.
        open: Opens the database anew: what `db` has at the end may have been killed.
    """

    db: SessionDatabase | BucketDatabase
    host: SessionDatabase
    users: tuple[UUID, UUID]
    urls: Sequence[str]
    schemas: Sequence[str]
    open: Callable[[], SessionDatabase | BucketDatabase]

    async def stored(self, sql: str) -> int:
        """The sum of what a statement with `{schema}` counts in each schema."""
        return sum([await _value(self.urls[0], sql.replace("{schema}", schema)) for schema in self.schemas])

    async def deadlocks(self) -> list[int]:
        return [await _value(url, DEADLOCKS) for url in self.urls]


async def _value(url: str, sql: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        found: int = await connection.fetchval(sql)
        return found
    finally:
        await connection.close()


async def until_answered(call: Any, *arguments: Any, **named: Any) -> Any:
    while True:
        try:
            return await call(*arguments, **named)
        except (DatabaseUnavailableError, TransactionConflictError):
            await asyncio.sleep(random.uniform(0.001, 0.02))


async def kill_connections(url: str, every_seconds: float) -> None:
    connection = await asyncpg.connect(url)
    try:
        while True:
            await connection.execute(KILL_ONE)
            await asyncio.sleep(every_seconds)
    finally:
        await connection.close()


def distinct_events(
    users: tuple[UUID, UUID], tasks: int, uses: int, sessions: int, at: datetime, chance: random.Random
) -> list[UsageEvent]:
    return [
        random_use(chance, number, sessions=sessions, users=users, idempotency_key=f"{task}-{number}", at=at)
        for task in range(tasks)
        for number in range(uses)
    ]


def copies(event: UsageEvent, number: int, chance: random.Random) -> list[UsageEvent]:
    """What comes before some of the events: lower bounds of theirs, and later copies from a fork, in any order."""
    found: list[UsageEvent] = []
    if number % 5 < 2:
        found += [event.model_copy(update={"partial": True, "tokens_out": event.tokens_out // part}) for part in (2, 3)]
    if event.key_scope == "user" and event.at is not None:
        later = event.at + timedelta(seconds=1)
        found += [event, event.model_copy(update={"session_id": "fork", "at": later})]
    chance.shuffle(found)
    return found


async def in_host_transaction(stormed: Stormed, event: UsageEvent) -> None:
    """Records the event in a host's transaction, and raises a driver failure as our own error."""
    try:
        async with stormed.host.engine.begin() as host:
            await stormed.db.bind(host).lifecycle.record([event])
    except DRIVER_FAILURES as error:
        raise DatabaseUnavailableError(str(error)) from error


async def storm(stormed: Stormed, *, tasks: int, uses: int, sessions: int = 20) -> None:
    """Records events that are not late in calls, batches and hosts' transactions, among ends and reopens."""
    chance = random.Random(46)
    # The events are from before any end, so each counts whenever it arrives.
    events = distinct_events(stormed.users, tasks, uses, sessions, datetime.now(UTC) - timedelta(minutes=1), chance)
    finals = {event.idempotency_key: event for event in events}
    lifecycle = stormed.db.lifecycle
    deadlocks = await stormed.deadlocks()

    async def caller(task: int) -> None:
        own = random.Random(task)
        mine = events[task * uses : (task + 1) * uses]
        for number, event in enumerate(mine):
            for copy in copies(event, number, own):
                await until_answered(lifecycle.record, [copy])
            calls = 2 if own.random() < 0.1 else 1
            for _ in range(calls):
                if number % 10 == 3:
                    await until_answered(in_host_transaction, stormed, event)
                elif number % 10 == 5:
                    await until_answered(lifecycle.record, own.sample(mine, min(5, uses)))
                await until_answered(lifecycle.record, [event])
            if number % 10 == 7:
                final = event.model_copy(update={"revision": 1, "tokens_in": event.tokens_in + 1, "model": "revised"})
                finals[event.idempotency_key] = final
                await until_answered(lifecycle.record, [final, event])
            if number % 10 == 9:
                end = End(session_id=event.session_id, user_id=event.user_id, status=SessionStatus.COMPLETED)
                await until_answered(lifecycle.record, [end])
                await until_answered(lifecycle.reopen_session, event.session_id, event.user_id)

    await _among_killed_connections(stormed.urls, [caller(task) for task in range(tasks)])
    await _check(stormed, finals)
    assert await stormed.deadlocks() == deadlocks


async def _among_killed_connections(urls: Sequence[str], callers: Sequence[Coroutine[Any, Any, None]]) -> None:
    killers = [asyncio.create_task(kill_connections(url, every_seconds=0.1 * len(urls))) for url in urls]
    await asyncio.gather(*callers)
    assert not any(killer.done() for killer in killers)
    for killer in killers:
        killer.cancel()
    await asyncio.gather(*killers, return_exceptions=True)


async def _check(stormed: Stormed, finals: dict[str | None, UsageEvent]) -> None:
    """Compares every total with the events that were acknowledged: the last revision of each key, once."""
    viewer = Viewer.of_users(stormed.users)
    async with stormed.open() as db:
        stats = await db.lifecycle.aggregate_stats(viewer)
        by_model = await db.lifecycle.cost_by_model(viewer)
        assert (await db.maintenance.reconcile()).mismatches == []
    assert stats.tokens_in == sum(event.tokens_in for event in finals.values())
    assert stats.tokens_out == sum(event.tokens_out for event in finals.values())
    costs = {"api": Decimal(0), "plan": Decimal(0)}
    for event in finals.values():
        costs[event.billing] += Decimal(event.cost_usd or 0)
    assert (stats.total_spend_usd, stats.plan_cost_usd) == (costs["api"], costs["plan"])
    assert stats.plan_events == sum(event.billing == "plan" for event in finals.values())
    assert (stats.late_events, stats.partial_events) == (0, 0)
    assert sum(row.web_searches for row in by_model) == sum(event.web_searches for event in finals.values())
    assert await stormed.stored("SELECT count(*) FROM {schema}.session_usage_events") == len(finals)
    assert await stormed.stored("SELECT count(*) FROM {schema}.session_usage_events WHERE session_id = 'fork'") == 0
    assert await stormed.stored(TOTALS_DISAGREE) == 0
