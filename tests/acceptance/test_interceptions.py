"""Rows of the interceptions table: a proxied model request is a run with usage, prompts, tool calls and thoughts."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from session_lifecycle import InvalidValueError, Message, Run, RunFilters, Step, SummaryFilters, UsageEvent, Viewer
from session_lifecycle.models import Item, Thread
from support.world import World

A, B = UUID(int=1), UUID(int=2)
NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
OPEN: Any = object()
AUDITOR = Viewer.auditor()


def run(run_id: str, at: datetime = NOW, session: str | None = None, user: UUID = A, **more: Any) -> Run:
    """An interception that ends when it begins, unless `ended_at` is given."""
    ended_at = more.pop("ended_at", at)
    return Run(
        run_id=run_id,
        user_id=user,
        session_id=session,
        started_at=at,
        ended_at=None if ended_at is OPEN else ended_at,
        **more,
    )


def used(run_id: str, session: str, tokens_in: int, tokens_out: int, user: UUID = A, **more: Any) -> UsageEvent:
    at = more.pop("at", NOW)
    return UsageEvent(
        session_id=session,
        user_id=user,
        model=more.pop("model", None),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cost_usd=0,
        run_id=run_id,
        at=at,
        **more,
    )


def prompt(message_id: str, run_id: str, session: str, at: datetime = NOW, role: str = "user") -> Message:
    return Message(
        message_id=message_id,
        user_id=A,
        session_id=session,
        run_id=run_id,
        role=role,
        content=f"text of {message_id}",
        created_at=at,
    )


def tool(step_id: str, run_id: str, at: datetime = NOW) -> Step:
    return Step(step_id=step_id, run_id=run_id, user_id=A, kind="tool", started_at=at, tool_call_id=step_id)


async def listed_runs(world: World, viewer: Viewer | UUID = A, **filters: Any) -> list[str]:
    viewer = Viewer(viewer) if isinstance(viewer, UUID) else viewer
    page = await world.activity.list_runs(RunFilters(viewer=viewer, **filters))
    return [found.run_id for found in page.runs]


async def walked(call: Callable[..., Any], rows: str, filters: Any) -> list[Any]:
    """The rows of all pages, walked by cursor."""
    found: list[Any] = []
    while True:
        page = await call(filters)
        found += getattr(page, rows)
        if page.next_cursor is None:
            return found
        filters = filters.model_copy(update={"cursor": page.next_cursor})


async def threads(world: World, session: str = "s", **page: Any) -> list[str]:
    return [thread.thread_id for thread in (await world.threads(session, **page)).threads]


async def test_C01_an_empty_database_has_empty_lists(world: World) -> None:
    sessions = await world.activity.list_session_summaries(SummaryFilters(viewer=AUDITOR))
    assert (sessions.sessions, sessions.total, sessions.has_more) == ([], 0, False)
    runs = await world.activity.list_runs(RunFilters(viewer=AUDITOR))
    assert (runs.runs, runs.total, runs.next_cursor) == ([], 0, None)
    assert await world.activity.list_models(AUDITOR) == await world.activity.list_clients(AUDITOR) == []


async def test_C02_a_run_lists_its_events_messages_and_tools_oldest_first(world: World) -> None:
    then = NOW - HOUR
    await world.record(
        run("i1", then, "s"),
        *(used("i1", "s", tokens, 0, at=then + tokens * MINUTE) for tokens in (2, 1)),
        *(prompt(f"p{minute}", "i1", "s", then + minute * MINUTE) for minute in (2, 1)),
        *(prompt(f"t{minute}", "i1", "s", then + (minute + 2) * MINUTE, "thought") for minute in (2, 1)),
        *(tool(f"c{minute}", "i1", then + minute * MINUTE) for minute in (2, 1)),
        run("i2"),
    )
    page = await world.activity.list_runs(RunFilters(user_id=A))
    assert [one.run_id for one in page.runs] == ["i2", "i1"]
    i2, i1 = page.runs
    assert [event.tokens_in for event in i1.events] == [1, 2]
    assert [message.message_id for message in i1.messages] == ["p1", "p2", "t1", "t2"]
    assert [step.step_id for step in i1.steps] == ["c1", "c2"]
    assert (i2.events, i2.messages, i2.steps) == ([], [], [])


@pytest.mark.parametrize("descending", [True, False])
async def test_C03_each_run_is_listed_once(world: World, descending: bool) -> None:
    await world.record(*(run(f"i{number:02}", NOW + max(number - 10, 0) * MINUTE) for number in range(20)))
    expected = sorted((f"i{number:02}" for number in range(20)), reverse=descending)
    filters = RunFilters(user_id=A, limit=1, descending=descending)
    by_cursor = [found.run_id for found in await walked(world.activity.list_runs, "runs", filters)]
    by_offset = [(await listed_runs(world, limit=1, offset=offset, descending=descending))[0] for offset in range(20)]
    assert by_cursor == by_offset == expected
    assert (await world.activity.list_runs(filters)).total == 20


async def test_C04_wrong_filters_are_refused_by_name(world: World) -> None:
    calls: list[tuple[type[SummaryFilters | RunFilters], Callable[[Any], Awaitable[Any]]]] = [
        (SummaryFilters, world.activity.list_session_summaries),
        (RunFilters, world.activity.list_runs),
    ]
    for filters, call in calls:
        with pytest.raises(ValidationError, match="limit"):
            filters(limit=501)
        with pytest.raises(ValidationError, match="cursor"):
            filters(cursor="x", offset=1)
        with pytest.raises(InvalidValueError, match="cursor"):
            await call(filters(user_id=A, cursor="unknown"))


async def test_C05_a_run_in_flight_is_listed_with_include_open(world: World) -> None:
    await world.record(run("ended"), run("open", NOW - MINUTE, ended_at=OPEN))
    assert await listed_runs(world) == ["ended"]
    assert await listed_runs(world, include_open=True) == ["ended", "open"]
    assert await world.summarised(include_open=False) == ["ended"]
    assert await world.summarised() == ["ended", "open"]


async def intercept_three(world: World) -> None:
    await world.record(
        run("i1", NOW, provider="one", model="one"),
        run("i2", NOW - HOUR, provider="two", model="two", client="Cursor"),
        run("i3", NOW - 2 * HOUR, user=B, provider="three", model="three", client="Claude Code"),
    )


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["i1", "i2", "i3"]),
        ({"owner_id": A}, ["i1", "i2"]),
        ({"provider": "two"}, ["i2"]),
        ({"model": "three"}, ["i3"]),
        ({"client": "Unknown"}, ["i1"]),
        ({"client": "Cursor"}, ["i2"]),
        ({"client": "nonsense"}, []),
        ({"provider": "two", "model": "three"}, []),
    ],
)
async def test_C06_filters_by_model_client_and_provider(
    world: World, filters: dict[str, Any], expected: list[str]
) -> None:
    await intercept_three(world)
    assert await listed_runs(world, AUDITOR, **filters) == expected
    assert await world.summarised(AUDITOR, **filters) == expected
    own = [found for found in expected if found != "i3"]
    assert await listed_runs(world, **filters) == await world.summarised(**filters) == own


async def hold_many(world: World) -> None:
    """1,500 sessions of four runs each; one run in a thousand is of a rare model and client."""
    await world.sql(
        "INSERT INTO session_lifecycle.session_runs "
        "(user_id, run_id, session_id, root_run_id, started_at, ended_at, first_seen, last_seen, model, client) "
        "SELECT '00000000-0000-0000-0000-000000000001', n::text, 's' || n % 1500, n::text, now(), now(), now(), now(), "
        "kind, kind FROM generate_series(1, 6000) n, "
        "LATERAL (SELECT CASE n % 1000 WHEN 0 THEN 'rare' ELSE 'common' END) x (kind)"
    )
    await world.sql(
        "INSERT INTO session_lifecycle.session_records (user_id, session_id, last_activity_at) "
        "SELECT user_id, session_id, max(last_seen) FROM session_lifecycle.session_runs GROUP BY 1, 2"
    )
    for table in ("session_runs", "session_records"):
        await world.sql(f"ANALYZE session_lifecycle.{table}")


@pytest.mark.parametrize("filters", [{"model": "rare"}, {"client": "rare"}])
async def test_C06_rare_values_are_found_by_an_index(world: World, filters: dict[str, Any]) -> None:
    await hold_many(world)
    [name] = filters
    for total in ("exact", "none"):
        asked: dict[str, Any] = {"user_id": A, "total": total, **filters}
        plan = await world.plan(world.activity.list_session_summaries(SummaryFilters(**asked)))
        key = {"model": "lower_model"}.get(name, name)
        assert f"ix_session_runs_{key}_user_id_session_id" in plan
    assert len(await world.summarised(**filters)) == 3


async def test_C10_a_page_reads_only_the_runs_of_its_sessions(world: World) -> None:
    await hold_many(world)
    for filters in (SummaryFilters(user_id=A, limit=10), SummaryFilters(user_id=A, limit=10, project="default")):
        plan = await world.plan(world.activity.list_session_summaries(filters))
        assert "ix_session_runs_user_id_session_id_started_at_record_no" in plan
    plan = await world.plan(world.activity.list_session_summaries(SummaryFilters(user_id=A, limit=10)))
    assert "Seq Scan on session_runs" not in plan
    runs = await world.plan(world.activity.list_runs(RunFilters(user_id=A, limit=10, total="none")))
    assert "ix_session_runs_user_id_started_at_record_no" in runs
    assert "Seq Scan on session_runs" not in runs


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (10 * MINUTE, None, []),
        (-HOUR - 10 * MINUTE, None, ["i1", "i2"]),
        (None, -2 * HOUR - 10 * MINUTE, []),
        (None, -2 * HOUR + 10 * MINUTE, ["i3"]),
        (-HOUR - 10 * MINUTE, -HOUR + 10 * MINUTE, ["i2"]),
    ],
)
async def test_C07_a_window_is_about_the_start_of_runs(
    world: World, since: timedelta | None, until: timedelta | None, expected: list[str]
) -> None:
    await intercept_three(world)
    begin, end = (None if bound is None else NOW + bound for bound in (since, until))
    assert await world.summarised(AUDITOR, started_since=begin, started_until=end) == expected
    assert await listed_runs(world, AUDITOR, since=begin, until=end) == expected


async def test_C08_a_session_of_two_runs_in_one_thread(world: World) -> None:
    session = "session-A"
    await world.record(
        run("r1", NOW, session, model="z", provider="p"),
        used("r1", session, 100, 50),
        prompt("p1", "r1", session),
        run("r2", NOW + MINUTE, session, model="a", provider="p", root_run_id="r1"),
        used("r2", session, 200, 75),
        prompt("p2", "r2", session, NOW + MINUTE),
    )
    summary = await world.summary(session)
    assert (summary.tokens_in, summary.tokens_out, summary.threads_count) == (300, 125, 1)
    assert (summary.models, summary.providers) == (("a", "z"), ("p",))
    assert summary.last_prompt == "text of p2"


async def test_C09_a_session_is_named_by_the_client_or_by_its_threads_root(world: World) -> None:
    await world.record(
        run("root", NOW),
        run("child", NOW, parent_run_id="root"),
        run("lone", NOW - MINUTE),
        run("one", NOW - HOUR, "named", provider="p2"),
        run("two", NOW - HOUR, "named", provider="p1"),
    )
    root, lone, named = await world.summaries()
    assert (root.session_id, root.runs_count, root.threads_count) == ("root", 2, 1)
    assert (lone.session_id, lone.threads_count, lone.last_prompt) == ("lone", 1, None)
    assert (named.session_id, named.threads_count, named.providers) == ("named", 2, ("p1", "p2"))


async def test_C10_pages_by_offset_and_by_cursor(world: World) -> None:
    await world.record(*(run(f"i{number}", NOW - number * HOUR) for number in range(1, 6)))

    async def page(**part: Any) -> Any:
        found = await world.activity.list_session_summaries(SummaryFilters(user_id=A, limit=2, **part))
        assert found.total == 5
        return [summary.session_id for summary in found.sessions], found.next_cursor

    first, cursor = await page()
    assert first == ["i1", "i2"]
    assert (await page(offset=2))[0] == (await page(cursor=cursor))[0] == ["i3", "i4"]


async def test_C11_filters_hold_together(world: World) -> None:
    await world.record(
        run("i1", NOW, provider="p", model="m"),
        run("i2", NOW, provider="p", model="other"),
        run("i3", NOW - HOUR, provider="p", model="m"),
    )
    since = NOW - MINUTE
    assert await world.summarised(provider="p", model="m", started_since=since) == ["i1"]
    assert await listed_runs(world, provider="p", model="m", since=since) == ["i1"]


async def test_C12_a_window_may_have_an_end_only(world: World) -> None:
    await world.record(run("new"), run("old", NOW - 2 * HOUR))
    assert await world.summarised(started_until=NOW - HOUR) == ["old"]


async def test_C13_equal_session_ids_of_two_users_are_two_sessions(world: World) -> None:
    for user, tokens in ((A, (100, 50)), (B, (200, 75))):
        await world.record(run("r", NOW, "s", user), used("r", "s", *tokens, user=user))
    filters = SummaryFilters(viewer=AUDITOR, limit=1)
    found = await walked(world.activity.list_session_summaries, "sessions", filters)
    assert [(one.user_id, one.tokens_in, one.tokens_out) for one in found] == [(B, 200, 75), (A, 100, 50)]
    runs = await walked(world.activity.list_runs, "runs", RunFilters(viewer=AUDITOR, limit=1))
    assert [(one.user_id, one.tokens_in, len(one.events)) for one in runs] == [(B, 200, 1), (A, 100, 1)]
    for user, tokens_in in ((A, 100), (B, 200)):
        page = await world.threads("s", AUDITOR, owner_id=user)
        assert [(thread.runs_count, thread.tokens_in) for thread in page.threads] == [(1, tokens_in)]
        assert page.session.user_id == user


async def test_C14_the_client_and_the_metadata_are_the_first_runs(world: World) -> None:
    await world.record(
        run("second", NOW + MINUTE, "s", client="jetbrains", metadata={"editor": "jetbrains"}),
        run("first", NOW, "s", client="vscode", metadata={"editor": "vscode"}),
        run("lone", NOW, "lone"),
    )
    summary = await world.summary()
    assert (summary.client, summary.metadata) == ("vscode", {"editor": "vscode"})
    lone = await world.summary("lone")
    assert (lone.client, lone.metadata) == ("Unknown", {})


async def test_C15_a_session_is_seen_from_its_first_start_to_its_last_end(world: World) -> None:
    await world.record(
        run("i1", NOW, "s", ended_at=NOW + MINUTE),
        run("i2", NOW + 2 * MINUTE, "s", ended_at=NOW + 5 * MINUTE),
    )
    summary = await world.summary()
    assert (summary.first_seen, summary.last_seen) == (NOW, NOW + 5 * MINUTE)


async def test_C16_a_cursor_among_ties_gives_each_row_once(world: World) -> None:
    await world.record(*(run(f"i{number}") for number in range(3)))
    everything = await world.summarised()
    first = await world.activity.list_session_summaries(SummaryFilters(viewer=Viewer(A), limit=1))
    rest = await world.summarised(cursor=first.next_cursor)
    assert [first.sessions[0].session_id, *rest] == everything == ["i2", "i1", "i0"]


async def test_C17_a_prompt_is_activity(world: World) -> None:
    await world.record(
        run("X", NOW - 3 * HOUR),
        prompt("px", "X", "X", NOW),
        run("Y", NOW - 2 * HOUR),
        prompt("py", "Y", "Y", NOW - 30 * MINUTE),
        run("Z", NOW - 3 * HOUR),
        prompt("pz", "Z", "Z", NOW - HOUR),
        run("silent", NOW - HOUR - MINUTE),
    )
    assert await world.summarised() == ["X", "Y", "Z", "silent"]


async def test_C18_a_filter_chooses_sessions_and_matching_only_chooses_runs(world: World) -> None:
    for model, tokens in (("m1", (10, 1)), ("m2", (20, 2))):
        await world.record(run(model, NOW, "s", model=model), used(model, "s", *tokens, model=model))
    for matching_only, tokens in ((False, (30, 3)), (True, (10, 1))):
        summary = await world.summary(model="m1", matching_only=matching_only)
        assert (summary.tokens_in, summary.tokens_out) == tokens


async def test_C19_a_thread_is_its_runs_together(world: World) -> None:
    await world.record(
        run("root", NOW, "s", model="m", ended_at=NOW + MINUTE),
        used("root", "s", 100, 50, cache_read_tokens=20, cache_write_tokens=10),
        prompt("earlier", "root", "s", NOW - MINUTE),
        prompt("asked", "root", "s"),
        tool("t2", "root", NOW + MINUTE),
        tool("t1", "root"),
        Step(step_id="span", run_id="root", user_id=A, kind="span", started_at=NOW),
        prompt("hm", "root", "s", role="thought"),
        run("child", NOW + MINUTE, "s", parent_run_id="root", ended_at=NOW + 2 * MINUTE),
        used("child", "s", 200, 100, cache_read_tokens=30),
        prompt("of the child", "child", "s", NOW + MINUTE),
        tool("t3", "child"),
        run("quiet", NOW + MINUTE, "s", parent_run_id="child"),
    )
    page = await world.threads()
    [thread] = page.threads
    assert isinstance(thread, Thread)
    assert (thread.thread_id, thread.runs_count, thread.prompt) == ("root", 3, "text of asked")
    assert (thread.started_at, thread.ended_at) == (NOW, NOW + 2 * MINUTE)
    assert (thread.tokens_in, thread.tokens_out) == (300, 150)
    assert (thread.cache_read_tokens, thread.cache_write_tokens) == (50, 10)
    assert [
        (action.run_id, [step.step_id for step in action.tools], [thought.message_id for thought in action.thoughts])
        for action in thread.actions
    ] == [("root", ["t1", "t2"], ["hm"]), ("child", ["t3"], [])]


async def hold_threads(world: World, number: int) -> None:
    items: list[Item] = []
    for place in range(number):
        items += [run(f"{place:02}", NOW + place * MINUTE, "s"), used(f"{place:02}", "s", 1234, 567)]
    await world.record(*items)


async def test_C20_threads_are_walked_both_ways(world: World) -> None:
    await hold_threads(world, 3)
    assert await threads(world, limit=1) == ["00"]
    assert await threads(world, limit=1, after="00") == ["01"]
    assert await threads(world, limit=1, after="01") == ["02"]
    assert await threads(world, limit=1, after="02") == []
    assert await threads(world, before="02") == ["00", "01"]
    assert await threads(world, before="01") == ["00"]
    assert await threads(world, before="00") == []
    nearest = await world.threads(limit=1, before="02")
    assert ([thread.thread_id for thread in nearest.threads], nearest.has_more) == (["01"], True)


async def test_C21_the_session_is_whole_on_every_page(world: World) -> None:
    await hold_threads(world, 3)
    after = None
    has_more = []
    for _ in range(3):
        page = await world.threads(limit=1, after=after)
        assert (page.session.tokens_in, page.session.tokens_out, page.session.threads_count) == (3702, 1701, 3)
        after = page.threads[-1].thread_id
        has_more.append(page.has_more)
    assert has_more == [True, True, False]


async def test_C22_an_anchor_that_is_no_thread_of_the_session_is_refused(world: World) -> None:
    await hold_threads(world, 2)
    await world.record(run("elsewhere", NOW, "other"), run("child", NOW, "s", parent_run_id="00"))
    for thread in ("unknown", "elsewhere", "child"):
        with pytest.raises(InvalidValueError, match="after"):
            await world.activity.list_threads("s", A, after=thread)
        with pytest.raises(InvalidValueError, match="before"):
            await world.activity.list_threads("s", A, before=thread)
    with pytest.raises(InvalidValueError, match="before"):
        await world.activity.list_threads("s", A, after="00", before="01")
    with pytest.raises(InvalidValueError, match="limit"):
        await world.activity.list_threads("s", A, limit=501)


async def test_C23_every_thread_has_its_own_figures(world: World) -> None:
    await hold_threads(world, 55)
    page = await world.threads(limit=200)
    assert [(thread.tokens_in, thread.tokens_out) for thread in page.threads] == [(1234, 567)] * 55
    assert not page.has_more


async def test_C27_clients_are_listed_once(world: World) -> None:
    clients: Sequence[str | None] = ("Cursor", "Cursor", "Claude Code", None, "Unknown")
    await world.record(*(run(f"i{number}", client=client) for number, client in enumerate(clients)))
    await world.record(run("open", client="Zed", ended_at=OPEN))
    assert await world.activity.list_clients(A) == ["Claude Code", "Cursor", "Unknown"]


async def test_C28_a_prefix_is_matched_literally(world: World) -> None:
    await world.record(run("i1", model="gpt-4o"), run("i2", model="gpt_x"))
    assert await world.activity.list_models(A, "gpt_") == ["gpt_x"]
    assert await world.activity.list_models(A) == ["gpt-4o", "gpt_x"]
