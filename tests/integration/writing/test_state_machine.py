"""Random histories: every answer of the repository equals that of a plain-Python model of the rules."""

import asyncio
import copy
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import text

from session_lifecycle import (
    End,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    Settings,
    Touch,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.models import PriceOverride, Receipt
from session_lifecycle.testing import SessionClock, TemplateServer
from support.lifecycle_model import ABANDON_AFTER, ORDERS, PRICES, SEARCH_USD, LifecycleItem, Model

USERS = [UUID(int=number) for number in (1, 2, 3)]
DATASETS = [UUID(int=number) for number in (11, 12)]
BEGINNING = datetime(2026, 3, 1, 12, tzinfo=UTC)
OVERRIDES = [
    PriceOverride(
        model_pattern=model,
        input_usd_per_million=into,
        output_usd_per_million=out,
        web_search_usd_per_thousand=SEARCH_USD * 1000,
    )
    for model, (into, out) in PRICES.items()
]
EMPTY = (
    "TRUNCATE session_lifecycle.session_records, session_lifecycle.session_model_usage, "
    "session_lifecycle.session_usage_events"
)

users = st.sampled_from(USERS)
sessions = st.sampled_from(["s", "t", "S", "é"])
datasets = st.none() | st.sampled_from(DATASETS)
agents = st.none() | st.sampled_from(["planner", "coder"])
# A few values in minutes from now, so that items collide; None is now by the database's clock.
ages = st.none() | st.sampled_from([-90, -31, -30, -10, -1, 0, 4])
moments = st.none() | st.sampled_from([-90, -30, -10, 0, 1]).map(lambda minutes: timedelta(minutes=minutes))
viewers = st.one_of(
    st.builds(
        Viewer,
        st.none() | users,
        st.lists(st.sampled_from(DATASETS), max_size=2),
        st.lists(users, max_size=2),
    ),
    st.just(Viewer.auditor()),
)
ways = st.sampled_from(["direct", "bound", "rolled back"])


@st.composite
def items(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of an item; `at` in minutes from now."""
    where = {"session_id": draw(sessions), "user_id": draw(users), "at": draw(ages)}
    kind = draw(st.sampled_from([Touch, UsageEvent, UsageEvent, UsageEvent, UsageEvent, End]))
    if kind is Touch:
        metadata = draw(st.dictionaries(st.sampled_from("ab"), st.integers(0, 2), max_size=2))
        more: dict[str, Any] = {"dataset_id": draw(datasets), "agent_name": draw(agents), "metadata": metadata}
        # No session has this name, so no session descends from itself.
        more |= {"parent_session_id": draw(st.none() | st.just("parent"))}
        more |= {"waiting": draw(st.booleans()), "tags": draw(st.dictionaries(st.sampled_from("ab"), st.just("c")))}
        return {"item": kind, **where, **more, "title": draw(st.none() | st.sampled_from(["one", "two"]))}
    if kind is End:
        reason = draw(st.none() | st.sampled_from(["done", "lost"]))
        return {"item": kind, **where, "status": draw(st.sampled_from(["completed", "failed"])), "reason": reason}
    tokens_in, tokens_out = draw(st.sampled_from([(0, 0), (10, 5), (7, 1), (0, 3)]))
    cost = draw(st.none() | st.sampled_from([Decimal(0), Decimal("0.1"), Decimal("0.000000000000000007")]))
    key = draw(st.none() | st.sampled_from(["k", "l"]))
    rare: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "billing": st.sampled_from(["api", "plan"]),
                "partial": st.booleans(),
                "kind": st.sampled_from(["llm", "embedding"]),
                "service_tier": st.sampled_from(["standard", "batch"]),
                "audio_tokens_in": st.integers(0, tokens_in),
                "web_searches": st.integers(0, 2),
            },
        )
        if draw(st.booleans())
        else st.just({})
    )
    if "audio_tokens_in" in rare:
        tokens_in += rare["audio_tokens_in"]  # so that the cached part beside it fits too
    return {
        "item": kind,
        **where,
        "model": draw(st.sampled_from([None, "priced", "Priced", "unpriced", "unknown", "Unknown"])),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost_usd": cost,
        "cache_read_tokens": draw(st.integers(0, tokens_in - rare.get("audio_tokens_in", 0))),
        "reasoning_tokens": draw(st.integers(0, tokens_out)),
        "errored": draw(st.booleans()),
        "idempotency_key": key,
        "revision": draw(st.integers(0, 2)) if key else 0,
        "key_scope": draw(st.sampled_from(["session", "session", "user"])),
        "dataset_id": draw(datasets),
        "touch": draw(st.sampled_from([True, True, False])),
        "measured": bool(tokens_in or tokens_out or cost or rare.get("web_searches")) or draw(st.booleans()),
        **rare,
    }


class Histories(RuleBasedStateMachine):
    """The steps of a history; the database and the model both take each one."""

    db: SessionDatabase
    clock: SessionClock
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(BEGINNING)
        self.run(self._empty())

    def run(self, work: Awaitable[Any]) -> Any:
        async def waited() -> Any:
            return await work

        return self.runner.run(waited())

    async def _empty(self) -> None:
        async with self.db.engine.begin() as connection:
            await connection.execute(text(EMPTY))
        await self.clock.freeze(BEGINNING)

    def _item(self, fields: dict[str, Any]) -> LifecycleItem:
        fields = dict(fields)
        kind, age = fields.pop("item"), fields.pop("at")
        item: LifecycleItem = kind(**fields, at=None if age is None else self.model.now + timedelta(minutes=age))
        return item

    async def _write(self, way: str, write: Callable[[SessionLifecycleDb], Awaitable[Any]]) -> Any:
        if way == "direct":
            return await write(self.db.lifecycle)
        async with self.db.engine.connect() as connection:
            answer = await write(self.db.bind(connection).lifecycle)
            await (connection.commit() if way == "bound" else connection.rollback())
            return answer

    def _expecting(self, way: str) -> Model:
        """The model that takes the step; a copy where the host rolls back, since the step is answered and forgotten."""
        return copy.deepcopy(self.model) if way == "rolled back" else self.model

    @rule(batch=st.lists(items(), min_size=1, max_size=4), way=ways)
    def record(self, batch: list[dict[str, Any]], way: str) -> None:
        wanted = [self._item(fields) for fields in batch]
        model = self._expecting(way)
        expected = [model.record(item) for item in wanted]
        receipts = self.run(self._write(way, lambda writer: writer.record(wanted)))
        assert [as_model_answers(receipt) for receipt in receipts] == expected
        # In a database two calls of one after the other never have one time of the clock.
        self._let_pass(timedelta(microseconds=1))

    @rule(user=users, session=sessions, age=ages, way=ways)
    def reopen(self, user: UUID, session: str, age: int | None, way: str) -> None:
        at = None if age is None else self.model.now + timedelta(minutes=age)
        expected = self._expecting(way).reopen(user, session, at)
        assert self.run(self._write(way, lambda writer: writer.reopen_session(session, user, at=at))) == expected

    @rule(
        user=users,
        session=sessions,
        changes=st.fixed_dictionaries(
            {},
            optional={
                "title": st.none() | st.just("updated"),
                "metadata": st.none() | st.just({"b": 3}),
                "tags": st.none() | st.just({"c": "d"}),
                "dataset_id": datasets,
                "agent_name": agents,
                "parent_session_id": st.none() | st.just("another parent"),
            },
        ),
        way=ways,
    )
    def update(self, user: UUID, session: str, changes: dict[str, Any], way: str) -> None:
        expected = self._expecting(way).update(user, session, changes)
        found = self.run(self._write(way, lambda writer: writer.update_session(session, user, **changes)))
        assert (found and found.model_dump()) == expected

    @rule(user=users, session=sessions)
    def delete(self, user: UUID, session: str) -> None:
        expected = self.model.delete(user, session)
        assert self.run(self.db.maintenance.delete_session(session, user)) == expected

    @rule(minutes=st.sampled_from([1, 20, 30, 45]))
    def time_passes(self, minutes: int) -> None:
        self._let_pass(timedelta(minutes=minutes))

    def _let_pass(self, time: timedelta) -> None:
        self.model.now += time
        self.run(self.clock.freeze(self.model.now))

    @rule(viewer=viewers, session=sessions, other=st.booleans(), owner=st.none() | users)
    def get(self, viewer: Viewer, session: str, other: bool, owner: UUID | None) -> None:
        found = self.run(self.db.lifecycle.get_session_row(session, viewer, (), other, owner_id=owner))
        expected = self.model.get(session, viewer, prefer_other_owner=other, owner_id=owner)
        assert (found and read(found)) == expected

    @rule(
        viewer=viewers,
        chosen=st.fixed_dictionaries(
            {},
            optional={
                "status_filter": st.sampled_from(["running", "waiting", "abandoned", "completed", "failed"]),
                "owner_id": users,
                "dataset_id": st.sampled_from(DATASETS),
                "agent_name": st.sampled_from(["planner", "coder"]),
            },
        ),
        order=st.sampled_from([*ORDERS, "nothing we know"]),
        descending=st.booleans(),
        window=st.tuples(moments, moments),
        limit=st.integers(1, 4),
    )
    def walk(
        self, viewer: Viewer, chosen: dict[str, Any], order: str, descending: bool, window: tuple[Any, Any], limit: int
    ) -> None:
        since, until = self._window(window)
        filters = SessionListFilters(
            viewer=viewer, since=since, until=until, order_by=order, descending=descending, limit=limit, **chosen
        )
        expected = self.model.rows(filters)
        by_cursor, cursor = [], None
        while True:
            page = self.run(self.db.lifecycle.list_session_rows(filters.model_copy(update={"cursor": cursor})))
            assert page.total == len(expected)
            by_cursor += [read(row) for row in page.sessions]
            cursor = page.next_cursor
            assert page.has_more == (cursor is not None)
            if cursor is None:
                break
        assert by_cursor == expected
        second = self.run(self.db.lifecycle.list_session_rows(filters.model_copy(update={"offset": limit})))
        assert [read(row) for row in second.sessions] == expected[limit : 2 * limit]

    @rule(viewer=viewers, window=st.tuples(moments, moments))
    def figures(self, viewer: Viewer, window: tuple[Any, Any]) -> None:
        self._compare_figures(viewer, *self._window(window))

    @invariant()
    def the_auditor_sees_it_all_add_up(self) -> None:
        self._compare_figures(Viewer.auditor(), None, None)
        filters = SessionListFilters(viewer=Viewer.auditor(), limit=500)
        page = self.run(self.db.lifecycle.list_session_rows(filters))
        assert [read(row) for row in page.sessions] == self.model.rows(filters)
        assert self.run(self._ledger()) == sorted(
            (
                entry.session[0],
                entry.session[1],
                entry.event.idempotency_key or "",
                entry.event.revision,
                entry.late,
                entry.event.tokens_in,
                -1 if entry.cost is None else entry.cost,
            )
            for entry in self.model.entries
            if entry.in_ledger
        )

    async def _ledger(self) -> list[tuple[Any, ...]]:
        statement = text(
            "SELECT user_id, session_id, coalesce(idempotency_key, ''), revision, late, tokens_in, "
            "coalesce(cost_usd, -1) FROM session_lifecycle.session_usage_events"
        )
        async with self.db.engine.connect() as connection:
            return sorted(tuple(row) for row in await connection.execute(statement))

    def _window(self, window: tuple[timedelta | None, timedelta | None]) -> tuple[datetime | None, datetime | None]:
        since, until = (None if edge is None else self.model.now + edge for edge in window)
        # A window that ends before it begins is refused.
        return (until, since) if since is not None and until is not None and until < since else (since, until)

    def _compare_figures(self, viewer: Viewer, since: datetime | None, until: datetime | None) -> None:
        stats = self.run(self.db.lifecycle.aggregate_stats(viewer, (), since, until=until))
        assert stats.model_dump() == self.model.stats(viewer, since, until)
        costs = self.run(self.db.lifecycle.cost_by_model(viewer, (), since, until=until))
        # Which spelling of a model's name is shown is not the model's to say.
        named = [{**row.model_dump(), "model": row.model.lower()} for row in costs]
        assert sorted(named, key=as_listed) == self.model.costs(viewer, since, until)


def as_model_answers(receipt: Receipt) -> Any:
    if not isinstance(receipt, UsageReceipt):
        return receipt
    totals = (receipt.session_tokens_in, receipt.session_tokens_out, receipt.session_cost_usd)
    return (receipt.outcome, receipt.cost_usd, *totals)


def as_listed(row: dict[str, Any]) -> Any:
    return -row["cost_usd"], row["model"]


def read(row: Any) -> dict[str, Any]:
    return {**row.record.model_dump(), "effective_status": row.effective_status}


@pytest.fixture
def histories(session_template_server: TemplateServer) -> Any:
    """The state machine, on its own database, which is empty when a history begins."""
    database = f"session_lifecycle_histories_{os.getpid()}"
    url = session_template_server.url_of(database)
    with asyncio.Runner() as runner:
        runner.run(session_template_server.clone(database))
        db = SessionDatabase.connect(url, prices=OVERRIDES, settings=Settings(abandon_after=ABANDON_AFTER))
        yield type("HistoriesHere", (Histories,), {"db": db, "clock": SessionClock(url), "runner": runner})
        runner.run(db.close())
        runner.run(session_template_server.drop(database))


def run_histories(histories: Any, *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        histories,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=set(Phase) - {Phase.explain},  # explaining would run a slow history hundreds of times
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_answer_is_the_models(histories: Any) -> None:
    run_histories(histories, examples=25, steps=25)


@pytest.mark.soak
def test_every_answer_is_the_models_in_many_long_histories(histories: Any) -> None:
    run_histories(histories, examples=1500, steps=60)
