"""Every answer over eight buckets is that of one plain database with the same histories, to the last decimal."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from session_lifecycle import (
    End,
    Message,
    Run,
    RunFilters,
    SessionDatabase,
    SessionListFilters,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.models import Item, UsageEventFilters
from session_lifecycle.testing import SessionClock, TemplateServer
from support.buckets import BucketServers

BEGINNING = datetime(2026, 3, 1, 12, tzinfo=UTC)
DATASETS = [UUID(int=number) for number in range(1, 4)]
USERS_OF_A_HISTORY = 6
AnyDatabase = SessionDatabase | BucketDatabase

_histories = count(1)
_moments = count(1)

whose = st.integers(0, USERS_OF_A_HISTORY - 1)
sessions = st.sampled_from(["s", "t", "é"])
datasets = st.none() | st.sampled_from(DATASETS)
agents = st.none() | st.sampled_from(["planner", "coder"])
costs = st.none() | st.sampled_from([Decimal("0.1"), Decimal("0.000000000000000007"), Decimal("12345.678901234")])
models = st.sampled_from(["m", "M", "gpt-4o", None])


@st.composite
def item_fields(draw: st.DrawFn) -> tuple[type[Any], dict[str, Any]]:
    """The class and the fields of an item. `user_id` counts the users of the history; `at` is hours ago."""
    kind = draw(st.sampled_from([Touch, UsageEvent, UsageEvent, UsageEvent, Run, Run, Step, Message, End]))
    fields: dict[str, Any] = {"user_id": draw(whose), "session_id": draw(sessions), "at": draw(st.integers(0, 60))}
    if kind is Touch:
        fields |= {"dataset_id": draw(datasets), "agent_name": draw(agents), "waiting": draw(st.booleans())}
        fields |= {"tags": draw(st.sampled_from([{}, {"team": "a"}, {"team": "b"}])), "metadata": {"n": 1}}
    elif kind is UsageEvent:
        fields |= {"model": draw(models), "tokens_in": draw(st.integers(1, 9)), "cost_usd": draw(costs)}
        fields |= {"dataset_id": draw(datasets), "tokens_out": draw(st.integers(0, 9)), "provider": "p"}
        fields |= {"details": draw(st.sampled_from([{}, {"d": 3}])), "run_id": draw(st.sampled_from([None, "1", "2"]))}
        fields |= {"billing": draw(st.sampled_from(["api", "api", "plan"])), "errored": draw(st.booleans())}
    elif kind is Run:
        fields |= {"run_id": draw(st.sampled_from("1234")), "model": draw(models), "client": draw(agents)}
        fields |= {"lasted": draw(st.none() | st.integers(0, 10**7)), "agent_name": draw(agents)}
        fields |= {"session_id": draw(st.none() | sessions), "reported_cost_usd": draw(costs)}
    elif kind is Step:
        fields |= {"run_id": draw(st.sampled_from("1234")), "step_id": draw(st.sampled_from("12")), "kind": "tool"}
        fields |= {"injected": draw(st.booleans()), "errors": draw(st.sampled_from([None, ["e"]]))}
    elif kind is Message:
        fields |= {"message_id": draw(st.sampled_from("12")), "role": "user", "content": draw(st.sampled_from("xyz"))}
    else:
        fields |= {"status": draw(st.sampled_from(["completed", "failed"]))}
    return kind, fields


batches = st.lists(st.lists(item_fields(), min_size=8, max_size=30), min_size=1, max_size=3)


def made(kind: type[Any], fields: dict[str, Any], history: int) -> Item:
    """The item. Each has a moment of its own: what happened at one moment is in the order of recording, in a bucket."""
    fields = dict(fields)
    at = BEGINNING - timedelta(hours=fields.pop("at")) + timedelta(microseconds=next(_moments))
    fields["user_id"] = UUID(int=history * 100 + fields["user_id"])
    if kind is Run:
        lasted = fields.pop("lasted")
        fields |= {"started_at": at, "ended_at": None if lasted is None else at + timedelta(microseconds=lasted)}
        fields["status"] = "running" if lasted is None else "completed"
    elif kind is Step:
        del fields["session_id"]
        fields["started_at"] = at
    elif kind is Message:
        fields["created_at"] = at
    else:
        fields["at"] = at
    if kind is UsageEvent:
        fields["idempotency_key"] = str(next(_moments))
    item: Item = kind(**fields)
    return item


async def walk(
    call: Callable[[Any], Awaitable[Any]],
    filters: Any,
    rows: str,
    without: set[str] | None = None,
) -> list[Any]:
    """All rows by cursor, with the total of each page."""
    found: list[Any] = []
    cursor = None
    while True:
        page = await call(filters.model_copy(update={"cursor": cursor}))
        found.append((page.total, page.total_is_lower_bound, page.has_more))
        found += [row.model_dump(exclude=without) for row in getattr(page, rows)]
        if (cursor := page.next_cursor) is None:
            return found


def viewers_of(history: int) -> list[Viewer]:
    users = [UUID(int=history * 100 + number) for number in range(USERS_OF_A_HISTORY)]
    return [Viewer(users[1], DATASETS, users[2:4]), Viewer.auditor(), Viewer.of_users(users)]


async def answers_of(db: AnyDatabase, viewer: Viewer, history: int) -> dict[str, Any]:
    """Every answer that a viewer gets. Random ids and times of recording are left out."""
    lifecycle, activity, reports = db.lifecycle, db.activity, db.reports
    since, until = BEGINNING - timedelta(hours=40), BEGINNING - timedelta(hours=5)
    window: dict[str, Any] = {"since": since, "until": until}
    found: dict[str, Any] = {}
    for order in ("last_activity_at", "ended_at", "error_count"):
        filters = SessionListFilters(viewer=viewer, order_by=order, limit=7, descending=order != "ended_at")
        found[f"rows by {order}"] = await walk(lifecycle.list_session_rows, filters, "sessions")
    chosen: list[dict[str, Any]] = [
        {"status_filter": "abandoned"},
        {"dataset_id": DATASETS[0]},
        {"owner_id": UUID(int=history * 100 + 1)},
        {"agent_name": "coder", "total": "bounded"},
        {"tags": {"team": "a"}},
        {"offset": 2, "total": "none", **window},
    ]
    for one in chosen:
        page = await lifecycle.list_session_rows(SessionListFilters(viewer=viewer, limit=4, **one))
        found[f"rows with {one}"] = page.model_dump(exclude={"next_cursor"})
    for session in ("s", "none"):
        for other in (False, True):
            found[f"get {session} {other}"] = await lifecycle.get_session_row(session, viewer, (), other)
        found[f"family {session}"] = await lifecycle.get_family_figures(session, viewer)
        detail = await activity.get_session_detail(session, viewer)
        found[f"detail {session}"] = detail and detail.model_dump(exclude={"runs": {"__all__": {"events"}}})
        few = await activity.get_session_detail(session, viewer, steps_limit=1)
        found[f"detail of few steps {session}"] = few and few.model_dump(exclude={"runs": {"__all__": {"events"}}})
        threads = await activity.list_threads(session, viewer)
        found[f"threads {session}"] = threads and [one.model_dump() for one in threads.threads]
        found[f"chat {session}"] = await activity.chat_history(session, viewer)
        recent = await activity.get_recent_activity(session, viewer)
        found[f"recent {session}"] = recent and recent.model_dump()
    for ends in ({}, window):
        found[f"stats {len(ends)}"] = await lifecycle.aggregate_stats(viewer, **ends)
        found[f"costs {len(ends)}"] = await lifecycle.cost_by_model(viewer, **ends)
        found[f"by agent {len(ends)}"] = await reports.cost_by_agent(viewer, **ends)
        found[f"by user {len(ends)}"] = await reports.cost_by_user(viewer, **ends)
        found[f"by both {len(ends)}"] = await reports.cost_by_user_agent(viewer, **ends)
        found[f"durations {len(ends)}"] = await reports.session_durations(viewer, **ends)
        found[f"of runs {len(ends)}"] = await reports.run_durations(viewer, **ends)
        found[f"telemetry {len(ends)}"] = await reports.telemetry(viewer, **ends)
        found[f"keys {len(ends)}"] = await reports.list_telemetry_keys(viewer, **ends)
        found[f"spend {len(ends)}"] = await reports.spend(viewer, **ends)
        found[f"classes {len(ends)}"] = await reports.tokens_by_class(viewer, **ends)
    for group_by, limit in (
        ([], 9),
        (["model"], 1),
        (["user"], 2),
        (["dataset", "status"], 2),
        (["tag:team", "agent"], 9),
        (["session", "model"], 9),
    ):
        report = await reports.usage(viewer, group_by=group_by, limit=limit, details=["d"])
        found[f"usage by {group_by} {limit}"] = report
    found["by run"] = await reports.usage(viewer, group_by=["run"], order_by="run", limit=3)
    found["series"] = await reports.usage_timeseries(viewer, **window, group_by="model")
    found["by day"] = await reports.usage(viewer, group_by=["dataset", "day"], order_by="day", limit=7, **window)
    summaries = SummaryFilters(viewer=viewer, limit=7)
    found["summaries"] = await walk(activity.list_session_summaries, summaries, "sessions")
    by_prompt = SummaryFilters(viewer=viewer, limit=7, order_by="last_prompt_at", descending=False)
    found["summaries by prompt"] = await walk(activity.list_session_summaries, by_prompt, "sessions")
    found["runs"] = await walk(activity.list_runs, RunFilters(viewer=viewer, limit=7), "runs", {"events"})
    few_steps = RunFilters(viewer=viewer, limit=7, steps_limit=1, steps_offset=1)
    found["runs of few steps"] = await walk(activity.list_runs, few_steps, "runs", {"events"})
    events = UsageEventFilters(viewer=viewer, limit=9)
    unknown = {"event_id", "recorded_at"}
    found["events"] = await walk(activity.list_usage_events, events, "events", unknown)
    found["models"] = await activity.list_models(viewer)
    found["clients"] = await activity.list_clients(viewer)
    found["agents"] = await activity.list_agents(viewer)
    return found


class Both:
    """A plain database and one over buckets, with the same histories by the same clock."""

    def __init__(self, plain: SessionDatabase, buckets: BucketDatabase, runner: asyncio.Runner) -> None:
        self.plain = plain
        self.buckets = buckets
        self.runner = runner


@pytest.fixture
def both(session_template_server: TemplateServer, eight_buckets: BucketServers) -> Iterator[Both]:
    name = f"same_answers_{os.getpid()}"
    url = session_template_server.url_of(name)
    with asyncio.Runner() as runner:
        runner.run(session_template_server.clone(name))
        cloned = eight_buckets.cloned()
        places = runner.run(cloned.__aenter__())
        plain, buckets = SessionDatabase.connect(url), SessionDatabase.buckets(places)
        for at in (url, str(places[0].url)):
            runner.run(SessionClock(at).freeze(BEGINNING))
        yield Both(plain, buckets, runner)
        runner.run(plain.close())
        runner.run(buckets.close())
        runner.run(cloned.__aexit__(None, None, None))
        runner.run(session_template_server.drop(name))


def compare(both: Both, *, examples: int, viewers: int) -> None:
    """The histories stay: each example is compared together with all before it."""

    async def one(history: int, recorded: list[list[tuple[type[Any], dict[str, Any]]]], rolls_up: bool) -> None:
        for batch in recorded:
            items = [made(*one, history) for one in batch]
            receipts = [await db.lifecycle.record(items) for db in (both.plain, both.buckets)]
            assert receipts[0] == receipts[1]
        if rolls_up:
            reports = [await db.maintenance.roll_up() for db in (both.plain, both.buckets)]
            assert reports[0].sessions == reports[1].sessions
        for viewer in viewers_of(history)[:viewers]:
            plain, buckets = [await answers_of(db, viewer, history) for db in (both.plain, both.buckets)]
            for question, answer in plain.items():
                assert buckets[question] == answer, (question, viewer)

    @settings(
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        phases=set(Phase) - {Phase.explain, Phase.shrink},
    )
    @given(batches, st.booleans())
    def histories(recorded: list[list[tuple[type[Any], dict[str, Any]]]], rolls_up: bool) -> None:
        both.runner.run(one(next(_histories), recorded, rolls_up))

    histories()


def test_every_answer_is_that_of_one_database(both: Both) -> None:
    compare(both, examples=1, viewers=1)


@pytest.mark.soak
def test_every_answer_is_that_of_one_database_in_many_histories(both: Both) -> None:
    compare(both, examples=100, viewers=3)
