"""Rolling up at any moment of any history: no answer depends on it, and the sums are those of the sessions."""

import asyncio
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
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

from recount import Stored
from session_lifecycle import (
    End,
    Item,
    PriceOverride,
    Run,
    SessionDatabase,
    SessionListFilters,
    Settings,
    Touch,
    UsageEvent,
    Viewer,
    metadata,
)
from session_lifecycle.statements import rolling_up
from session_lifecycle.testing import SessionClock, TemplateServer
from stored_rows import ask, table

USERS = [UUID(int=number) for number in (1, 2, 3)]
DATASETS = [UUID(int=number) for number in (11, 12)]
NAMES = ["s", "t", "é"]
AGENTS = ["planner", "coder"]
MODELS = [None, "priced", "unpriced", "unknown"]
NEVER = timedelta(days=20)
# What is over for one is running for the next; a session is rolled up by any of them.
THRESHOLDS = [timedelta(minutes=30), timedelta(minutes=7), NEVER]
PRICES = [{"priced": "0.37"}, {"priced": "0.5", "unpriced": "2"}, {"priced": "0.37"}]
# Far from UTC and no whole hour: what is cut by days and months of any other zone is cut elsewhere.
ELSEWHERE = {"server_settings": {"timezone": "Asia/Kathmandu"}}

BEGINNING = datetime(2026, 3, 1, 12, 45, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
# Where quarters of an hour, days and months begin, and a moment within each.
EDGES = [
    datetime(2025, 12, 1, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 2, 1, tzinfo=UTC),
    datetime(2026, 2, 28, tzinfo=UTC),
    datetime(2026, 2, 28, 23, 45, tzinfo=UTC),
    datetime(2026, 3, 1, tzinfo=UTC),
    datetime(2026, 3, 1, 0, 15, tzinfo=UTC),
    datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
]
AROUND = [-MICROSECOND, timedelta(0), timedelta(0), MICROSECOND, timedelta(minutes=7)]

users = st.sampled_from(USERS)
sessions = st.sampled_from(NAMES)
datasets = st.none() | st.sampled_from(DATASETS)
agents = st.none() | st.sampled_from(AGENTS)
numbers = st.sampled_from(range(len(THRESHOLDS)))
ways = st.sampled_from(["direct", "direct", "bound", "rolled back"])
past = st.builds(lambda edge, by: edge + by, st.sampled_from(EDGES), st.sampled_from(AROUND))
# Of a window: such a moment, or one a while from now; some are where a threshold is.
ago = st.sampled_from([timedelta(0), *THRESHOLDS, timedelta(minutes=15)])
windows = st.tuples(*[st.none() | past | st.tuples(ago, st.sampled_from(AROUND))] * 2)
viewers = st.one_of(
    st.builds(
        Viewer,
        st.none() | users,
        st.lists(st.sampled_from(DATASETS), max_size=2),
        st.lists(users, max_size=2),
    ),
    st.builds(Viewer.of_users, st.lists(users, max_size=3)),
    st.just(Viewer.auditor()),
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "status_filter": st.sampled_from(["running", "abandoned", "completed", "failed"]),
        "owner_id": users,
        "dataset_id": st.sampled_from(DATASETS),
        "agent_name": st.sampled_from(AGENTS),
    },
)
FOREIGN = [
    "UPDATE session_records SET dataset_id = :dataset_id {of}",
    "UPDATE session_records SET user_id = :other, session_id = session_id || '''' {of} AND session_id NOT LIKE '%''%'",
    "UPDATE session_records SET last_activity_at = last_activity_at - interval '15 minutes' {of}",
    "UPDATE session_records SET status = 'failed', ended_at = started_at - interval '1 hour' {of}",
    "UPDATE session_records SET cost_usd = cost_usd + 1, late_events = late_events + 1 {of}",
    "DELETE FROM session_records {of}",
]
# What is wrong after one of these is right again after `reconcile`.
FOREIGN_BY_MODEL = [
    "UPDATE session_model_usage SET cost_usd = cost_usd + 1, events = events + 3 {of}",
    "DELETE FROM session_model_usage {of}",
]
OF = "WHERE user_id = :user_id AND session_id = :session_id"


@st.composite
def items(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of an item."""
    where = {"session_id": draw(sessions), "user_id": draw(users), "dataset_id": draw(datasets)}
    at = draw(st.none() | past)
    kind = draw(st.sampled_from([Touch, UsageEvent, UsageEvent, UsageEvent, End, Run]))
    if kind is Touch:
        return {"kind": kind, **where, "at": at, "agent_name": draw(agents)}
    if kind is End:
        return {"kind": kind, **where, "at": at, "status": draw(st.sampled_from(["completed", "failed"]))}
    run_id = draw(st.sampled_from(["r1", "r2"]))
    if kind is Run:
        begun = draw(past)
        return {
            "kind": kind,
            **where,
            "session_id": draw(st.none() | st.just(where["session_id"])),
            "run_id": run_id,
            "started_at": begun,
            "ended_at": draw(st.none() | st.just(begun)),
            "model": draw(st.sampled_from(MODELS)),
            "input": "please",
            "reported_cost_usd": draw(st.none() | st.sampled_from([Decimal(0), Decimal("0.3"), Decimal(2)])),
        }
    tokens_in, tokens_out = draw(st.sampled_from([(0, 0), (10, 5), (7, 1), (0, 3)]))
    cost = draw(st.none() | st.sampled_from([Decimal(0), Decimal("0.1"), Decimal("7e-18"), Decimal("9e8")]))
    key = draw(st.none() | st.sampled_from(["k", "l"]))
    return {
        "kind": kind,
        **where,
        "at": at,
        "model": draw(st.sampled_from(MODELS)),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost_usd": cost,
        "cache_read_tokens": draw(st.integers(0, tokens_in)),
        "reasoning_tokens": draw(st.integers(0, tokens_out)),
        "errored": draw(st.booleans()),
        "idempotency_key": key,
        "revision": draw(st.integers(0, 2)) if key else 0,
        "key_scope": draw(st.sampled_from(["session", "session", "user"])),
        "run_id": draw(st.none() | st.just(run_id)),
        "touch": draw(st.booleans()),
        "measured": bool(tokens_in or tokens_out or cost) or draw(st.booleans()),
    }


class Histories(RuleBasedStateMachine):
    """Steps of a history, after any of which every answer is what the rows add up to."""

    dbs: list[SessionDatabase]
    clock: SessionClock
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGINNING
        self.db = self.dbs[0]
        self.stored: Stored | None = None
        self.answered: Stored | None = None
        self.change(self._empty())

    def run(self, work: Awaitable[Any]) -> Any:
        async def waited() -> Any:
            return await work

        return self.runner.run(waited())

    def change(self, work: Awaitable[Any]) -> None:
        self.stored = None
        self.run(work)

    def _stored(self) -> Stored:
        """What is stored since the last change."""
        if self.stored is None:
            self.stored = self.run(Stored.of(self.db))
        return self.stored

    async def _empty(self) -> None:
        await ask(self.db, f"TRUNCATE {', '.join(one.name for one in metadata.sorted_tables)}")
        await self.clock.freeze(BEGINNING)

    async def _through(self, way: str, number: int, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """Calls with a database, or with one bound to a host's transaction that is committed or rolled back."""
        db = self.dbs[number]
        if way == "direct":
            return await call(db)
        async with db.engine.connect() as connection:
            answer = await call(db.bind(connection))
            await (connection.commit() if way == "bound" else connection.rollback())
            return answer

    # What callers record

    @rule(batch=st.lists(items(), min_size=1, max_size=6), way=ways, number=numbers)
    def record(self, batch: list[dict[str, Any]], way: str, number: int) -> None:
        wanted: list[Item] = []
        for item in batch:
            fields = dict(item)
            kind = fields.pop("kind")
            if kind is End:
                fields.pop("dataset_id")
            wanted.append(kind(**fields))
        self.change(self._through(way, number, lambda db: db.lifecycle.record(wanted)))

    @rule(user=users, session=sessions, at=st.none() | past)
    def reopen(self, user: UUID, session: str, at: datetime | None) -> None:
        self.change(self.db.lifecycle.reopen_session(session, user, at=at))

    @rule(by=st.sampled_from([MICROSECOND, *THRESHOLDS[:2], timedelta(minutes=15), timedelta(days=31)]))
    def time_passes(self, by: timedelta) -> None:
        self.now += by
        self.change(self.clock.freeze(self.now))

    # What operators do

    @rule(way=ways, number=numbers)
    def roll_up(self, way: str, number: int) -> None:
        self.change(self._through(way, number, lambda db: db.maintenance.roll_up()))
        if way != "rolled back":
            self._nothing_is_left_to_roll_up(THRESHOLDS[number])

    def _nothing_is_left_to_roll_up(self, abandon_after: timedelta) -> None:
        stored = self._stored()
        waiting = [one for one in stored.sessions if not one["rolled_up"]]
        assert {stored.status(one, abandon_after) for one in waiting} <= {"running"}
        assert not stored.tables["session_rollup_changes"]
        assert not stored.tables["session_model_rollup_changes"]

    @rule(user=users, number=numbers, most=st.integers(0, 5))
    def roll_up_in_part(self, user: UUID, number: int, most: int) -> None:
        self.change(self._roll_up_in_part(user, self.now - THRESHOLDS[number], most))

    async def _roll_up_in_part(self, user: UUID, idle_before: datetime, most: int) -> None:
        """As far as a call came that was ended half-way: some sessions, and of the changes the oldest."""
        keys = await ask(
            self.db,
            "SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]')::text FROM session_records s WHERE user_id = :user",
            user=user,
        )
        async with self.db.engine.begin() as connection:
            bound = {"keys": keys[0][0], "idle_before": idle_before}
            await connection.execute(rolling_up.roll_up_sessions("session_lifecycle"), bound)
            await connection.execute(rolling_up.compact("session_lifecycle"), {"most": most})

    @rule(older_than=st.sampled_from([timedelta(minutes=20), NEVER]), payloads=st.booleans(), way=ways)
    def prune(self, older_than: timedelta, payloads: bool, way: str) -> None:
        name = "prune_payloads" if payloads else "prune_sessions"
        self.change(self._through(way, 0, lambda db: getattr(db.maintenance, name)(older_than)))

    @rule(user=users, session=sessions, way=ways)
    def delete(self, user: UUID, session: str, way: str) -> None:
        self.change(self._through(way, 0, lambda db: db.maintenance.delete_session(session, user)))

    @rule(user=users, usage=st.sampled_from(["delete", "anonymise"]), tombstone=st.booleans(), way=ways)
    def erase(self, user: UUID, usage: str, tombstone: bool, way: str) -> None:
        erasing = {"usage": usage, "tombstone": tombstone}
        self.change(self._through(way, 0, lambda db: db.maintenance.erase_user(user, **erasing)))
        self.change(ask(self.db, "DELETE FROM session_tombstones"))  # the history goes on with the same users

    @rule(number=numbers, model=st.sampled_from(MODELS))
    def reprice(self, number: int, model: str | None) -> None:
        self.change(self.dbs[number].maintenance.reprice(model))

    @rule()
    def reconcile(self) -> None:
        self.change(self.db.maintenance.reconcile(repair=True))

    # What others do to the tables

    @rule(sql=st.sampled_from(FOREIGN), user=users, session=sessions, other=users, dataset=datasets)
    def meddle(self, sql: str, user: UUID, session: str, other: UUID, dataset: UUID | None) -> None:
        bound = {"user_id": user, "session_id": session, "other": other, "dataset_id": dataset}
        names = [name for name in bound if f":{name}" in sql or name in {"user_id", "session_id"}]
        self.change(ask(self.db, sql.format(of=OF), **{name: bound[name] for name in names}))

    @rule(
        user=users,
        dataset=datasets,
        agent=agents,
        at=past,
        ended=st.booleans(),
        models=st.lists(st.sampled_from(["", "unknown", "priced"]), unique=True),
    )
    def import_rows(self, models: list[str], **session: Any) -> None:
        self.change(self._import_rows(models, **session))

    async def _import_rows(
        self, models: list[str], *, user: UUID, dataset: UUID | None, agent: str | None, at: datetime, ended: bool
    ) -> None:
        key = {"user_id": user, "session_id": f"imported at {at}"}
        record = {
            **key,
            "dataset_id": dataset,
            "agent_name": agent,
            "status": "completed" if ended else "running",
            "started_at": at - timedelta(hours=1),
            "last_activity_at": at,
            "ended_at": at if ended else None,
            "cost_usd": Decimal("0.5") * len(models),
            "tokens_in": 3 * len(models),
        }
        async with self.db.engine.begin() as connection:
            new = insert(table("session_records")).values(record).on_conflict_do_nothing()
            if (await connection.execute(new)).rowcount:
                for model in models:
                    row = {**key, "model": model, "cost_usd": Decimal("0.5"), "tokens_in": 3, "events": 1}
                    await connection.execute(insert(table("session_model_usage")).values(row))

    # What is asked

    @rule(viewer=viewers, window=windows, number=numbers, chosen=filters)
    def compare(self, viewer: Viewer, window: tuple[Any, Any], number: int, chosen: dict[str, Any]) -> None:
        self.run(self._compare(self._stored(), viewer, *map(self._moment, window), number, chosen))

    def _moment(self, edge: Any) -> datetime | None:
        if isinstance(edge, tuple):
            return self.now - edge[0] + edge[1]
        assert edge is None or isinstance(edge, datetime)
        return edge

    async def _compare(
        self,
        stored: Stored,
        viewer: Viewer,
        since: datetime | None,
        until: datetime | None,
        number: int,
        chosen: dict[str, Any],
    ) -> None:
        db, abandon_after = self.dbs[number], THRESHOLDS[number]
        window = (since, until)
        stats = await db.lifecycle.aggregate_stats(viewer, (), since, until=until)
        assert stats == stored.stats(viewer, *window, abandon_after)
        assert await db.lifecycle.cost_by_model(viewer, (), since, until=until) == stored.cost_by_model(viewer, *window)
        assert await db.reports.cost_by_agent(viewer, *window) == stored.cost_by_agent(viewer, *window)
        assert await db.reports.cost_by_user(viewer, *window) == stored.cost_by_user(viewer, *window)
        asked = SessionListFilters(viewer=viewer, since=since, until=until, limit=500, **chosen)
        page = await db.lifecycle.list_session_rows(asked)
        expected = stored.chosen(asked, abandon_after)
        assert page.total == len(expected)
        listed = [((row.record.user_id, row.record.session_id), row.effective_status) for row in page.sessions]
        assert sorted(listed) == expected

    @invariant()
    def the_sums_are_those_of_the_sessions(self) -> None:
        self._stored().check_rollups()

    @invariant()
    def the_usual_viewers_are_answered(self) -> None:
        if self._stored() is not self.answered:
            self.answered = self.stored
            self.run(self._compare(self.answered, Viewer.auditor(), None, None, 0, {}))
            both_ways = Viewer(USERS[0], DATASETS, USERS[1:2])
            self.run(self._compare(self.answered, both_ways, EDGES[1], EDGES[-1], 1, {"status_filter": "abandoned"}))


@pytest.fixture
def histories(session_template_server: TemplateServer) -> Any:
    """The machine, on a database of its own that each history finds empty."""
    database = f"session_lifecycle_rollups_{os.getpid()}"
    url = session_template_server.url_of(database)
    with asyncio.Runner() as runner:
        runner.run(session_template_server.clone(database))
        engine = create_async_engine(url.replace("://", "+asyncpg://", 1), connect_args=ELSEWHERE)
        dbs = [
            SessionDatabase.from_engine(
                engine,
                settings=Settings(abandon_after=abandon_after),
                prices=[
                    PriceOverride(model_pattern=model, input_usd_per_million=usd, output_usd_per_million=usd)
                    for model, usd in prices.items()
                ],
            )
            for abandon_after, prices in zip(THRESHOLDS, PRICES, strict=True)
        ]
        yield type("HistoriesHere", (Histories,), {"dbs": dbs, "clock": SessionClock(url), "runner": runner})
        runner.run(engine.dispose())
        runner.run(session_template_server.drop(database))


def run_histories(histories: Any, *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        histories,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=set(Phase) - {Phase.explain},  # a history takes its time, and explaining takes hundreds
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_answer_depends_on_rolling_up(histories: Any) -> None:
    run_histories(histories, examples=20, steps=20)


@pytest.mark.soak
def test_no_answer_depends_on_rolling_up_in_many_long_histories(histories: Any) -> None:
    run_histories(histories, examples=1500, steps=60)
