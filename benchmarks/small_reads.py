"""What does each read cost with few sessions, beside the reference's calls and beside its own prepared statement?"""

import argparse
import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from reads import DATASETS, KEEP_ALIVE, SEED, SETTINGS, TABLES, USER, reference_figures
from session_lifecycle import SessionDatabase, SessionListFilters, SummaryFilters, Viewer
from session_lifecycle.models import RunFilters, UsageEventFilters, UsageFilters
from session_lifecycle.postgres.engines import asyncpg_url
from support.databases import database, machine, run, settle
from support.reference import PAGE
from support.reference_reads import Reference, fill
from support.tables import table

SIZES = (100, 1_000, 10_000)
VIEWERS = {"own": Viewer(USER), "own and 20 data sets": Viewer(USER, DATASETS)}
NEVER, ROLLED_UP = "never rolled up", "rolled up"
REFERENCE, OURS, DRIVER = "reference", "ours", "driver"
BY_ACTIVITY = "last_activity_at"
LEAST_TURNS = 5
LEAST_CALLS = 12
"""Postgres plans a prepared statement anew five times before it decides whether to keep a plan. Where a call is so slow
that it does not matter, it is called less often."""

# Three runs, three events and a message for each session.
ACTIVITY = (
    """
    INSERT INTO session_lifecycle.session_usage_events
        (user_id, session_id, event_id, run_id, at, model, tokens_in, tokens_out, cost_usd)
    SELECT user_id, session_id, md5(session_id || n)::uuid, session_id || n, started_at + n * interval '1 s',
           'm' || n, 120, 40, 0.01
    FROM session_lifecycle.session_records, generate_series(1, 3) n
    """,
    """
    INSERT INTO session_lifecycle.session_runs
        (user_id, run_id, session_id, root_run_id, started_at, ended_at, first_seen, last_seen, status, provider, model)
    SELECT user_id, session_id || n, session_id, session_id || n, started_at, started_at + interval '1 s', started_at,
           started_at + interval '1 s', 'completed', 'p', 'm' || n
    FROM session_lifecycle.session_records, generate_series(1, 3) n
    """,
    """
    INSERT INTO session_lifecycle.session_messages
        (user_id, session_id, message_id, role, content, content_folded, created_at)
    SELECT user_id, session_id, 'm', 'user', 'the prompt', 'the prompt', started_at
    FROM session_lifecycle.session_records
    """,
)
ACTIVITY_TABLES = ("session_usage_events", "session_runs", "session_messages")

Call = Callable[[], Awaitable[Any]]


class Question(NamedTuple):
    """A call of ours, and the reference's with the same answer where it has one."""

    name: str
    ours: Call
    reference: Call | None = None


class Timed(NamedTuple):
    """One question at one size in one state: milliseconds a call by side, and the median ratios of its turns."""

    question: str
    sessions: int
    state: str
    ms: Mapping[str, float]
    over_driver: float
    """How many times the time of the prepared statement the call takes."""
    faster: float | None
    """How many times faster than the reference; None where it has no such call."""


def questions(db: SessionDatabase, viewer: Viewer, reference: Reference, sessions: int) -> list[Question]:
    """The questions of one viewer."""
    since = datetime.now(UTC) - timedelta(days=30)

    def page(
        name: str, *, offset: int = 0, total: str = "exact", order: str = "last_activity_at", **asked: Any
    ) -> Question:
        filters = SessionListFilters.model_validate(
            {"viewer": viewer, "limit": PAGE, "offset": offset, "total": total, "order_by": order, **asked}
        )

        async def ours() -> Any:
            found = await db.lifecycle.list_session_rows(filters)
            return [getattr(one.record, order) for one in found.sessions], found.total

        async def theirs() -> Any:
            values, counted = await reference.page(order, offset, asked.get("status_filter"))
            return values, None if total == "none" else counted

        return Question(name, ours, theirs)

    def figures(name: str, from_: datetime | None) -> list[Question]:
        async def stats() -> Any:
            return reference_figures(await db.lifecycle.aggregate_stats(viewer, since=from_))

        async def costs() -> Any:
            rows = await db.lifecycle.cost_by_model(viewer, since=from_)
            return [(row.model, row.session_count, row.cost_usd, row.tokens_in, row.tokens_out) for row in rows]

        return [
            Question(f"stats, {name}", stats, lambda: reference.stats(from_)),
            Question(f"cost by model, {name}", costs, lambda: reference.costs(from_)),
        ]

    session_id = "session-3"

    async def one() -> Any:
        row = await db.lifecycle.get_session_row(session_id, viewer)
        return row and (row.record.user_id, row.record.session_id)

    summaries = SummaryFilters(viewer=viewer, limit=PAGE)
    return [
        page("list, 50, exact total"),
        page("list, 50, no total", total="none"),
        page("list, deep offset", offset=sessions * (9 if viewer.permitted_dataset_ids else 3) // 10),
        page("list by cost", order="cost_usd"),
        page("list, abandoned", status_filter="abandoned"),
        *figures("all", None),
        *figures("30 days", since),
        Question("one session", one, lambda: reference.one(session_id)),
        Question("detail page", lambda: db.activity.get_session_detail(session_id, viewer)),
        Question("summaries, 50", lambda: db.activity.list_session_summaries(summaries)),
        Question("usage by model", lambda: db.reports.usage(viewer, group_by=("model",))),
        Question("usage by model, 30 days", lambda: db.reports.usage(viewer, group_by=("model",), since=since)),
        *activity(db, viewer, session_id),
        *reports(db, viewer, since),
    ]


def activity(db: SessionDatabase, viewer: Viewer, session_id: str) -> list[Question]:
    """The other questions about runs, messages and events, and about one session."""
    asked: dict[str, Any] = {"viewer": viewer, "limit": PAGE, "total": "none"}
    of_model, by_errors = SummaryFilters(model="m1", **asked), SessionListFilters(order_by="error_count", **asked)
    return [
        Question("summaries of a model", lambda: db.activity.list_session_summaries(of_model)),
        Question("list by errors", lambda: db.lifecycle.list_session_rows(by_errors)),
        Question("recent activity", lambda: db.activity.get_recent_activity(session_id, viewer)),
        Question("threads", lambda: db.activity.list_threads(session_id, viewer)),
        Question("runs, 50", lambda: db.activity.list_runs(RunFilters(**asked))),
        Question("runs of a session", lambda: db.activity.list_runs(RunFilters(session_id=session_id, **asked))),
        Question("runs of a model", lambda: db.activity.list_runs(RunFilters(model="M1", **asked))),
        Question("events, 50", lambda: db.activity.list_usage_events(UsageEventFilters(**asked))),
        Question(
            "events of a session",
            lambda: db.activity.list_usage_events(UsageEventFilters(session_id=session_id, **asked)),
        ),
        Question("chat history", lambda: db.activity.chat_history(session_id, viewer)),
        Question("models", lambda: db.activity.list_models(viewer)),
        Question("models of a prefix", lambda: db.activity.list_models(viewer, "M1")),
        Question("clients", lambda: db.activity.list_clients(viewer)),
        Question("agents", lambda: db.activity.list_agents(viewer)),
        Question("lineage", lambda: db.activity.find_lineage(USER, "call")),
        Question("annotations", lambda: db.lifecycle.list_annotations(session_id, viewer)),
        Question("family", lambda: db.lifecycle.get_family_figures(session_id, viewer)),
    ]


def reports(db: SessionDatabase, viewer: Viewer, since: datetime) -> list[Question]:
    """The other reports."""
    until = since + timedelta(days=30)
    of_session = UsageFilters(session_id="session-3")
    return [
        Question("usage of a session", lambda: db.reports.usage(viewer, group_by=("run",), filters=of_session)),
        Question("spend, 30 days", lambda: db.reports.spend(viewer, since=since, until=until)),
        Question("time series, 30 days", lambda: db.reports.usage_timeseries(viewer, since=since, until=until)),
        Question("cost by agent", lambda: db.reports.cost_by_agent(viewer)),
        Question("cost by agent, 30 days", lambda: db.reports.cost_by_agent(viewer, since=since)),
        Question("cost by user", lambda: db.reports.cost_by_user(viewer)),
        Question("telemetry", lambda: db.reports.telemetry(viewer)),
        Question("telemetry of a model", lambda: db.reports.telemetry(viewer, model="M1")),
        Question("telemetry keys", lambda: db.reports.list_telemetry_keys(viewer)),
        Question("run durations", lambda: db.reports.run_durations(viewer)),
        Question("budgets", lambda: db.budgets.list_budgets(viewer)),
    ]


async def on_driver(db: SessionDatabase, ours: Call, connection: "asyncpg.Connection") -> Call:
    """The statement of a call, prepared on a connection of the driver, with the values of the call."""
    sent: list[tuple[str, Sequence[Any]]] = []
    connections: set[Any] = set()

    def note(logged: Any) -> None:
        sent.append((logged.query, logged.args))

    def listen(pooled: Any, *_: Any) -> None:
        pooled.driver_connection.add_query_logger(note)
        connections.add(pooled.driver_connection)

    event.listen(db.engine.sync_engine, "checkout", listen)
    await ours()
    await asyncio.sleep(0)  # asyncpg calls its loggers in the next turn of the loop
    event.remove(db.engine.sync_engine, "checkout", listen)
    for one in connections:
        one.remove_query_logger(note)
    statement, values = sent[-1]  # a new connection asks for types first
    prepared = await connection.prepare(statement)
    return lambda: prepared.fetch(*values)


async def measure(
    sides: Mapping[str, Call], seconds: float
) -> tuple[dict[str, float], Callable[[str, str], float | None]]:
    """The median milliseconds of each side, and a function that divides two sides; the sides take turns.

    The function returns the median of the ratios of the turns, and None without one of the sides.
    """
    for call in sides.values():
        warm = time.perf_counter() + seconds
        for made in range(LEAST_CALLS):
            if made < LEAST_TURNS or time.perf_counter() < warm:
                await call()
    turns: dict[str, list[float]] = {side: [] for side in sides}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(turns[OURS]) < LEAST_TURNS:
        for side, call in sides.items():
            began = time.perf_counter()
            await call()
            turns[side].append(time.perf_counter() - began)
    ms = {side: median(found) * 1e3 for side, found in turns.items()}

    def ratio(above: str, below: str) -> float | None:
        if not {above, below} <= turns.keys():
            return None
        return median(one / other for one, other in zip(turns[above], turns[below], strict=True))

    return ms, ratio


def agree(ours: Any, theirs: Any) -> bool:
    """Whether two answers are the same, but for what the reference's floats lose."""
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(agree, ours, theirs))
    if isinstance(theirs, float):
        return math.isclose(ours, theirs, abs_tol=1e-6)
    return bool(ours == theirs)


async def measure_state(
    db: SessionDatabase, engine: AsyncEngine, viewer: Viewer, sessions: int, state: str, seconds: float
) -> list[Timed]:
    """Every question of a viewer at one size, never rolled up or rolled up."""
    found: list[Timed] = []
    async with db.engine.connect() as borrowed:
        connection = (await borrowed.get_raw_connection()).driver_connection
        reference = Reference(async_sessionmaker(engine, class_=AsyncSession), viewer)
        for question in questions(db, viewer, reference, sessions):
            sides = {OURS: question.ours, DRIVER: await on_driver(db, question.ours, connection)}
            if question.reference is not None:
                ours, theirs = await question.ours(), await question.reference()
                if not agree(ours, theirs):
                    raise SystemExit(f"{question.name}, {sessions:,} sessions, {state}: {ours} is not {theirs}")
                sides = {REFERENCE: question.reference, **sides}
            ms, ratio = await measure(sides, seconds)
            over_driver = ratio(OURS, DRIVER) or 0.0
            found.append(Timed(question.name, sessions, state, ms, over_driver, ratio(REFERENCE, OURS)))
    return found


async def seed(db: SessionDatabase, sessions: int) -> None:
    """Replaces all sessions, by so many visible ones."""
    total = sessions * 11 // 10
    tables = ", ".join(f"session_lifecycle.{name}" for name in (*TABLES, *ACTIVITY_TABLES))
    values = {"now": datetime.now(UTC), "total": total, "live": min(300, total // 10)}
    await run(db, f"TRUNCATE {tables}")
    await run(db, SEED, values=values)
    await run(db, *ACTIVITY, KEEP_ALIVE)


def result_table(viewer: str, lines: Sequence[Timed]) -> str:
    """A row for each question and size: milliseconds, and the ratios to the reference and to the driver."""
    columns = ["", "sessions"]
    columns += [
        f"{what}, {state}" for state in (NEVER, ROLLED_UP) for what in (REFERENCE, OURS, "x faster", DRIVER, "x driver")
    ]
    cells: dict[tuple[str, int], list[str]] = {}
    for line in lines:
        row = cells.setdefault((line.question, line.sessions), [])
        theirs = f"{line.ms[REFERENCE]:.2f}" if REFERENCE in line.ms else ""
        faster = "" if line.faster is None else f"{line.faster:.1f}"
        row += [theirs, f"{line.ms[OURS]:.2f}", faster, f"{line.ms[DRIVER]:.2f}", f"{line.over_driver:.2f}"]
    rows = [[question, f"{sessions:,}", *row] for (question, sessions), row in cells.items()]
    return table(f"A viewer who sees {viewer}, ms", columns, sorted(rows, key=lambda row: row[0]), names=1)


async def main() -> None:
    """One run: every size, state and viewer on the same server, the sides of a question in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="how many sessions 20 data sets show")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each line is measured")
    parser.add_argument("--quick", action="store_true", help="0.2 seconds for each line")
    arguments = parser.parse_args()
    seconds = 0.2 if arguments.quick else arguments.seconds

    async with database(SETTINGS) as (server, db):
        print(f"{machine(server)}, pages of {PAGE}\n", flush=True)
        engine = create_async_engine(asyncpg_url(server.url))
        lines: dict[str, list[Timed]] = {viewer: [] for viewer in VIEWERS}
        for sessions in sorted(arguments.sizes):
            await seed(db, sessions)
            await fill(engine)
            for state in (NEVER, ROLLED_UP):
                if state == ROLLED_UP:
                    await db.maintenance.roll_up()
                await settle(db, (*TABLES, *ACTIVITY_TABLES))
                # New connections, whose plans are of this size and state.
                await db.engine.dispose()
                await engine.dispose()
                for name, viewer in VIEWERS.items():
                    lines[name] += await measure_state(db, engine, viewer, sessions, state, seconds)
        await engine.dispose()
        for name, found in lines.items():
            print(result_table(name, found), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
