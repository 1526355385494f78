"""What do pages and figures cost as sessions grow, never rolled up and rolled up, beside the plain scan?"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionListFilters, Settings, Viewer
from session_lifecycle.models import EffectiveStatus, SessionStats
from session_lifecycle.models.session_filters import SESSION_ORDERS
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from support.databases import database, machine, run, settle
from support.reference import ABANDON_AFTER, OPEN, PAGE, Plain, Window, plain_page
from support.tables import Curve, plot, table

USER = UUID(int=1)
DATASETS = tuple(UUID(int=1_000 + number) for number in range(20))
VIEWER = Viewer(USER, DATASETS)
SIZES = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
JUDGED = 1_000_000
"""The size whose ratios are reported; without it, the largest below it."""
REFERENCE_UP_TO = 1_000_000
TURNS = 3
OURS, SCAN, REFERENCE = "ours", "plain scan", "the reference's three queries"
# No statement here has a time limit: a scan of all sessions may take longer than an application allows.
SETTINGS = Settings(statement_timeout_seconds=None, abandon_after=ABANDON_AFTER)

# Ten in eleven sessions are visible. Every third is the viewer's own, and a third of the viewer's own are in a
# permitted data set too. The other visible ones are other users' sessions in a permitted data set. The sessions began
# one after the other in the 18 months up to yesterday; the newest, at most 300, are live. All else differs by primes,
# not by data set.
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
    "session_roll_ups",
    "session_model_roll_ups",
    "session_roll_up_changes",
    "session_model_roll_up_changes",
)
# Makes the live sessions live again: a run of this file may take longer than a session takes to be abandoned.
KEEP_ALIVE = """
    UPDATE session_lifecycle.session_records
    SET last_activity_at = statement_timestamp() - abs(hashtext(session_id) % 600) * interval '1 s'
    WHERE session_id LIKE 'live-%'
"""

# The columns of the scan's cost by model.
SCANNED_COSTS = (
    *("model", "session_count", "cost_usd", "tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens"),
    *("reasoning_tokens", "events", "unpriced_events"),
)
BUCKETS = """
    SELECT (SELECT count(*) FROM session_lifecycle.session_roll_ups),
           (SELECT count(*) FROM session_lifecycle.session_model_roll_ups),
           pg_total_relation_size('session_lifecycle.session_records'),
           pg_total_relation_size('session_lifecycle.rolled_up_sessions'),
           pg_total_relation_size('session_lifecycle.session_roll_ups')
               + pg_total_relation_size('session_lifecycle.session_model_roll_ups')
"""

Side = Callable[[], Awaitable[Any]]
"""Answers one question."""


class Timed(NamedTuple):
    """One side of one question at one size."""

    group: str
    question: str
    side: str
    sessions: int
    p50_ms: float


class RolledUp(NamedTuple):
    """How long rolling up took, and the space that it takes."""

    sessions: int
    seconds: float
    rolled_up: int
    buckets: int
    model_buckets: int
    records_bytes: int
    rolled_up_bytes: int
    roll_ups_bytes: int


def scanned_figures(stats: SessionStats) -> Sequence[Any]:
    """The figures that the plain scan answers as well, in its order."""
    money = (stats.total_spend_usd, stats.late_cost_usd, stats.agent_time_s)
    events = (stats.unpriced_events, stats.unmeasured_events, stats.late_events)
    statuses = (stats.completed, stats.failed, stats.abandoned, stats.running)
    return [stats.sessions, *money, stats.tokens_in, stats.tokens_out, *events, *statuses]


def reference_figures(stats: SessionStats) -> Sequence[Any]:
    """The figures that the reference answers as well, in its order."""
    totals = (stats.sessions, stats.total_spend_usd, stats.tokens_in, stats.tokens_out, stats.agent_time_s)
    return [*totals, *(getattr(stats, status.value) for status in EffectiveStatus)]


class Bench:
    """One size: its questions, each answered by both sides."""

    def __init__(self, db: SessionDatabase, plain: Plain, sessions: int, seconds: float) -> None:
        self._db = db
        self._plain = plain
        self._sessions = sessions
        self._seconds = seconds
        self.lines: list[Timed] = []

    async def seed(self) -> Window:
        """Replaces all sessions by so many visible ones; returns a window on them."""
        now = datetime.now(UTC)
        total = self._sessions * 11 // 10
        values = {"now": now, "total": total, "live": min(300, total // 10)}
        await run(self._db, f"TRUNCATE {', '.join(f'session_lifecycle.{table}' for table in TABLES)}")
        await run(self._db, SEED, values=values)
        await self.settle()
        [visible, *_] = await self._plain.stats(OPEN)
        if visible != self._sessions:
            raise SystemExit(f"{visible:,} sessions are visible, not {self._sessions:,}")
        since, until = now - timedelta(days=120), now - timedelta(days=3)
        return Window(since.replace(minute=7, second=30), until.replace(minute=52, second=10))

    async def settle(self) -> None:
        """Makes live sessions live, and the tables as they are long after a change."""
        # A scan would pay for the space that rolling up leaves behind: the scan is measured at its best.
        await run(self._db, KEEP_ALIVE, "VACUUM FULL session_lifecycle.session_records")
        await settle(self._db, TABLES)
        # Each size gets new connections: from its earlier plans Postgres decides whether it plans a prepared statement
        # each time, and the plans of another size would be among them.
        await self._db.engine.dispose()

    async def roll_up(self) -> RolledUp:
        """Rolls up the sessions that are over."""
        began = time.perf_counter()
        report = await self._db.maintenance.roll_up()
        seconds = time.perf_counter() - began
        await self.settle()
        [sizes] = await self._plain.rows(BUCKETS)
        return RolledUp(self._sessions, seconds, report.sessions, *map(int, sizes))

    async def pages(self, group: str, orders: Iterable[str]) -> None:
        """Times pages: the first and a deep one in each order, the first of each status, and one with its total."""
        for order in orders:
            await self.page(group, f"by {order}", order_by=order)
            await self.page(group, f"by {order}, deep", deep=True, order_by=order)
        for status in EffectiveStatus:
            await self.page(group, f"{status.value} only", status_filter=status)
        await self.page(group, "exact total", total="exact")

    async def page(self, group: str, question: str, *, deep: bool = False, **asked: Any) -> None:
        """Times one page, newest first unless `asked` differs; a deep one begins behind half of all sessions."""
        filters = SessionListFilters.model_validate({"viewer": VIEWER, "limit": PAGE, "total": "none", **asked})
        after = None
        if deep:
            there = filters.model_copy(update={"offset": self._sessions // 2})
            before = await self._db.lifecycle.list_session_rows(there)
            after = before.sessions[-1].record
            filters = filters.model_copy(update={"cursor": before.next_cursor})
        plain = plain_page(VIEWER, filters, after)

        async def ours() -> Any:
            page = await self._db.lifecycle.list_session_rows(filters)
            return [(row.record.user_id, row.record.session_id) for row in page.sessions], page.total

        await self.measure(group, question, {OURS: ours, SCAN: lambda: self._plain.page(plain)})

    async def figures(self, group: str, window: Window, question: str) -> None:
        """Times statistics and cost by model, of a window or of all sessions."""

        async def figures_of_window() -> SessionStats:
            return await self._db.lifecycle.aggregate_stats(VIEWER, since=window.since, until=window.until)

        async def stats() -> Any:
            return scanned_figures(await figures_of_window())

        async def costs() -> Any:
            rows = await self._db.lifecycle.cost_by_model(VIEWER, since=window.since, until=window.until)
            return [tuple(getattr(row, name) for name in SCANNED_COSTS) for row in rows]

        sides: dict[str, Side] = {OURS: stats, SCAN: lambda: self._plain.stats(window)}
        if window == OPEN and self._sessions <= REFERENCE_UP_TO:
            sides[REFERENCE] = self._plain.reference_stats
            if await self._plain.reference_stats() != reference_figures(await figures_of_window()):
                raise SystemExit(f"the reference's figures over {self._sessions:,} sessions differ from ours")
        await self.measure(group, f"aggregate_stats, {question}", sides)
        sides = {OURS: costs, SCAN: lambda: self._plain.costs(window)}
        await self.measure(group, f"cost_by_model, {question}", sides)

    async def measure(self, group: str, question: str, sides: Mapping[str, Side]) -> None:
        """Times the sides, which must agree, in turns: a machine's speed varies over a run."""
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
            self.lines.append(Timed(group, question, side, self._sessions, median(found) * 1e3))


@asynccontextmanager
async def databases() -> AsyncGenerator[tuple[EmbeddedPostgres, SessionDatabase, Plain]]:
    """A server of this run alone, our schema on it, and the plain scans of that schema."""
    async with database(SETTINGS) as (server, db):
        engine = db.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text("SET plan_cache_mode = force_custom_plan"))
            yield server, db, Plain(connection, VIEWER)


async def measure_size(
    db: SessionDatabase, plain: Plain, sessions: int, seconds: float
) -> tuple[list[Timed], RolledUp]:
    """Every question with so many visible sessions: never rolled up, then rolled up."""
    bench = Bench(db, plain, sessions, seconds)
    window = await bench.seed()
    await bench.pages("Pages, never rolled up", SESSION_ORDERS[:1])
    await bench.figures("Figures, never rolled up", OPEN, "all")
    await bench.figures("Figures, never rolled up", window, "a window")
    rolled_up = await bench.roll_up()
    await bench.pages("Pages, rolled up", SESSION_ORDERS)
    await bench.figures("Figures, rolled up", OPEN, "all")
    await bench.figures("Figures, rolled up", window, "a window")
    return bench.lines, rolled_up


def group_table(group: str, lines: Sequence[Timed], judged: int) -> str:
    """The p50 of one group as Markdown: a row for each question and side, a column for each size."""
    times = {line[1:4]: line.p50_ms for line in lines if line.group == group}
    sizes = sorted({line.sessions for line in lines})
    rows = []
    for question, side in dict.fromkeys((question, side) for question, side, _ in times):
        found = [times.get((question, side, size)) for size in sizes]
        cells = ["not run" if ms is None else f"{ms:,.2f}" for ms in found]
        growth = faster = ""
        if side == OURS:
            ours = times[question, side, judged]
            growth = f"{ours / times[question, side, sizes[0]]:.1f}"
            faster = f"{times[question, SCAN, judged] / ours:.1f}"
        rows.append([question, side, *cells, growth, faster])
    columns = ["", "", *(f"{size:,}" for size in sizes), "growth", "x faster than the scan"]
    return table(f"{group}, p50 ms", columns, rows, names=2)


def sizes_table(found: Sequence[RolledUp]) -> str:
    """How long rolling up took and the space that it takes, as Markdown."""
    columns = ["visible", "rolled up", "s", "sessions/s", "buckets", "buckets by model", "session_records MB"]
    columns += ["rolled_up_sessions MB", "buckets MB"]
    rows = []
    for one in found:
        megabytes = (size / 1e6 for size in (one.records_bytes, one.rolled_up_bytes, one.roll_ups_bytes))
        per_second = one.rolled_up / one.seconds
        cells = [f"{one.sessions:,}", f"{one.rolled_up:,}", f"{one.seconds:,.1f}", f"{per_second:,.0f}"]
        cells += [f"{one.buckets:,}", f"{one.model_buckets:,}", *(f"{size:,.0f}" for size in megabytes)]
        rows.append(cells)
    return table("Rolling up", columns, rows, names=0)


DRAWN = (
    ("Pages, never rolled up", "by last_activity_at", OURS),
    ("Pages, never rolled up", "by last_activity_at", SCAN),
    ("Pages, rolled up", "by cost_usd, deep", OURS),
    ("Figures, rolled up", "aggregate_stats, all", OURS),
    ("Figures, rolled up", "aggregate_stats, all", SCAN),
    ("Figures, rolled up", "aggregate_stats, all", REFERENCE),
    ("Figures, rolled up", "cost_by_model, all", OURS),
    ("Figures, rolled up", "cost_by_model, all", SCAN),
)


def draw(file: Path, lines: Sequence[Timed], title: str) -> None:
    """Draws milliseconds by visible sessions; the curves of other sides are dashed."""
    curves = []
    for group, question, side in DRAWN:
        what = question.removesuffix(", all") if group.startswith("Figures") else f"page {question}"
        points = [(line.sessions, line.p50_ms) for line in lines if line[:3] == (group, question, side)]
        curves.append(Curve(f"{what}: {side}", points, dashed=side != OURS))
    plot(file, curves, x="visible sessions", y="ms a call", title=title, height=5)


async def main() -> None:
    """One run: every size and question on the same server, its sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="how many sessions are visible, multiples of ten"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each line is measured")
    parser.add_argument("--plot", type=Path, help="where to write the SVG")
    arguments = parser.parse_args()
    sizes = sorted(arguments.sizes)
    judged = max((size for size in sizes if size <= JUDGED), default=sizes[0])

    async with databases() as (server, db, plain):
        print(f"{machine(server)}, {len(DATASETS)} permitted data sets, pages of {PAGE}\n", flush=True)
        lines: list[Timed] = []
        rolled_up: list[RolledUp] = []
        for sessions in sizes:
            print(f"{datetime.now(UTC):%H:%M} {sessions:,} visible sessions", file=sys.stderr, flush=True)
            measured, one = await measure_size(db, plain, sessions, arguments.seconds)
            lines += measured
            rolled_up.append(one)
        print(f"growth: the time with {judged:,} sessions by that with {sizes[0]:,}; the scan: with {judged:,}\n")
        for group in dict.fromkeys(line.group for line in lines):
            print(group_table(group, lines, judged))
        print(sizes_table(rolled_up), flush=True)
        if arguments.plot:
            draw(arguments.plot, lines, machine(server))


if __name__ == "__main__":
    asyncio.run(main())
