"""Filters of session lists that no index serves (finding X25), and windows that end before they begin (X27)."""

import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import insert

from session_lifecycle import (
    InvalidValueError,
    Message,
    Run,
    SessionDatabase,
    SessionListFilters,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import TOTAL_BOUND, RunFilters
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS, SessionFilters
from session_lifecycle.models.summaries import SUMMARY_ORDERS
from support.stored_rows import table

A, B, D = UUID(int=1), UUID(int=2), UUID(int=11)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
Row = dict[str, Any]
# A filter, and whether a row of `STORED` meets it.
FILTERS: list[tuple[dict[str, Any], Callable[[Row], bool]]] = [
    ({"session_id_prefix": "a%"}, lambda row: row["session_id"].startswith("a%")),
    ({"session_id_prefix": ""}, lambda row: True),
    ({"excluded_session_id_prefix": "a"}, lambda row: not row["session_id"].startswith("a")),
    ({"agent_names": ["planner", "coder"]}, lambda row: row["agent_name"] in {"planner", "coder"}),
    ({"agent_names": ["nobody"]}, lambda row: False),
    ({"without_dataset": True}, lambda row: row["dataset_id"] is None),
    ({"min_cost_usd": Decimal("0.1")}, lambda row: row["cost_usd"] >= Decimal("0.1")),
    ({"max_cost_usd": 0.1}, lambda row: row["cost_usd"] <= Decimal("0.1")),
    ({"min_tokens": 7, "max_tokens": 12}, lambda row: 7 <= row["tokens_in"] + row["tokens_out"] <= 12),
    ({"min_errors": 1}, lambda row: row["error_count"] >= 1),
    ({"max_errors": 0}, lambda row: row["error_count"] == 0),
    ({"min_duration_s": 1.5, "max_duration_s": 60}, lambda row: 1.5 <= lasted(row) <= 60),
    ({"max_duration_s": 0}, lambda row: lasted(row) <= 0),
    ({"metadata": {"plan": "pro"}}, lambda row: row["metadata"].get("plan") == "pro"),
    ({"metadata": {"n": {"of": 1}}}, lambda row: row["metadata"].get("n", {}).get("of") == 1),
    ({"tags": {"team": "red"}}, lambda row: (row["tags"] or {}).get("team") == "red"),
    ({"tags": {"team": "red", "v": "2"}}, lambda row: row["tags"] == {"team": "red", "v": "2"}),
    ({"tool": "search"}, lambda row: "search" in row["tools"]),
    ({"annotation": "quality"}, lambda row: any(one["name"] == "quality" for one in row["annotations"])),
    ({"annotator": "eve"}, lambda row: any(one["annotator"] == "eve" for one in row["annotations"])),
    (
        {"annotation": "quality", "annotation_label": "bad", "max_score": 0.5},
        lambda row: any(
            one["name"] == "quality" and one["label"] == "bad" and one["score"] is not None and one["score"] <= 0.5
            for one in row["annotations"]
        ),
    ),
    ({"min_score": 0.5}, lambda row: any((one["score"] or 0) >= 0.5 for one in row["annotations"])),
]


def lasted(row: Row) -> float:
    took: timedelta = (row["ended_at"] or row["last_activity_at"]) - row["started_at"]
    return max(took.total_seconds(), 0)


def made(number: int, chance: random.Random) -> Row:
    status = chance.choice(["running", "completed"])
    started = NOON - chance.choice([0, 1, 2, 59]) * SECOND
    annotations = [
        {"name": name, "annotator": who, "label": label, "score": score}
        for (name, who), label, score in zip(
            chance.sample([("quality", ""), ("quality", "eve"), ("mood", "eve")], 2),
            chance.sample(["bad", "good", None], 2),
            chance.sample([0.25, 0.5, 0.75, None], 2),
            strict=True,
        )
    ]
    return {
        "user_id": chance.choice([A, B]),
        "session_id": chance.choice(["a%", "a_", "ab", "b"]) + str(number),
        "dataset_id": chance.choice([None, D]),
        "agent_name": chance.choice([None, "planner", "coder", "other"]),
        "status": status,
        "started_at": started,
        "last_activity_at": NOON - chance.choice([0, 1]) * SECOND,
        "ended_at": None if status == "running" else NOON - chance.choice([0, 90]) * SECOND,
        "cost_usd": chance.choice([Decimal(0), Decimal("0.1"), Decimal("0.1000000000000000000001")]),
        "tokens_in": chance.choice([0, 5, 7]),
        "tokens_out": chance.choice([0, 5]),
        "error_count": chance.choice([0, 1, 2]),
        "metadata": chance.choice([{}, {"plan": "pro"}, {"plan": "basic", "n": {"of": 1, "more": [1]}}]),
        "tags": chance.choice([None, {"team": "red"}, {"team": "red", "v": "2"}, {"v": "2"}]),
        "annotations": annotations[: chance.choice([0, 1, 2])],
        "tools": chance.choice([[], ["search"], ["shell"], ["search", "shell"]]),
    }


OF_ANNOTATION = {"annotation", "annotator", "annotation_label", "min_score", "max_score"}
CHANCE = random.Random(25)
STORED = [made(number, CHANCE) for number in range(60)]


@pytest.fixture
async def db(session_database: SessionDatabase) -> SessionDatabase:
    sessions = [{name: value for name, value in row.items() if name not in {"annotations", "tools"}} for row in STORED]
    annotations = [
        {"user_id": row["user_id"], "session_id": row["session_id"], **one}
        for row in STORED
        for one in row["annotations"]
    ]
    runs: list[Row] = []
    steps: list[Row] = []
    for number, row in enumerate(STORED):
        run = {"user_id": row["user_id"], "run_id": f"r{number}"}
        runs.append({**run, "session_id": row["session_id"], "started_at": NOON})
        named = [("tool", one) for one in row["tools"]] + [("task", "search")]
        steps += [
            {**run, "step_id": f"{kind}-{name}", "kind": kind, "name": name, "started_at": NOON} for kind, name in named
        ]
    async with session_database.engine.begin() as connection:
        for name, rows in (
            ("session_records", sessions),
            ("session_annotations", annotations),
            ("session_runs", runs),
            ("session_steps", steps),
        ):
            await connection.execute(insert(table(name)), rows)
    await session_database.maintenance.roll_up()
    return session_database


def test_X25_every_filter_is_among_those_tried() -> None:
    tried = set(itertools.chain.from_iterable(filters for filters, _ in FILTERS))
    own = SessionFilters.model_fields.keys() - {"session_id_prefix"}
    assert {name for name in own if SessionListFilters(**_one_of(name)).reads_rows} <= tried
    assert not SessionListFilters(viewer=Viewer(A), agent_name="a", since=NOON, status_filter="failed").reads_rows


def _one_of(name: str) -> dict[str, Any]:
    return next((filters for filters, _ in FILTERS if name in filters), {})


@pytest.mark.parametrize("viewer", [Viewer(A), Viewer(B, [D]), Viewer.auditor()], ids=["owner", "reader", "auditor"])
async def test_X25_a_list_has_what_its_filters_say(db: SessionDatabase, viewer: Viewer) -> None:
    seen = [
        row
        for row in STORED
        if viewer.sees_all or row["user_id"] in viewer.owner_ids or row["dataset_id"] in viewer.permitted_dataset_ids
    ]
    chance = random.Random(1)
    pairs = [chance.sample(FILTERS, 2) for _ in range(15)]
    for together in [[one] for one in FILTERS] + pairs:
        names = [set(filters) for filters, _ in together]
        if len(names) == 2 and (names[0] & names[1] or all(one & OF_ANNOTATION for one in names)):
            continue  # the same filter twice, or two that would speak of one annotation
        filters = {"viewer": viewer, "limit": 500} | {k: v for one, _ in together for k, v in one.items()}
        expected = sorted(
            (str(row["user_id"]), row["session_id"]) for row in seen if all(meets(row) for _, meets in together)
        )
        page = await db.lifecycle.list_session_rows(SessionListFilters(**filters))
        found = sorted((str(row.record.user_id), row.record.session_id) for row in page.sessions)
        assert found == expected, filters
        assert page.total == len(expected)
        bounded = await db.lifecycle.list_session_rows(SessionListFilters(**filters, total="bounded", offset=1))
        assert bounded.total == len(expected) <= TOTAL_BOUND
        summaries = await db.activity.list_session_summaries(SummaryFilters(**filters))
        assert sorted((str(one.user_id), one.session_id) for one in summaries.sessions) == expected
        assert summaries.total == len(expected)


@pytest.mark.parametrize("order_by", ALL_SESSION_ORDERS)
@pytest.mark.parametrize("descending", [True, False])
async def test_X25_a_filtered_list_is_walked_by_cursor(db: SessionDatabase, order_by: str, descending: bool) -> None:
    filters = SessionListFilters(
        viewer=Viewer.auditor(), order_by=order_by, descending=descending, limit=4, min_tokens=5, total="none"
    )
    whole = await db.lifecycle.list_session_rows(filters.model_copy(update={"limit": 500}))
    walked, cursor = [], None
    while True:
        page = await db.lifecycle.list_session_rows(filters.model_copy(update={"cursor": cursor}))
        walked += page.sessions
        cursor = page.next_cursor
        if cursor is None:
            break
    assert walked == whole.sessions
    first = await db.lifecycle.list_session_rows(filters)
    other = filters.model_copy(update={"cursor": first.next_cursor, "min_tokens": 6})
    with pytest.raises(InvalidValueError, match="next_cursor of a page under the same filters"):
        await db.lifecycle.list_session_rows(other)


async def test_X25_errors_order_a_list(db: SessionDatabase) -> None:
    for descending in (True, False):
        filters = {"viewer": Viewer.auditor(), "order_by": "error_count", "descending": descending, "limit": 500}
        expected = sorted(
            ((row["error_count"], row["user_id"], row["session_id"]) for row in STORED), reverse=descending
        )
        page = await db.lifecycle.list_session_rows(SessionListFilters(**filters))
        found = [(row.record.error_count, row.record.user_id, row.record.session_id) for row in page.sessions]
        assert found == expected
        assert page.total == len(STORED)
        summaries = await db.activity.list_session_summaries(SummaryFilters(**filters))
        assert [one.record for one in summaries.sessions] == [row.record for row in page.sessions]


def test_X25_every_filter_and_order_of_the_finding_is_there() -> None:
    filters = {
        "session_id_prefix", "excluded_session_id_prefix", "agent_names", "without_dataset", "min_cost_usd",
        "max_cost_usd", "min_tokens", "max_tokens", "min_errors", "max_errors", "min_duration_s", "max_duration_s",
        "metadata", "tool",
    }  # fmt: skip
    for kind in (SessionListFilters, SummaryFilters):
        assert filters <= kind.model_fields.keys()
    assert filters <= set(itertools.chain.from_iterable(tried for tried, _ in FILTERS))
    assert {"error_count", "last_prompt_at"} <= set(SUMMARY_ORDERS)


@pytest.mark.parametrize("descending", [True, False])
async def test_X25_the_last_prompt_orders_summaries(session_database: SessionDatabase, descending: bool) -> None:
    """The order is that of the field, nulls last and ties by the key, also where a project narrows the messages."""
    chance = random.Random(3)
    items: list[Any] = []
    for number in range(14):
        named: dict[str, Any] = {"user_id": chance.choice([A, B]), "session_id": f"s{number}"}
        projects = [("p", NOON), ("q", NOON + chance.randrange(3) * SECOND)]
        for project, at in chance.sample(projects, chance.choice([0, 1, 2])):
            run = Run(run_id=f"{number}{project}", project=project, started_at=at, ended_at=at, **named)
            prompt = Message(
                message_id=project, run_id=run.run_id, role="user", content=project, created_at=at, **named
            )
            reply = {"message_id": "reply", "role": "assistant", "created_at": NOON + 60 * SECOND}
            items += [run, prompt, prompt.model_copy(update=reply)]
        items.append(Touch(**named, at=NOON + chance.randrange(9) * SECOND))
    await session_database.lifecycle.record(items)
    for narrowed in ({}, {"project": "p"}, {"project": "q"}, {"min_errors": 0}, {"include_open": False}):
        filters = SummaryFilters(
            viewer=Viewer.auditor(), order_by="last_prompt_at", descending=descending, limit=3, **narrowed
        )
        whole = await session_database.activity.list_session_summaries(filters.model_copy(update={"limit": 500}))
        asked = [one for one in whole.sessions if one.last_prompt_at is not None]
        assert len(asked) > 2
        keys = [(one.last_prompt_at, one.user_id, one.session_id) for one in asked]
        assert keys == sorted(keys, reverse=descending)
        unasked = [(one.user_id, one.session_id) for one in whole.sessions[len(asked) :]]
        assert unasked == sorted(unasked, reverse=descending)
        assert all(one.last_prompt_at is None for one in whole.sessions[len(asked) :])
        assert whole.total == len(whole.sessions)
        walked, cursor = [], None
        while True:
            page = await session_database.activity.list_session_summaries(filters.model_copy(update={"cursor": cursor}))
            walked += page.sessions
            cursor = page.next_cursor
            if cursor is None:
                break
        assert walked == whole.sessions
    found = {(one.last_prompt, one.last_prompt_at) for one in walked if one.last_prompt == "p"}
    assert found == {("p", NOON)}


async def test_X25_a_chat_history_leaves_out_a_run(session_database: SessionDatabase) -> None:
    message = {"user_id": A, "session_id": "s", "role": "user"}
    await session_database.lifecycle.record(
        [
            Run(run_id="r", user_id=A, session_id="s", started_at=NOON),
            *(
                Message(**message, message_id=name, run_id=run, content=name, created_at=NOON + number * SECOND)
                for number, (name, run) in enumerate([("a", None), ("b", "r"), ("c", "q"), ("d", "r")])
            ),
        ]
    )

    async def history(**more: Any) -> list[str]:
        return [one.content for one in await session_database.activity.chat_history("s", A, **more)]

    assert await history() == ["a", "b", "c", "d"]
    assert await history(exclude_run_id="r") == ["a", "c"]
    assert await history(exclude_run_id="r", limit=1) == ["c"]
    assert await history(exclude_run_id="r", max_characters=1) == ["c"]
    assert await history(exclude_run_id="") == ["a", "b", "c", "d"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a dataset and none": ({"dataset_id": D, "without_dataset": True}, "without_dataset"),
    "cost": ({"min_cost_usd": 2, "max_cost_usd": 1}, "max_cost_usd"),
    "tokens": ({"min_tokens": 2, "max_tokens": 1}, "max_tokens"),
    "errors": ({"min_errors": 2, "max_errors": 1}, "max_errors"),
    "duration": ({"min_duration_s": 2, "max_duration_s": 1}, "max_duration_s"),
    "score": ({"min_score": 2, "max_score": 1}, "max_score"),
    "a negative bound": ({"min_errors": -1}, "min_errors"),
    "an agent without a name": ({"agent_names": [""]}, "agent_names.0"),
    "a tag that is no text": ({"tags": {"a": 1}}, "tags.a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_X25_filters_that_nothing_meets_are_refused(name: str) -> None:
    fields, field = REFUSED[name]
    for kind in (SessionListFilters, SummaryFilters):
        with pytest.raises(InvalidValueError) as refused:
            kind.of_call(**fields)
        assert refused.value.field == field


WINDOW: dict[str, Any] = {"since": NOON, "until": NOON - SECOND}
CALLS: dict[str, Callable[[SessionDatabase], Any]] = {
    "list": lambda db: db.lifecycle.list_session_rows(SessionListFilters.of_call(**WINDOW)),
    "summaries": lambda db: db.activity.list_session_summaries(SummaryFilters.of_call(**WINDOW)),
    "runs": lambda db: db.activity.list_runs(RunFilters.of_call(**WINDOW)),
    "stats": lambda db: db.lifecycle.aggregate_stats(A, (), NOON, until=NOON - SECOND),
    "costs": lambda db: db.lifecycle.cost_by_model(A, (), NOON, until=NOON - SECOND),
    **{
        name: cast("Callable[[SessionDatabase], Any]", lambda db, name=name: getattr(db.reports, name)(A, **WINDOW))
        for name in (
            "spend", "usage_timeseries", "tokens_by_class", "cost_by_agent", "cost_by_user", "cost_by_user_agent",
            "session_durations", "run_durations", "telemetry", "list_telemetry_keys",
        )
    },
    "reprice": lambda db: db.maintenance.reprice(**WINDOW),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
async def test_X27_a_window_that_ends_before_it_begins_is_refused(session_database: SessionDatabase, name: str) -> None:
    with pytest.raises(InvalidValueError, match="a time at or after since") as refused:
        await CALLS[name](session_database)
    assert refused.value.field == "until"


def test_X27_one_moment_is_an_empty_window_and_no_mistake() -> None:
    for kind in (SessionListFilters, SummaryFilters, RunFilters):
        assert kind(since=NOON, until=NOON).until == NOON


def test_X27_only_the_reference_falls_back_from_an_unknown_order() -> None:
    assert SessionListFilters(order_by="nothing").order_column == "last_activity_at"
    with pytest.raises(InvalidValueError, match="error_count"):
        SummaryFilters.of_call(order_by="nothing")


async def test_X25_no_filter_reaches_beyond_what_the_viewer_sees(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [
            Touch(session_id="mine", user_id=A, tags={"t": "1"}),
            Touch(session_id="other", user_id=B, tags={"t": "1"}),
            UsageEvent(session_id="other", user_id=B, errored=True),
            Run(run_id="r", user_id=B, session_id="other", started_at=NOON),
            Step(step_id="s", run_id="r", user_id=B, kind="tool", name="search", started_at=NOON),
        ]
    )
    await session_database.lifecycle.annotate_session("other", B, "quality")
    for filters in ({"tags": {"t": "1"}}, {"min_errors": 1}, {"tool": "search"}, {"annotation": "quality"}):
        page = await session_database.lifecycle.list_session_rows(SessionListFilters(viewer=Viewer(A), **filters))
        expected = ["mine"] if "tags" in filters else []
        assert [row.record.session_id for row in page.sessions] == expected
        assert page.total == len(expected)
