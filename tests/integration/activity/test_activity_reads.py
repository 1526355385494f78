"""Reads of activity beyond the acceptance rows: visibility, walks over changing tables, exact values."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from session_lifecycle import (
    InvalidValueError,
    Message,
    Run,
    RunFilters,
    SessionActivityDb,
    SessionDatabase,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import Item, Lineage
from session_lifecycle.roles import SessionRoles

A, B, C, SHARED = (UUID(int=number) for number in (1, 2, 3, 9))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
AUDITOR = Viewer.auditor()


def moment(second: float) -> datetime:
    return NOON + second * SECOND


def run(run_id: str, second: float = 0, user: UUID = A, **more: Any) -> Run:
    times = {"started_at": moment(second), "ended_at": moment(second + 1)}
    return Run(run_id=run_id, user_id=user, **{**times, **more})


def said(message_id: str, session: str, content: str, user: UUID = A, **more: Any) -> Message:
    fields = {"role": "user", "created_at": NOON, **more}
    return Message(message_id=message_id, user_id=user, session_id=session, content=content, **fields)


def life(user: UUID, secret: str, **more: Any) -> list[Item]:
    """A session `s` of this user with one item of each kind; every text names the secret."""
    names = {"agent_name": secret, "client": secret, "provider": secret, "model": secret, "project": secret}
    return [
        run("root", 0, user, session_id="s", reported_cost_usd=1, metadata={"of": secret}, **names, **more),
        run("child", 1, user, parent_run_id="root", status="failed", error=secret, **names),
        run("waiting", 2, user, parent_run_id=f"unknown {secret}", **names),
        Step(
            step_id="call",
            run_id="root",
            user_id=user,
            kind="tool",
            started_at=NOON,
            tool_call_id="c1",
            inputs=secret,
            errors=[secret],
        ),
        said("prompt", "s", f"prompt of {secret}", user, run_id="root"),
        said("thought", "s", f"thought of {secret}", user, run_id="root", role="thought"),
        UsageEvent(
            session_id="s",
            user_id=user,
            model=secret,
            tokens_in=10,
            tokens_out=5,
            cost_usd=2,
            run_id="root",
            idempotency_key="k",
            at=NOON,
        ),
    ]


async def record(db: SessionDatabase, *items: Item) -> None:
    await db.lifecycle.record(items)


async def everything(activity: SessionActivityDb, viewer: Viewer, owner: UUID | None, **names: str) -> str:
    """The answers of every read with every parameter for this viewer, as text."""
    found: list[Any] = []
    for total in ("exact", "bounded", "none"):
        alone: list[dict[str, Any]] = [{}, {"include_open": False}, {"search": "prompt"}, {"session_id": "s"}]
        for more in (*alone, *_each(names)):
            asked: dict[str, Any] = {"viewer": viewer, "owner_id": owner, "total": total, **more}
            found.append(await activity.list_session_summaries(SummaryFilters(**asked, matching_only="model" in more)))
            asked.pop("search", None)
            found.append(await activity.list_runs(RunFilters(**{"include_open": True, **asked})))
    for project in (None, names["project"]):
        found += [await activity.get_session_detail("s", viewer, owner_id=owner, project=project)]
    found.append(await activity.list_threads("s", viewer, owner_id=owner))
    for after, before in (("root", None), (None, "root")):
        try:
            found.append(await activity.list_threads("s", viewer, owner_id=owner, after=after, before=before))
        except InvalidValueError as error:
            found.append(error)
    for limit, most in ((None, None), (1, None), (None, 1000)):
        found += [await activity.chat_history("s", viewer, owner_id=owner, limit=limit, max_characters=most)]
    found += [await activity.list_models(viewer), await activity.list_models(viewer, names["model"][:1])]
    found += [await activity.list_clients(viewer), await activity.list_agents(viewer)]
    return repr(found)


def _each(names: dict[str, str]) -> list[dict[str, str]]:
    return [{name: value} for name, value in names.items()]


def names_of(secret: str) -> dict[str, str]:
    return dict.fromkeys(("agent_name", "client", "provider", "model", "project"), secret)


async def test_R11_no_read_shows_a_stranger_anything(session_database: SessionDatabase) -> None:
    """Also where the stranger has a session, runs, calls and messages of the same ids."""
    await record(session_database, *life(A, "hers", dataset_id=SHARED))
    activity = session_database.activity
    nothing = await everything(activity, Viewer(C), None, **names_of("hers"))
    assert nothing == await everything(activity, Viewer(C), A, **names_of("hers"))
    await record(session_database, *life(B, "his"))
    assert nothing == await everything(activity, Viewer(C), None, **names_of("hers"))
    assert nothing == await everything(activity, Viewer.of_users([]), None, **names_of("hers"))
    his = await everything(activity, Viewer(B), None, **names_of("his"))
    assert "hers" not in his
    await record(session_database, said("new", "s", "of hers"), run("new", 5, session_id="s", model="hers"))
    assert his == await everything(activity, Viewer(B), None, **names_of("his"))
    assert await activity.find_lineage(C, "c1") is None
    for sees in (Viewer(B, agent_user_ids=[A]), Viewer(B, [SHARED]), AUDITOR):
        assert "hers" in await everything(activity, sees, None, **names_of("hers"))


async def test_R11_only_the_owner_and_the_auditor_see_a_run_outside_a_session(
    session_database: SessionDatabase,
) -> None:
    await record(session_database, *life(A, "hers", dataset_id=SHARED))

    async def sees(viewer: Viewer) -> tuple[list[str], int | None]:
        page = await session_database.activity.list_runs(RunFilters(viewer=viewer))
        return [found.run_id for found in page.runs], page.total

    for viewer in (Viewer(A), Viewer(B, agent_user_ids=[A]), AUDITOR):
        assert await sees(viewer) == (["waiting", "child", "root"], 3)
    assert await sees(Viewer(B, [SHARED])) == (["child", "root"], 2)


async def test_R11_a_run_does_not_show_what_belongs_to_another_session(session_database: SessionDatabase) -> None:
    """One session is shared; the messages, usage and thread of the other session are not."""
    # The event came before its run, and stays in the session that counted it.
    await record(
        session_database,
        UsageEvent(session_id="private", user_id=A, model="private-model", tokens_in=1, run_id="child", at=NOON),
    )
    await record(
        session_database,
        Touch(session_id="private", user_id=A),
        run("root", 0, session_id="private", name="private root"),
        run("child", 1, session_id="shared", parent_run_id="root", dataset_id=SHARED),
        said("m1", "private", "private message", run_id="child", created_at=moment(1)),
        said("m2", "private", "private prompt", run_id="root"),
    )
    viewer = Viewer(B, [SHARED])
    assert "private" not in await everything(session_database.activity, viewer, None, model="none", project="none")
    page = await session_database.activity.list_threads("shared", viewer)
    assert page is not None
    assert [(thread.thread_id, thread.started_at, thread.prompt) for thread in page.threads] == [
        ("root", moment(1), None)
    ]


async def test_R15_the_viewers_own_session_comes_first_among_several(session_database: SessionDatabase) -> None:
    activity = session_database.activity
    await record(session_database, *life(A, "hers"), *life(B, "his", dataset_id=SHARED))
    viewer = Viewer(A, [SHARED])
    for owner, expected in ((None, A), (B, B)):
        detail = await activity.get_session_detail("s", viewer, owner_id=owner)
        page = await activity.list_threads("s", viewer, owner_id=owner)
        history = await activity.chat_history("s", viewer, owner_id=owner)
        assert detail is not None
        assert page is not None
        assert {detail.summary.user_id, page.session.user_id, *(one.user_id for one in history)} == {expected}


async def test_find_lineage_takes_the_newest_call(session_database: SessionDatabase) -> None:
    calls = [("lone", "c1", 0), ("child", "c1", 1), ("lone", "c2", 5), ("unheard of", "c3", 5)]
    await record(
        session_database,
        run("root", session_id="s"),
        run("child", parent_run_id="root"),
        run("lone"),
        *(
            Step(step_id=f"{call}", run_id=run_id, user_id=A, kind="tool", started_at=moment(at), tool_call_id=call)
            for run_id, call, at in calls
        ),
    )
    find = session_database.activity.find_lineage
    assert await find(A, "c1") == Lineage(parent_run_id="child", root_run_id="root")
    assert await find(A, "c2") == Lineage(parent_run_id="lone", root_run_id="lone")
    assert await find(A, "c3") == Lineage(parent_run_id="unheard of", root_run_id="unheard of")
    assert (await find(A, "c4"), await find(B, "c1")) == (None, None)


async def test_recorded_activity_is_read_back_unchanged(session_database: SessionDatabase) -> None:
    """Money to the last decimal, times to the microsecond, and payloads of every kind, all through JSON."""
    payload: dict[str, Any] = {
        "text": 'quotes " and \\ and é 🦊',
        "numbers": [0, -1, 2**70, 0.1, 1e-7],
        "none": None,
        "deep": [[[{}]]],
    }
    recorded = run(
        "r",
        session_id="s",
        started_at=moment(0.000001),
        reported_cost_usd=Decimal("0.123456789012345678901234567891"),
        reported_tokens=10**12,
        input=payload,
        output=False,
        metadata={"a": payload},
        quality_score=0.1,
        dataset_id=SHARED,
        name="ünïcode",
        parent_tool_call_id="unknown",
    )
    step = Step(
        step_id="x",
        run_id="r",
        user_id=A,
        seq=0,
        kind="span",
        started_at=NOON,
        inputs=payload,
        errors=[None],
        metadata={},
    )
    message = said("m", "s", "a\nb\t'\"", run_id="r", metadata={"k": [payload]})
    cost = Decimal("0.000000000000000000000000000001")
    event = UsageEvent(
        session_id="s",
        user_id=A,
        model="m",
        tokens_in=1,
        tokens_out=2,
        cost_usd=cost,
        errored=True,
        run_id="r",
        at=moment(0.5),
        reasoning_tokens=1,
    )
    await record(session_database, recorded, step, message, event)
    detail = await session_database.activity.get_session_detail("s", A)
    assert detail is not None
    [found] = detail.runs
    unlike = {"root_run_id"}
    assert found.model_dump(include=Run.model_fields.keys() - unlike) == recorded.model_dump(exclude=unlike)
    assert (found.steps, found.messages, detail.messages) == ([step], [message], [message])
    assert (found.root_run_id, found.cost_usd) == ("r", recorded.reported_cost_usd)
    [used] = found.events
    assert (used.at, used.cost_usd, used.errored, used.reasoning_tokens, used.late) == (
        moment(0.5),
        cost,
        True,
        1,
        False,
    )
    assert (await session_database.activity.list_runs(RunFilters(user_id=A))).runs == [found]
    [one] = await session_database.activity.chat_history("s", A)
    assert one == message


async def test_the_detail_of_a_project_leaves_out_everything_else(session_database: SessionDatabase) -> None:
    await record(
        session_database,
        run("p", session_id="s", project="p"),
        run("q", 1, session_id="s", project="q", status="failed"),
        Step(step_id="x", run_id="q", user_id=A, kind="task", started_at=NOON, errors="boom"),
        said("1", "s", "of p", run_id="p"),
        said("2", "s", "of q", run_id="q", created_at=moment(1)),
        said("3", "s", "of none", created_at=moment(2)),
        UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1, tokens_out=2, cost_usd=3, run_id="p", at=NOON),
        UsageEvent(session_id="s", user_id=A, model="m", tokens_in=10, tokens_out=20, cost_usd=30, at=NOON),
    )
    detail = await session_database.activity.get_session_detail("s", A, project="p")
    assert detail is not None
    summary = detail.summary
    assert (summary.runs_count, summary.steps_count, summary.messages_count, summary.errors_count) == (1, 0, 1, 0)
    assert (summary.cost_usd, summary.tokens_total, summary.record.cost_usd) == (Decimal(3), 3, Decimal(33))
    assert (summary.first_message, summary.last_message) == ("of p", "of p")
    assert [message.content for message in detail.messages] == ["of p"]
    whole = await session_database.activity.get_session_detail("s", A)
    assert whole is not None
    assert (whole.summary.messages_count, whole.summary.errors_count, whole.summary.cost_usd) == (3, 1, Decimal(33))


async def test_a_summary_without_open_runs_counts_the_ended_ones(session_database: SessionDatabase) -> None:
    opened: dict[str, Any] = {"ended_at": None}
    await record(
        session_database,
        run("ended", session_id="s", model="m"),
        run("open", 1, session_id="s", model="n", reported_cost_usd=8, **opened),
        said("1", "s", "of the ended", run_id="ended"),
        said("2", "s", "of the open", run_id="open", created_at=moment(1)),
        said("3", "s", "of none", created_at=moment(2)),
        UsageEvent(
            session_id="s", user_id=A, model="m", tokens_in=1, tokens_out=1, cost_usd=1, run_id="ended", at=NOON
        ),
        UsageEvent(session_id="s", user_id=A, model="m", tokens_in=2, tokens_out=2, cost_usd=2, run_id="open", at=NOON),
        UsageEvent(session_id="s", user_id=A, model="m", tokens_in=4, tokens_out=4, cost_usd=4, at=NOON),
        Touch(session_id="without runs", user_id=A, at=NOON),
        run("in flight", session_id="in flight", **opened),
    )

    async def listed(**filters: Any) -> dict[str, tuple[int, int, Decimal, int]]:
        page = await session_database.activity.list_session_summaries(SummaryFilters(user_id=A, **filters))
        return {
            one.session_id: (one.runs_count, one.messages_count, one.cost_usd, one.tokens_in) for one in page.sessions
        }

    everything_of_s, nothing = (2, 3, Decimal(13), 7), (0, 0, Decimal(0), 0)
    assert await listed() == {"s": everything_of_s, "without runs": nothing, "in flight": (1, 0, Decimal(0), 0)}
    assert await listed(include_open=False) == {"s": (1, 2, Decimal(5), 5), "without runs": nothing}
    assert await listed(include_open=False, model="n") == {}
    assert await listed(include_open=False, model="m", matching_only=True) == {"s": (1, 1, Decimal(1), 1)}


@pytest.mark.parametrize(
    "order_by", ["last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out"]
)
@pytest.mark.parametrize("descending", [True, False])
async def test_R14_a_walk_over_changing_tables_gives_each_row_once(
    session_database: SessionDatabase, order_by: str, descending: bool
) -> None:
    """Rows with equal times, figures and session ids of two users, while other sessions come and move."""
    quiet = [(user, f"quiet {number}") for number in range(5) for user in (A, B)]
    await record(session_database, *(run(name, 0, user, session_id=name) for user, name in quiet))
    sessions: list[tuple[UUID, str]] = []
    runs: list[tuple[UUID, str]] = []
    sessions_asked = SummaryFilters(viewer=AUDITOR, limit=3, order_by=order_by, descending=descending)
    runs_asked = RunFilters(viewer=AUDITOR, limit=3, descending=descending)
    for number in range(10):
        summaries = await session_database.activity.list_session_summaries(sessions_asked)
        sessions += [(one.user_id, one.session_id) for one in summaries.sessions]
        listed = await session_database.activity.list_runs(runs_asked)
        runs += [(one.user_id, one.run_id) for one in listed.runs]
        if summaries.next_cursor is None and listed.next_cursor is None:
            break
        await record(
            session_database,
            run(f"new {number}", number - 5, session_id=f"new {number}"),
            UsageEvent(
                session_id="new 0", user_id=A, model="m", tokens_in=1, tokens_out=1, cost_usd=1, at=moment(number)
            ),
        )
        sessions_asked = sessions_asked.model_copy(update={"cursor": summaries.next_cursor or sessions_asked.cursor})
        runs_asked = runs_asked.model_copy(update={"cursor": listed.next_cursor or runs_asked.cursor})
    for walk in (sessions, runs):
        unchanged = list(dict.fromkeys(one for one in walk if one in quiet))
        assert sorted(unchanged) == sorted(quiet)


async def test_a_cursor_is_refused_with_other_filters(session_database: SessionDatabase) -> None:
    activity = session_database.activity
    await record(session_database, *(run(f"r{number}", session_id=f"s{number}", project="p") for number in range(3)))
    sessions = await activity.list_session_summaries(SummaryFilters(user_id=A, limit=1))
    runs = await activity.list_runs(RunFilters(user_id=A, limit=1))
    for other in ({"project": "p"}, {"search": "x"}, {"order_by": "cost_usd"}, {"descending": False}):
        with pytest.raises(InvalidValueError, match="cursor"):
            await activity.list_session_summaries(SummaryFilters(user_id=A, cursor=sessions.next_cursor, **other))
    with pytest.raises(InvalidValueError, match="cursor"):
        await activity.list_session_summaries(SummaryFilters(user_id=A, cursor=runs.next_cursor))
    with pytest.raises(InvalidValueError, match="cursor"):
        await activity.list_runs(RunFilters(user_id=A, cursor=sessions.next_cursor))
    with pytest.raises(InvalidValueError, match="cursor"):
        await activity.list_runs(RunFilters(user_id=B, cursor=runs.next_cursor))


async def test_R18_a_page_comes_from_one_snapshot(session_database: SessionDatabase) -> None:
    """While a writer records runs and their usage together, every answer has both or neither."""

    async def write() -> None:
        for number in range(60):
            event = UsageEvent(
                session_id="s",
                user_id=A,
                model="m",
                tokens_in=1,
                tokens_out=0,
                cost_usd=1,
                run_id=f"r{number}",
                idempotency_key=f"{number}",
                at=NOON,
            )
            await record(session_database, run(f"r{number}", number, session_id="s"), event)

    writing = asyncio.create_task(write())
    activity = session_database.activity
    while not writing.done():
        page = await activity.list_session_summaries(SummaryFilters(user_id=A))
        assert page.total == len(page.sessions)
        for one in page.sessions:
            assert one.runs_count == one.cost_usd == one.tokens_in == one.record.tokens_in
        detail = await activity.get_session_detail("s", A)
        if detail is not None:
            assert detail.summary.runs_count == len(detail.runs) == sum(len(found.events) for found in detail.runs)
        runs = await activity.list_runs(RunFilters(user_id=A, limit=100))
        assert runs.total == len(runs.runs) == sum(found.tokens_in for found in runs.runs)
    await writing


async def test_a_bounded_total_stops_counting(
    session_database: SessionDatabase, set_bound: Callable[[str, int], None]
) -> None:
    for module in ("pages", "statements.shared.paging"):
        set_bound(f"session_lifecycle.{module}.TOTAL_BOUND", 2)
    await record(session_database, *(run(f"r{number}", session_id=f"s{number}") for number in range(4)))
    activity = session_database.activity
    sessions = await activity.list_session_summaries(SummaryFilters(user_id=A, total="bounded"))
    runs = await activity.list_runs(RunFilters(user_id=A, total="bounded"))
    assert [(page.total, page.total_is_lower_bound) for page in (sessions, runs)] == [(2, True), (2, True)]
    assert (len(sessions.sessions), len(runs.runs)) == (4, 4)
    assert (await activity.list_runs(RunFilters(user_id=A, total="none"))).total is None


async def test_run_filters_by_dataset_session_and_owner(session_database: SessionDatabase) -> None:
    await record(
        session_database,
        Touch(session_id="s", user_id=A, dataset_id=SHARED, agent_name="of the session", at=NOON),
        run("r", session_id="s", agent_name="of the run"),
        run("other", session_id="other"),
    )
    activity = session_database.activity
    for filters, expected in (
        ({"dataset_id": SHARED}, ["r"]),
        ({"session_id": "other"}, ["other"]),
        ({"agent_name": "of the run"}, ["r"]),
        ({"agent_name": "of the session"}, []),
        ({"owner_id": B}, []),
    ):
        page = await activity.list_runs(RunFilters(user_id=A, **filters))
        assert [found.run_id for found in page.runs] == expected
    assert await activity.list_agents(A) == ["of the run", "of the session"]


async def test_a_run_that_was_only_named_is_not_listed(session_database: SessionDatabase) -> None:
    await record(
        session_database,
        Step(step_id="x", run_id="placeholder", user_id=A, kind="tool", started_at=NOON),
        UsageEvent(
            session_id="s", user_id=A, model="m", tokens_in=1, tokens_out=0, cost_usd=1, run_id="placeholder", at=NOON
        ),
        run("r", session_id="s", root_run_id="placeholder"),
    )
    activity = session_database.activity
    [summary] = (await activity.list_session_summaries(SummaryFilters(user_id=A))).sessions
    assert (summary.runs_count, summary.steps_count, summary.cost_usd) == (1, 0, Decimal(1))
    assert [found.run_id for found in (await activity.list_runs(RunFilters(user_id=A))).runs] == ["r"]
    page = await activity.list_threads("s", A)
    assert page is not None
    assert [(thread.thread_id, thread.runs_count) for thread in page.threads] == [("placeholder", 1)]


async def test_an_open_thread_has_no_end(session_database: SessionDatabase) -> None:
    await record(session_database, run("r", session_id="s"), run("c", session_id="s", parent_run_id="r", ended_at=None))
    page = await session_database.activity.list_threads("s", A)
    assert page is not None
    assert [(thread.runs_count, thread.ended_at) for thread in page.threads] == [(2, None)]


async def test_steps_are_ordered_by_start_then_seq(session_database: SessionDatabase) -> None:
    placed: list[tuple[str, int | None, float]] = [("a", None, 1), ("b", 2, 1), ("c", 1, 1), ("d", None, 0)]
    steps = [
        Step(step_id=step_id, run_id="r", user_id=A, seq=seq, kind="span", started_at=moment(at))
        for step_id, seq, at in placed
    ]
    await record(session_database, run("r", session_id="s"), *steps)
    [found] = (await session_database.activity.list_runs(RunFilters(user_id=A))).runs
    assert [step.step_id for step in found.steps] == ["d", "c", "b", "a"]


@pytest.fixture
async def ways(session_database: SessionDatabase) -> AsyncIterator[list[SessionDatabase | SessionRoles]]:
    async with session_database.engine.begin() as host:
        await host.execute(text("SET LOCAL timezone = 'Asia/Kathmandu'"))
        yield [session_database, session_database.bind(host)]


async def test_every_way_in_gives_the_same_answers_in_utc(
    session_database: SessionDatabase, ways: list[SessionDatabase | SessionRoles]
) -> None:
    await record(session_database, *life(A, "hers"))
    direct, bound = [await everything(way.activity, Viewer(A), None, **names_of("hers")) for way in ways]
    assert direct == bound
    assert "Kathmandu" not in direct
    assert "+05:45" not in direct


async def test_wrong_arguments_are_refused_by_name(session_database: SessionDatabase) -> None:
    activity: Any = session_database.activity  # as a host without a type checker has it
    naive = datetime.fromisoformat("2026-01-01")
    bad: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("session_id", lambda: activity.get_session_detail(" ", A)),
        ("owner_id", lambda: activity.get_session_detail("s", A, owner_id="x")),
        ("project", lambda: activity.get_session_detail("s", A, project="\x00")),
        ("viewer", lambda: activity.get_session_detail("s", "x")),
        ("limit", lambda: activity.list_threads("s", A, limit=0)),
        ("limit", lambda: activity.chat_history("s", A, limit=0)),
        ("max_characters", lambda: activity.chat_history("s", A, max_characters=-1)),
        ("prefix", lambda: activity.list_models(A, "\x00")),
        ("tool_call_id", lambda: activity.find_lineage(A, "")),
        ("filters", lambda: activity.list_runs(SummaryFilters(user_id=A))),
        ("filters", lambda: activity.list_session_summaries(RunFilters(user_id=A))),
    ]
    for field, call in bad:
        with pytest.raises(InvalidValueError, match=field):
            await call()
    for fields in (
        {"order_by": "title"},
        {"since": naive},
        {"search": "\x00"},
        {"viewer": Viewer(A), "user_id": A},
        {"status_filter": "zombie"},
    ):
        with pytest.raises(ValidationError, match=next(iter(fields))):
            SummaryFilters(**fields)
    with pytest.raises(ValidationError, match="until"):
        RunFilters(since=moment(1), until=moment(0))
