"""Reports by time read that part of the ledger, and of the runs; a session's events are found by its key."""

from datetime import timedelta
from itertools import product

import pytest

from session_lifecycle import SessionDatabase, Viewer
from session_lifecycle.models import UsageEventFilters, UsageFilters
from session_lifecycle.testing import TemplateServer
from support.plans import BEGIN, CHOSEN, EVENTS, LIMIT, ME, ROLLED_UP, SESSIONS, VIEWER, Ask, events, plan_of, seeded


@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_reports_by_time_of_use_read_only_that_part_of_the_ledger(urls: dict[str, str], viewer: Viewer) -> None:
    since, until = BEGIN + timedelta(days=30), BEGIN + timedelta(days=31)
    asks: list[Ask] = [
        lambda db: db.reports.spend(viewer, since=since, until=until),
        lambda db: db.reports.usage_timeseries(viewer, since=since, until=until, bucket="hour", group_by="agent"),
        lambda db: db.reports.tokens_by_class(viewer, since=since, until=until),
        lambda db: db.reports.usage(viewer, since=since, until=until, group_by=("model", "run", "hour")),
        events(viewer=viewer, since=since, until=until, total="none"),
        events(viewer=viewer, since=since, until=until, total="none", descending=False),
        lambda db: db.reports.usage(viewer, since=since, until=until, group_by=("client",)),
    ]
    for number, ask in enumerate(asks, 1):
        plan = await plan_of(urls[ROLLED_UP], ask)
        assert "ix_session_usage_events_at" in plan.indexes
        assert "session_usage_events" not in plan.sequential
        # One day of two months, and the rest of the page ranges where that day begins and ends.
        assert plan.rows_of["session_usage_events"] < EVENTS / 4
        # Only the last one asks for what the runs have.
        reads_runs = any("session_runs" in name for name in plan.indexes | plan.sequential)
        assert reads_runs == (number == len(asks))


# Two months of runs outside a session, written in the order of time. Every third one is of `ME`.
RUNS = 60_000
REPORTS_ON_RUNS = ("telemetry", "run_durations", "list_telemetry_keys")
SEED_MANY_RUNS = f"""
    INSERT INTO session_lifecycle.session_runs (user_id, run_id, started_at, ended_at)
    SELECT ('00000000-0000-0000-0000-' || lpad((1 + n % 3)::text, 12, '0'))::uuid, n::text,
           timestamptz '{BEGIN:%Y-%m-%d}' + n * interval '86 s', timestamptz '{BEGIN:%Y-%m-%d}' + n * interval '87 s'
    FROM generate_series(1, {RUNS}) n
"""


async def test_reports_by_the_end_of_runs_read_only_that_part_of_the_runs(
    session_template_server: TemplateServer,
) -> None:
    since, until = BEGIN + timedelta(days=30), BEGIN + timedelta(days=31)
    async with seeded(session_template_server, "many_runs", SEED_MANY_RUNS, "VACUUM ANALYZE") as url:
        for viewer, name in product((VIEWER, Viewer(ME), Viewer.auditor()), REPORTS_ON_RUNS):

            async def ask(db: SessionDatabase, viewer: Viewer = viewer, name: str = name) -> None:
                await getattr(db.reports, name)(viewer, since=since, until=until)

            plan = await plan_of(url, ask)
            assert "ix_session_runs_ended_at" in plan.indexes, name
            assert "session_runs" not in plan.sequential, name
            # A run ends every 86 s. One day, and the rest of the page ranges where that day begins and ends.
            assert 0 < plan.rows_of["session_runs"] < RUNS / 4, name


@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_X11_the_events_of_a_session_are_found_by_its_key(urls: dict[str, str], viewer: Viewer) -> None:
    """The ledger's rows of the session are read for the page and for its total, and the rows of no other session."""
    filters = UsageFilters(session_id="s3")
    asks: list[Ask] = [
        events(viewer=viewer, session_id="s3"),
        lambda db: db.reports.usage(viewer, filters=filters, group_by=("run",)),
    ]
    for ask in asks:
        plan = await plan_of(urls[ROLLED_UP], ask)
        assert "pk_session_usage_events" in plan.indexes
        assert not {"session_usage_events", "session_records"} & plan.sequential
        assert 0 < plan.rows_of["session_usage_events"] <= 2 * EVENTS / SESSIONS


async def test_X11_a_page_in_the_middle_of_a_walk_reads_the_rest_of_the_window(urls: dict[str, str]) -> None:
    """The index on the time of use finds the beginning of the page."""

    async def ask(db: SessionDatabase) -> None:
        asked = UsageEventFilters(viewer=Viewer.auditor(), limit=LIMIT, total="none", descending=False)
        middle = await db.activity.list_usage_events(asked.model_copy(update={"offset": EVENTS * 9 // 10}))
        assert middle.next_cursor is not None
        await db.activity.list_usage_events(asked.model_copy(update={"cursor": middle.next_cursor}))

    plan = await plan_of(urls[ROLLED_UP], ask)
    assert "ix_session_usage_events_at" in plan.indexes
    assert plan.rows_of["session_usage_events"] < EVENTS / 4


@pytest.mark.parametrize("descending", [True, False])
async def test_X11_a_page_of_everybodys_events_reads_what_is_next_to_it(urls: dict[str, str], descending: bool) -> None:
    """The first page of a walk, and a later one. The rest of the ledger is larger in both directions."""
    middle = {"until" if descending else "since": BEGIN + timedelta(days=30)}
    asked = UsageEventFilters(viewer=Viewer.auditor(), limit=LIMIT, total="none", descending=descending, **middle)

    async def first(db: SessionDatabase) -> None:
        await db.activity.list_usage_events(asked)

    async def later(db: SessionDatabase) -> None:
        page = await db.activity.list_usage_events(asked)
        await db.activity.list_usage_events(asked.model_copy(update={"cursor": page.next_cursor}))

    for ask in (first, later):
        plan = await plan_of(urls[ROLLED_UP], ask, CHOSEN)
        assert "ix_session_usage_events_at" in plan.indexes
        assert 0 < plan.rows_of["session_usage_events"] < EVENTS / 4
