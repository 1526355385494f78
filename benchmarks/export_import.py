"""What do a complete export and its import cost as sessions grow, in rows a second and in memory?"""

import argparse
import asyncio
import multiprocessing
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel

from session_lifecycle import RunFilters, SessionDatabase, SessionListFilters, Settings, SummaryFilters, Viewer
from session_lifecycle.maintenance.export_files import export_to_folder
from session_lifecycle.models import UsageEventFilters
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS
from support.databases import database, machine, run, settle
from support.tables import table

FORMATS: tuple[Literal["jsonl", "parquet"], ...] = ("jsonl", "parquet")
# No statement has a time limit: some answers read every session, which may take longer than an application allows.
SETTINGS = Settings(statement_timeout_seconds=None)
SOURCE, TARGET = "session_lifecycle", "imported"
VIEWERS = {
    "the auditor": Viewer.auditor(),
    "a user with two data sets": Viewer(UUID(int=1), permitted_dataset_ids=[UUID(int=1), UUID(int=2)]),
}

# Each session has an event of one model, or one in four of two models. One session in ten is running, and counts as
# abandoned; one in fifty has an event after its end; one in twenty has a run with a step, and a message.
SEED = (
    """
    CREATE TABLE public.fleet AS
    SELECT n, 'session-' || n AS session_id, lpad(to_hex(n % 997), 32, '0')::uuid AS user_id,
           CASE WHEN n % 3 > 0 THEN lpad(to_hex(n % 47), 32, '0')::uuid END AS dataset_id,
           (n % 4 = 1)::integer AS more, n % 10 = 0 AS is_open, n % 50 = 1 AS has_late,
           timestamptz '2026-01-01' - n * (interval '540 days' / CAST(:sessions AS integer)) AS at
    FROM generate_series(0, CAST(:sessions AS integer) - 1) n
    """,
    """
    INSERT INTO session_lifecycle.session_usage_events
        (user_id, session_id, event_id, at, recorded_at, model, provider, tokens_in, tokens_out, cache_read_tokens,
         cost_usd, price_source, unit_prices, idempotency_key, late)
    SELECT user_id, session_id, md5(n || '/' || part)::uuid, at + (part / 2) * interval '1 h', at,
           'm' || (n + 3 * part) % 7, 'openai', 1200, 400, 300, 0.0123, 'catalogue',
           '{"input_usd_per_million": "2.5", "output_usd_per_million": "10"}', 'key-' || part, part = 2
    FROM public.fleet, generate_series(0, 2) part
    WHERE part <= more OR part = 2 AND has_late
    """,
    """
    INSERT INTO session_lifecycle.session_model_usage
        (user_id, session_id, model, tokens_in, tokens_out, cache_read_tokens, cost_usd, events)
    SELECT user_id, session_id, 'm' || (n + 3 * part) % 7, 1200, 400, 300, 0.0123, 1
    FROM public.fleet, generate_series(0, more) part
    """,
    """
    INSERT INTO session_lifecycle.session_runs
        (user_id, run_id, session_id, session_given, root_run_id, started_at, ended_at, first_seen, last_seen, status,
         client, project, metadata)
    SELECT user_id, 'run-' || n, session_id, true, 'run-' || n, at - interval '20 min', at, at - interval '20 min', at,
           'completed', 'cli', 'p' || n % 5, '{"branch": "main", "try": 1}'
    FROM public.fleet WHERE n % 20 = 3
    """,
    """
    INSERT INTO session_lifecycle.session_steps (user_id, run_id, step_id, kind, name, started_at, inputs, output)
    SELECT user_id, 'run-' || n, 'step', 'tool', 'grep', at - interval '10 min', '{"pattern": "import"}', '["a.py", 3]'
    FROM public.fleet WHERE n % 20 = 3
    """,
    """
    INSERT INTO session_lifecycle.session_messages
        (user_id, session_id, message_id, role, content, content_folded, created_at)
    SELECT user_id, session_id, 'm', 'user', content, lower(content), at - interval '20 min'
    FROM public.fleet, LATERAL (SELECT 'Look for what is left to do, and do it. ' || n) x (content)
    WHERE n % 20 = 3
    """,
    """
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, dataset_id, status, started_at, last_activity_at, ended_at, tokens_in, tokens_out,
         cache_read_tokens, cost_usd, last_model, last_model_at, late_events, late_cost_usd, title, tags)
    SELECT user_id, session_id, dataset_id, CASE WHEN is_open THEN 'running' ELSE 'completed' END,
           at - interval '20 min', at, CASE WHEN NOT is_open THEN at END, 1200 * (1 + more), 400 * (1 + more),
           300 * (1 + more), 0.0123 * (1 + more), 'm' || (n + 3 * more) % 7, at,
           has_late::integer, CASE WHEN has_late THEN 0.0123 ELSE 0 END, 'Task ' || n, '{"customer": "acme"}'
    FROM public.fleet
    """,
    "DROP TABLE public.fleet",
)


class Job(NamedTuple):
    """An export or an import, in a process of its own: what it does, where, and with which files."""

    name: str
    url: str
    schema: str
    folder: Path
    file_format: Literal["jsonl", "parquet"]


class Done(NamedTuple):
    """The rows of each table that a job wrote, how long it took, and the most memory that its process had at once."""

    rows: dict[str, int]
    seconds: float
    peak_mb: float


def do(job: Job) -> Done:
    """Does the job, and says what it cost."""
    return asyncio.run(_do(job))


async def _do(job: Job) -> Done:
    began = time.perf_counter()
    async with SessionDatabase.connect(job.url, schema=job.schema, settings=SETTINGS) as db:
        if job.name == "export":
            manifest = await export_to_folder(db.maintenance.export, job.folder, job.file_format)
            rows = {name: one["rows"] for name, one in manifest["tables"].items()}
        else:
            report = await db.maintenance.import_export(job.folder)
            rows = {one.table: one.added for one in report.tables}
            if report.refused_rows or report.mismatch_count:
                raise SystemExit(f"the import refused rows, or totals differ: {report}")
    return Done(rows, time.perf_counter() - began, peak_mb())


def peak_mb() -> float:
    """The most memory that this process had at once. `getrusage` would begin with what the parent had. Needs Linux."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak[1]) / 1000 if peak else float("nan")


async def in_process(job: Job) -> Done:
    """Does the job in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return await asyncio.get_running_loop().run_in_executor(processes, do, job)


async def answers(db: SessionDatabase, sessions: int) -> AsyncIterator[tuple[str, Any]]:
    """Reports and lists, as each viewer: the first page of each order and one in the middle, details, and figures."""
    for name, viewer in VIEWERS.items():
        for order in ALL_SESSION_ORDERS:
            for offset in (0, sessions // 50):
                filters = SessionListFilters(viewer=viewer, order_by=order, limit=500, offset=offset)
                yield f"{name}: sessions by {order}", await db.lifecycle.list_session_rows(filters)
        for session_id in ("session-1", f"session-{sessions // 2}", "none"):
            yield f"{name}: {session_id}", await db.activity.get_session_detail(session_id, viewer)
        yield f"{name}: stats", await db.lifecycle.aggregate_stats(viewer)
        yield f"{name}: cost by model", await db.lifecycle.cost_by_model(viewer)
        yield f"{name}: spend", await db.reports.spend(viewer)
        for dimensions in (("model", "provider"), ("user",), ("status",), ("tag:customer",)):
            yield f"{name}: usage by {dimensions}", await db.reports.usage(viewer, group_by=dimensions)
        yield f"{name}: summaries", await db.activity.list_session_summaries(SummaryFilters(viewer=viewer))
        yield f"{name}: runs", await db.activity.list_runs(RunFilters(viewer=viewer))
        yield f"{name}: events", await db.activity.list_usage_events(UsageEventFilters(viewer=viewer))


def plain(answer: Any) -> Any:
    """The answer without cursors, which say when it was asked for."""
    match answer:
        case BaseModel():
            return {name: plain(value) for name, value in answer if not name.endswith("cursor")}
        case list() | tuple():
            return [plain(one) for one in answer]
        case _:
            return answer


async def compare(source: SessionDatabase, target: SessionDatabase, sessions: int) -> int:
    """Asks both databases every question, and stops where an answer differs. Returns how many there were."""
    number = 0
    theirs = answers(target, sessions)
    async for name, answer in answers(source, sessions):
        number += 1
        if plain((await anext(theirs))[1]) != plain(answer):
            raise SystemExit(f"the imported database answers otherwise: {name}")
    return number


async def measure_format(
    db: SessionDatabase, url: str, sessions: int, file_format: Literal["jsonl", "parquet"]
) -> list[list[str]]:
    """Exports, imports into an empty schema, and compares the answers; a row of the table for each job."""
    rows = []
    with TemporaryDirectory(prefix="session-lifecycle-export-") as name:
        folder = Path(name) / "all"
        out = await in_process(Job("export", url, SOURCE, folder, file_format))
        size = sum(file.stat().st_size for file in folder.iterdir())
        async with SessionDatabase.connect(url, schema=TARGET, settings=SETTINGS) as target:
            await run(target, f"DROP SCHEMA IF EXISTS {TARGET} CASCADE")
            await target.migrate()
            into = await in_process(Job("import", url, TARGET, folder, file_format))
            for job, done in (("export", out), ("import", into)):
                number = sum(done.rows.values())
                speed = [f"{done.seconds:,.0f}", f"{number / done.seconds:,.0f}", f"{done.peak_mb:,.0f}"]
                rows.append([job, file_format, f"{sessions:,}", f"{number:,}", f"{size / 1e6:,.0f}", *speed])
                print(" ".join(rows[-1]), flush=True)
            await run(target, "VACUUM ANALYZE")
            if into.rows != out.rows:
                raise SystemExit(f"{out.rows} were exported, {into.rows} imported")
            questions = await compare(db, target, sessions)
            await run(target, f"DROP SCHEMA {TARGET} CASCADE")
    print(f"{file_format}, {sessions:,} sessions: {questions} equal answers", flush=True)
    return rows


async def main() -> None:
    """One run: a tenth of the sessions, then all of them, in each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000, help="how many there are")
    parser.add_argument("--quick", action="store_true", help="the same as --sessions 10000")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="the formats of the files")
    arguments = parser.parse_args()
    most = 10_000 if arguments.quick else arguments.sessions

    async with database(SETTINGS) as (server, db):
        print(f"{machine(server)}, synchronous_commit=on\n")
        rows: list[list[str]] = []
        for sessions in (most // 10, most):
            tables = ("records", "model_usage", "usage_events", "runs", "steps", "messages")
            await run(db, f"TRUNCATE {', '.join(f'{SOURCE}.session_{name}' for name in tables)}")
            await run(db, *SEED, values={"sessions": sessions})
            await settle(db)
            for file_format in arguments.formats:
                rows += await measure_format(db, server.url, sessions, file_format)
    columns = ["", "format", "sessions", "rows", "MB of files", "s", "rows/s", "peak MB of the process"]
    print("\n" + table("", columns, rows, names=2))


if __name__ == "__main__":
    asyncio.run(main())
