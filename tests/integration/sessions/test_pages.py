"""Pages of sessions equal a plain sort and filter of all rows, for every order, filter, viewer and walk."""

import base64
import itertools
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import insert, select

from session_lifecycle import (
    InvalidValueError,
    Run,
    RunFilters,
    SessionDatabase,
    SessionListFilters,
    SessionStatus,
    Settings,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import TOTAL_BOUND, UsageEventFilters
from session_lifecycle.models.pages import MOST_OFFSET, Total
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS
from session_lifecycle.testing import SessionClock
from support.stored_rows import table

pytestmark = pytest.mark.usefixtures("each_way")

USERS = A, B, C, D = [UUID(int=number) for number in (1, 2, 3, 2**127)]
DATASETS = [UUID(int=number) for number in (11, 12, 13)]
AGENTS = ["planner", "coder"]
STATUSES = ["running", "waiting", "completed", "failed", "abandoned"]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ABANDON_AFTER = 30 * MINUTE
# Every user has these ids; the last one is the greatest id possible.
NAMES = ["S", "a", "b", "é", "z", "🦊", "\U0010ffff" * 512]
# Times around full minutes, and around the threshold after which a running session is abandoned.
MOMENTS = [
    NOON - age
    for age in (
        120 * MINUTE,
        40 * MINUTE,
        ABANDON_AFTER + timedelta(microseconds=1),
        ABANDON_AFTER,
        ABANDON_AFTER - timedelta(seconds=20),
        timedelta(seconds=61),
        timedelta(seconds=60),
        timedelta(seconds=1),
    )
]
TABLE = table("session_records")
VIEWERS = {
    "nobody": Viewer(None),
    "of none": Viewer(UUID(int=99), [UUID(int=98)]),
    "owner": Viewer(A),
    "owner of agents": Viewer(B, agent_user_ids=[D, A]),
    "reader": Viewer(None, DATASETS),
    "owner and reader": Viewer(B, DATASETS[:2], [C]),
    "auditor": Viewer.auditor(),
}


def lived(user: UUID, name: str, chance: random.Random) -> dict[str, Any]:
    """A random session that shares each column's value with many others."""
    status = chance.choice(["running", "running", "completed", "failed"])
    active = chance.choice(MOMENTS)
    return {
        "user_id": user,
        "session_id": name,
        "dataset_id": chance.choice([None, *DATASETS]),
        "agent_name": chance.choice([None, *AGENTS]),
        "status": status,
        "started_at": chance.choice(MOMENTS),
        "last_activity_at": active,
        "ended_at": None if status == "running" else active + chance.choice([timedelta(0), MINUTE]),
        "cost_usd": chance.choice([Decimal(0), Decimal("0.1"), Decimal("0.1000000000000000000001")]),
        "tokens_in": chance.choice([0, 5, 2**40]),
        "tokens_out": chance.choice([0, 5]),
        "error_count": chance.choice([0, 1]),
        "waiting_since": chance.choice([None, active - MINUTE, active]),
    }


@pytest_asyncio.fixture
async def db(session_database: SessionDatabase, session_clock: SessionClock) -> AsyncIterator[SessionDatabase]:
    """A database with sessions rolled up, rolled up and then active again, and never rolled up."""
    await session_clock.freeze(NOON)
    chance = random.Random(5)
    everyone = [lived(user, name, chance) for user, name in itertools.product(USERS, NAMES)]
    chance.shuffle(everyone)
    older, newer = everyone[: len(everyone) * 2 // 3], everyone[len(everyone) * 2 // 3 :]
    async with session_database.engine.begin() as connection:
        await connection.execute(insert(TABLE), older)
    await session_database.maintenance.roll_up()
    touched = [row for row in older if row["status"] == "running"][::4]
    await session_database.lifecycle.record(
        [Touch(session_id=row["session_id"], user_id=row["user_id"], at=NOON - MINUTE) for row in touched]
    )
    async with session_database.engine.begin() as connection:
        await connection.execute(insert(TABLE), newer)
    settings = Settings(abandon_after=ABANDON_AFTER)
    async with SessionDatabase.from_engine(session_database.engine, settings=settings) as opened:
        rows = await stored(opened)
        assert {row["rolled_up"] for row in rows} == {True, False}
        yield opened


async def stored(db: SessionDatabase) -> list[Any]:
    async with db.engine.connect() as connection:
        return list((await connection.execute(select(TABLE))).mappings())


def expected(
    rows: list[Any], viewer: Viewer, abandon_after: timedelta, order_by: str, *, descending: bool, **wanted: Any
) -> list[tuple[UUID, str]]:
    """The keys of the page, by applying the rules to the rows."""

    def status(row: Any) -> str:
        if row["status"] == "running" and row["waiting_since"] == row["last_activity_at"]:
            return "waiting"
        is_idle = row["last_activity_at"] < NOON - abandon_after
        return "abandoned" if row["status"] == "running" and is_idle else row["status"]

    def is_chosen(row: Any) -> bool:
        return (
            (viewer.sees_all or row["user_id"] in viewer.owner_ids or row["dataset_id"] in viewer.permitted_dataset_ids)
            and wanted.get("status_filter", status(row)) == status(row)
            and wanted.get("since", row["last_activity_at"]) <= row["last_activity_at"]
            and ("until" not in wanted or row["last_activity_at"] < wanted["until"])
            and wanted.get("owner_id", row["user_id"]) == row["user_id"]
            and wanted.get("dataset_id", row["dataset_id"]) == row["dataset_id"]
            and wanted.get("agent_name", row["agent_name"]) == row["agent_name"]
        )

    chosen = [(row[order_by], row["user_id"], row["session_id"]) for row in rows if is_chosen(row)]
    valued = sorted((row for row in chosen if row[0] is not None), reverse=descending)
    without = sorted((row[1:] for row in chosen if row[0] is None), reverse=descending)
    return [row[1:] for row in valued] + without


def questions(chance: random.Random) -> list[dict[str, Any]]:
    """Half of these: no filter, each filter alone, every status, and some filters together."""
    values: dict[str, list[Any]] = {
        "status_filter": STATUSES,
        "since": MOMENTS,
        "until": MOMENTS,
        "owner_id": USERS,
        "dataset_id": DATASETS,
        "agent_name": AGENTS,
    }
    alone = [{}, *({"status_filter": status} for status in STATUSES)]
    alone += [{name: chance.choice(among)} for name, among in values.items() if name != "status_filter"]
    together = [
        {name: chance.choice(values[name]) for name in chance.sample(sorted(values), number)} for number in (2, 3)
    ]
    for one in together:
        if "since" in one and "until" in one:
            one["since"], one["until"] = sorted((one["since"], one["until"]))
    asked = alone + together
    return chance.sample(asked, len(asked) // 2)


async def walked(db: SessionDatabase, filters: SessionListFilters) -> list[tuple[UUID, str]]:
    """The keys of all pages, walked by cursor."""
    keys, cursor = [], None
    while True:
        page = await db.lifecycle.list_session_rows(filters.model_copy(update={"cursor": cursor}))
        keys += [(row.record.user_id, row.record.session_id) for row in page.sessions]
        cursor = page.next_cursor
        assert page.has_more == (cursor is not None)
        if cursor is None:
            return keys


@pytest.mark.parametrize("order_by", ALL_SESSION_ORDERS)
async def test_every_page_equals_a_sort_of_all_rows(db: SessionDatabase, order_by: str) -> None:
    rows = await stored(db)
    chance = random.Random(order_by)
    directions = itertools.cycle([True, False])
    for name, viewer in VIEWERS.items():
        for wanted in questions(chance):
            descending = next(directions)
            keys = expected(rows, viewer, ABANDON_AFTER, order_by, descending=descending, **wanted)
            limit = chance.choice([1, 2, 3]) if len(keys) < 6 else 5
            filters = SessionListFilters(
                viewer=viewer,
                order_by=order_by,
                descending=descending,
                limit=limit,
                total=chance.choice(["exact", "bounded"]),
                **wanted,
            )
            question = (name, wanted, descending)
            assert (question, await walked(db, filters)) == (question, keys)
            offset = chance.randrange(len(keys) + 2)
            page = await db.lifecycle.list_session_rows(filters.model_copy(update={"offset": offset}))
            found = [(row.record.user_id, row.record.session_id) for row in page.sessions]
            assert (question, found, page.total) == (question, keys[offset : offset + limit], len(keys))


@pytest.mark.parametrize("order_by", ALL_SESSION_ORDERS)
async def test_the_readers_threshold_decides_the_status_of_rolled_up_sessions(
    db: SessionDatabase, order_by: str
) -> None:
    rows = await stored(db)
    patient = Settings(abandon_after=60 * MINUTE)
    async with SessionDatabase.from_engine(db.engine, settings=patient) as reading:
        asked = list(itertools.product(VIEWERS.values(), STATUSES))[ALL_SESSION_ORDERS.index(order_by) % 2 :: 2]
        for (viewer, status), descending in zip(asked, itertools.cycle([True, False]), strict=False):
            keys = expected(rows, viewer, 60 * MINUTE, order_by, descending=descending, status_filter=status)
            filters = SessionListFilters(
                viewer=viewer, order_by=order_by, descending=descending, limit=3, status_filter=status
            )
            assert await walked(reading, filters) == keys
    running = [row for row in rows if row["rolled_up"] and row["status"] == "running"]
    assert any(row["last_activity_at"] >= NOON - 60 * MINUTE for row in running)


@pytest.mark.parametrize("order_by", ["last_activity_at", "ended_at", "cost_usd"])
async def test_R14_a_walk_goes_on_when_sessions_are_rolled_up_meanwhile(db: SessionDatabase, order_by: str) -> None:
    rows = await stored(db)
    for viewer in (VIEWERS["owner and reader"], Viewer.auditor()):
        filters = SessionListFilters(viewer=viewer, order_by=order_by, limit=4)
        keys = expected(rows, viewer, ABANDON_AFTER, order_by, descending=True)
        first = await db.lifecycle.list_session_rows(filters)
        await db.maintenance.roll_up()
        rest = await walked_from(db, filters, first.next_cursor)
        assert [(row.record.user_id, row.record.session_id) for row in first.sessions] + rest == keys


async def walked_from(db: SessionDatabase, filters: SessionListFilters, cursor: str | None) -> list[tuple[UUID, str]]:
    keys = []
    while cursor is not None:
        page = await db.lifecycle.list_session_rows(filters.model_copy(update={"cursor": cursor}))
        keys += [(row.record.user_id, row.record.session_id) for row in page.sessions]
        cursor = page.next_cursor
    return keys


@pytest.mark.parametrize("order_by", ALL_SESSION_ORDERS)
async def test_summaries_have_the_same_order_by_every_plan(db: SessionDatabase, order_by: str) -> None:
    rows = await stored(db)
    for viewer, descending in itertools.product(VIEWERS.values(), [True, False]):
        keys = expected(rows, viewer, ABANDON_AFTER, order_by, descending=descending)
        for everything, total in (({}, "exact"), ({"started_since": NOON - 999 * MINUTE}, "bounded")):
            asked = {"viewer": viewer, "order_by": order_by, "descending": descending, "total": total}
            page = await db.activity.list_session_summaries(SummaryFilters(**asked, **everything, limit=500))
            found = [(one.record.user_id, one.session_id) for one in page.sessions]
            assert (found, page.total) == (keys, len(keys))


async def test_a_bounded_total_is_exact_up_to_the_bound(session_database: SessionDatabase) -> None:
    """The viewer's own sessions and another user's; a part of them are in the dataset."""
    seed = """
        INSERT INTO session_lifecycle.session_records (user_id, session_id, dataset_id, status, ended_at)
        SELECT $1::uuid, n::text, CASE WHEN n % 2 = 0 THEN $3::uuid END, 'completed', now()
        FROM generate_series(1, $4) n
        UNION ALL
        SELECT $2, n::text, $3, 'completed', now() FROM generate_series(1, $5) n
    """
    viewer = Viewer(A, [DATASETS[0]])
    half = TOTAL_BOUND // 2

    async def bounded() -> tuple[int | None, bool]:
        filters = SessionListFilters(viewer=viewer, limit=1, total="bounded")
        page = await session_database.lifecycle.list_session_rows(filters)
        return page.total, page.total_is_lower_bound

    async with session_database.engine.begin() as connection:
        await connection.exec_driver_sql(seed, (A, B, DATASETS[0], half, half))
    assert await bounded() == (TOTAL_BOUND, False)
    await session_database.lifecycle.ensure_and_touch_session("one more", B, DATASETS[0])
    assert await bounded() == (TOTAL_BOUND, True)
    await session_database.lifecycle.end_session("one more", B, SessionStatus.FAILED)
    await session_database.maintenance.roll_up()
    assert await bounded() == (TOTAL_BOUND, True)


@pytest.mark.parametrize("descending", [False, True])
async def test_R14_R19_the_first_and_the_last_moment_of_a_datetime_are_moments(
    session_database: SessionDatabase, descending: bool
) -> None:
    """The driver writes these two as infinity. Other programs write the first one where they know no time."""
    db, names = session_database, ["s0", "s1", "s2"]
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    await db.lifecycle.record([Touch(session_id=name, user_id=A, at=first) for name in names])
    await db.lifecycle.record([UsageEvent(session_id=name, user_id=A, tokens_in=1, at=first) for name in names])
    common: dict[str, Any] = {"user_id": A, "limit": 1, "descending": descending, "since": first, "until": last}
    for order in ("started_at", "last_activity_at"):
        filters, found = SessionListFilters(order_by=order, **common), list[str]()
        for _ in names:  # one page each, as a walk that goes wrong may not end
            page = await db.lifecycle.list_session_rows(filters)
            found += [row.record.session_id for row in page.sessions]
            filters = filters.model_copy(update={"cursor": page.next_cursor})
        assert found == sorted(names, reverse=descending), order
    asked, used_by = UsageEventFilters(**common), list[str]()
    for _ in names:
        events = await db.activity.list_usage_events(asked)
        used_by += [event.session_id for event in events.events]
        asked = asked.model_copy(update={"cursor": events.next_cursor})
    assert sorted(used_by) == names
    said = await db.lifecycle.annotate_session("s0", A, "quality", at=first)
    assert said is not None
    assert [said] == await db.lifecycle.list_annotations("s0", A)
    assert said.at - first == timedelta(microseconds=1)


async def test_X48_a_cursor_made_by_hand_is_refused_or_answers_a_page(session_database: SessionDatabase) -> None:
    """The database takes every value that a cursor may hold."""
    await session_database.lifecycle.record([Touch(session_id=f"s{number}", user_id=A) for number in range(3)])
    largest = {"cost_usd": "9" * 1_000, "tokens_in": str(2**63 - 1), "tokens_out": str(-(2**63))}
    largest["error_count"] = str(2**63 - 1)
    outermost = "9999-12-31T23:59:59.999999+00:00"
    for order in ALL_SESSION_ORDERS:
        for descending in (False, True):
            filters = SessionListFilters(user_id=A, limit=1, order_by=order, descending=descending)
            cursor = (await session_database.lifecycle.list_session_rows(filters)).next_cursor
            assert cursor is not None
            parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
            hers = [*parts[:2], largest.get(order, outermost), str(UUID(int=2**128 - 1)), "\U0010ffff" * 3_000]
            for made in (hers, [parts[0], "0001-01-01T00:00:00+00:00", *hers[2:]], [parts[0], outermost, *hers[2:]]):
                text = base64.urlsafe_b64encode(json.dumps(made, ensure_ascii=False).encode()).decode().rstrip("=")
                page = await session_database.lifecycle.list_session_rows(filters.model_copy(update={"cursor": text}))
                assert page.total == 3
            parts[2] = "NaN"
            text = base64.urlsafe_b64encode(json.dumps(parts, ensure_ascii=False).encode()).decode().rstrip("=")
            with pytest.raises(InvalidValueError, match=r"^cursor: "):
                await session_database.lifecycle.list_session_rows(filters.model_copy(update={"cursor": text}))


async def test_a_page_far_behind_the_last_is_empty(session_database: SessionDatabase) -> None:
    db, viewer = session_database, Viewer(A)
    run = Run(run_id="r", user_id=A, session_id="S", started_at=NOON, ended_at=NOON, status="completed")
    await db.lifecycle.record([run, UsageEvent(session_id="S", user_id=A, model="m", tokens_in=1)])
    for offset in (1, 500, 2**31 - 2, 2**31, MOST_OFFSET):
        far: dict[str, Any] = {"viewer": viewer, "offset": offset, "limit": 500}
        for total in get_args(Total):
            lists = [{"order_by": order} for order in ALL_SESSION_ORDERS]
            pages = [
                *[
                    await db.lifecycle.list_session_rows(SessionListFilters(**far, total=total, **asked))
                    for asked in [*lists, {"status_filter": "running"}]
                ],
                await db.activity.list_session_summaries(SummaryFilters(**far, total=total)),
                await db.activity.list_runs(RunFilters(**far, total=total)),
                await db.activity.list_usage_events(UsageEventFilters(**far, total=total)),
            ]
            for page in pages:
                assert (page.has_more, page.next_cursor) == (False, None)
                assert page.total == (None if total == "none" else 1)
