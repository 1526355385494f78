"""Figures and totals read buckets, the edges of the window, or an index; and those of few sessions."""

from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from session_lifecycle import SessionDatabase, SessionListFilters, Viewer
from session_lifecycle.models import EffectiveStatus
from session_lifecycle.statements.shared import few
from session_lifecycle.testing import TemplateServer
from support.plans import (
    BEGIN,
    CHOSEN,
    EXECUTIONS,
    GENERIC,
    LIMIT,
    ME,
    NEVER,
    ROLLED_UP,
    SEED,
    SEED_MODELS,
    SESSIONS,
    SOMEBODY,
    VIEWER,
    Ask,
    execute,
    page,
    plan_of,
    seeded,
)
from support.statements import noted
from support.ways_of_reading import WAYS, Way, reading


@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
@pytest.mark.parametrize("is_window", [False, True], ids=["ever", "window"])
async def test_figures_read_buckets_and_the_edges_of_the_window(
    urls: dict[str, str], viewer: Viewer, is_window: bool
) -> None:
    """The number of rows read does not depend on the sessions between the edges."""
    since = BEGIN + timedelta(days=40, minutes=3) if is_window else None
    until = BEGIN + timedelta(days=160, minutes=3) if is_window else None
    asks: dict[str, Ask] = {
        "session_roll_ups": lambda db: db.lifecycle.aggregate_stats(viewer, (), since, until=until),
        "session_model_roll_ups": lambda db: db.lifecycle.cost_by_model(viewer, (), since, until=until),
    }
    for table, ask in asks.items():
        plan = await plan_of(urls[ROLLED_UP], ask)
        assert f"pk_{table}" in plan.indexes
        assert table not in plan.sequential
        # The status precedes the activity in the index; without it a whole index would be searched for the edges.
        edges = [found for index, found in plan.conditions.items() if index.startswith("ix_rolled_up_sessions")]
        assert edges or not is_window
        assert all("(status, 1)" in found and "last_activity_at >=" in found for found in edges)
        assert plan.rows_read < SESSIONS / 2


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_figures_read_as_little_right_after_a_first_roll_up_as_later(
    session_template_server: TemplateServer, mode: str
) -> None:
    """The first `roll_up` takes its sessions out of the indexes of the others."""
    asks: list[Ask] = [
        lambda db: db.lifecycle.aggregate_stats(VIEWER),
        lambda db: db.lifecycle.cost_by_model(VIEWER),
        page(total="exact"),
    ]
    async with seeded(session_template_server, "first", SEED, SEED_MODELS) as url:
        async with SessionDatabase.connect(url) as db:
            await db.maintenance.roll_up()
        at_once = [(await plan_of(url, ask, mode)).buffers for ask in asks]
        await execute(url, "VACUUM ANALYZE")
        later = [(await plan_of(url, ask, mode)).buffers for ask in asks]
    assert all(first <= 1.5 * second for first, second in zip(at_once, later, strict=True)), (at_once, later)


async def test_an_exact_total_reads_buckets(urls: dict[str, str]) -> None:
    without = await plan_of(urls[ROLLED_UP], page())
    counted = await plan_of(urls[ROLLED_UP], page(total="exact"))
    assert "pk_session_roll_ups" in counted.indexes
    assert counted.rows_read - without.rows_read < SESSIONS / 10


@pytest.mark.parametrize("status", [None, EffectiveStatus.COMPLETED])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_an_exact_total_without_roll_ups_counts_by_an_index(
    urls: dict[str, str], viewer: Viewer, status: EffectiveStatus | None
) -> None:
    asked: dict[str, Any] = {"viewer": viewer, "status_filter": status}
    without = await plan_of(urls[NEVER], page(**asked))
    counted = await plan_of(urls[NEVER], page(**asked, total="exact"))
    # Every visible session is counted once. Those of the viewer in a data set are read twice, and counted for the user.
    visible = SESSIONS // 3 if viewer == Viewer(ME) else SESSIONS
    of_total = counted.rows_of["session_records"] - without.rows_of["session_records"]
    assert of_total <= visible * 7 // 6
    assert "session_records" not in counted.sequential or viewer.sees_all
    assert not counted.rows_of["rolled_up_sessions"]


async def test_a_total_of_a_status_reads_buckets_of_that_status(urls: dict[str, str]) -> None:
    asked = {"status_filter": EffectiveStatus.FAILED}
    without = await plan_of(urls[ROLLED_UP], page(**asked))
    counted = await plan_of(urls[ROLLED_UP], page(**asked, total="exact"))
    assert "pk_session_roll_ups" in counted.indexes
    assert counted.rows_read - without.rows_read < SESSIONS / 10


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_a_statement_for_few_sessions_reads_each_at_most_once(
    urls: dict[str, str], viewer: Viewer, mode: str
) -> None:
    """It reads no row of the roll-ups, and looks up the records of a page. About a tenth is read before as a sample."""
    since, until = BEGIN + timedelta(days=40, minutes=3), BEGIN + timedelta(days=160, minutes=3)
    records, usage, of_page = "session_records", "session_model_usage", LIMIT + 1
    every = Counter({records: SESSIONS})
    # Usage of a model that is named unknown is looked for once.
    with_usage = every + Counter({usage: 2 * SESSIONS})
    with_page = every + Counter({records: of_page + SESSIONS // 4})
    # Or, before that, so many keys of the window as are worth a lookup each.
    with_keys = with_usage + Counter({records: SESSIONS // 5, "rolled_up_sessions": SESSIONS // 5})
    asks: list[tuple[Ask, Counter[str]]] = [
        (page(viewer=viewer), with_page),
        (page(viewer=viewer, order_by="cost_usd"), with_page),
        (page(viewer=viewer, offset=SESSIONS // 5), every + Counter({records: of_page})),
        (page(viewer=viewer, total="exact"), with_page),
        (page(viewer=viewer, total="exact", since=since, until=until), with_page),
        (lambda db: db.lifecycle.aggregate_stats(viewer), every),
        (lambda db: db.lifecycle.aggregate_stats(viewer, (), since, until=until), every),
        (lambda db: db.lifecycle.cost_by_model(viewer), with_usage),
        (lambda db: db.lifecycle.cost_by_model(viewer, (), since, until=until), with_usage),
    ]
    ways: list[tuple[Way, Ask, Counter[str]]] = [("one pass", *one) for one in asks]
    ways.append(("one scan", asks[-1][0], with_keys))
    for state in (ROLLED_UP, NEVER):
        for way, ask, most in ways:
            with reading(way):
                plan = await plan_of(urls[state], ask, mode)
            # The rows of a bitmap are counted without the name of their table, too.
            del plan.rows_of[""]
            assert plan.rows_of <= most


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_the_costs_of_a_short_window_read_the_usage_of_its_sessions(
    urls: dict[str, str], viewer: Viewer, mode: str
) -> None:
    """Twice: also for usage of a model that is named unknown. Other tests have longer windows, which read all usage."""
    since = BEGIN + timedelta(days=40)
    until = since + timedelta(days=1)
    for state in (ROLLED_UP, NEVER):
        async with SessionDatabase.connect(urls[state]) as db:
            seen = (await db.lifecycle.aggregate_stats(viewer, (), since, until=until)).sessions
        with reading("one scan"):
            plan = await plan_of(
                urls[state], lambda db: db.lifecycle.cost_by_model(viewer, (), since, until=until), mode
            )
        assert 0 < plan.rows_of["session_model_usage"] <= 4 * seen < SESSIONS / 10
        assert plan.rows_of["session_records"] <= SESSIONS


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_a_page_far_behind_is_read_from_the_nearer_end(urls: dict[str, str], viewer: Viewer, mode: str) -> None:
    async with SessionDatabase.connect(urls[NEVER]) as db:
        number = (await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer, total="exact"))).total
    assert number is not None
    left = 600
    for state in (ROLLED_UP, NEVER):
        with reading("one scan, counted"):
            plan = await plan_of(urls[state], page(viewer=viewer, offset=number - left), mode)
        # As for a first page of so many sessions, each in three statuses; and all are counted.
        assert plan.rows_of["session_records"] + plan.rows_of["rolled_up_sessions"] < SESSIONS + 4 * 3 * left


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_one_scan_reads_everybodys_sessions_up_to_the_end_of_the_page(
    urls: dict[str, str], viewer: Viewer, mode: str
) -> None:
    for state in (ROLLED_UP, NEVER):
        with reading("one scan"):
            plan = await plan_of(urls[state], page(viewer=viewer), mode)
        # Nothing is in the other table where nothing was rolled up.
        assert plan.sequential <= ({"rolled_up_sessions"} if state == NEVER else set())
        # Each table once in each of three statuses, and the viewer sees at least a third of all; and a sample before.
        most = 6 * 6 * LIMIT + SESSIONS // 10
        assert plan.rows_read < most
        with reading("one scan, counted"):
            counted = await plan_of(urls[state], page(viewer=viewer, total="exact"), mode)
        assert counted.rows_of["session_records"] <= SESSIONS + most


@pytest.mark.parametrize("state", [ROLLED_UP, NEVER])
@pytest.mark.parametrize("total", ["exact", "none"])
async def test_one_scan_is_for_viewers_who_see_much(urls: dict[str, str], state: str, total: str) -> None:
    """It would go through most of the table for a viewer who sees a hundredth of it."""
    for viewer, is_one_scan in ((VIEWER, True), (Viewer(SOMEBODY), False)):
        async with SessionDatabase.connect(urls[state]) as db, noted(db) as sent:
            with reading("one scan"):
                await page(viewer=viewer, total=total)(db)
        assert ("pg_relation_size" in sent[-1][0]) is is_one_scan


@pytest.mark.parametrize("state", [ROLLED_UP, NEVER])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_postgres_keeps_the_plan_of_a_statement_for_few_sessions(
    urls: dict[str, str], viewer: Viewer, state: str
) -> None:
    """To plan it takes as long as to run it. With a plan that knew more values, it would seem shorter each time."""
    since, until = BEGIN + timedelta(days=200), BEGIN + timedelta(days=220)
    windows: list[dict[str, Any]] = [{}, {"since": since}, {"until": until}, {"since": since, "until": until}]
    totals: list[dict[str, Any]] = [{"total": "exact"}, {"total": "none"}]
    questions = [*windows, {"order_by": "cost_usd"}, {"status_filter": "abandoned"}, {"offset": SESSIONS * 9 // 10}]

    async def stats(db: SessionDatabase, window: dict[str, Any]) -> object:
        return await db.lifecycle.aggregate_stats(viewer, (), **window)

    async def costs(db: SessionDatabase, window: dict[str, Any]) -> object:
        return await db.lifecycle.cost_by_model(viewer, (), **window)

    asks: list[tuple[Way, Ask]] = [
        (way, page(viewer=viewer, **question, **total))
        for way in WAYS
        for question in questions
        for total in totals
        # Without roll-ups, one scan counts rows.
        if way != "many" and (way, state, total["total"]) != ("one scan", NEVER, "exact")
    ]
    for window in windows:
        asks += [("one pass", partial(stats, window=window)), ("one pass", partial(costs, window=window))]
        asks.append(("one scan", partial(costs, window=window)))
    async with SessionDatabase.connect(urls[state]) as db, db.engine.connect() as borrowed:
        driver = (await borrowed.get_raw_connection()).driver_connection
        assert driver is not None
        for way, ask in asks:
            with reading(way):
                async with noted(db) as sent:
                    await ask(db)
            statement, values = sent[-1]
            prepared = await driver.prepare(statement)
            for _ in range(EXECUTIONS):
                await prepared.fetch(*values)
            kept = "SELECT max(generic_plans) FROM pg_prepared_statements WHERE statement = $1"
            assert await driver.fetchval(kept, statement) == 1, (way, statement)


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_statement_for_few_sessions_reads_nothing_where_there_are_many(
    urls: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However stale the statistics, and whatever the last look said: it looks at the size itself."""
    asks: list[tuple[Way, Ask]] = [
        ("one pass", page(total="exact")),
        ("one scan, counted", page(total="exact")),
        ("one scan", page(total="exact")),
        ("one scan", page()),
        ("one scan", page(offset=SESSIONS // 2)),
        ("one scan, counted", page(offset=SESSIONS // 2)),
        ("one scan", page(status_filter=EffectiveStatus.COMPLETED)),
        ("one pass", page(order_by="cost_usd")),
        ("one pass", lambda db: db.lifecycle.aggregate_stats(VIEWER)),
        ("one pass", lambda db: db.lifecycle.cost_by_model(VIEWER)),
        ("one pass", lambda db: db.lifecycle.cost_by_model(VIEWER, (), BEGIN)),
        ("one scan", lambda db: db.lifecycle.cost_by_model(VIEWER, (), BEGIN)),
    ]
    for way, ask in asks:
        with reading(way):
            monkeypatch.setattr(few, "PAGES_OF_A_STATEMENT", 1)
            monkeypatch.setattr(few, "PAGES_OF_A_SCOPE", 0)
            plan = await plan_of(urls[ROLLED_UP], ask, mode, with_text="pg_relation_size")
        assert (plan.rows_read, plan.buffers) == (0, 0)


async def test_the_usual_questions_are_short(urls: dict[str, str]) -> None:
    """Postgres reads and plans a text anew on each connection."""
    asks: dict[str, tuple[Ask, int]] = {
        "one session": (lambda db: db.lifecycle.get_session_row("s1", VIEWER), 5_000),
        "a page": (page(), 15_000),
        "a page and its total": (page(total="exact"), 20_000),
        "a page and its total, own": (page(viewer=Viewer(ME), total="exact"), 14_000),
    }
    async with SessionDatabase.connect(urls[NEVER]) as db:
        for name, (ask, most) in asks.items():
            async with noted(db) as sent:
                await ask(db)
            assert len(sent[-1][0]) < most, name
