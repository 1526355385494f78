"""What a page of 100 session summaries costs as runs grow, beside grouping all runs by their session."""

import argparse
import asyncio
import os
import platform
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text

from session_lifecycle import SessionDatabase, SessionSummary, Settings, SummaryFilters
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir

USER = UUID(int=1)
PAGE = 100
RUNS_PER_SESSION = 6.3
SIZES = (2_000, 20_000, 200_000, 2_000_000)
ORDER = ("grouping all runs", "page, exact total", "page, no total")

# A run a second, dealt out to the sessions in turn; a step in each, a message at each session's start.
SEED = (
    """
    INSERT INTO session_lifecycle.session_runs
        (user_id, run_id, session_id, root_run_id, started_at, ended_at, first_seen, last_seen, status, provider, model,
         client, project, events_cost_usd, events_tokens_in, events_tokens_out)
    SELECT :user, 'r' || n, 's' || n % :sessions, 'r' || n, began, began + interval '0.7 s', began,
           began + interval '0.7 s', 'completed', 'p' || n % 3, 'm' || n % 7, 'c' || n % 2, 'default', 0.001 * (n % 10),
           120, 40
    FROM generate_series(1, :runs) n,
         LATERAL (SELECT timestamptz '2025-01-01' + n * interval '1 s') x (began)
    """,
    """
    INSERT INTO session_lifecycle.session_steps (user_id, run_id, step_id, kind, started_at)
    SELECT user_id, run_id, 'step', 'tool', started_at FROM session_lifecycle.session_runs
    """,
    """
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, status, started_at, last_activity_at, ended_at, cost_usd, tokens_in, tokens_out)
    SELECT user_id, session_id, 'completed', min(first_seen), max(last_seen), max(last_seen), sum(events_cost_usd),
           sum(events_tokens_in), sum(events_tokens_out)
    FROM session_lifecycle.session_runs
    GROUP BY user_id, session_id
    """,
    """
    INSERT INTO session_lifecycle.session_messages
        (user_id, session_id, message_id, role, content, content_folded, created_at)
    SELECT user_id, session_id, 'm', 'user', 'the prompt', 'the prompt', started_at
    FROM session_lifecycle.session_records
    """,
)
TABLES = ("session_runs", "session_steps", "session_records", "session_messages")

GROUPING = text("""
    SELECT session_id, count(*) AS runs_count, sum(greatest(reported_cost_usd, events_cost_usd)) AS cost_usd,
           sum(events_tokens_in) AS tokens_in, sum(events_tokens_out) AS tokens_out,
           array_agg(DISTINCT model ORDER BY model) AS models,
           min(first_seen) AS first_seen, max(last_seen) AS last_seen
    FROM session_lifecycle.session_runs
    WHERE user_id = :user
    GROUP BY session_id
    ORDER BY max(last_seen) DESC, session_id DESC
    LIMIT :page
""")


class Measured(NamedTuple):
    """One line of the table."""

    name: str
    runs: int
    p50_ms: float
    p90_ms: float


@asynccontextmanager
async def database() -> AsyncGenerator[tuple[EmbeddedPostgres, SessionDatabase]]:
    """A server of this run's own, migrated. Nothing here takes longer than it is allowed to."""
    with temporary_data_dir() as data_dir:
        async with (
            await EmbeddedPostgres.start(data_dir) as server,
            SessionDatabase.connect(server.url, settings=Settings(statement_timeout_seconds=None)) as db,
        ):
            await db.migrate()
            yield server, db


async def seed(db: SessionDatabase, runs: int) -> None:
    """As many runs in place of those that are there."""
    values = {"user": USER, "runs": runs, "sessions": round(runs / RUNS_PER_SESSION)}
    async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in TABLES:
            await connection.execute(text(f"TRUNCATE session_lifecycle.{table}"))
        for statement in SEED:
            known = {name: value for name, value in values.items() if f":{name}" in statement}
            await connection.execute(text(statement), known)
        for table in TABLES:
            await connection.execute(text(f"VACUUM ANALYZE session_lifecycle.{table}"))


async def grouped(db: SessionDatabase, statement: TextClause = GROUPING) -> Sequence[Any]:
    """The page by grouping."""
    async with db.engine.connect() as connection:
        return (await connection.execute(statement, {"user": USER, "page": PAGE})).all()


def told(one: Any) -> tuple[Any, ...]:
    """What both sides say of a session."""
    spent = (one.runs_count, one.cost_usd, one.tokens_in, one.tokens_out)
    return (one.session_id, *spent, tuple(one.models), one.first_seen, one.last_seen)


async def measure(name: str, runs: int, call: Callable[[], Awaitable[object]], seconds: float) -> Measured:
    """One caller, one call after another, at least three of them."""
    times: list[float] = []
    for _ in range(3):
        await call()
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    times.sort()
    return Measured(name, runs, times[len(times) // 2] * 1e3, times[len(times) * 9 // 10] * 1e3)


async def measure_size(db: SessionDatabase, runs: int, seconds: float) -> list[Measured]:
    """All sides, with so many runs."""
    await seed(db, runs)

    async def page(total: Literal["exact", "none"]) -> list[SessionSummary]:
        filters = SummaryFilters(user_id=USER, limit=PAGE, total=total)
        return (await db.activity.list_session_summaries(filters)).sessions

    if [told(row) for row in await grouped(db)] != [told(one) for one in await page("exact")]:
        raise SystemExit(f"the sides give different pages with {runs:,} runs")
    return [
        await measure("grouping all runs", runs, lambda: grouped(db), seconds),
        await measure("page, exact total", runs, lambda: page("exact"), seconds),
        await measure("page, no total", runs, lambda: page("none"), seconds),
    ]


def table(lines: Sequence[Measured]) -> str:
    """The lines as Markdown, each beside the grouping of as many runs."""
    rows = ["| | runs | p50 ms | p90 ms | x faster than grouping |", "|---|---:|---:|---:|---:|"]
    for line in lines:
        [grouping] = [other for other in lines if other.name == ORDER[0] and other.runs == line.runs]
        ratio = grouping.p50_ms / line.p50_ms
        rows.append(f"| {line.name} | {line.runs:,} | {line.p50_ms:.1f} | {line.p90_ms:.1f} | {ratio:.1f} |")
    return "\n".join(rows) + "\n"


def plot(lines: Sequence[Measured], file: Path, caption: str) -> None:
    """Milliseconds by runs, one line per side, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name in ORDER:
        points = [line for line in lines if line.name == name]
        axes.plot([one.runs for one in points], [one.p50_ms for one in points], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="runs", ylabel="ms a page", title=caption)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


async def main() -> None:
    """One run: every size and side on the same server, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="how many runs there are")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    parser.add_argument("--plot", type=Path, help="where to write the SVG")
    arguments = parser.parse_args()

    async with database() as (server, db):
        machine = f"PostgreSQL {server.version}, CPython {platform.python_version()}, {os.cpu_count()} cores"
        print(f"{machine}, {RUNS_PER_SESSION} runs a session, a page of {PAGE}\n")
        lines = [line for runs in arguments.sizes for line in await measure_size(db, runs, arguments.seconds)]
        lines.sort(key=lambda line: ORDER.index(line.name))
        print(table(lines), flush=True)
        if arguments.plot:
            plot(lines, arguments.plot, machine)


if __name__ == "__main__":
    asyncio.run(main())
