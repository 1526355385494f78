"""Which index the database uses for an answer, and how many rows it reads.

The database holds many sessions; the number of rows read must not depend on how many. The statements are those that the
library sends.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionListFilters, SummaryFilters, Viewer
from session_lifecycle.models import EffectiveStatus, RunFilters, UsageEventFilters, UsageFilters
from session_lifecycle.models.session_filters import SESSION_ORDERS
from session_lifecycle.statements.shared import few
from session_lifecycle.testing import TemplateServer
from support.statements import in_sql, noted
from support.stored_rows import keep_buckets
from support.ways_of_reading import reading

# So many sessions are few for a window that cuts buckets.
pytestmark = pytest.mark.usefixtures("as_of_many")

ME = UUID(int=1)
SOMEBODY = UUID(int=(1 << 64) + 1)
DATASETS = [UUID(int=(2 << 64) + number) for number in range(20)]
VIEWER = Viewer(ME, DATASETS)
SESSIONS = 12_000
LIMIT = 10
SCOPES, STATUSES, TEMPERATURES = 1 + len(DATASETS), 3, 2
# A page from each scope, status and kind of table, and the records of the page itself.
A_PAGE = SCOPES * STATUSES * TEMPERATURES * (LIMIT + 1) + LIMIT + 1
BEGIN = datetime.now(UTC) - timedelta(days=200)
ROLLED_UP, NEVER = "rolled up", "never rolled up"

# A third are the viewer's own, half of these in a dataset too; the rest belong to many users, each in a dataset.
SEED = """
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, dataset_id, agent_name, status, started_at, last_activity_at, ended_at, tokens_in,
         tokens_out, cost_usd)
    SELECT CASE WHEN n % 3 = 0 THEN '00000000-0000-0000-0000-000000000001'
                ELSE '00000000-0000-0001-0000-' || lpad((n % 60)::text, 12, '0') END::uuid,
           's' || n,
           CASE WHEN n % 6 > 0 THEN ('00000000-0000-0002-0000-' || lpad(to_hex(n % 20), 12, '0'))::uuid END,
           'agent ' || n % 5, s.status, s.began, s.began + n % 1000 * interval '1 s',
           CASE WHEN s.status <> 'running' THEN s.began + n % 1000 * interval '1 s' END, n % 5000, n % 700,
           n % 977 * 0.0001
    FROM generate_series(1, :sessions) n,
         LATERAL (VALUES (
             (ARRAY['completed', 'completed', 'failed', 'running'])[1 + n % 4],
             timestamptz '2000-01-01' + (:begin - timestamptz '2000-01-01') + (n * 7919 % :sessions) * interval '10 min'
         )) s (status, began)
"""
SEED_MODELS = """
    INSERT INTO session_lifecycle.session_model_usage
        (user_id, session_id, model, tokens_in, tokens_out, cost_usd, events)
    SELECT user_id, session_id, 'model ' || right(session_id, 1), tokens_in, tokens_out, cost_usd, 1
    FROM session_lifecycle.session_records
"""
WAITING = 429
# Of the running sessions every seventh waits, and as many waited once.
WAIT = """
    UPDATE session_lifecycle.session_records
    SET waiting_since = last_activity_at - CASE WHEN n.n % 28 = 3 THEN interval '0' ELSE interval '1 s' END
    FROM generate_series(3, 12000, 4) n (n)
    WHERE session_id = 's' || n.n AND n.n % 28 IN (3, 7)
"""
SEED_RUNS = """
    INSERT INTO session_lifecycle.session_runs (user_id, run_id, session_id, model, started_at, ended_at)
    SELECT user_id, session_id, session_id, 'Model ' || right(session_id, 2), started_at, started_at
    FROM session_lifecycle.session_records
"""
# One run has many steps, every other run has two.
STEPS = 10_000
SEED_STEPS = """
    INSERT INTO session_lifecycle.session_steps (user_id, run_id, step_id, kind, seq, started_at, ended_at, output)
    SELECT r.user_id, r.run_id, n::text, 'tool', n, r.started_at + n % 100 * interval '1 s', r.ended_at,
           to_jsonb(repeat('x', 200))
    FROM session_lifecycle.session_runs r
    CROSS JOIN LATERAL generate_series(1, CASE WHEN r.run_id = 's6' THEN :steps ELSE 2 END) n
"""
# Two months of events, written in the order of time.
EVENTS = 60_000
SEED_EVENTS = """
    INSERT INTO session_lifecycle.session_usage_events
        (user_id, session_id, event_id, at, model, tokens_in, tokens_out, cost_usd)
    SELECT s.user_id, s.session_id, lpad(to_hex(n), 32, '0')::uuid, CAST(:begin AS timestamptz) + n * interval '90 s',
           'm', 10, 1, 0.01
    FROM generate_series(1, :events) n
    JOIN session_lifecycle.session_records s ON s.session_id = 's' || 1 + n % :sessions
    ORDER BY n
"""


@pytest.fixture(scope="module")
def urls(session_template_server: TemplateServer) -> Iterator[dict[str, str]]:
    """Two databases with the same sessions: one rolled up, one never rolled up."""
    server = session_template_server
    names = {state: f"{server.template}_{number}" for number, state in enumerate((ROLLED_UP, NEVER))}

    async def seed() -> None:
        for state, name in names.items():
            await server.clone(name)
            async with SessionDatabase.connect(server.url_of(name)) as db:
                async with db.engine.begin() as connection:
                    await connection.execute(text(SEED), {"sessions": SESSIONS, "begin": BEGIN})
                    await connection.execute(text(SEED_MODELS))
                    await connection.execute(text(SEED_RUNS))
                    await connection.execute(text(SEED_STEPS), {"steps": STEPS})
                    await connection.execute(
                        text(SEED_EVENTS), {"sessions": SESSIONS, "begin": BEGIN, "events": EVENTS}
                    )
                    if state == NEVER:
                        await connection.execute(text(WAIT))
                if state == ROLLED_UP:
                    # So few sessions have hardly any bucket otherwise.
                    await keep_buckets(db, density=8)
                    await db.maintenance.roll_up()
            connection = await asyncpg.connect(server.url_of(name))
            # For statistics, and for the visibility map that index-only scans need.
            await connection.execute("VACUUM ANALYZE")
            await connection.close()

    async def drop() -> None:
        for name in names.values():
            await server.drop(name)

    asyncio.run(seed())
    yield {state: server.url_of(name) for state, name in names.items()}
    asyncio.run(drop())


async def execute(url: str, *statements: str) -> None:
    """Runs statements, each outside a transaction and with those values of a seed that it names."""
    values = {"sessions": SESSIONS, "begin": BEGIN}
    async with SessionDatabase.connect(url) as db:
        autocommit = db.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with autocommit.connect() as connection:
            for one in statements:
                await connection.execute(text(one), {name: values[name] for name in values if f":{name}" in one})


@asynccontextmanager
async def seeded(server: TemplateServer, name: str, *statements: str) -> AsyncGenerator[str]:
    """The URL of another database, in which these statements ran; it is dropped afterwards."""
    database = f"{server.template}_{name}"
    await server.clone(database)
    try:
        await execute(server.url_of(database), *statements)
        yield server.url_of(database)
    finally:
        await server.drop(database)


@dataclass
class Plan:
    """The executed plan of a statement."""

    indexes: set[str] = field(default_factory=set)
    conditions: dict[str, str] = field(default_factory=dict)
    """The condition of each index scan."""
    sequential: set[str] = field(default_factory=set)
    rows_read: int = 0
    """Rows read from all tables, with the rows that a filter then removed."""
    rows_of: Counter[str] = field(default_factory=Counter)
    """Rows read from each table."""
    buffers: int = 0
    """Pages read by the whole statement."""

    def take(self, node: dict[str, Any]) -> None:
        """Adds a node and its children."""
        if "Relation Name" in node or node["Node Type"] == "Bitmap Index Scan":
            loops = node["Actual Loops"]
            removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            if loops and "Index Name" in node:
                self.indexes.add(node["Index Name"])
                self.conditions[node["Index Name"]] = node.get("Index Cond", "")
            if loops and node["Node Type"] == "Seq Scan":
                self.sequential.add(node["Relation Name"])
            rows = round((node["Actual Rows"] + removed) * loops)
            self.rows_read += rows
            self.rows_of[node.get("Relation Name", "")] += rows
        for child in node.get("Plans", ()):
            self.take(child)


Ask = Callable[[SessionDatabase], Awaitable[Any]]


GENERIC, CHOSEN = "force_generic_plan", "auto"
EXECUTIONS = 6
"""After five plans for the values at hand, Postgres decides whether it keeps one for all values."""


async def plan_of(url: str, ask: Ask, mode: str = GENERIC, *, with_text: str = "") -> Plan:
    """The executed plan of the last statement of a call, of those with this text.

    It is the plan for all values, or with CHOSEN the one that Postgres chooses after it ran the statement a few times.
    """
    async with SessionDatabase.connect(url) as db:
        await db.check()
        async with noted(db) as sent:
            await ask(db)
        statement, values = [one for one in sent if with_text in one[0]][-1]
        async with db.engine.connect() as connection:
            await connection.exec_driver_sql(f"SET LOCAL plan_cache_mode = {mode}")
            await connection.exec_driver_sql(f"PREPARE asked AS {statement}")
            given = f"({', '.join(map(in_sql, values))})" if values else ""
            for _ in range(EXECUTIONS if mode == CHOSEN else 0):
                await connection.exec_driver_sql(f"EXECUTE asked{given}")
            answer = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked{given}")
            answered = answer.scalar_one()
            await connection.exec_driver_sql("DEALLOCATE asked")
    [explained] = json.loads(answered) if isinstance(answered, str) else answered
    top = explained["Plan"]
    plan = Plan(buffers=top["Shared Hit Blocks"] + top["Shared Read Blocks"])
    plan.take(top)
    return plan


def page(**filters: Any) -> Ask:
    """A call for a page, of VIEWER unless the filters name another viewer."""
    asked = SessionListFilters(**{"viewer": VIEWER, "limit": LIMIT, "total": "none", **filters})
    return lambda db: db.lifecycle.list_session_rows(asked)


def events(**filters: Any) -> Ask:
    """A call for a page of the ledger."""
    asked = UsageEventFilters(**{"limit": LIMIT, **filters})
    return lambda db: db.activity.list_usage_events(asked)


def runs(**filters: Any) -> Ask:
    """A call for a page of runs."""
    asked = RunFilters(**filters)
    return lambda db: db.activity.list_runs(asked)


def deep(**filters: Any) -> Ask:
    """A call for a page in the middle of a walk."""

    async def ask(db: SessionDatabase) -> None:
        asked = SessionListFilters(**{"viewer": VIEWER, "limit": LIMIT, "total": "none", **filters})
        middle = await db.lifecycle.list_session_rows(asked.model_copy(update={"offset": SESSIONS // 5}))
        assert middle.next_cursor is not None
        await db.lifecycle.list_session_rows(asked.model_copy(update={"cursor": middle.next_cursor}))

    return ask


def deep_of_waiting(**filters: Any) -> Ask:
    """A call for the second page of a walk."""

    async def ask(db: SessionDatabase) -> None:
        asked = SessionListFilters(**{"viewer": VIEWER, "limit": LIMIT, "total": "none", **filters})
        first = await db.lifecycle.list_session_rows(asked)
        assert first.next_cursor is not None
        await db.lifecycle.list_session_rows(asked.model_copy(update={"cursor": first.next_cursor}))

    return ask


def rolled_up(*scopes: str) -> set[str]:
    """The index of rolled-up sessions on these columns."""
    return {"_".join(("ix_rolled_up_sessions", *scopes))}


def not_rolled_up(*scopes: str) -> set[str]:
    """The index of the sessions not rolled up on these columns and activity."""
    return {"_".join(("ix_session_records", *scopes, "status_activity_minute"))}


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


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_X04_an_index_finds_the_runs_of_a_model_in_any_case(urls: dict[str, str], mode: str) -> None:
    auditor = Viewer.auditor()
    asks: list[Ask] = [
        lambda db: db.activity.list_runs(RunFilters(viewer=auditor, model="mODEL 33")),
        lambda db: db.reports.telemetry(auditor, model="mODEL 33"),
        lambda db: db.activity.list_models(auditor, prefix="mODEL 33"),
        lambda db: db.activity.list_session_summaries(SummaryFilters(viewer=auditor, model="mODEL 33", total="none")),
    ]
    for ask in asks:
        plan = await plan_of(urls[ROLLED_UP], ask, mode)
        assert "ix_session_runs_lower_model_user_id_session_id" in plan.indexes
        assert "session_runs" not in plan.sequential


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_page_of_the_runs_of_a_common_model_reads_a_bounded_number_of_rows(
    session_template_server: TemplateServer, mode: str
) -> None:
    """There are three models. So the order of the page finds its runs sooner than the model does."""
    asked: dict[str, Any] = {"viewer": Viewer(ME), "limit": LIMIT, "total": "none"}
    of_three = "UPDATE session_lifecycle.session_runs SET model = 'Model ' || length(session_id) % 3"
    async with seeded(session_template_server, "models", SEED, SEED_RUNS, of_three, "VACUUM ANALYZE") as url:
        common = await plan_of(url, runs(**asked, model="mODEL 2"), mode)
        unknown = await plan_of(url, runs(**asked, model="mODEL 4"), CHOSEN)
    assert common.rows_of["session_runs"] <= 20 * (LIMIT + 1)
    assert unknown.rows_read == 0


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_X15_measuring_an_answer_reads_the_rows_of_its_runs_only(urls: dict[str, str], mode: str) -> None:
    """Their number and size decide whether the answer is built: they are read twice, and no others."""
    asks: list[Ask] = [
        lambda db: db.activity.list_runs(RunFilters(viewer=Viewer(ME), limit=LIMIT, total="none")),
        lambda db: db.activity.get_session_detail("s3", ME),
        lambda db: db.activity.get_session_detail("s3", ME, project="default"),
        lambda db: db.activity.list_threads("s3", ME),
        lambda db: db.activity.get_recent_activity("s3", ME),
        lambda db: db.activity.list_runs(RunFilters(viewer=Viewer(ME), session_id="s3")),
    ]
    for ask in asks:
        plan = await plan_of(urls[NEVER], ask, mode)
        large = {"session_usage_events", "session_runs", "session_records"}
        assert not large & plan.sequential
        assert plan.rows_of["session_usage_events"] <= 2 * (LIMIT + 1) * EVENTS / SESSIONS
        assert plan.rows_of["session_runs"] <= 4 * (LIMIT + 1)


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_page_of_the_steps_of_a_run_reads_no_other_steps(urls: dict[str, str], mode: str) -> None:
    """The steps are read to count them, to measure the page and to build it."""
    counted, measured, built = STEPS, STEPS, STEPS
    asks: dict[Ask, int] = {
        runs(viewer=Viewer(ME), session_id="s6", steps_limit=LIMIT): counted + measured + built,
        runs(viewer=Viewer(ME), session_id="s6", steps_limit=LIMIT, steps_offset=STEPS - LIMIT): (
            counted + measured + built
        ),
        # The figures of the session count them, too.
        lambda db: db.activity.get_session_detail("s6", ME, steps_limit=LIMIT): 2 * counted + measured + built,
    }
    for ask, rows in asks.items():
        plan = await plan_of(urls[NEVER], ask, mode)
        assert "session_steps" not in plan.sequential
        assert "pk_session_steps" in plan.indexes
        assert plan.rows_of["session_steps"] == rows


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_page_of_a_users_runs_reads_a_bounded_number_of_rows(urls: dict[str, str], mode: str) -> None:
    """The user has a third of all runs, and a plan for any user and any limit expects far fewer."""
    window = {"since": BEGIN + timedelta(days=20), "until": BEGIN + timedelta(days=80)}
    asked: dict[str, Any] = {"viewer": Viewer(ME), "limit": LIMIT, "total": "none"}
    for filters in ({}, {"offset": 20}, {"descending": False}, window):
        plan = await plan_of(urls[NEVER], runs(**asked, **filters), mode)
        assert plan.rows_of["session_runs"] <= 4 * (LIMIT + 1) + 20, filters


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_what_belongs_to_one_session_is_found_by_its_key(urls: dict[str, str], viewer: Viewer, mode: str) -> None:
    asks: dict[str, Ask] = {
        "chat": lambda db: db.activity.chat_history("s3", viewer),
        "annotations": lambda db: db.lifecycle.list_annotations("s3", viewer),
        "family": lambda db: db.lifecycle.get_family_figures("s3", viewer),
        "lineage": lambda db: db.activity.find_lineage(ME, "call"),
        "runs": runs(viewer=viewer, session_id="s3", limit=LIMIT),
        "events": events(viewer=viewer, session_id="s3"),
        "usage": lambda db: db.reports.usage(viewer, group_by=("run",), filters=UsageFilters(session_id="s3")),
        "summaries": lambda db: db.activity.list_session_summaries(SummaryFilters(viewer=viewer, session_id="s3")),
        "detail": lambda db: db.activity.get_session_detail("s3", viewer),
        "recent": lambda db: db.activity.get_recent_activity("s3", viewer),
        "threads": lambda db: db.activity.list_threads("s3", viewer),
    }
    for name, ask in asks.items():
        plan = await plan_of(urls[NEVER], ask, mode)
        assert not {"session_records", "session_runs", "session_steps", "session_usage_events"} & plan.sequential, name
        assert plan.rows_read <= 2 * len(DATASETS), name


@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
@pytest.mark.parametrize("is_window", [False, True], ids=["ever", "window"])
async def test_figures_read_buckets_and_the_edges_of_the_window(
    urls: dict[str, str], viewer: Viewer, is_window: bool
) -> None:
    """The number of rows read does not depend on the sessions between the edges."""
    since = BEGIN + timedelta(days=40, minutes=3) if is_window else None
    until = BEGIN + timedelta(days=160, minutes=3) if is_window else None
    asks: dict[str, Ask] = {
        "session_roll_ups": lambda db: db.lifecycle.aggregate_stats(viewer, (), since, until=until),
        "session_model_roll_ups": lambda db: db.lifecycle.cost_by_model(viewer, (), since, until=until),
    }
    for table, ask in asks.items():
        plan = await plan_of(urls[ROLLED_UP], ask)
        assert f"pk_{table}" in plan.indexes
        assert table not in plan.sequential
        # The status precedes the activity in the index; without it a whole index would be searched for the edges.
        edges = [found for index, found in plan.conditions.items() if index.startswith("ix_rolled_up_sessions")]
        assert edges or not is_window
        assert all("(status, 1)" in found and "last_activity_at >=" in found for found in edges)
        assert plan.rows_read < SESSIONS / 2


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_figures_read_as_little_right_after_a_first_roll_up_as_later(
    session_template_server: TemplateServer, mode: str
) -> None:
    """The first `roll_up` takes its sessions out of the indexes of the others."""
    asks: list[Ask] = [
        lambda db: db.lifecycle.aggregate_stats(VIEWER),
        lambda db: db.lifecycle.cost_by_model(VIEWER),
        page(total="exact"),
    ]
    async with seeded(session_template_server, "first", SEED, SEED_MODELS) as url:
        async with SessionDatabase.connect(url) as db:
            await db.maintenance.roll_up()
        at_once = [(await plan_of(url, ask, mode)).buffers for ask in asks]
        await execute(url, "VACUUM ANALYZE")
        later = [(await plan_of(url, ask, mode)).buffers for ask in asks]
    assert all(first <= 1.5 * second for first, second in zip(at_once, later, strict=True)), (at_once, later)


async def test_an_exact_total_reads_buckets(urls: dict[str, str]) -> None:
    without = await plan_of(urls[ROLLED_UP], page())
    counted = await plan_of(urls[ROLLED_UP], page(total="exact"))
    assert "pk_session_roll_ups" in counted.indexes
    assert counted.rows_read - without.rows_read < SESSIONS / 10


@pytest.mark.parametrize("status", [None, EffectiveStatus.COMPLETED])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_an_exact_total_without_roll_ups_counts_by_an_index(
    urls: dict[str, str], viewer: Viewer, status: EffectiveStatus | None
) -> None:
    asked: dict[str, Any] = {"viewer": viewer, "status_filter": status}
    without = await plan_of(urls[NEVER], page(**asked))
    counted = await plan_of(urls[NEVER], page(**asked, total="exact"))
    # Every visible session is counted once. Those of the viewer in a data set are read twice, and counted for the user.
    visible = SESSIONS // 3 if viewer == Viewer(ME) else SESSIONS
    of_total = counted.rows_of["session_records"] - without.rows_of["session_records"]
    assert of_total <= visible * 7 // 6
    assert "session_records" not in counted.sequential or viewer.sees_all
    assert not counted.rows_of["rolled_up_sessions"]


async def test_a_total_of_a_status_reads_buckets_of_that_status(urls: dict[str, str]) -> None:
    asked = {"status_filter": EffectiveStatus.FAILED}
    without = await plan_of(urls[ROLLED_UP], page(**asked))
    counted = await plan_of(urls[ROLLED_UP], page(**asked, total="exact"))
    assert "pk_session_roll_ups" in counted.indexes
    assert counted.rows_read - without.rows_read < SESSIONS / 10


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_a_statement_for_few_sessions_reads_each_at_most_once(
    urls: dict[str, str], viewer: Viewer, mode: str
) -> None:
    """It reads no row of the roll-ups, and looks up the records of a page."""
    since, until = BEGIN + timedelta(days=40, minutes=3), BEGIN + timedelta(days=160, minutes=3)
    records, usage, of_page = "session_records", "session_model_usage", LIMIT + 1
    every = Counter({records: SESSIONS})
    # Usage of a model that is named unknown is looked for once.
    with_usage = every + Counter({usage: 2 * SESSIONS})
    asks: list[tuple[Ask, Counter[str]]] = [
        (page(viewer=viewer), every + Counter({records: of_page})),
        (page(viewer=viewer, order_by="cost_usd"), every + Counter({records: of_page})),
        (page(viewer=viewer, offset=SESSIONS // 5), every + Counter({records: of_page})),
        (page(viewer=viewer, total="exact"), every + every + Counter({records: of_page})),
        (page(viewer=viewer, total="exact", since=since, until=until), every + every + Counter({records: of_page})),
        (lambda db: db.lifecycle.aggregate_stats(viewer), every),
        (lambda db: db.lifecycle.aggregate_stats(viewer, (), since, until=until), every),
        (lambda db: db.lifecycle.cost_by_model(viewer), with_usage),
        (lambda db: db.lifecycle.cost_by_model(viewer, (), since, until=until), with_usage),
    ]
    for state in (ROLLED_UP, NEVER):
        for ask, most in asks:
            with reading("few"):
                plan = await plan_of(urls[state], ask, mode)
            # The rows of a bitmap are counted without the name of their table, too.
            del plan.rows_of[""]
            assert plan.rows_of <= most


@pytest.mark.parametrize("mode", [GENERIC, CHOSEN])
async def test_a_statement_for_few_sessions_reads_nothing_where_there_are_many(
    urls: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However stale the statistics, and whatever the last look said: it looks at the size itself."""
    asks: list[Ask] = [
        page(total="exact"),
        page(order_by="cost_usd"),
        lambda db: db.lifecycle.aggregate_stats(VIEWER),
        lambda db: db.lifecycle.cost_by_model(VIEWER),
    ]
    for ask in asks:
        with reading("few"):
            monkeypatch.setattr(few, "PAGES_OF_A_STATEMENT", 1)
            monkeypatch.setattr(few, "PAGES_OF_A_SCOPE", 0)
            plan = await plan_of(urls[ROLLED_UP], ask, mode, with_text="pg_relation_size")
        assert (plan.rows_read, plan.buffers) == (0, 0)


async def test_the_usual_questions_are_short(urls: dict[str, str]) -> None:
    """Postgres reads and plans a text anew on each connection."""
    asks: dict[str, tuple[Ask, int]] = {
        "one session": (lambda db: db.lifecycle.get_session_row("s1", VIEWER), 5_000),
        "a page": (page(), 10_000),
        "a page and its total": (page(total="exact"), 14_000),
        "a page and its total, own": (page(viewer=Viewer(ME), total="exact"), 10_000),
    }
    async with SessionDatabase.connect(urls[NEVER]) as db:
        for name, (ask, most) in asks.items():
            async with noted(db) as sent:
                await ask(db)
            assert len(sent[-1][0]) < most, name


@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_reports_by_time_of_use_read_only_that_part_of_the_ledger(urls: dict[str, str], viewer: Viewer) -> None:
    since, until = BEGIN + timedelta(days=30), BEGIN + timedelta(days=31)
    asks: list[Ask] = [
        lambda db: db.reports.spend(viewer, since=since, until=until),
        lambda db: db.reports.usage_timeseries(viewer, since=since, until=until, bucket="hour", group_by="agent"),
        lambda db: db.reports.tokens_by_class(viewer, since=since, until=until),
        lambda db: db.reports.usage(viewer, since=since, until=until, group_by=("model", "run", "hour")),
        events(viewer=viewer, since=since, until=until, total="none"),
        events(viewer=viewer, since=since, until=until, total="none", descending=False),
        lambda db: db.reports.usage(viewer, since=since, until=until, group_by=("client",)),
    ]
    for number, ask in enumerate(asks, 1):
        plan = await plan_of(urls[ROLLED_UP], ask)
        assert "ix_session_usage_events_at" in plan.indexes
        assert "session_usage_events" not in plan.sequential
        # One day of two months, and the rest of the page ranges where that day begins and ends.
        assert plan.rows_of["session_usage_events"] < EVENTS / 4
        # Only the last one asks for what the runs have.
        reads_runs = any("session_runs" in name for name in plan.indexes | plan.sequential)
        assert reads_runs == (number == len(asks))


# Two months of runs outside a session, written in the order of time. Every third one is of `ME`.
RUNS = 60_000
REPORTS_ON_RUNS = ("telemetry", "run_durations", "list_telemetry_keys")
SEED_MANY_RUNS = f"""
    INSERT INTO session_lifecycle.session_runs (user_id, run_id, started_at, ended_at)
    SELECT ('00000000-0000-0000-0000-' || lpad((1 + n % 3)::text, 12, '0'))::uuid, n::text,
           timestamptz '{BEGIN:%Y-%m-%d}' + n * interval '86 s', timestamptz '{BEGIN:%Y-%m-%d}' + n * interval '87 s'
    FROM generate_series(1, {RUNS}) n
"""


async def test_reports_by_the_end_of_runs_read_only_that_part_of_the_runs(
    session_template_server: TemplateServer,
) -> None:
    since, until = BEGIN + timedelta(days=30), BEGIN + timedelta(days=31)
    async with seeded(session_template_server, "many_runs", SEED_MANY_RUNS, "VACUUM ANALYZE") as url:
        for viewer, name in product((VIEWER, Viewer(ME), Viewer.auditor()), REPORTS_ON_RUNS):

            async def ask(db: SessionDatabase, viewer: Viewer = viewer, name: str = name) -> None:
                await getattr(db.reports, name)(viewer, since=since, until=until)

            plan = await plan_of(url, ask)
            assert "ix_session_runs_ended_at" in plan.indexes, name
            assert "session_runs" not in plan.sequential, name
            # A run ends every 86 s. One day, and the rest of the page ranges where that day begins and ends.
            assert 0 < plan.rows_of["session_runs"] < RUNS / 4, name


@pytest.mark.parametrize("viewer", [VIEWER, Viewer(ME), Viewer.auditor()], ids=["shared", "own", "auditor"])
async def test_X11_the_events_of_a_session_are_found_by_its_key(urls: dict[str, str], viewer: Viewer) -> None:
    """The ledger's rows of the session are read for the page and for its total, and the rows of no other session."""
    filters = UsageFilters(session_id="s3")
    asks: list[Ask] = [
        events(viewer=viewer, session_id="s3"),
        lambda db: db.reports.usage(viewer, filters=filters, group_by=("run",)),
    ]
    for ask in asks:
        plan = await plan_of(urls[ROLLED_UP], ask)
        assert "pk_session_usage_events" in plan.indexes
        assert not {"session_usage_events", "session_records"} & plan.sequential
        assert 0 < plan.rows_of["session_usage_events"] <= 2 * EVENTS / SESSIONS


async def test_X11_a_page_in_the_middle_of_a_walk_reads_the_rest_of_the_window(urls: dict[str, str]) -> None:
    """The index on the time of use finds the beginning of the page."""

    async def ask(db: SessionDatabase) -> None:
        asked = UsageEventFilters(viewer=Viewer.auditor(), limit=LIMIT, total="none", descending=False)
        middle = await db.activity.list_usage_events(asked.model_copy(update={"offset": EVENTS * 9 // 10}))
        assert middle.next_cursor is not None
        await db.activity.list_usage_events(asked.model_copy(update={"cursor": middle.next_cursor}))

    plan = await plan_of(urls[ROLLED_UP], ask)
    assert "ix_session_usage_events_at" in plan.indexes
    assert plan.rows_of["session_usage_events"] < EVENTS / 4


SHARED_ID, SHARERS = "main", 20_000
# Everybody has a session of one id. They were active one after another, a minute apart, each in one of 200 datasets.
SEED_SHARED_ID = """
    INSERT INTO session_lifecycle.session_records (user_id, session_id, dataset_id, last_activity_at)
    SELECT ('00000000-0000-0003-0000-' || lpad(to_hex(n), 12, '0'))::uuid, :session_id,
           ('00000000-0000-0004-0000-' || lpad(to_hex(n % 200), 12, '0'))::uuid,
           CAST(:begin AS timestamptz) + n * interval '1 min'
    FROM generate_series(1, :sharers) n
"""
SHARER, LATEST_SHARER = UUID(int=(3 << 64) + 70), UUID(int=(3 << 64) + SHARERS)
FEW_DATASETS = [UUID(int=(4 << 64) + number) for number in (70, 71)]
ALL_DATASETS = [UUID(int=(4 << 64) + number) for number in range(200)]


@pytest.fixture(scope="module")
def url_of_shared_id(session_template_server: TemplateServer) -> Iterator[str]:
    """A database in which many users have a session of one id."""
    server, name = session_template_server, f"{session_template_server.template}_shared_id"

    async def seed() -> None:
        await server.clone(name)
        async with SessionDatabase.connect(server.url_of(name)) as db, db.engine.begin() as connection:
            values = {"session_id": SHARED_ID, "begin": BEGIN, "sharers": SHARERS}
            await connection.execute(text(SEED_SHARED_ID), values)
            await connection.execute(text("ANALYZE session_lifecycle.session_records"))

    asyncio.run(seed())
    yield server.url_of(name)
    asyncio.run(server.drop(name))


@pytest.mark.parametrize(
    ("viewer", "more", "owner"),
    [
        (Viewer(SHARER), {}, SHARER),
        (Viewer(SHARER, FEW_DATASETS), {}, SHARER),
        (Viewer(None, (), [SHARER, ME]), {}, SHARER),
        (Viewer(ME, FEW_DATASETS), {}, UUID(int=(3 << 64) + SHARERS - 129)),
        (Viewer(ME, ALL_DATASETS), {}, LATEST_SHARER),
        (Viewer(SHARER, ALL_DATASETS), {"prefer_other_owner": True}, LATEST_SHARER),
        (Viewer(LATEST_SHARER, ALL_DATASETS), {"prefer_other_owner": True}, UUID(int=(3 << 64) + SHARERS - 1)),
        (Viewer(ME, ALL_DATASETS), {"owner_id": SHARER}, SHARER),
        (Viewer.auditor(), {}, LATEST_SHARER),
        (Viewer.auditor(), {"owner_id": SHARER}, SHARER),
        (Viewer(SHARER, sees_all=True), {"prefer_other_owner": True}, LATEST_SHARER),
    ],
)
async def test_X39_a_session_of_an_id_that_many_users_share_is_found_among_a_bounded_number_of_rows(
    url_of_shared_id: str, viewer: Viewer, more: dict[str, Any], owner: UUID
) -> None:
    found: list[UUID] = []

    async def ask(db: SessionDatabase) -> None:
        row = await db.lifecycle.get_session_row(SHARED_ID, viewer, **more)
        assert row is not None
        found.append(row.record.user_id)

    plan = await plan_of(url_of_shared_id, ask)
    assert found == [owner]
    assert not plan.sequential
    # The latest two sessions of each dataset, and the record of the preferred session.
    assert plan.rows_read <= 2 * len(viewer.permitted_dataset_ids) + 5
