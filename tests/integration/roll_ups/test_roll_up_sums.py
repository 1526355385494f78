"""Roll-ups at any point of random histories: no answer depends on them, and they equal sums of the sessions."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import add
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import End, Run, SessionDatabase, SessionListFilters, Settings, Touch, UsageEvent, Viewer
from session_lifecycle.entities import metadata
from session_lifecycle.models import Item, PriceOverride
from session_lifecycle.statements.maintenance import roll_up
from session_lifecycle.testing import SessionClock
from support.recount import Stored
from support.stored_rows import ask, keep_buckets, table
from support.ways_of_reading import WAYS, reading

USERS = [UUID(int=number) for number in (1, 2, 3)]
DATASETS = [UUID(int=number) for number in (11, 12)]
NAMES = ["s", "t", "é"]
AGENTS = ["planner", "coder"]
MODELS = [None, "priced", "Priced", "unpriced", "unknown", "Unknown"]
PRICES = [{"priced": "0.37"}, {"priced": "0.5", "unpriced": "2"}, {"priced": "0.37"}]
# Not a whole hour from UTC, so a cut by this zone's days or months is visibly wrong.
ELSEWHERE = {"server_settings": {"timezone": "Asia/Kathmandu"}}

BEGINNING = datetime(2026, 3, 1, 12, 45, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
# Moments at which hours, days and months begin.
EDGES = [
    datetime(2025, 12, 1, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 2, 1, tzinfo=UTC),
    datetime(2026, 2, 28, tzinfo=UTC),
    datetime(2026, 2, 28, 23, 45, tzinfo=UTC),
    datetime(2026, 3, 1, tzinfo=UTC),
    datetime(2026, 3, 1, 0, 15, tzinfo=UTC),
    datetime(2026, 3, 1, 12, 15, tzinfo=UTC),
    datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
]
# A session is abandoned by one threshold and running by the next; any of them may roll it up. Each reaches exactly from
# the beginning back to an edge.
THRESHOLDS = [timedelta(minutes=30), timedelta(minutes=15), BEGINNING - EDGES[2]]
# Just before the edge, exactly at it, just after it, and further inside.
AROUND = [-MICROSECOND, timedelta(0), timedelta(0), MICROSECOND, timedelta(minutes=7)]

# A method of `History`, and its arguments.
Step = tuple[str, Mapping[str, Any]]
Steps = Sequence[Step]
# An edge of a window: open, a moment, or a time before now.
Edge = datetime | timedelta | None

users = st.sampled_from(USERS)
names = st.sampled_from(NAMES)
datasets = st.none() | st.sampled_from(DATASETS)
agents = st.none() | st.sampled_from(AGENTS)
numbers = st.sampled_from(range(len(THRESHOLDS)))
ways = st.sampled_from(["direct", "direct", "bound", "rolled back"])
past = st.builds(add, st.sampled_from(EDGES), st.sampled_from(AROUND))
# A time before now, around each threshold.
recent = st.builds(add, st.sampled_from([timedelta(0), *THRESHOLDS]), st.sampled_from(AROUND))
edges = st.none() | past | recent
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
        "status_filter": st.sampled_from(["running", "waiting", "abandoned", "completed", "failed"]),
        "owner_id": users,
        "dataset_id": st.sampled_from(DATASETS),
        "agent_name": st.sampled_from(AGENTS),
    },
)
OF = "WHERE user_id = :user AND session_id = :name"
# Renames a session once, to a free id.
RENAMABLE = """
    session_id NOT LIKE '%!' AND (user_id, session_id || '!') NOT IN (SELECT user_id, session_id FROM session_records)
"""
FOREIGN = [
    f"UPDATE session_records SET dataset_id = :dataset {OF}",
    f"UPDATE session_records SET last_activity_at = last_activity_at - interval '15 minutes' {OF}",
    f"UPDATE session_records SET status = 'failed', ended_at = started_at - interval '1 hour' {OF}",
    f"UPDATE session_records SET cost_usd = cost_usd + 1, late_events = late_events + 1 {OF}",
    f"UPDATE session_records SET session_id = session_id || '!' {OF} AND {RENAMABLE}",
    f"DELETE FROM session_records {OF}",
]
# No trigger sees these changes; only reconciling repairs them.
FOREIGN_BY_MODEL = [
    f"UPDATE session_model_usage SET cost_usd = cost_usd + 1, events = events + 3 {OF}",
    f"DELETE FROM session_model_usage {OF}",
]


RARE = st.fixed_dictionaries(
    {},
    optional={
        "billing": st.sampled_from(["api", "plan"]),
        "partial": st.booleans(),
        "service_tier": st.sampled_from(["standard", "batch"]),
        "web_searches": st.integers(0, 2),
    },
)


@st.composite
def items(draw: st.DrawFn) -> Item:
    """The items that callers record."""
    key: dict[str, Any] = {"session_id": draw(names), "user_id": draw(users)}
    at = draw(st.none() | past)
    kind = draw(st.sampled_from([Touch, UsageEvent, UsageEvent, UsageEvent, End, Run]))
    if kind is End:
        return End(**key, at=at, status=draw(st.sampled_from(["completed", "failed"])))
    where = {**key, "dataset_id": draw(datasets)}
    if kind is Touch:
        return Touch(**where, at=at, agent_name=draw(agents), waiting=draw(st.booleans()))
    run_id = draw(st.sampled_from(["r1", "r2"]))
    if kind is Run:
        begun = draw(past)
        named = {**where, "session_id": draw(st.none() | st.just(key["session_id"]))}
        return Run(
            **named,
            run_id=run_id,
            started_at=begun,
            ended_at=draw(st.none() | st.just(begun)),
            model=draw(st.sampled_from(MODELS)),
            input="please",
            reported_cost_usd=draw(st.none() | st.sampled_from([Decimal(0), Decimal("0.3"), Decimal(2)])),
        )
    tokens_in, tokens_out = draw(st.sampled_from([(0, 0), (10, 5), (7, 1), (0, 3)]))
    cost = draw(st.none() | st.sampled_from([Decimal(0), Decimal("0.1"), Decimal("7e-18"), Decimal("9e8")]))
    keyed = draw(st.none() | st.sampled_from(["k", "l"]))
    rare: dict[str, Any] = draw(st.just({}) | RARE)
    measured = bool(tokens_in or tokens_out or cost or rare.get("web_searches")) or draw(st.booleans())
    return UsageEvent(
        **rare,
        **where,
        at=at,
        model=draw(st.sampled_from(MODELS)),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cost_usd=cost,
        cache_read_tokens=draw(st.integers(0, tokens_in)),
        reasoning_tokens=draw(st.integers(0, tokens_out)),
        errored=draw(st.booleans()),
        idempotency_key=keyed,
        revision=draw(st.integers(0, 2)) if keyed else 0,
        key_scope=draw(st.sampled_from(["session", "session", "user"])),
        run_id=draw(st.none() | st.just(run_id)),
        touch=draw(st.booleans()),
        measured=measured,
    )


def step(name: str, /, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """A step of a history: a method of `History` and its arguments."""
    return st.tuples(st.just(name), st.fixed_dictionaries(fields))


imported = step(
    "import_rows",
    user=users,
    dataset=datasets,
    agent=agents,
    at=past,
    ended=st.booleans(),
    models=st.lists(st.sampled_from(["", "unknown", "priced"]), unique=True),
)
recorded = step("record", batch=st.lists(items(), min_size=1, max_size=6), way=ways, number=numbers)
rolled_up = step("roll_up", way=ways, number=numbers)
in_part = step("roll_up_in_part", user=users, number=numbers, most=st.integers(0, 5))
anything = st.one_of(
    *(recorded, recorded, recorded, rolled_up, rolled_up, in_part, imported),
    step("reopen", user=users, name=names, at=st.none() | past),
    step("update", user=users, name=names, dataset_id=datasets, agent_name=agents),
    step("let_pass", by=st.sampled_from([MICROSECOND, *THRESHOLDS[:2], timedelta(days=31)])),
    step(
        "prune", older_than=st.sampled_from([timedelta(days=20), timedelta(days=45)]), payloads=st.booleans(), way=ways
    ),
    step("delete", user=users, name=names, way=ways),
    step("erase", user=users, usage=st.sampled_from(["delete", "anonymise"]), tombstone=st.booleans(), way=ways),
    step("reprice", number=numbers, model=st.sampled_from(MODELS)),
    step("spoil_and_reconcile", sql=st.sampled_from(FOREIGN_BY_MODEL), user=users, name=names, between=st.booleans()),
    step("meddle", sql=st.sampled_from(FOREIGN), user=users, name=names, dataset=datasets),
)
questions = st.fixed_dictionaries(
    {"viewer": viewers, "since": edges, "until": edges, "number": numbers, "chosen": filters}
)


class History:
    """A history; after each step every answer equals the sums of the rows."""

    def __init__(self, dbs: Sequence[SessionDatabase], clock: SessionClock) -> None:
        self.now = BEGINNING
        self.dbs = dbs
        self.db = dbs[0]
        self.clock = clock

    async def begin(self, steps: Steps, density: float) -> None:
        """Empties the database and takes the first steps."""
        await self.clock.freeze(self.now)
        await keep_buckets(self.db, density=density)
        async with self.db.engine.begin() as connection:
            for one in metadata.sorted_tables:
                await connection.execute(one.delete())
        for name, fields in steps:
            await getattr(self, name)(**fields)

    async def go_on(self, step: Step, asked: Mapping[str, Any]) -> None:
        """Takes a step and asks a question."""
        name, fields = step
        await getattr(self, name)(**fields)
        stored = await Stored.of(self.db)
        assert stored.faults() == []
        await self._compare(stored, **asked)

    async def _through(self, way: str, number: int, call: Callable[[Any], Awaitable[Any]]) -> None:
        """Makes the call directly, or bound to a host's transaction that is committed or rolled back."""
        db = self.dbs[number]
        if way == "direct":
            await call(db)
            return
        async with db.engine.connect() as connection:
            await call(db.bind(connection))
            await (connection.commit() if way == "bound" else connection.rollback())

    # Steps of callers

    async def record(self, batch: Sequence[Item], way: str, number: int) -> None:
        await self._through(way, number, lambda db: db.lifecycle.record(batch))

    async def reopen(self, user: UUID, name: str, at: datetime | None) -> None:
        await self.db.lifecycle.reopen_session(name, user, at=at)

    async def update(self, user: UUID, name: str, **changes: Any) -> None:
        await self.db.lifecycle.update_session(name, user, **changes)

    async def let_pass(self, by: timedelta) -> None:
        self.now += by
        await self.clock.freeze(self.now)

    # Steps of operators

    async def roll_up(self, way: str, number: int) -> None:
        await self._through(way, number, lambda db: db.maintenance.roll_up())
        if way == "rolled back":
            return
        stored = await Stored.of(self.db)
        waiting = [session for session in stored.sessions if not session["rolled_up"]]
        assert {stored.status(session, THRESHOLDS[number]) for session in waiting} <= {"running", "waiting"}
        assert not stored.tables["session_roll_up_changes"]
        assert not stored.tables["session_model_roll_up_changes"]

    async def roll_up_in_part(self, user: UUID, number: int, most: int) -> None:
        """Does the part of an interrupted roll-up: one user's sessions, and the oldest changes."""
        of_user = "SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]')::text FROM session_records s WHERE user_id = :user"
        [(keys,)] = await ask(self.db, of_user, user=user)
        bound = {"keys": keys, "idle_before": self.now - THRESHOLDS[number]}
        async with self.db.engine.begin() as connection:
            await connection.execute(roll_up.roll_up_sessions("session_lifecycle")(), bound)
            await connection.execute(roll_up.compact("session_lifecycle")(), {"most": most})

    async def prune(self, older_than: timedelta, payloads: bool, way: str) -> None:
        name = "prune_payloads" if payloads else "prune_sessions"
        await self._through(way, 0, lambda db: getattr(db.maintenance, name)(older_than))

    async def delete(self, user: UUID, name: str, way: str) -> None:
        await self._through(way, 0, lambda db: db.maintenance.delete_session(name, user))

    async def erase(self, user: UUID, way: str, **how: Any) -> None:
        await self._through(way, 0, lambda db: db.maintenance.erase_user(user, **how))
        await ask(self.db, "DELETE FROM session_tombstones")  # the next steps use the same users

    async def reprice(self, number: int, model: str | None) -> None:
        await self.dbs[number].maintenance.reprice(model)

    # Steps of others, who change the tables directly

    async def meddle(self, sql: str, **bound: Any) -> None:
        await ask(self.db, sql, **{name: value for name, value in bound.items() if f":{name}" in sql})

    async def spoil_and_reconcile(self, sql: str, between: bool, **of: Any) -> None:
        """Makes totals by model wrong, rolls them up or not, and repairs them."""
        await ask(self.db, sql, **of)
        if between:
            await self.db.maintenance.roll_up()
        await self.db.maintenance.reconcile(repair=True)
        left = (await self.db.maintenance.reconcile()).mismatches
        assert [one for one in left if "roll" in one.table] == []

    async def import_rows(
        self, user: UUID, dataset: UUID | None, agent: str | None, at: datetime, ended: bool, models: Sequence[str]
    ) -> None:
        key = {"user_id": user, "session_id": f"imported of {at}"}
        session = {
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
        used = [{**key, "model": model, "cost_usd": Decimal("0.5"), "tokens_in": 3, "events": 1} for model in models]
        async with self.db.engine.begin() as connection:
            new = insert(table("session_records")).values(session).on_conflict_do_nothing()
            if (await connection.execute(new)).rowcount and used:
                await connection.execute(insert(table("session_model_usage")).values(used))

    # Questions

    async def _compare(
        self, stored: Stored, viewer: Viewer, since: Edge, until: Edge, number: int, chosen: Mapping[str, Any]
    ) -> None:
        db, window = self.dbs[number], (self._moment(since), self._moment(until))
        if window[0] is not None and window[1] is not None:
            window = (min(window[0], window[1]), max(window[0], window[1]))
        for way in WAYS:
            with reading(way):
                await self._compare_sessions(stored, viewer, window, number, chosen)
        assert await db.reports.cost_by_agent(viewer, since=window[0], until=window[1]) == stored.cost_by_agent(
            viewer, *window
        )
        assert await db.reports.cost_by_user(viewer, since=window[0], until=window[1]) == stored.cost_by_user(
            viewer, *window
        )

    async def _compare_sessions(
        self,
        stored: Stored,
        viewer: Viewer,
        window: tuple[datetime | None, datetime | None],
        number: int,
        chosen: Mapping[str, Any],
    ) -> None:
        db, abandon_after = self.dbs[number], THRESHOLDS[number]
        stats = await db.lifecycle.aggregate_stats(viewer, (), window[0], until=window[1])
        assert stats == stored.stats(viewer, *window, abandon_after)
        costs = await db.lifecycle.cost_by_model(viewer, (), window[0], until=window[1])
        assert costs == stored.cost_by_model(viewer, *window)
        wanted = SessionListFilters(viewer=viewer, since=window[0], until=window[1], limit=500, **chosen)
        page = await db.lifecycle.list_session_rows(wanted)
        expected = stored.chosen(wanted, abandon_after)
        assert page.total == len(expected)
        listed = [((row.record.user_id, row.record.session_id), row.effective_status) for row in page.sessions]
        assert sorted(listed) == expected

    def _moment(self, edge: Edge) -> datetime | None:
        return self.now - edge if isinstance(edge, timedelta) else edge


@pytest_asyncio.fixture
async def dbs(session_database_url: str) -> AsyncIterator[list[SessionDatabase]]:
    """One database, with different thresholds and prices."""
    engine = create_async_engine(
        session_database_url.replace("postgresql://", "postgresql+asyncpg://", 1), connect_args=ELSEWHERE
    )
    yield [
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
    await engine.dispose()


any_history = settings(suppress_health_check=list(HealthCheck))
# Shrinking runs a history hundreds of times; only the soak variant does it.
FOUND_ONLY = [Phase.explicit, Phase.reuse, Phase.generate]
FOUND_AND_SHRUNK = [*FOUND_ONLY, Phase.shrink]


every_history = given(
    # Buckets of every length; the more, the more sessions there are; hardly any.
    density=st.sampled_from([0, 0.08, 0.08, 0.2, 2]),
    begun=st.lists(imported | recorded, min_size=4, max_size=12),
    at_first=st.lists(rolled_up | in_part, min_size=1, max_size=2),
    steps=st.lists(st.tuples(anything, questions), min_size=4, max_size=20),
)


async def live(
    history: History, density: float, begun: Steps, at_first: Steps, steps: Sequence[tuple[Step, Mapping[str, Any]]]
) -> None:
    await history.begin([*begun, *at_first], density)
    for one, question in steps:
        await history.go_on(one, question)


@settings(any_history, max_examples=10, phases=FOUND_ONLY)
@every_history
async def test_no_answer_depends_on_rolling_up(
    dbs: list[SessionDatabase], session_clock: SessionClock, **drawn: Any
) -> None:
    await live(History(dbs, session_clock), **drawn)


@pytest.mark.soak
@settings(any_history, max_examples=2500, phases=FOUND_AND_SHRUNK)
@every_history
async def test_no_answer_depends_on_rolling_up_in_many_histories(
    dbs: list[SessionDatabase], session_clock: SessionClock, **drawn: Any
) -> None:
    await live(History(dbs, session_clock), **drawn)
