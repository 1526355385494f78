"""What pages and figures cost as sessions grow, never rolled up and rolled up, beside the plain scan."""

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, func, null, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle import (
    EffectiveStatus,
    SessionDatabase,
    SessionListFilters,
    SessionRecord,
    SessionStats,
    Settings,
    Viewer,
)
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models.reads import SESSION_ORDERS

USER = UUID(int=1)
DATASETS = tuple(UUID(int=1_000 + number) for number in range(20))
VIEWER = Viewer(USER, DATASETS)
ABANDON_AFTER = timedelta(minutes=30)
SIZES = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
JUDGED = 1_000_000
"""The size whose ratios are reported, or the largest below it."""
REFERENCE_UP_TO = 1_000_000
TURNS = 3
OURS, SCAN, REFERENCE = "ours", "plain scan", "the reference's three queries"

# Of eleven sessions ten are visible: every third is the viewer's own, one in three of these in a permitted data set
# too; the others are other users', in a permitted data set. They began one after the other in the 18 months up to
# yesterday; the newest, at most 300, are live. What else differs between them goes by primes, not by the data set.
SEED = """
    WITH given AS (
        SELECT CAST(:now AS timestamptz) AS now, CAST(:total AS integer) AS total, CAST(:live AS integer) AS live
    ),
    fleet AS MATERIALIZED (
        SELECT n, CASE WHEN n > total - live THEN 'live-' ELSE 'session-' END || n AS session_id,
               lpad(to_hex(CASE WHEN n % 3 = 0 AND n % 11 > 0 THEN 1 ELSE 2 + n % 97 END), 32, '0')::uuid AS user_id,
               lpad(to_hex(CASE WHEN n % 11 = 0 THEN 2000 + n % 7
                                WHEN n % 3 > 0 OR n % 9 = 0 THEN 1000 + n % 20 END), 32, '0')::uuid AS dataset_id,
               CASE WHEN n > total - live OR n * 7919::bigint % 10007 < 300 THEN 'running'
                    WHEN n * 7919::bigint % 10007 < 1000 THEN 'failed'
                    ELSE 'completed' END AS status,
               now - interval '1 day' - (total - n) * (interval '540 days' / total) AS started_at,
               n * 37::bigint % 7193 * interval '1.000001 s' AS lasted,
               n * 31::bigint % 49999 AS tokens_in, n * 17::bigint % 4999 AS tokens_out,
               CASE WHEN n % 13 = 0 THEN 0 ELSE n % 9973 * 0.000137 END AS cost_usd
        FROM given, generate_series(1, total) n
    ),
    model_usage AS (
        INSERT INTO session_lifecycle.session_model_usage
            (user_id, session_id, model, tokens_in, tokens_out, cost_usd, cache_read_tokens, events)
        SELECT user_id, session_id, ('{m1,m2,m3,m4,m5,m6,""}'::text[])[1 + (n + 3 * part) % 7], tokens_in, tokens_out,
               cost_usd, tokens_in / 2, 3
        FROM fleet, generate_series(0, n % 2) part
    )
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, dataset_id, status, started_at, last_activity_at, ended_at, tokens_in, tokens_out,
         cost_usd, cache_read_tokens, unpriced_events, late_events, late_cost_usd)
    SELECT user_id, session_id, dataset_id, status, started_at, started_at + lasted,
           CASE WHEN status <> 'running' THEN started_at + lasted + n % 5 * interval '1 s' END,
           tokens_in * (1 + n % 2), tokens_out * (1 + n % 2), cost_usd * (1 + n % 2), tokens_in / 2 * (1 + n % 2),
           (n % 29 = 0)::int, (n % 51 = 0)::int, CASE WHEN n % 51 = 0 THEN 0.0123 ELSE 0 END
    FROM fleet
"""
TABLES = (
    "session_records",
    "session_model_usage",
    "rolled_up_sessions",
    "session_rollups",
    "session_model_rollups",
    "session_rollup_changes",
    "session_model_rollup_changes",
)
# The live ones are live again: a run may take longer than it takes to be abandoned.
KEEP_ALIVE = """
    UPDATE session_lifecycle.session_records
    SET last_activity_at = statement_timestamp() - abs(hashtext(session_id) % 600) * interval '1 s'
    WHERE session_id LIKE 'live-%'
"""

# What the library asked before it had roll-ups: everything visible is read.
PLAIN_STATS = """
    SELECT count(*), sum(cost_usd), sum(late_cost_usd),
           sum(greatest(0, extract(epoch FROM coalesce(ended_at, last_activity_at) - started_at))),
           sum(tokens_in), sum(tokens_out), sum(unpriced_events), sum(unmeasured_events), sum(late_events),
           count(*) FILTER (WHERE status = 'completed'), count(*) FILTER (WHERE status = 'failed'),
           count(*) FILTER (
               WHERE status = 'running' AND last_activity_at < statement_timestamp() - interval '30 minutes'
           ),
           count(*) FILTER (
               WHERE status = 'running' AND last_activity_at >= statement_timestamp() - interval '30 minutes'
           )
    FROM session_lifecycle.session_records
    WHERE (user_id = :user OR dataset_id = ANY(:datasets)) {window}
"""
PLAIN_COSTS = """
    SELECT CASE WHEN m.model = '' THEN 'unknown' ELSE m.model END AS model,
           count(DISTINCT (m.user_id, m.session_id)), sum(m.cost_usd) AS cost_usd, sum(m.tokens_in), sum(m.tokens_out),
           sum(m.cache_read_tokens), sum(m.cache_write_tokens), sum(m.reasoning_tokens), sum(m.events),
           sum(m.unpriced_events)
    FROM session_lifecycle.session_model_usage m
    JOIN session_lifecycle.session_records s ON s.user_id = m.user_id AND s.session_id = m.session_id
    WHERE (s.user_id = :user OR s.dataset_id = ANY(:datasets)) {window}
        AND (m.events > 0 OR m.tokens_in > 0 OR m.tokens_out > 0 OR m.cost_usd > 0)
    GROUP BY 1
    ORDER BY 3 DESC, 1
"""
WITHIN = "AND last_activity_at >= :since AND last_activity_at < :until"
REFERENCE_QUERIES = (
    """
    SELECT count(*), sum(cost_usd), sum(tokens_in), sum(tokens_out)
    FROM session_lifecycle.session_records
    WHERE user_id = :user OR dataset_id = ANY(:datasets)
    """,
    """
    SELECT CASE WHEN status = 'running' AND last_activity_at < statement_timestamp() - interval '30 minutes'
                THEN 'abandoned' ELSE status END AS status, count(*)
    FROM session_lifecycle.session_records
    WHERE user_id = :user OR dataset_id = ANY(:datasets)
    GROUP BY 1
    """,
    """
    SELECT started_at, ended_at, last_activity_at
    FROM session_lifecycle.session_records
    WHERE user_id = :user OR dataset_id = ANY(:datasets)
    """,
)
EDGES = """
    SELECT count(*)
    FROM session_lifecycle.session_records
    WHERE (user_id = :user OR dataset_id = ANY(:datasets))
        AND date_bin('15 minutes', last_activity_at, '2000-01-01 00:00:00+00') IN (
            date_bin('15 minutes', CAST(:since AS timestamptz), '2000-01-01 00:00:00+00'),
            date_bin('15 minutes', CAST(:until AS timestamptz), '2000-01-01 00:00:00+00')
        )
"""
BUCKETS = """
    SELECT (SELECT count(*) FROM session_lifecycle.session_rollups),
           (SELECT count(*) FROM session_lifecycle.session_model_rollups),
           pg_total_relation_size('session_lifecycle.session_records'),
           pg_total_relation_size('session_lifecycle.rolled_up_sessions'),
           pg_total_relation_size('session_lifecycle.session_rollups')
               + pg_total_relation_size('session_lifecycle.session_model_rollups')
"""

Call = Callable[[], Awaitable[Any]]


class Window(NamedTuple):
    """Of the figures: open, or with both its ends inside of a quarter of an hour."""

    since: datetime | None = None
    until: datetime | None = None


OPEN = Window()


class Line(NamedTuple):
    """One side of one question at one size."""

    group: str
    question: str
    side: str
    sessions: int
    p50_ms: float


class RolledUp(NamedTuple):
    """What rolling up so many visible sessions took, and takes."""

    sessions: int
    seconds: float
    rolled_up: int
    edge_sessions: int
    """Visible, and last active in the quarters of an hour in which the window begins and ends."""
    buckets: int
    model_buckets: int
    records_bytes: int
    rolled_up_bytes: int
    rollups_bytes: int


def told_figures(stats: SessionStats) -> Sequence[Any]:
    """What the scan says as well, in its order."""
    money = (stats.total_spend_usd, stats.late_cost_usd, stats.agent_time_s)
    events = (stats.unpriced_events, stats.unmeasured_events, stats.late_events)
    statuses = (stats.completed, stats.failed, stats.abandoned, stats.running)
    return [stats.sessions, *money, stats.tokens_in, stats.tokens_out, *events, *statuses]


def told_by_reference(stats: SessionStats) -> Sequence[Any]:
    """What the reference says as well, in its order."""
    totals = (stats.sessions, stats.total_spend_usd, stats.tokens_in, stats.tokens_out, stats.agent_time_s)
    return [*totals, *(getattr(stats, status.value) for status in EffectiveStatus)]


class Plain:
    """What is compared with, on a connection of its own and planned for the values it is given, at its best."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def rows(self, statement: str, window: Window = OPEN) -> Sequence[Any]:
        """The rows of a statement written out above."""
        windowed = text(statement.replace("{window}", "" if window == OPEN else WITHIN))
        values = {"user": USER, "datasets": list(DATASETS), **window._asdict()}
        known = {name: value for name, value in values.items() if f":{name}" in windowed.text}
        return (await self._connection.execute(windowed, known)).all()

    async def stats(self, window: Window) -> Sequence[Any]:
        """The figures over all sessions."""
        [row] = await self.rows(PLAIN_STATS, window)
        sessions, spent, late, agent_time_s, *others = row
        return [sessions, spent, late, float(agent_time_s), *others]

    async def costs(self, window: Window) -> Sequence[Any]:
        """What each model cost."""
        return [tuple(row) for row in await self.rows(PLAIN_COSTS, window)]

    async def reference_stats(self) -> Sequence[Any]:
        """As the reference does it: what SQL sums up, the statuses, and the durations folded in Python."""
        [totals] = await self.rows(REFERENCE_QUERIES[0])
        statuses = dict(map(tuple, await self.rows(REFERENCE_QUERIES[1])))
        agent_time = timedelta()
        for started_at, ended_at, last_activity_at in await self.rows(REFERENCE_QUERIES[2]):
            agent_time += max(timedelta(), (ended_at or last_activity_at) - started_at)
        return [*totals, agent_time.total_seconds(), *(statuses.get(status.value, 0) for status in EffectiveStatus)]

    async def page(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        """The keys of a page of the visible sessions, and the total where it was asked."""
        rows = (await self._connection.execute(statement)).all()
        return [(row.user_id, row.session_id) for row in rows[:50]], rows[0].total if rows else None


def plain_page(filters: SessionListFilters, after: SessionRecord | None) -> Select[*tuple[Any, ...]]:
    """The page as one condition with OR, and one row more."""
    visible = or_(S.user_id == USER, S.dataset_id.in_(DATASETS))
    column: Any = getattr(S, filters.order_by)
    total = select(func.count()).where(visible).scalar_subquery() if filters.total == "exact" else null()
    order = (column.desc().nulls_last(), S.user_id.desc(), S.session_id.desc())
    page = select(*S.__table__.columns, total.label("total")).where(visible).order_by(*order).limit(51)
    if after is not None:
        here = tuple_(getattr(after, filters.order_by), after.user_id, after.session_id)
        further = tuple_(column, S.user_id, S.session_id) < here
        page = page.where(or_(further, column.is_(None)) if filters.order_by == "ended_at" else further)
    return page if filters.status_filter is None else page.where(plain_status(filters.status_filter))


def plain_status(status: EffectiveStatus) -> ColumnElement[bool]:
    """The condition of an effective status."""
    cut = func.statement_timestamp() - ABANDON_AFTER
    if status is EffectiveStatus.ABANDONED:
        return and_(S.status == "running", S.last_activity_at < cut)
    if status is EffectiveStatus.RUNNING:
        return and_(S.status == "running", S.last_activity_at >= cut)
    return S.status == status.value


class Bench:
    """One size: its questions, each put to both sides."""

    def __init__(self, db: SessionDatabase, plain: Plain, sessions: int, seconds: float) -> None:
        self._db = db
        self._plain = plain
        self._sessions = sessions
        self._seconds = seconds
        self.lines: list[Line] = []

    async def seed(self) -> Window:
        """So many visible sessions in the place of those that are there; a window on them."""
        now = datetime.now(UTC)
        total = self._sessions * 11 // 10
        values = {"now": now, "total": total, "live": min(300, total // 10)}
        await self.run(f"TRUNCATE {', '.join(f'session_lifecycle.{table}' for table in TABLES)}")
        async with self._db.engine.begin() as connection:
            await connection.execute(text(SEED), values)
        await self.settle()
        [visible, *_] = await self._plain.stats(OPEN)
        if visible != self._sessions:
            raise SystemExit(f"{visible:,} sessions are visible, not {self._sessions:,}")
        since, until = now - timedelta(days=120), now - timedelta(days=3)
        return Window(since.replace(minute=7, second=30), until.replace(minute=52, second=10))

    async def settle(self) -> None:
        """Live sessions live, nothing dead in the tables, statistics of what is there, nothing left to write."""
        await self.run(KEEP_ALIVE)
        # A scan would pay for the space that rolling up leaves behind: it is compared at its best.
        await self.run("VACUUM FULL session_lifecycle.session_records")
        for table in TABLES:
            await self.run(f"VACUUM ANALYZE session_lifecycle.{table}")
        await self.run("CHECKPOINT")
        # Connections made at this size: whether Postgres plans a prepared statement each time it decides by what the
        # plans before were like, and those of another size would be among them.
        await self._db.engine.dispose()

    async def run(self, statement: str) -> None:
        """A statement that gives no rows, outside of a transaction."""
        async with self._db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text(statement))

    async def roll_up(self, window: Window) -> RolledUp:
        """Rolls up what is over."""
        began = time.perf_counter()
        report = await self._db.maintenance.roll_up()
        seconds = time.perf_counter() - began
        await self.settle()
        [sizes] = await self._plain.rows(BUCKETS)
        [(edge_sessions,)] = await self._plain.rows(EDGES, window)
        return RolledUp(self._sessions, seconds, report.sessions, edge_sessions, *map(int, sizes))

    async def pages(self, group: str, orders: Iterable[str]) -> None:
        """Pages of 50: the first and a deep one in each order, of each status, and beside the total."""
        for order in orders:
            await self.page(group, f"by {order}", order_by=order)
            await self.page(group, f"by {order}, deep", deep=True, order_by=order)
        for status in EffectiveStatus:
            await self.page(group, f"{status.value} only", status_filter=status)
        await self.page(group, "exact total", total="exact")

    async def page(self, group: str, question: str, *, deep: bool = False, **asked: Any) -> None:
        """One page, newest first unless it is asked otherwise; a deep one begins where half of all are past."""
        filters = SessionListFilters(viewer=VIEWER, **{"total": "none", **asked})
        after = None
        if deep:
            there = filters.model_copy(update={"offset": self._sessions // 2})
            before = await self._db.lifecycle.list_session_rows(there)
            after = before.sessions[-1].record
            filters = filters.model_copy(update={"cursor": before.next_cursor})
        plain = plain_page(filters, after)

        async def ours() -> Any:
            page = await self._db.lifecycle.list_session_rows(filters)
            return [(row.record.user_id, row.record.session_id) for row in page.sessions], page.total

        await self.measure(group, question, {OURS: ours, SCAN: lambda: self._plain.page(plain)})

    async def figures(self, group: str, window: Window, question: str) -> None:
        """Statistics and costs by model of a window, or of all there is."""

        async def asked() -> SessionStats:
            return await self._db.lifecycle.aggregate_stats(VIEWER, **window._asdict())

        async def stats() -> Any:
            return told_figures(await asked())

        async def costs() -> Any:
            rows = await self._db.lifecycle.cost_by_model(VIEWER, **window._asdict())
            return [tuple(value for _, value in row) for row in rows]

        sides: dict[str, Call] = {OURS: stats, SCAN: lambda: self._plain.stats(window)}
        if window == OPEN and self._sessions <= REFERENCE_UP_TO:
            sides[REFERENCE] = self._plain.reference_stats
            if await self._plain.reference_stats() != told_by_reference(await asked()):
                raise SystemExit(f"the reference's figures over {self._sessions:,} sessions are others")
        await self.measure(group, f"aggregate_stats, {question}", sides)
        sides = {OURS: costs, SCAN: lambda: self._plain.costs(window)}
        await self.measure(group, f"cost_by_model, {question}", sides)

    async def measure(self, group: str, question: str, sides: Mapping[str, Call]) -> None:
        """Both sides, which must agree, in turns: a machine's speed varies over a run."""
        ours, scanned = await sides[OURS](), await sides[SCAN]()
        if ours != scanned:
            raise SystemExit(f"{group}, {question}, {self._sessions:,} sessions: {ours} is not {scanned}")
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(TURNS):
            for side, call in sides.items():
                until = time.perf_counter() + self._seconds / TURNS
                while (began := time.perf_counter()) < until:
                    await call()
                    times[side].append(time.perf_counter() - began)
        for side, found in times.items():
            self.lines.append(Line(group, question, side, self._sessions, median(found) * 1e3))


@asynccontextmanager
async def database() -> AsyncGenerator[tuple[EmbeddedPostgres, SessionDatabase, Plain]]:
    """A server of this run's own, migrated. Nothing here takes longer than it is allowed to."""
    settings = Settings(statement_timeout_seconds=None, abandon_after=ABANDON_AFTER)
    with temporary_data_dir() as data_dir:
        async with (
            await EmbeddedPostgres.start(data_dir) as server,
            SessionDatabase.connect(server.url, settings=settings) as db,
        ):
            await db.migrate()
            engine = db.engine.execution_options(isolation_level="AUTOCOMMIT")
            async with engine.connect() as connection:
                await connection.execute(text("SET plan_cache_mode = force_custom_plan"))
                yield server, db, Plain(connection)


async def measure_size(db: SessionDatabase, plain: Plain, sessions: int, seconds: float) -> tuple[list[Line], RolledUp]:
    """Every question with so many visible sessions: never rolled up, then rolled up."""
    bench = Bench(db, plain, sessions, seconds)
    window = await bench.seed()
    await bench.pages("Pages, never rolled up", SESSION_ORDERS[:1])
    await bench.figures("Figures, never rolled up", OPEN, "all")
    await bench.figures("Figures, never rolled up", window, "a window")
    rolled_up = await bench.roll_up(window)
    await bench.pages("Pages, rolled up", SESSION_ORDERS)
    await bench.figures("Figures, rolled up", OPEN, "all")
    await bench.figures("Figures, rolled up", window, "a window")
    return bench.lines, rolled_up


def table(group: str, lines: Sequence[Line], judged: int) -> str:
    """The p50 of one group as Markdown: a line per question and side, a column per size."""
    times = {line[1:4]: line.p50_ms for line in lines if line.group == group}
    sizes = sorted({line.sessions for line in lines})
    rows = [
        f"### {group}, p50 ms\n",
        f"| | | {' | '.join(f'{size:,}' for size in sizes)} | growth | x faster than the scan |",
        f"|---|---|{'---:|' * (len(sizes) + 2)}",
    ]
    for question, side in dict.fromkeys((question, side) for question, side, _ in times):
        found = [times.get((question, side, size)) for size in sizes]
        cells = [f"{ms:,.2f}" if ms else "not run" for ms in found]
        cells += ["", ""]
        if side == OURS:
            ours = times[question, side, judged]
            cells[-2:] = f"{ours / times[question, side, sizes[0]]:.1f}", f"{times[question, SCAN, judged] / ours:.1f}"
        rows.append(f"| {question} | {side} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def sizes_table(found: Sequence[RolledUp]) -> str:
    """What rolling up took and takes, as Markdown."""
    columns = ["visible", "rolled up", "s", "sessions/s", "buckets", "buckets by model", "session_records MB"]
    columns += ["rolled_up_sessions MB", "buckets MB", "sessions in the edge quarter-hours"]
    rows = ["### Rolling up\n", f"| {' | '.join(columns)} |", f"|{'---:|' * len(columns)}"]
    for one in found:
        megabytes = (size / 1e6 for size in (one.records_bytes, one.rolled_up_bytes, one.rollups_bytes))
        cells = [
            f"{one.sessions:,}",
            f"{one.rolled_up:,}",
            f"{one.seconds:,.1f}",
            f"{one.rolled_up / one.seconds:,.0f}",
        ]
        cells += [f"{one.buckets:,}", f"{one.model_buckets:,}", *(f"{size:,.0f}" for size in megabytes)]
        rows.append(f"| {' | '.join(cells)} | {one.edge_sessions:,} |")
    return "\n".join(rows) + "\n"


PLOTTED = (
    ("Pages, never rolled up", "by last_activity_at", OURS),
    ("Pages, never rolled up", "by last_activity_at", SCAN),
    ("Pages, rolled up", "by cost_usd, deep", OURS),
    ("Figures, rolled up", "aggregate_stats, all", OURS),
    ("Figures, rolled up", "aggregate_stats, all", SCAN),
    ("Figures, rolled up", "aggregate_stats, all", REFERENCE),
    ("Figures, rolled up", "cost_by_model, all", OURS),
    ("Figures, rolled up", "cost_by_model, all", SCAN),
)


def plot(lines: Sequence[Line], file: Path, caption: str) -> None:
    """Milliseconds by visible sessions, ours whole lines and others dashed, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    for group, question, side in PLOTTED:
        points = [line for line in lines if line[:3] == (group, question, side)]
        what = question.removesuffix(", all") if group.startswith("Figures") else f"page {question}"
        axes.plot(
            [one.sessions for one in points],
            [one.p50_ms for one in points],
            marker="o",
            linestyle="-" if side == OURS else "--",
            label=f"{what}: {side}",
        )
    axes.set(xscale="log", yscale="log", xlabel="visible sessions", ylabel="ms a call", title=caption)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, metadata={"Date": None})


async def main() -> None:
    """One run: every size and question on the same server, its sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="how many sessions are visible, tens")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each line is measured")
    parser.add_argument("--plot", type=Path, help="where to write the SVG")
    arguments = parser.parse_args()
    sizes = sorted(arguments.sizes)
    judged = max((size for size in sizes if size <= JUDGED), default=sizes[0])

    async with database() as (server, db, plain):
        machine = f"PostgreSQL {server.version}, CPython {platform.python_version()}, {os.cpu_count()} cores"
        print(f"{machine}, {len(DATASETS)} permitted data sets, pages of 50\n", flush=True)
        lines: list[Line] = []
        rolled_up: list[RolledUp] = []
        for sessions in sizes:
            print(f"{datetime.now(UTC):%H:%M} {sessions:,} visible sessions", file=sys.stderr, flush=True)
            measured, one = await measure_size(db, plain, sessions, arguments.seconds)
            lines += measured
            rolled_up.append(one)
        print(f"growth: the time with {judged:,} sessions by that with {sizes[0]:,}; the scan: with {judged:,}\n")
        for group in dict.fromkeys(line.group for line in lines):
            print(table(group, lines, judged))
        print(sizes_table(rolled_up), flush=True)
        if arguments.plot:
            plot(lines, arguments.plot, machine)


if __name__ == "__main__":
    asyncio.run(main())
