"""Which index finds a page of sessions, and how many rows are read for it."""

from datetime import timedelta
from typing import Any

import pytest

from session_lifecycle import SummaryFilters, Viewer
from session_lifecycle.models import EffectiveStatus
from session_lifecycle.models.session_filters import SESSION_ORDERS
from support.plans import (
    A_PAGE,
    BEGIN,
    CHOSEN,
    DATASETS,
    GENERIC,
    LIMIT,
    ME,
    NEVER,
    ROLLED_UP,
    SCOPES,
    SESSIONS,
    SESSIONS_OF_A_COST,
    SOMEBODY,
    STATUSES,
    VIEWER,
    WAITING,
    Plan,
    deep,
    deep_of_waiting,
    not_rolled_up,
    page,
    plan_of,
    rolled_up,
)


@pytest.mark.parametrize("which", [page, deep])
@pytest.mark.parametrize("descending", [True, False], ids=["descending", "ascending"])
async def test_a_page_by_activity_reads_a_bounded_number_of_rows(
    urls: dict[str, str], descending: bool, which: Any
) -> None:
    plan = await plan_of(urls[ROLLED_UP], which(descending=descending))
    assert rolled_up("user_id", "last_activity_at") | rolled_up("dataset_id", "last_activity_at") <= plan.indexes
    assert plan.sequential <= {"session_records"}  # all its sessions are rolled up, so its rows are read by key only
    assert plan.rows_read <= A_PAGE


@pytest.mark.parametrize("status", [None, *(one for one in EffectiveStatus if one is not EffectiveStatus.WAITING)])
@pytest.mark.parametrize("which", [page, deep])
async def test_a_page_by_activity_reads_a_bounded_number_of_rows_without_roll_ups(
    urls: dict[str, str], status: EffectiveStatus | None, which: Any
) -> None:
    if status is EffectiveStatus.RUNNING:
        which = page  # too few sessions for a second page
    plan = await plan_of(urls[NEVER], which(status_filter=status))
    assert not_rolled_up("user_id") | not_rolled_up("dataset_id") <= plan.indexes
    assert plan.sequential <= {"rolled_up_sessions"}
    assert plan.rows_read <= A_PAGE


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [Viewer(ME), Viewer.auditor()], ids=["own", "auditor"])
@pytest.mark.parametrize("state", [ROLLED_UP, NEVER])
async def test_a_page_reads_no_more_of_each_status_than_it_needs(
    urls: dict[str, str], state: str, viewer: Viewer, mode: str
) -> None:
    """The index has one status after another: Postgres merges their scans, and looks one session ahead in each."""
    plan = await plan_of(urls[state], page(viewer=viewer), mode)
    of_a_minute = 2
    assert plan.rows_read <= LIMIT + STATUSES + of_a_minute + LIMIT + 1


def of_activity(plan: Plan) -> set[str]:
    """The indexes on sessions by activity that the plan uses. Those on the id find the records of the page."""
    return {name for name in plan.indexes if name.startswith("ix_session_records") and "session_id" not in name}


@pytest.mark.parametrize("which", [page, deep_of_waiting])
@pytest.mark.parametrize(
    ("narrowed", "indexes"),
    [
        ({}, {"ix_session_records_waiting_user_id", "ix_session_records_waiting_dataset_id"}),
        ({"viewer": Viewer(ME)}, {"ix_session_records_waiting_user_id"}),
        ({"viewer": Viewer.auditor()}, {"ix_session_records_waiting"}),
        ({"viewer": Viewer.auditor(), "owner_id": ME, "agent_name": "agent 3"}, {"ix_session_records_waiting_user_id"}),
    ],
    ids=["shared", "own", "auditor", "agent"],
)
async def test_X26_a_page_of_the_sessions_that_wait_reads_hardly_another(
    urls: dict[str, str], narrowed: dict[str, Any], indexes: set[str], which: Any
) -> None:
    """The index has the sessions that wait, and those that waited once: as many, here."""
    orders = SESSION_ORDERS if which is page else ("last_activity_at",)
    for order_by in orders:
        plan = await plan_of(urls[NEVER], which(status_filter="waiting", order_by=order_by, **narrowed))
        assert indexes == of_activity(plan), order_by
        assert not plan.sequential
        # A session is in two scopes at most. Only the order of the activity is that of an index, and for the second
        # page the planner may rather sort all that the index has.
        is_walk = which is page and order_by == "last_activity_at" and "agent_name" not in narrowed
        bound = SCOPES * 2 * (LIMIT + 1) if is_walk else 2 * 2 * WAITING
        assert plan.rows_of["session_records"] <= bound + LIMIT + 1, order_by


async def test_X26_the_number_of_sessions_that_wait_is_counted_by_their_index(urls: dict[str, str]) -> None:
    asked = page(viewer=Viewer(ME), status_filter="waiting", total="exact")
    plan = await plan_of(urls[NEVER], asked)
    assert of_activity(plan) == {"ix_session_records_waiting_user_id"}


@pytest.mark.parametrize("status", EffectiveStatus)
async def test_a_page_of_a_status_reads_a_bounded_number_of_rows(urls: dict[str, str], status: EffectiveStatus) -> None:
    is_live = status in {EffectiveStatus.RUNNING, EffectiveStatus.WAITING}
    for order_by in SESSION_ORDERS if is_live else ("last_activity_at",):
        plan = await plan_of(urls[ROLLED_UP], page(status_filter=status, order_by=order_by))
        assert plan.rows_read <= A_PAGE, order_by


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer.auditor()], ids=["shared", "auditor"])
@pytest.mark.parametrize("which", [page, deep])
@pytest.mark.parametrize("descending", [True, False], ids=["descending", "ascending"])
async def test_a_page_by_cost_reads_a_bounded_number_of_rolled_up_sessions(
    urls: dict[str, str], viewer: Viewer, descending: bool, which: Any, mode: str
) -> None:
    plan = await plan_of(
        urls[ROLLED_UP], which(viewer=viewer, order_by="cost_usd", descending=descending), mode, with_text="page"
    )
    assert "ix_rolled_up_sessions_cost_usd" in plan.indexes
    assert not plan.sequential & {"rolled_up_sessions", "session_roll_ups"}
    assert plan.rows_of["session_records"] == LIMIT + 1
    # The last value is that of a dozen sessions. A position is in the middle of them.
    assert plan.rows_of["rolled_up_sessions"] <= LIMIT + 1 + 2 * SESSIONS_OF_A_COST


@pytest.mark.parametrize(
    "asked",
    [
        {"viewer": Viewer(SOMEBODY)},
        {"owner_id": SOMEBODY},
        {"viewer": Viewer(SOMEBODY), "offset": 50},
        {"viewer": Viewer(SOMEBODY), "descending": False, "total": "exact"},
    ],
)
async def test_a_page_by_cost_of_few_sessions_reads_only_those(urls: dict[str, str], asked: dict[str, Any]) -> None:
    """The index has everybody's: it would go through most of them for a page."""
    plan = await plan_of(urls[ROLLED_UP], page(order_by="cost_usd", **asked))
    assert "ix_rolled_up_sessions_cost_usd" not in plan.indexes
    assert plan.rows_of["rolled_up_sessions"] == 0
    assert plan.rows_of["session_records"] <= SESSIONS // 60 + LIMIT + 1


@pytest.mark.parametrize("order_by", SESSION_ORDERS[1:])
async def test_a_page_in_another_order_reads_each_visible_session_once(urls: dict[str, str], order_by: str) -> None:
    """No index has the order: an index for each would take more space than the sessions.

    Then come the page's records.
    """
    for state in (ROLLED_UP, NEVER):
        plan = await plan_of(urls[state], page(order_by=order_by))
        assert plan.rows_read <= SESSIONS + LIMIT + 1


@pytest.mark.parametrize("state", [ROLLED_UP, NEVER])
async def test_a_page_of_a_window_reads_a_bounded_number_of_rows(urls: dict[str, str], state: str) -> None:
    window = {"since": BEGIN + timedelta(days=40), "until": BEGIN + timedelta(days=60)}
    assert (await plan_of(urls[state], page(**window))).rows_read <= A_PAGE
    assert (await plan_of(urls[state], page(**window, descending=False))).rows_read <= A_PAGE


@pytest.mark.parametrize(
    ("narrowed", "index"),
    [
        ({"owner_id": ME}, ("user_id", "last_activity_at")),
        ({"owner_id": SOMEBODY}, ("user_id", "dataset_id", "last_activity_at")),
        ({"dataset_id": DATASETS[1]}, ("dataset_id", "last_activity_at")),
        ({"viewer": Viewer(ME), "dataset_id": DATASETS[1]}, ("user_id", "dataset_id", "last_activity_at")),
        ({"owner_id": ME, "dataset_id": DATASETS[1]}, ("user_id", "dataset_id", "last_activity_at")),
        ({"viewer": Viewer(ME), "agent_name": "agent 3"}, ("user_id", "agent_name", "last_activity_at")),
        (
            {"viewer": Viewer(None, DATASETS), "agent_name": "agent 3"},
            ("dataset_id", "agent_name", "last_activity_at"),
        ),
        ({"viewer": Viewer.auditor()}, ("last_activity_at",)),
    ],
    ids=["own", "another's", "in a data set", "own in one", "one's in one", "agent's", "shared agent's", "all"],
)
async def test_each_narrowing_filter_has_an_index_of_its_own(
    urls: dict[str, str], narrowed: dict[str, Any], index: tuple[str, ...]
) -> None:
    plan = await plan_of(urls[ROLLED_UP], page(**narrowed))
    assert rolled_up(*index) <= plan.indexes
    assert plan.rows_read <= A_PAGE


async def test_a_page_of_summaries_finds_its_sessions_by_the_same_indexes(urls: dict[str, str]) -> None:
    asked = SummaryFilters(viewer=VIEWER, limit=LIMIT, total="none")
    plan = await plan_of(urls[ROLLED_UP], lambda db: db.activity.list_session_summaries(asked))
    assert rolled_up("user_id", "last_activity_at") | rolled_up("dataset_id", "last_activity_at") <= plan.indexes
