"""Which index finds runs, steps, and what belongs to one session."""

from datetime import timedelta
from typing import Any

import pytest

from session_lifecycle import SummaryFilters, Viewer
from session_lifecycle.models import RunFilters, UsageFilters
from session_lifecycle.testing import TemplateServer
from support.plans import (
    BEGIN,
    CHOSEN,
    DATASETS,
    EVENTS,
    GENERIC,
    LIMIT,
    ME,
    NEVER,
    ROLLED_UP,
    SEED,
    SEED_RUNS,
    SESSIONS,
    STEPS,
    VIEWER,
    Ask,
    events,
    plan_of,
    runs,
    seeded,
)


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_X04_an_index_finds_the_runs_of_a_model_in_any_case(urls: dict[str, str], mode: str) -> None:
    auditor = Viewer.auditor()
    asks: list[Ask] = [
        lambda db: db.activity.list_runs(RunFilters(viewer=auditor, model="mODEL 33")),
        lambda db: db.reports.telemetry(auditor, model="mODEL 33"),
        lambda db: db.activity.list_models(auditor, prefix="mODEL 33"),
        lambda db: db.activity.list_session_summaries(SummaryFilters(viewer=auditor, model="mODEL 33", total="none")),
    ]
    for ask in asks:
        plan = await plan_of(urls[ROLLED_UP], ask, mode)
        assert "ix_session_runs_lower_model_user_id_session_id" in plan.indexes
        assert "session_runs" not in plan.sequential


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_page_of_the_runs_of_a_common_model_reads_a_bounded_number_of_rows(
    session_template_server: TemplateServer, mode: str
) -> None:
    """There are three models. So the order of the page finds its runs sooner than the model does."""
    asked: dict[str, Any] = {"viewer": Viewer(ME), "limit": LIMIT, "total": "none"}
    of_three = "UPDATE session_lifecycle.session_runs SET model = 'Model ' || length(session_id) % 3"
    async with seeded(session_template_server, "models", SEED, SEED_RUNS, of_three, "VACUUM ANALYZE") as url:
        common = await plan_of(url, runs(**asked, model="mODEL 2"), mode)
        unknown = await plan_of(url, runs(**asked, model="mODEL 4"), CHOSEN)
    assert common.rows_of["session_runs"] <= 20 * (LIMIT + 1)
    assert unknown.rows_read == 0


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_X15_measuring_an_answer_reads_the_rows_of_its_runs_only(urls: dict[str, str], mode: str) -> None:
    """Their number and size decide whether the answer is built: they are read twice, and no others."""
    asks: list[Ask] = [
        lambda db: db.activity.list_runs(RunFilters(viewer=Viewer(ME), limit=LIMIT, total="none")),
        lambda db: db.activity.get_session_detail("s3", ME),
        lambda db: db.activity.get_session_detail("s3", ME, project="default"),
        lambda db: db.activity.list_threads("s3", ME),
        lambda db: db.activity.get_recent_activity("s3", ME),
        lambda db: db.activity.list_runs(RunFilters(viewer=Viewer(ME), session_id="s3")),
    ]
    for ask in asks:
        plan = await plan_of(urls[NEVER], ask, mode)
        large = {"session_usage_events", "session_runs", "session_records"}
        assert not large & plan.sequential
        assert plan.rows_of["session_usage_events"] <= 2 * (LIMIT + 1) * EVENTS / SESSIONS
        assert plan.rows_of["session_runs"] <= 4 * (LIMIT + 1)


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_page_of_the_steps_of_a_run_reads_no_other_steps(urls: dict[str, str], mode: str) -> None:
    """The steps are read to count them, to measure the page and to build it."""
    counted, measured, built = STEPS, STEPS, STEPS
    asks: dict[Ask, int] = {
        runs(viewer=Viewer(ME), session_id="s6", steps_limit=LIMIT): counted + measured + built,
        runs(viewer=Viewer(ME), session_id="s6", steps_limit=LIMIT, steps_offset=STEPS - LIMIT): (
            counted + measured + built
        ),
        # The figures of the session count them, too.
        lambda db: db.activity.get_session_detail("s6", ME, steps_limit=LIMIT): 2 * counted + measured + built,
    }
    for ask, rows in asks.items():
        plan = await plan_of(urls[NEVER], ask, mode)
        assert "session_steps" not in plan.sequential
        assert "pk_session_steps" in plan.indexes
        assert plan.rows_of["session_steps"] == rows


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_page_of_a_users_runs_reads_a_bounded_number_of_rows(urls: dict[str, str], mode: str) -> None:
    """The user has a third of all runs, and a plan for any user and any limit expects far fewer."""
    window = {"since": BEGIN + timedelta(days=20), "until": BEGIN + timedelta(days=80)}
    asked: dict[str, Any] = {"viewer": Viewer(ME), "limit": LIMIT, "total": "none"}
    for filters in ({}, {"offset": 20}, {"descending": False}, window):
        plan = await plan_of(urls[NEVER], runs(**asked, **filters), mode)
        assert plan.rows_of["session_runs"] <= 4 * (LIMIT + 1) + 20, filters


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_what_belongs_to_one_session_is_found_by_its_key(urls: dict[str, str], viewer: Viewer, mode: str) -> None:
    asks: dict[str, Ask] = {
        "chat": lambda db: db.activity.chat_history("s3", viewer),
        "annotations": lambda db: db.lifecycle.list_annotations("s3", viewer),
        "family": lambda db: db.lifecycle.get_family_figures("s3", viewer),
        "lineage": lambda db: db.activity.find_lineage(ME, "call"),
        "runs": runs(viewer=viewer, session_id="s3", limit=LIMIT),
        "events": events(viewer=viewer, session_id="s3"),
        "usage": lambda db: db.reports.usage(viewer, group_by=("run",), filters=UsageFilters(session_id="s3")),
        "summaries": lambda db: db.activity.list_session_summaries(SummaryFilters(viewer=viewer, session_id="s3")),
        "detail": lambda db: db.activity.get_session_detail("s3", viewer),
        "recent": lambda db: db.activity.get_recent_activity("s3", viewer),
        "threads": lambda db: db.activity.list_threads("s3", viewer),
    }
    for name, ask in asks.items():
        plan = await plan_of(urls[NEVER], ask, mode)
        assert not {"session_records", "session_runs", "session_steps", "session_usage_events"} & plan.sequential, name
        assert plan.rows_read <= 2 * len(DATASETS), name
