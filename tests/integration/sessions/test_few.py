"""Statements for few sessions: what they read, and when they are asked."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionListFilters, UsageEvent, Viewer, repository
from session_lifecycle.models import TOTAL_BOUND
from session_lifecycle.models.session_filters import SESSION_ORDERS
from session_lifecycle.statements.sessions import few_listing
from session_lifecycle.statements.shared import few
from support.statements import noted
from support.stored_rows import ask, keep_buckets
from support.ways_of_reading import WAYS, Way, reading

ME = UUID(int=1)
DATASETS = [UUID(int=100 + number) for number in range(20)]
VIEWERS = {"shared": Viewer(ME, DATASETS), "own": Viewer(ME), "auditor": Viewer.auditor()}
SESSIONS = 300
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SEED = """
    WITH fleet AS (
        SELECT n, lpad(to_hex(1 + n % 3), 32, '0')::uuid AS user_id, 's' || n AS session_id,
               lpad(to_hex(100 + n % 23), 32, '0')::uuid AS dataset_id,
               CAST(:noon AS timestamptz) - n * interval '1 hour' AS at
        FROM generate_series(1, :sessions) n
    ),
    used AS (
        INSERT INTO session_lifecycle.session_model_usage (user_id, session_id, model, tokens_in, events)
        SELECT user_id, session_id, 'm' || n % 3, n, 1 FROM fleet
    )
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, dataset_id, status, started_at, last_activity_at, ended_at, tokens_in)
    SELECT user_id, session_id, dataset_id, 'completed', at, at, at, n FROM fleet
"""

Ask = Callable[[SessionDatabase], Awaitable[Any]]


def page(viewer: Viewer, **asked: Any) -> Ask:
    filters = SessionListFilters(viewer=viewer, limit=10, **asked)
    return lambda db: db.lifecycle.list_session_rows(filters)


def asks(viewer: Viewer) -> dict[str, Ask]:
    """Every read that has a statement for few sessions."""
    since, until = NOON - 9 * DAY, NOON - 2 * DAY
    return {
        **{f"by {order}": page(viewer, order_by=order) for order in SESSION_ORDERS},
        "far": page(viewer, offset=150, total="none"),
        "of a status": page(viewer, status_filter="completed"),
        "of a window": page(viewer, since=since, until=until),
        "of an owner": page(viewer, owner_id=UUID(int=2)),
        "stats": lambda db: db.lifecycle.aggregate_stats(viewer),
        "stats of a window": lambda db: db.lifecycle.aggregate_stats(viewer, (), since, until=until),
        "cost by model": lambda db: db.lifecycle.cost_by_model(viewer),
        "cost by model of a window": lambda db: db.lifecycle.cost_by_model(viewer, (), since, until=until),
    }


async def store(db: SessionDatabase) -> None:
    async with db.engine.begin() as connection:
        await connection.execute(text(SEED), {"noon": NOON, "sessions": SESSIONS})
    async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM ANALYZE session_lifecycle.session_records"))
        await connection.execute(text("VACUUM ANALYZE session_lifecycle.session_model_usage"))


@pytest_asyncio.fixture
async def db(session_database: SessionDatabase) -> AsyncIterator[SessionDatabase]:
    """A database with few sessions."""
    await store(session_database)
    yield session_database


async def read(db: SessionDatabase, one: Ask) -> list[str]:
    """The statements of a read. The first read of a database also asks for its schema."""
    async with noted(db) as sent:
        await one(db)
    return [statement for statement, _ in sent if "session_records" in statement]


async def ways(db: SessionDatabase, one: Ask) -> list[str]:
    """Which statements a read asks, in their order."""
    return ["few" if "pg_relation_size" in statement else "many" for statement in await read(db, one)]


async def pages_of(db: SessionDatabase, name: str) -> int:
    [(pages,)] = await ask(db, f"SELECT pg_relation_size('{name}') / 8192")
    return int(pages)


def set_bound(monkeypatch: pytest.MonkeyPatch, pages: int, *, of_a_scope: int = 0) -> None:
    """Sets the bound for every question."""
    monkeypatch.setattr(few, "PAGES_OF_A_STATEMENT", pages)
    monkeypatch.setattr(few, "PAGES_OF_A_SCOPE", of_a_scope)


@pytest.mark.parametrize("rolled_up", [False, True])
@pytest.mark.parametrize("viewer", VIEWERS.values(), ids=VIEWERS)
async def test_every_read_of_few_sessions_is_one_short_statement(
    db: SessionDatabase, monkeypatch: pytest.MonkeyPatch, viewer: Viewer, rolled_up: bool
) -> None:
    # Postgres adds many pages at once where two batches of a roll-up wait for one.
    set_bound(monkeypatch, 1_000)
    if rolled_up:
        await db.maintenance.roll_up()
    for name, one in asks(viewer).items():
        [statement] = await read(db, one)
        # No table but those of the sessions themselves, and no lookup for each scope.
        assert "pg_relation_size" in statement, name
        for absent in ("roll_ups", "changes", "FROM session_lifecycle.rolled_up_sessions"):
            assert absent not in statement, name
        assert len(statement) < 10_000, name


@pytest.mark.parametrize("name", asks(Viewer(ME)))
async def test_the_size_of_the_tables_decides(db: SessionDatabase, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    one = asks(Viewer(ME))[name]
    await db.maintenance.roll_up()
    set_bound(monkeypatch, await pages_of(db, "session_records"))
    assert await ways(db, one) == ["few"]
    # The rows of other models make a table larger that only the costs read.
    other_models = "SELECT user_id, session_id, repeat('m', 400) FROM session_records"
    await ask(db, f"INSERT INTO session_model_usage (user_id, session_id, model) {other_models}")
    assert await ways(db, one) == (["few", "many"] if "cost by model" in name else ["few"])
    # More than fit into the room that the table has already: of the rows that the roll-up left behind, where Postgres
    # has vacuumed it meanwhile, and of the many pages that Postgres adds at once where two batches wait for one.
    more = "SELECT user_id, session_id || ' again ' || n FROM session_records, generate_series(1, 40) n"
    await ask(db, f"INSERT INTO session_records (user_id, session_id) {more}")
    assert (await ways(db, one))[-1] == "many"


async def test_a_database_with_many_sessions_is_asked_once_for_a_while(
    db: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = asks(Viewer(ME))["stats"]
    set_bound(monkeypatch, await pages_of(db, "session_records") - 1)
    assert await ways(db, stats) == ["few", "many"]
    assert await ways(db, stats) == ["many"]
    async with db.engine.connect() as connection:
        bound = db.bind(connection).lifecycle
        assert await ways(db, lambda _: bound.aggregate_stats(ME)) == ["many"]
    # With so many data sets, other statements take longer, and the bound is higher.
    monkeypatch.setattr(few, "PAGES_OF_A_SCOPE", 10)
    assert await ways(db, asks(Viewer(ME, DATASETS))["stats"]) == ["few"]
    assert await ways(db, page(Viewer(ME, DATASETS))) == ["few"]
    monkeypatch.setattr(few, "PAGES_OF_A_SCOPE", 0)
    monkeypatch.setattr(repository, "LOOK_AGAIN_SECONDS", 0)
    db = SessionDatabase.from_engine(db.engine)
    assert await ways(db, stats) == ["few", "many"]
    assert await ways(db, stats) == ["few", "many"]


async def test_where_nothing_is_rolled_up_more_sessions_are_few(
    db: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other statement would read as much. It is not so for a page that indexes find."""
    asked = asks(Viewer(ME))
    reads_all, by_index = ["stats", "cost by model"], page(Viewer(ME), status_filter="running", order_by="started_at")
    set_bound(monkeypatch, await pages_of(db, "session_records") - 3, of_a_scope=1)
    for name in reads_all:
        assert await ways(db, asked[name]) == ["few"]
    assert (await ways(db, by_index))[-1] == "many"
    await db.maintenance.roll_up()
    set_bound(monkeypatch, await pages_of(db, "session_records") - 3, of_a_scope=1)
    for name in reads_all:
        assert (await ways(db, asked[name]))[-1] == "many"


async def test_a_page_by_activity_has_a_way_for_each_size(db: SessionDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over very few sessions; then one scan, which counts rows while there are no roll-ups for that."""

    async def last(one: Ask) -> str:
        return (await read(SessionDatabase.from_engine(db.engine), one))[-1]

    counted, uncounted = page(Viewer(ME, DATASETS)), page(Viewer(ME, DATASETS), total="none")
    for one in (counted, uncounted):
        assert "array_agg(ctid" in await last(one)
    set_bound(monkeypatch, 1, of_a_scope=1)
    for one in (counted, uncounted):
        assert "pg_relation_size" in await last(one)
        assert "array_agg(ctid" not in await last(one)
    assert "session_roll_ups" not in await last(counted)
    await db.maintenance.roll_up()
    set_bound(monkeypatch, await pages_of(db, "session_records") - 22, of_a_scope=1)
    assert "session_roll_ups" in await last(counted)
    assert "pg_relation_size" in await last(counted)


async def test_an_empty_database_and_one_without_usage_are_answered(session_database: SessionDatabase) -> None:
    assert (await session_database.lifecycle.aggregate_stats(ME)).sessions == 0
    assert await session_database.lifecycle.cost_by_model(ME) == []
    await store(session_database)
    await ask(session_database, "UPDATE session_model_usage SET tokens_in = 0, events = 0")
    assert await ways(session_database, asks(Viewer(ME))["stats"]) == ["many"]  # it was empty
    db = SessionDatabase.from_engine(session_database.engine)
    assert await ways(db, asks(Viewer(ME))["cost by model"]) == ["few"]
    assert await db.lifecycle.cost_by_model(ME) == []


MANY_SESSIONS = 4_000
# Values that many sessions share, and sessions without an end, in no order of the table.
DISORDER = """
    UPDATE session_lifecycle.session_records r
    SET cost_usd = found.mixed % 101 * 0.01, tokens_in = found.mixed % 3, tokens_out = found.mixed,
        last_activity_at = CAST(:noon AS timestamptz) - found.mixed % 900 * interval '1 minute',
        status = CASE WHEN found.mixed % 4 = 0 THEN 'running' ELSE 'completed' END,
        ended_at = CASE WHEN found.mixed % 4 > 0
                        THEN CAST(:noon AS timestamptz) - found.mixed % 50 * interval '1 hour' END,
        title = CASE WHEN found.mixed % 2 = 0 THEN 'even' END
    FROM (SELECT n, n * 7919 % :sessions AS mixed FROM generate_series(1, :sessions) n) found
    WHERE r.session_id = 's' || found.n
"""


async def test_a_page_in_one_pass_has_the_rows_of_all_sessions(session_database: SessionDatabase) -> None:
    """A sample of the table bounds what is sorted: on the first pages, with cursors, and not far behind."""
    db = session_database
    async with db.engine.begin() as connection:
        await connection.execute(text(SEED), {"noon": NOON, "sessions": MANY_SESSIONS})
        await connection.execute(text(DISORDER), {"noon": NOON, "sessions": MANY_SESSIONS})
    questions: list[dict[str, Any]] = [
        *({"order_by": order, "descending": way} for order in SESSION_ORDERS for way in (True, False)),
        {"order_by": "cost_usd", "min_tokens": 1_000},
        {"order_by": "ended_at", "since": NOON - timedelta(hours=9), "status_filter": "completed"},
        {"excluded_session_id_prefix": "s1"},
        {"order_by": "tokens_in", "offset": 600},
    ]
    for viewer in VIEWERS.values():
        for question in questions:
            filters = SessionListFilters(**{"viewer": viewer, "limit": 30, **question})
            with reading("many"):
                expected = await walk(db, filters)
            with reading("one pass"):
                assert await walk(db, filters) == expected, question
            assert [len(keys) for keys, _ in expected] == [filters.limit] * 3


REVIVE = """
    UPDATE session_lifecycle.session_records
    SET cost_usd = 0.5 + tokens_in, last_activity_at = last_activity_at + interval '1 minute'
    WHERE session_id LIKE '%7'
"""


async def test_a_page_by_cost_has_the_rows_of_all_sessions(session_database: SessionDatabase) -> None:
    """An index has those that are rolled up, in any scope. Many cost the same, and some changed since."""
    db, sessions = session_database, 600
    async with db.engine.begin() as connection:
        await connection.execute(text(SEED), {"noon": NOON, "sessions": sessions})
        await connection.execute(text(DISORDER), {"noon": NOON, "sessions": sessions})
    await keep_buckets(db)
    questions: list[dict[str, Any]] = [
        {},
        {"total": "none"},
        {"status_filter": "completed"},
        {"status_filter": "abandoned"},
        {"status_filter": "running"},
        {"owner_id": UUID(int=2)},
        {"dataset_id": DATASETS[3]},
        *({"offset": offset} for offset in (3, 19, 120, 350, 10**12)),
    ]
    for change in (None, db.maintenance.roll_up, partial(ask, db, REVIVE), db.maintenance.roll_up):
        if change is not None:
            await change()
        for viewer in (*VIEWERS.values(), Viewer(UUID(int=9))):
            for question, descending in product(questions, (True, False)):
                asked: dict[str, Any] = {"viewer": viewer, "limit": 7, "order_by": "cost_usd", **question}
                filters = SessionListFilters(**asked, descending=descending)
                with reading("one pass"):
                    expected = await walk(db, filters)
                with reading("many"):
                    assert await walk(db, filters) == expected, filters


@pytest.mark.parametrize("rolled_up", [False, True])
async def test_a_page_far_behind_has_the_rows_of_all_sessions(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch, rolled_up: bool
) -> None:
    """It is looked for from the nearer end, where many sessions share a moment, and beyond that end."""
    db, sessions = session_database, 600
    monkeypatch.setattr(few_listing, "FAR_OFFSET", 20)
    async with db.engine.begin() as connection:
        await connection.execute(text(SEED), {"noon": NOON, "sessions": sessions})
        await connection.execute(text(DISORDER), {"noon": NOON, "sessions": sessions})
        await connection.execute(text("UPDATE session_lifecycle.session_records SET last_activity_at = started_at"))
        shared = "UPDATE session_lifecycle.session_records SET last_activity_at = date_trunc('day', last_activity_at)"
        await connection.execute(text(shared))
    if rolled_up:
        await db.maintenance.roll_up()
    window = {"since": NOON - 20 * DAY, "until": NOON - 5 * DAY}
    of_status: list[dict[str, Any]] = [{"status_filter": one} for one in ("completed", "abandoned")]
    questions: list[dict[str, Any]] = [{}, {"descending": False}, {"total": "none"}, *of_status]
    in_one_scan: list[Way] = ["one scan", "one scan, counted"]
    for viewer in VIEWERS.values():
        for question in (*questions, window):
            asked: dict[str, Any] = {"viewer": viewer, "limit": 20, "total": "exact", **question}
            number = (await db.lifecycle.list_session_rows(SessionListFilters(**{**asked, "total": "exact"}))).total
            assert number is not None
            around = (number // 2, number - 31, number - 21, number - 20, number - 1, number, number + 40, 10**12)
            for offset in {*range(20, number, 37), *(one for one in around if one >= 20)}:
                filters = SessionListFilters(**asked, offset=offset)
                with reading("many"):
                    expected = await walk(db, filters)
                for way in in_one_scan:
                    with reading(way):
                        assert await walk(db, filters) == expected, (question, offset, way)


@pytest.mark.parametrize("named", ["unknown", "Unknown"])
async def test_a_session_with_both_kinds_of_unknown_model_is_one_session(
    session_database: SessionDatabase, named: str
) -> None:
    """Usage without a model is shown as "unknown", and a model may have that name."""
    db = session_database
    unnamed: list[str | None] = [None]
    both = [*unnamed, named]
    used: dict[str, list[str | None]] = {
        "without": unnamed,
        "named": [named],
        "both": both,
        "neither": ["m"],
        "emptied": both,
    }
    events = [
        UsageEvent(session_id=session_id, user_id=ME, model=model, tokens_in=10, at=NOON)
        for session_id, models in used.items()
        for model in models
    ]
    await db.lifecycle.record(events)
    # A model whose events were all revised away does not count.
    await ask(
        db, "UPDATE session_model_usage SET tokens_in = 0, events = 0 WHERE session_id = 'emptied' AND model > ''"
    )
    await ask(db, "UPDATE session_records SET status = 'completed', ended_at = last_activity_at WHERE session_id < 'n'")
    windows: list[dict[str, Any]] = [{}, {"since": NOON - DAY}, {"since": NOON - DAY, "until": NOON + DAY}]
    for _ in range(2):
        for way, asked, viewer in product(WAYS, windows, VIEWERS.values()):
            with reading(way):
                costs = await db.lifecycle.cost_by_model(viewer, **asked)
            found = [(row.model.lower(), row.session_count, row.tokens_in) for row in costs]
            assert sorted(found) == [("m", 1, 10), ("unknown", 4, 50)], (way, asked)
        await db.maintenance.roll_up()


@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_abandoned_sessions_are_counted_one_by_one_or_by_roll_ups(
    session_database: SessionDatabase, more: int
) -> None:
    db, abandoned = session_database, few_listing.FEW_COUNTED + more
    async with db.engine.begin() as connection:
        await connection.execute(text(SEED), {"noon": NOON, "sessions": 4 * abandoned})
        await connection.execute(text(DISORDER), {"noon": NOON, "sessions": 4 * abandoned})
    filters = SessionListFilters(viewer=Viewer.auditor(), status_filter="abandoned", limit=5)
    for _ in range(2):
        for way in WAYS:
            with reading(way):
                found = await db.lifecycle.list_session_rows(filters)
            assert (found.total, len(found.sessions)) == (abandoned, 5), way
        await db.maintenance.roll_up()


async def test_a_bounded_total_far_behind_stops_at_the_bound(session_database: SessionDatabase) -> None:
    """All sessions are counted to find the nearer end. The answer still stops at the bound."""
    db = session_database
    async with db.engine.begin() as connection:
        await connection.execute(text(SEED), {"noon": NOON, "sessions": TOTAL_BOUND + 100})
    filters = SessionListFilters(viewer=Viewer.auditor(), limit=30, offset=TOTAL_BOUND + 80, total="bounded")
    for way in WAYS:
        with reading(way):
            found = await db.lifecycle.list_session_rows(filters)
        assert (found.total, found.total_is_lower_bound, len(found.sessions)) == (TOTAL_BOUND, True, 20), way


async def walk(db: SessionDatabase, filters: SessionListFilters) -> list[tuple[Any, ...]]:
    """The sessions and the total of each of the first three pages."""
    pages: list[tuple[Any, ...]] = []
    cursor = None
    for _ in range(3):
        asked = filters.model_copy(update={"cursor": cursor, "offset": 0}) if cursor else filters
        found = await db.lifecycle.list_session_rows(asked)
        pages.append(([(one.record.user_id, one.record.session_id) for one in found.sessions], found.total))
        cursor = found.next_cursor
        if cursor is None:
            break
    return pages
