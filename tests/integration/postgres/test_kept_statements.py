"""Kept statements: built and compiled once for each shape, run on the driver with the values of each call."""

import gc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from weakref import ReferenceType, ref

import pytest
from sqlalchemy import Integer, Select, Text, bindparam, literal, select

from session_lifecycle import (
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
from session_lifecycle.models import Budget, Item, UsageEventFilters, UsageFilters
from session_lifecycle.postgres.driver_statements import DriverStatement, driver_statement
from session_lifecycle.statements.shared.kept import kept
from support.statements import noted
from support.usage import A

B = UUID(int=78)
DATASET = UUID(int=77)
SINCE = datetime.now(UTC) - timedelta(days=1)
COST = Decimal("123456789.1234567891")

ROW_FILTERS: dict[str, Any] = {
    "session_id_prefix": "s",
    "excluded_session_id_prefix": "another",
    "agent_names": ["the agent", "none"],
    "min_cost_usd": COST,
    "max_cost_usd": COST,
    "min_tokens": 9,
    "max_tokens": 2**40,
    "min_errors": 0,
    "max_errors": 2**40,
    "min_duration_s": 0,
    "max_duration_s": 86_400.5,
    "metadata": {"numbers": [0.1]},
    "tags": {"é": "ü"},
    "tool": "the tool",
    "annotation": "the name",
    "annotation_label": "the label",
    "annotator": "the annotator",
    "min_score": 0,
    "max_score": 0.75,
}
RUN_FILTERS: dict[str, Any] = {
    "project": "the project",
    "provider": "the provider",
    "model": "THE MODEL",
    "client": "the client",
    "agent_name": "the agent",
}
EVENT_FILTERS: dict[str, Any] = {
    "session_id": "s",
    "run_id": "first run",
    "model": "THE MODEL",
    "provider": "the provider",
    "client": "the client",
    "kind": "llm",
    "billing": "api",
    "service_tier": "standard",
    "tags": {"é": "ü"},
    "dataset_id": DATASET,
    "agent_name": "the agent",
}
# Texts that only a call has.
TEXTS = ("the ", "hello", "first run", "second run", "of whom", "seconds", "budget of", "ü", "another")

Ask = Callable[[Any, UUID], Awaitable[Any]]
# Each call, of a database or of a host's transaction, for a viewer.
ASKS: dict[str, Ask] = {
    "one": lambda db, me: db.lifecycle.get_session_row("s", Viewer(me, [DATASET])),
    "one of an owner": lambda db, me: db.lifecycle.get_session_row("s", Viewer(me, [DATASET]), owner_id=me),
    "one of another": lambda db, me: db.lifecycle.get_session_row("s", Viewer(me, [DATASET]), prefer_other_owner=True),
    "list": lambda db, me: db.lifecycle.list_session_rows(SessionListFilters(viewer=Viewer(me, [DATASET]))),
    "list of a window": lambda db, me: db.lifecycle.list_session_rows(
        SessionListFilters(viewer=Viewer(me), since=SINCE, order_by="cost_usd", status_filter="running")
    ),
    "stats": lambda db, me: db.lifecycle.aggregate_stats(Viewer(me, [DATASET])),
    "stats of a window": lambda db, me: db.lifecycle.aggregate_stats(Viewer(me), since=SINCE),
    "cost by model": lambda db, me: db.lifecycle.cost_by_model(Viewer(me, [DATASET])),
    "summaries": lambda db, me: db.activity.list_session_summaries(SummaryFilters(viewer=Viewer(me, [DATASET]))),
    "detail": lambda db, me: db.activity.get_session_detail("s", Viewer(me, [DATASET])),
    "usage": lambda db, me: db.reports.usage(Viewer(me, [DATASET]), group_by=("model", "status"), since=SINCE),
    "usage by day": lambda db, me: db.reports.usage(
        Viewer(me), group_by=("day",), since=SINCE, until=SINCE + timedelta(days=2)
    ),
    "durations": lambda db, me: db.reports.session_durations(Viewer(me)),
    "list by rows": lambda db, me: db.lifecycle.list_session_rows(
        SessionListFilters(viewer=Viewer(me, [DATASET]), since=SINCE, order_by="error_count", total="bounded")
    ),
    "list of row filters": lambda db, me: db.lifecycle.list_session_rows(
        SessionListFilters(viewer=Viewer(me, [DATASET]), owner_id=me, dataset_id=DATASET, **ROW_FILTERS)
    ),
    "summaries of a choice": lambda db, me: db.activity.list_session_summaries(
        SummaryFilters(
            viewer=Viewer(me, [DATASET]),
            **RUN_FILTERS,
            search="Hello %",
            started_since=SINCE,
            order_by="last_prompt_at",
        )
    ),
    "detail of a project": lambda db, me: db.activity.get_session_detail("s", Viewer(me), project="the project"),
    "detail of a few steps": lambda db, me: db.activity.get_session_detail("s", Viewer(me), steps_limit=1),
    "recent": lambda db, me: db.activity.get_recent_activity("s", Viewer(me, [DATASET]), limit=7),
    "threads": lambda db, me: db.activity.list_threads("s", Viewer(me, [DATASET]), limit=7),
    "threads after": lambda db, me: db.activity.list_threads("s", Viewer(me), after="first run"),
    "threads before": lambda db, me: db.activity.list_threads("s", Viewer(me), before="second run", owner_id=me),
    "runs": lambda db, me: db.activity.list_runs(RunFilters(viewer=Viewer(me, [DATASET]), since=SINCE)),
    "runs of a choice": lambda db, me: db.activity.list_runs(
        RunFilters(viewer=Viewer(me), owner_id=me, dataset_id=DATASET, session_id="s", **RUN_FILTERS)
    ),
    "runs of a few steps": lambda db, me: db.activity.list_runs(
        RunFilters(viewer=Viewer(me), include_open=True, steps_limit=2, steps_offset=1)
    ),
    "events": lambda db, me: db.activity.list_usage_events(UsageEventFilters(viewer=Viewer(me, [DATASET]))),
    "events of filters": lambda db, me: db.activity.list_usage_events(
        UsageEventFilters(viewer=Viewer(me), owner_id=me, since=SINCE, **EVENT_FILTERS)
    ),
    "models": lambda db, me: db.activity.list_models(Viewer(me, [DATASET])),
    "models of a prefix": lambda db, me: db.activity.list_models(Viewer(me), "The M"),
    "clients": lambda db, me: db.activity.list_clients(Viewer(me, [DATASET])),
    "agents": lambda db, me: db.activity.list_agents(Viewer(me, [DATASET])),
    "chat": lambda db, me: db.activity.chat_history("s", Viewer(me, [DATASET])),
    "chat of limits": lambda db, me: db.activity.chat_history(
        "s", Viewer(me), limit=9, max_characters=10**30, exclude_run_id="second run"
    ),
    "lineage": lambda db, me: db.activity.find_lineage(me, "the call"),
    "annotations": lambda db, me: db.lifecycle.list_annotations("s", Viewer(me, [DATASET])),
    "family": lambda db, me: db.lifecycle.get_family_figures("s", Viewer(me, [DATASET])),
    "usage of filters": lambda db, me: db.reports.usage(
        Viewer(me, [DATASET]),
        group_by=("tag:of whom", "model", "tag:é"),
        filters=UsageFilters(owner_id=me, **EVENT_FILTERS),
        details=("seconds", "pages"),
        order_by="tag:of whom",
    ),
    "spend": lambda db, me: db.reports.spend(Viewer(me, [DATASET]), since=SINCE, until=SINCE + timedelta(days=2)),
    "time series": lambda db, me: db.reports.usage_timeseries(
        Viewer(me), since=SINCE, until=SINCE + timedelta(days=2), bucket="hour", group_by="agent"
    ),
    "tokens by class": lambda db, me: db.reports.tokens_by_class(Viewer(me, [DATASET]), since=SINCE),
    "cost by agent": lambda db, me: db.reports.cost_by_agent(Viewer(me, [DATASET])),
    "cost by user": lambda db, me: db.reports.cost_by_user(Viewer(me, [DATASET]), since=SINCE),
    "cost by user agent": lambda db, me: db.reports.cost_by_user_agent(Viewer(me), until=SINCE + timedelta(days=2)),
    "run durations": lambda db, me: db.reports.run_durations(Viewer(me, [DATASET])),
    "telemetry": lambda db, me: db.reports.telemetry(Viewer(me, [DATASET])),
    "telemetry of a choice": lambda db, me: db.reports.telemetry(
        Viewer(me), model="THE MODEL", client="the client", provider="the provider", since=SINCE
    ),
    "telemetry keys": lambda db, me: db.reports.list_telemetry_keys(Viewer(me, [DATASET]), since=SINCE),
    "budgets": lambda db, me: db.budgets.list_budgets(Viewer(me, [DATASET]), after="budget"),
    "budget": lambda db, me: db.budgets.get_budget(f"budget of {me}", Viewer(me)),
}


async def seed(db: SessionDatabase) -> None:
    at = datetime.now(UTC)
    for user, metadata in ((A, {"of": "a", "numbers": [1, 0.1, None]}), (B, {"of": "b", "numbers": [0.1]})):
        of_run: dict[str, Any] = {"user_id": user, "session_id": "s", "started_at": at, "ended_at": at, **RUN_FILTERS}
        use: dict[str, Any] = {"provider": "the provider", "model": "the Model", "tokens_in": 7, "tokens_out": 3}
        of_step: dict[str, Any] = {"step_id": "1", "kind": "tool", "name": "the tool", "tool_call_id": "the call"}
        said: dict[str, Any] = {"message_id": "m", "role": "user", "content": "hello %", "created_at": at}
        items: list[Item] = [
            Touch(
                session_id="s",
                user_id=user,
                dataset_id=DATASET,
                agent_name="the agent",
                metadata=metadata,
                tags={"é": "ü", "of whom": str(user)},
            ),
            Run(run_id="first run", **of_run),
            Run(run_id="second run", **of_run),
            Step(run_id="first run", user_id=user, started_at=at, **of_step),
            Message(session_id="s", user_id=user, run_id="first run", **said),
            UsageEvent(session_id="s", user_id=user, run_id="first run", cost_usd=COST, details={"seconds": 3}, **use),
        ]
        await db.lifecycle.record(items)
        await db.lifecycle.annotate_session(
            "s", user, "the name", score=0.5, label="the label", annotator="the annotator"
        )
        await db.budgets.set_budget(Budget(budget_id=f"budget of {user}", user_id=user, limit_usd=1))


@pytest.mark.parametrize("name", ASKS)
async def test_a_kept_statement_has_no_value_of_a_call(session_database: SessionDatabase, name: str) -> None:
    """Two viewers share one text. Each sees what SQLAlchemy returns for that viewer in a host's transaction."""
    ask = ASKS[name]
    without = await ask(session_database, A)
    await seed(session_database)
    async with noted(session_database) as sent:
        on_driver = [await ask(session_database, user) for user in (A, B)]
    assert [text for text, _ in sent] == [sent[0][0]] * 2
    assert not any(str(value) in sent[0][0].lower() for value in (A, B, DATASET, SINCE.date(), *TEXTS))
    assert not {repr(without)} & set(map(repr, on_driver))
    for user, answer in zip((A, B), on_driver, strict=True):
        async with session_database.engine.connect() as connection:
            bound = await ask(session_database.bind(connection), user)
        # The text of a value tells a Decimal from a float, and one time zone from another.
        assert repr(answer) == repr(bound)


async def test_a_parameter_that_is_left_out_does_not_keep_an_earlier_value() -> None:
    statement = select(bindparam("one", type_=Text), literal("constant's", Text), bindparam("two", type_=Text))
    compiled = DriverStatement(statement, {"one", "two"}, "session_lifecycle")
    assert compiled.sql.count("$") == 2
    assert "'constant''s'" in compiled.sql
    assert compiled.values({"one": "a", "two": "b", "another": "c"}) == ["a", "b"]
    with pytest.raises(KeyError, match="two"):
        compiled.values({"one": "a"})


def test_a_value_without_a_name_is_in_the_text_of_that_call_alone() -> None:
    @kept
    def statement() -> Select[*tuple[Any, ...]]:
        return select(bindparam("one", "none", type_=Text), bindparam("two", type_=Text))

    texts = [driver_statement(statement(), names, "s").sql.count("$") for names in ({"two"}, {"one", "two"}, {"two"})]
    assert texts == [1, 2, 1]


def test_what_is_kept_is_the_sql() -> None:
    """Filters can be combined in thousands of ways, and a statement takes ten times the memory of its SQL."""
    built: list[ReferenceType[Any]] = []

    @kept
    def statement(number: int) -> Select[*tuple[Any, ...]]:
        made = select(literal(number, Integer))
        built.append(ref(made))
        return made

    one = statement(1)
    assert statement(1) is one is not statement(2)
    texts = {driver_statement(one, {}, "first").sql for _ in range(3)}
    assert len(texts) == len(built) == 1
    driver_statement(one, {}, "second")
    gc.collect()
    assert [reference() for reference in built] == [None, None]
