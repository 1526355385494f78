"""Every answer has a bound in rows and in bytes: beyond it the answer is paged or refused (finding X15, rule R25)."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from session_lifecycle import (
    InvalidValueError,
    Message,
    Run,
    RunFilters,
    SessionActivityDb,
    SessionBudgetsDb,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    SessionReportsDb,
    SessionWriter,
    Step,
    SummaryFilters,
    UsageEvent,
    Viewer,
    activity,
    reports,
    repository,
)
from session_lifecycle.models import Budget, Item, UsageEventFilters, pages
from session_lifecycle.statements.activity import summary_figures
from support.world import World

A = UUID(int=1)
AUDITOR = Viewer.auditor()
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WINDOW: dict[str, Any] = {"since": NOON - timedelta(days=5), "until": NOON + timedelta(days=5)}
MOST, STORED = 3, 5
LESS, LESS_OF_STEPS = "a lower limit", "a lower limit or steps_limit"
Ask = Callable[[SessionDatabase, int], Awaitable[Any]]

# The calls that take a limit, and how each is asked with one.
LIMITED: dict[str, Ask] = {
    "list_session_rows": lambda db, n: db.lifecycle.list_session_rows(
        SessionListFilters.of_call(viewer=AUDITOR, limit=n)
    ),
    "list_session_summaries": lambda db, n: db.activity.list_session_summaries(
        SummaryFilters.of_call(viewer=AUDITOR, limit=n)
    ),
    "list_runs": lambda db, n: db.activity.list_runs(RunFilters.of_call(viewer=AUDITOR, limit=n)),
    "list_usage_events": lambda db, n: db.activity.list_usage_events(
        UsageEventFilters.of_call(viewer=AUDITOR, limit=n)
    ),
    "get_session_detail": lambda db, n: db.activity.get_session_detail("s", A, limit=n),
    "get_recent_activity": lambda db, n: db.activity.get_recent_activity("s", A, limit=n),
    "list_threads": lambda db, n: db.activity.list_threads("s", A, limit=n),
    "chat_history": lambda db, n: db.activity.chat_history("s", A, limit=n),
    "list_annotations": lambda db, n: db.lifecycle.list_annotations("s", A, limit=n),
    "usage": lambda db, n: db.reports.usage(AUDITOR, group_by=("model",), limit=n),
    "list_budgets": lambda db, n: db.budgets.list_budgets(AUDITOR, limit=n),
}
# The calls whose rows depend on what is stored, and that are asked without a limit.
WHOLE: dict[str, Ask] = {
    "list_annotations": lambda db, _: db.lifecycle.list_annotations("s", A),
    "chat_history": lambda db, _: db.activity.chat_history("s", A),
    "cost_by_model": lambda db, _: db.lifecycle.cost_by_model(AUDITOR),
    "list_models": lambda db, _: db.activity.list_models(AUDITOR),
    "list_clients": lambda db, _: db.activity.list_clients(AUDITOR),
    "list_agents": lambda db, _: db.activity.list_agents(AUDITOR),
    "usage_timeseries": lambda db, _: db.reports.usage_timeseries(AUDITOR, group_by="model", **WINDOW),
    "tokens_by_class": lambda db, _: db.reports.tokens_by_class(AUDITOR),
    "cost_by_agent": lambda db, _: db.reports.cost_by_agent(AUDITOR),
    "cost_by_user": lambda db, _: db.reports.cost_by_user(AUDITOR),
    "cost_by_user_agent": lambda db, _: db.reports.cost_by_user_agent(AUDITOR),
    "run_durations": lambda db, _: db.reports.run_durations(AUDITOR),
    "list_telemetry_keys": lambda db, _: db.reports.list_telemetry_keys(AUDITOR),
}
# The calls whose answers have no rows.
SINGLE: dict[str, Ask] = {
    "get_session_row": lambda db, _: db.lifecycle.get_session_row("s", A),
    "aggregate_stats": lambda db, _: db.lifecycle.aggregate_stats(AUDITOR),
    "get_family_figures": lambda db, _: db.lifecycle.get_family_figures("s", A),
    "find_lineage": lambda db, _: db.activity.find_lineage(A, "call"),
    "spend": lambda db, _: db.reports.spend(AUDITOR),
    "session_durations": lambda db, _: db.reports.session_durations(AUDITOR),
    "telemetry": lambda db, _: db.reports.telemetry(AUDITOR),
    "get_budget": lambda db, _: db.budgets.get_budget("b0", A),
}
# Its answer is bounded where budgets are set: twenty have the same user, session, agent and dataset.
OF_BUDGETS = {"would_exceed"}
WRITES = {"update_session", "annotate_session", "set_budget", "delete_budget", "reserve", "release"}
# What a row has at most is bounded where it is written, or by the enum that it has a field for.
OF_ONE_ROW = {"metadata", "tags", "details", "by_status"}


ROLES = (SessionLifecycleDb, SessionActivityDb, SessionReportsDb, SessionBudgetsDb)


def test_X15_every_read_is_tried_here() -> None:
    """A new read without an entry, and so without a bound that is tried, fails."""
    reads = {
        name
        for role in ROLES
        for name, _ in inspect.getmembers(role, inspect.iscoroutinefunction)
        if not name.startswith("_") and not hasattr(SessionWriter, name)
    }
    assert reads - WRITES == {*LIMITED, *WHOLE, *SINGLE, *OF_BUDGETS}
    takes_limit = {name for role in ROLES for name in reads if "limit" in parameters(role, name)}
    assert takes_limit - LIMITED.keys() == set()


def parameters(role: type, name: str) -> set[str]:
    member = getattr(role, name, None)
    return set() if member is None else set(inspect.signature(member).parameters)


def lengths(answer: Any) -> Iterator[int]:
    """The length of every collection in an answer."""
    match answer:
        case BaseModel():
            for name, value in answer:
                if name not in OF_ONE_ROW:
                    yield from lengths(value)
        case list() | tuple():
            yield len(answer)
            for one in answer:
                yield from lengths(one)
        case dict():
            yield len(answer)
            for one in answer.values():
                yield from lengths(one)
        case _:
            return


def rows_of(answer: Any) -> int:
    return max(lengths(answer), default=0)


@pytest.fixture
async def db(session_database: SessionDatabase) -> SessionDatabase:
    items: list[Item] = []
    for number in range(STORED):
        at = NOON + timedelta(minutes=number)
        for user in {A, UUID(int=number + 1)}:
            named: dict[str, Any] = {"user_id": user, "run_id": f"r{number}"}
            of_run = {name: f"{name} {number}" for name in ("agent_name", "client", "provider", "model")}
            items.append(Run(**named, session_id="s", started_at=at, ended_at=at, **of_run))
            items.append(UsageEvent(**named, session_id="s", model=f"m{number}", tokens_in=1, cost_usd=1, at=at))
            tool: dict[str, Any] = {"kind": "tool", "tool_call_id": "call", "started_at": at}
            items += [Step(**named, step_id=str(step), **tool) for step in range(STORED)]
            said: dict[str, Any] = {"message_id": str(number), "session_id": "s", "created_at": at}
            items.append(Message(**named, **said, role="user", content="x" * 10))
    await session_database.lifecycle.record(items)
    for number in range(STORED):
        await session_database.lifecycle.annotate_session("s", A, f"n{number}")
        await session_database.budgets.set_budget(Budget(budget_id=f"b{number}", user_id=A, limit_usd=1))
        touched = session_database.lifecycle.ensure_and_touch_session
        await touched(f"s{number}", UUID(int=number + 1), agent_name=f"a{number}", at=NOON)
    return session_database


@pytest.fixture
def bounds(set_bound: Callable[[str, int], None]) -> Callable[[str, int], None]:
    """Sets a bound wherever it is used."""

    def set_everywhere(name: str, most: int) -> None:
        for module in (activity, repository, reports, pages, summary_figures):
            if hasattr(module, name):
                set_bound(f"{module.__name__}.{name}", most)

    return set_everywhere


ROW_BOUNDS = ("MOST_ROWS", "MOST_POINTS", "MOST_PARTS", "MOST_ANNOTATIONS", "MOST_MESSAGES", "MOST_NAMES")


@pytest.mark.parametrize("name", WHOLE)
async def test_X15_R25_an_answer_without_a_limit_has_a_bound(
    db: SessionDatabase, bounds: Callable[[str, int], None], name: str
) -> None:
    assert rows_of(await WHOLE[name](db, 0)) >= STORED
    for bound in ROW_BOUNDS:
        bounds(bound, MOST)
    if name == "chat_history":
        # The newest messages that fit: the bound is a limit like the caller's own.
        assert rows_of(await WHOLE[name](db, 0)) == MOST
        return

    async def refused() -> None:
        with pytest.raises(InvalidValueError, match=f"at most {MOST} "):
            await WHOLE[name](db, 0)

    # No more rows are sent than one answer may have, and one more.
    [(statement, _)] = await World(db).statements(refused())
    assert "LIMIT" in statement.rsplit("ORDER BY", 1)[1]


@pytest.mark.parametrize("name", LIMITED)
async def test_X15_R25_a_limit_has_a_bound_and_bounds_the_answer(
    db: SessionDatabase, bounds: Callable[[str, int], None], name: str
) -> None:
    for limit in (0, 10_001):
        with pytest.raises(InvalidValueError) as refused:
            await LIMITED[name](db, limit)
        assert refused.value.field == "limit"
    bounds("MOST_NAMES", MOST)
    assert rows_of(await LIMITED[name](db, 1)) <= STORED  # the steps of one run
    bounds("MOST_PARTS", MOST)
    if name not in {"list_runs", "get_session_detail", "list_threads"}:
        assert rows_of(await LIMITED[name](db, MOST)) == MOST
        return
    less = LESS if name == "list_threads" else LESS_OF_STEPS
    with pytest.raises(InvalidValueError, match=f"{less}: at most {MOST} steps, messages and events in its runs"):
        await LIMITED[name](db, MOST)


@pytest.mark.parametrize("name", SINGLE)
async def test_X15_R25_an_answer_without_rows_has_none(db: SessionDatabase, name: str) -> None:
    answer = await SINGLE[name](db, 0)
    assert answer is not None
    assert list(lengths(answer)) == []


async def test_X15_annotations_beyond_the_bound_come_in_pages(
    db: SessionDatabase, bounds: Callable[[str, int], None]
) -> None:
    bounds("MOST_ANNOTATIONS", MOST)
    lifecycle = db.lifecycle
    with pytest.raises(InvalidValueError, match=r"limit: got None, expected a limit: at most 3 rows in one answer"):
        await lifecycle.list_annotations("s", A)
    walk = [await lifecycle.list_annotations("s", A, limit=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [[one.name for one in page] for page in walk] == [["n0", "n1"], ["n2", "n3"], ["n4"], []]
    assert len(await lifecycle.list_annotations("s", A, offset=2)) == 3


ERROR = "ü" * 30
TEXTS: dict[str, tuple[int, Callable[[SessionDatabase], Awaitable[Any]]]] = {
    "list_runs": (50 + 60, lambda db: db.activity.list_runs(RunFilters(user_id=A, session_id="s"))),
    # The messages of its runs, and the messages.
    "get_session_detail": (50 + 50 + 60, lambda db: db.activity.get_session_detail("s", A)),
    # The prompts, and the thoughts.
    "list_threads": (50 + 5, lambda db: db.activity.list_threads("s", A)),
    "chat_history": (50 + 5, lambda db: db.activity.chat_history("s", A)),
    "get_recent_activity": (50, lambda db: db.activity.get_recent_activity("s", A)),
}


@pytest.mark.parametrize("name", TEXTS)
async def test_X15_R25_the_text_of_an_answer_has_a_bound_in_bytes(
    db: SessionDatabase, bounds: Callable[[str, int], None], name: str
) -> None:
    named: dict[str, Any] = {"user_id": A, "session_id": "s", "run_id": "r0"}
    await db.lifecycle.record([Run(**named, started_at=NOON, error=ERROR)])
    text_bytes, ask = TEXTS[name]
    if name in {"list_threads", "chat_history"}:
        at = NOON - timedelta(minutes=1)
        await db.lifecycle.record([Message(**named, message_id="t", role="thought", content="x" * 5, created_at=at)])
    bounds("MOST_TEXT_BYTES", text_bytes)
    assert rows_of(await ask(db)) >= STORED
    bounds("MOST_TEXT_BYTES", text_bytes - 1)
    if name == "chat_history":
        assert [one.message_id for one in await ask(db)] == ["0", "1", "2", "3", "4"]
        return
    less = LESS_OF_STEPS if name in {"list_runs", "get_session_detail"} else LESS
    with pytest.raises(InvalidValueError, match=rf"expected {less}: at most .* MiB of text in one answer") as refused:
        await ask(db)
    assert refused.value.field == "limit"


async def test_X15_a_page_of_runs_without_its_payloads_says_so(
    db: SessionDatabase, bounds: Callable[[str, int], None]
) -> None:
    given = Run(run_id="big", user_id=A, session_id="s", started_at=NOON, ended_at=NOON, input="x", output=["y"] * 99)
    await db.lifecycle.record([given])
    whole = await db.activity.list_runs(RunFilters(user_id=A))
    assert whole.has_payloads
    bounds("MOST_STORED_BYTES", 99)
    page = await db.activity.list_runs(RunFilters(user_id=A))
    assert not page.has_payloads
    without = [one.model_copy(update={"input": None, "output": None}) for one in whole.runs]
    assert page.runs == without != whole.runs
    empty = await db.activity.list_runs(RunFilters(user_id=UUID(int=99)))
    assert (empty.runs, empty.has_payloads) == ([], True)
