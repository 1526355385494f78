"""Callers, operators and jobs at once on the same few sessions: no deadlock, every total right (R10, R29)."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from session_lifecycle import (
    End,
    InvalidValueError,
    Message,
    Run,
    SessionDatabase,
    SessionLifecycleError,
    Settings,
    Step,
    Touch,
    TransactionConflictError,
    UsageEvent,
)
from session_lifecycle.models import Item, PriceOverride
from support.recount import Stored
from support.stored_rows import ask, deadlocks

USERS = [UUID(int=number) for number in (1, 2, 3)]
YOUNG, OLD = timedelta(minutes=1), timedelta(days=40)
CUT = timedelta(days=30)
PRICES = [
    PriceOverride(
        model_pattern="m*", input_usd_per_million=1, output_usd_per_million=2, web_search_usd_per_thousand=usd
    )
    for usd in (3, 4)
]
ORPHANS = """
    SELECT count(*) FROM session_annotations a
    WHERE NOT EXISTS (SELECT FROM session_records s WHERE s.user_id = a.user_id AND s.session_id = a.session_id)
"""


class Caller:
    """Makes random calls; `made` counts the answers of each kind of call."""

    may_lose = False
    """Whether a call may lose every conflict, as beside hosts that hold their locks."""

    def __init__(self, db: SessionDatabase, seed: int, made: dict[str, int]) -> None:
        self.db = db
        self.chance = random.Random(seed)
        self.made = made

    def _session(self) -> tuple[str, UUID, datetime]:
        """A session, which is old or young, its user, and a time in its life."""
        age = self.chance.choice((YOUNG, YOUNG, OLD))
        name = f"{'old' if age is OLD else 'young'} {self.chance.randrange(4)}"
        return name, self.chance.choice(USERS), datetime.now(UTC) - age

    def _usage(self, key: dict[str, Any], at: datetime) -> UsageEvent:
        chance = self.chance
        keyed = chance.random() < 0.6
        return UsageEvent(
            **key,
            at=at,
            model=chance.choice(("m", "M2", "unpriced", None)),
            tokens_in=10,
            tokens_out=chance.randrange(5),
            audio_tokens_in=chance.choice((0, 0, 4)),
            cache_write_1h_tokens=0,
            web_searches=chance.randrange(3),
            billing=chance.choice(("api", "api", "plan")),
            service_tier=chance.choice(("standard", "batch")),
            partial=chance.random() < 0.2,
            # A run of any session has events in any other.
            run_id=chance.choice((None, "r0", "r1", "r2")),
            idempotency_key=f"k{chance.randrange(6)}" if keyed else None,
            key_scope=chance.choice(("session", "user")) if keyed else "session",
            revision=chance.randrange(3) if keyed else 0,
        )

    def _item(self) -> Item:
        chance = self.chance
        name, user, at = self._session()
        key: dict[str, Any] = {"session_id": name, "user_id": user}
        revision = chance.randrange(3)
        text = f"t{chance.randrange(3)}"
        match chance.randrange(8):
            case 0:
                parent = chance.choice((None, *(f"young {number}" for number in range(4) if name != f"young {number}")))
                waiting = chance.random() < 0.3
                return Touch(**key, at=at, waiting=waiting, parent_session_id=parent, tags={"a": text})
            case 1:
                return End(**key, status="completed", at=at)
            case 2:
                named = key if chance.random() < 0.7 else {"user_id": user}
                run_id = f"r{chance.randrange(3)}"
                parent = chance.choice((None, "r0")) if run_id != "r0" else None
                cost = chance.choice((None, 0, 3))
                return Run(
                    **named, run_id=run_id, parent_run_id=parent, started_at=at, name=text, revision=revision,
                    reported_cost_usd=cost, model="m",
                )  # fmt: skip
            case 3:
                return Step(
                    user_id=user, run_id=f"r{chance.randrange(3)}", step_id="st", kind="tool", started_at=at,
                    output=text, revision=revision,
                )  # fmt: skip
            case 4:
                return Message(**key, message_id="me", role="user", content=text, created_at=at, revision=revision)
            case _:
                return self._usage(key, at)

    async def _record(self) -> object:
        return await self.db.lifecycle.record([self._item() for _ in range(self.chance.randint(1, 6))])

    async def _update(self) -> object:
        name, user, _ = self._session()
        changes: Any = self.chance.choice(
            ({"title": "t"}, {"tags": {"b": "c"}}, {"parent_session_id": f"young {self.chance.randrange(4)}"})
        )
        return await self.db.lifecycle.update_session(name, user, **changes)

    def calls(self) -> dict[str, tuple[int, Callable[[], Awaitable[object]]]]:
        """Each kind of call, with how often it comes."""
        name, user, _ = self._session()
        lifecycle, maintenance = self.db.lifecycle, self.db.maintenance
        how: Any = self.chance.choice(("delete", "anonymise"))
        return {
            "record": (20, self._record),
            "update": (4, self._update),
            "annotate": (2, lambda: lifecycle.annotate_session(name, user, "quality", score=1)),
            "reopen": (2, lambda: lifecycle.reopen_session(name, user)),
            "delete": (2, lambda: maintenance.delete_session(name, user)),
            "prune": (1, lambda: maintenance.prune_sessions(CUT, user_ids=[user], batch=2)),
            "prune payloads": (1, lambda: maintenance.prune_payloads(CUT, batch=2)),
            "erase": (1, lambda: maintenance.erase_user(user, usage=how)),
            "reprice": (1, lambda: maintenance.reprice(batch=5)),
            "roll up": (2, maintenance.roll_up),
        }

    async def call(self) -> None:
        calls = self.calls()
        [name] = self.chance.choices(list(calls), [often for often, _ in calls.values()])
        try:
            await calls[name][1]()
        except InvalidValueError as error:
            if error.field != "parent_session_id":
                raise
        except SessionLifecycleError as error:
            if not (self.may_lose and isinstance(error, TransactionConflictError)):
                raise AssertionError(f"{name}: no call may fail here") from error
        self.made[name] = self.made.get(name, 0) + 1


async def everything_at_once(url: str, *, callers: int, calls: int) -> None:
    made: dict[str, int] = {}
    settings = Settings(retries=50)
    async with (
        SessionDatabase.connect(url, prices=PRICES[:1], settings=settings) as db,
        SessionDatabase.connect(url, prices=PRICES[1:], settings=settings) as other,
    ):

        async def live(number: int) -> None:
            caller = Caller((db, other)[number % 2], number, made)
            for _ in range(calls):
                await caller.call()

        await asyncio.gather(*(live(number) for number in range(callers)))
        assert made.keys() == Caller(db, 0, {}).calls().keys()
        assert await deadlocks(db) == 0
        assert (await db.maintenance.reconcile()).mismatches == []
        assert (await Stored.of(db)).faults() == []
        await db.maintenance.roll_up()
        assert (await Stored.of(db)).faults() == []
        assert await ask(db, ORPHANS) == [(0,)]


async def test_R10_R29_everything_at_once_ends_in_no_deadlock(session_database_url: str) -> None:
    await everything_at_once(session_database_url, callers=8, calls=30)


@pytest.mark.soak
async def test_R10_R29_everything_at_once_for_long(session_database_url: str) -> None:
    await everything_at_once(session_database_url, callers=24, calls=400)


class Host(Caller):
    """Makes several calls in each of its transactions, and repeats a transaction that Postgres ended.

    Two hosts may wait for each other: each of them holds the locks of its earlier calls.
    """

    def _calls_of_a_transaction(self) -> list[tuple[str, Any, bool]]:
        """The name of each call, what it is given, and whether it is undone by a savepoint."""
        chance = self.chance
        calls: list[tuple[str, Any, bool]] = []
        for _ in range(chance.randint(1, 4)):
            name, user, _ = self._session()
            undone = chance.random() < 0.1
            if chance.random() < 0.8:
                calls.append(("record", [self._item() for _ in range(chance.randint(1, 4))], undone))
            else:
                calls.append((chance.choice(("reopen", "delete", "title")), (name, user), undone))
        return calls

    async def _make(self, calls: list[tuple[str, Any, bool]]) -> None:
        undoing = self.chance.random() < 0.1
        async with self.db.engine.connect() as connection:
            bound = self.db.bind(connection)
            for name, given, undone in calls:
                savepoint = await connection.begin_nested()
                match name:
                    case "record":
                        await bound.lifecycle.record(given)
                    case "reopen":
                        await bound.lifecycle.reopen_session(*given)
                    case "delete":
                        await bound.maintenance.delete_session(*given)
                    case _:
                        await bound.lifecycle.update_session(*given, title="t")
                if undone:
                    await savepoint.rollback()
                else:
                    await savepoint.commit()
            if not undoing:
                await connection.commit()

    async def call(self) -> None:
        calls = self._calls_of_a_transaction()
        while True:
            try:
                await self._make(calls)
            except TransactionConflictError:
                await asyncio.sleep(self.chance.uniform(0, 0.02))
            except InvalidValueError as error:
                if error.field != "parent_session_id":
                    raise
                return
            else:
                return


async def _look_for_deadlocks_early(url: str) -> None:
    """Hosts that wait for each other wait a second by default, each time."""
    connection = await asyncpg.connect(url)
    try:
        database = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(f"ALTER DATABASE {database} SET deadlock_timeout = '20ms'")
    finally:
        await connection.close()


async def hosts_at_once(url: str, *, hosts: int, callers: int, calls: int) -> None:
    settings = Settings(retries=50, pool_size=hosts + callers)
    await _look_for_deadlocks_early(url)
    async with SessionDatabase.connect(url, prices=PRICES[:1], settings=settings) as db:
        made: dict[str, int] = {}
        living: list[Caller] = [Host(db, number, made) for number in range(hosts)]
        for number in range(callers):
            caller = Caller(db, hosts + number, made)
            caller.may_lose = True
            living.append(caller)

        async def live(caller: Caller) -> None:
            for _ in range(calls):
                await caller.call()

        await asyncio.gather(*(live(caller) for caller in living))
        assert (await db.maintenance.reconcile()).mismatches == []
        assert (await Stored.of(db)).faults() == []
        await db.maintenance.roll_up()
        assert (await Stored.of(db)).faults() == []


async def test_R29_hosts_that_write_several_times_in_a_transaction(session_database_url: str) -> None:
    await hosts_at_once(session_database_url, hosts=6, callers=2, calls=20)


@pytest.mark.soak
async def test_R29_hosts_that_write_several_times_in_a_transaction_for_long(session_database_url: str) -> None:
    await hosts_at_once(session_database_url, hosts=8, callers=3, calls=300)
