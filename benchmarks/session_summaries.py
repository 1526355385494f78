"""What does a page of 100 session summaries cost as runs grow, beside grouping all runs by their session?"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text

from session_lifecycle import SessionDatabase, Settings, SummaryFilters
from session_lifecycle.models import SessionSummary
from support.databases import database, machine, run, settle
from support.measuring import Line, measure
from support.tables import Curve, plot, table

USER = UUID(int=1)
PAGE = 100
RUNS_PER_SESSION = 6.3
SIZES = (2_000, 20_000, 200_000, 2_000_000)
GROUPED, WITH_TOTAL, WITHOUT_TOTAL = "grouping all runs", "page, exact total", "page, no total"
ORDER = (GROUPED, WITH_TOTAL, WITHOUT_TOTAL)
WARMING_CALLS = 3

# One run begins each second, and each run is the next session's. Each run has a step, each session a message.
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

GROUPING = """
    SELECT session_id, count(*) AS runs_count, sum(greatest(reported_cost_usd, events_cost_usd)) AS cost_usd,
           sum(events_tokens_in) AS tokens_in, sum(events_tokens_out) AS tokens_out,
           array_agg(DISTINCT model ORDER BY model) AS models,
           min(first_seen) AS first_seen, max(last_seen) AS last_seen
    FROM session_lifecycle.session_runs
    WHERE user_id = :user
    GROUP BY session_id
    ORDER BY max(last_seen) DESC, session_id DESC
    LIMIT :page
"""


async def seed(db: SessionDatabase, runs: int) -> None:
    """Replaces all runs by so many runs."""
    values = {"user": USER, "runs": runs, "sessions": round(runs / RUNS_PER_SESSION)}
    await run(db, f"TRUNCATE {', '.join(f'session_lifecycle.{table}' for table in TABLES)}")
    await run(db, *SEED, values=values)
    await settle(db, TABLES)


async def grouped(db: SessionDatabase) -> Sequence[Any]:
    """The page by grouping."""
    async with db.engine.connect() as connection:
        return (await connection.execute(text(GROUPING), {"user": USER, "page": PAGE})).all()


async def summaries(db: SessionDatabase, total: Literal["exact", "none"]) -> list[SessionSummary]:
    """The page by our call."""
    filters = SummaryFilters(user_id=USER, limit=PAGE, total=total)
    return (await db.activity.list_session_summaries(filters)).sessions


def figures(one: Any) -> tuple[Any, ...]:
    """The figures of a session that both sides answer."""
    spent = (one.runs_count, one.cost_usd, one.tokens_in, one.tokens_out)
    return (one.session_id, *spent, tuple(one.models), one.first_seen, one.last_seen)


async def measure_size(db: SessionDatabase, runs: int, seconds: float) -> list[Line]:
    """All sides with so many runs, each called by one caller, at least three times."""
    await seed(db, runs)
    if [figures(row) for row in await grouped(db)] != [figures(one) for one in await summaries(db, "exact")]:
        raise SystemExit(f"the sides answer different pages with {runs:,} runs")
    sides: dict[str, Callable[[int], Awaitable[object]]] = {
        GROUPED: lambda _: grouped(db),
        WITH_TOTAL: lambda _: summaries(db, "exact"),
        WITHOUT_TOTAL: lambda _: summaries(db, "none"),
    }
    lines = []
    for name, call in sides.items():
        await measure(call, 0, least=WARMING_CALLS)
        lines.append(Line(name, runs, await measure(call, seconds, least=3)))
    return lines


def lines_table(lines: Sequence[Line]) -> str:
    """The lines as Markdown, each beside the grouping of as many runs."""
    grouping = {line.size: line.measured.p50_ms for line in lines if line.name == GROUPED}
    rows = [
        [name, f"{runs:,}", f"{found.p50_ms:.1f}", f"{found.p90_ms:.1f}", f"{grouping[runs] / found.p50_ms:.1f}"]
        for name, runs, found in lines
    ]
    return table("", ["", "runs", "p50 ms", "p90 ms", "x faster than grouping"], rows)


def draw(file: Path, lines: Sequence[Line], title: str) -> None:
    """Draws milliseconds by runs, one curve for each side."""
    curves = [Curve(name, [(line.size, line.measured.p50_ms) for line in lines if line.name == name]) for name in ORDER]
    plot(file, curves, x="runs", y="ms a page", title=title)


async def main() -> None:
    """One run: every size and side on the same server, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="how many runs there are")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    parser.add_argument("--plot", type=Path, help="where to write the SVG")
    arguments = parser.parse_args()

    # No statement here has a time limit: grouping all runs may take longer than an application allows.
    async with database(Settings(statement_timeout_seconds=None)) as (server, db):
        print(f"{machine(server)}, {RUNS_PER_SESSION} runs a session, a page of {PAGE}\n")
        lines = [line for runs in arguments.sizes for line in await measure_size(db, runs, arguments.seconds)]
        lines.sort(key=lambda line: ORDER.index(line.name))
        print(lines_table(lines), flush=True)
        if arguments.plot:
            draw(arguments.plot, lines, machine(server))


if __name__ == "__main__":
    asyncio.run(main())
