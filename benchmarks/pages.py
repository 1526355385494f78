"""How long do the pages of the dashboard take as sessions grow, and one session with 10,000 steps?"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from statistics import median
from uuid import UUID

import httpx

from session_lifecycle import Run, SessionDatabase, Settings, Step, Viewer
from session_lifecycle.web.dashboard import dashboard_app
from support.databases import database, machine, run, seed, settle
from support.tables import table

SIZES = (10_000, 1_000_000)
USERS = 40
FIRST_USER = 1
USER = UUID(int=FIRST_USER)
VIEWERS = {"one of 40 users": Viewer(USER), "everybody": Viewer.auditor()}
LONG, RUNS, STEPS_OF_A_RUN = "long", 100, 100
STEP = timedelta(seconds=0.5)
TURNS = 10
# A page waits for no answer longer than an operator would.
SETTINGS = Settings(statement_timeout_seconds=None)

# A run and a usage event for each session.
ACTIVITY = (
    """
    INSERT INTO session_lifecycle.session_usage_events
        (user_id, session_id, event_id, run_id, at, model, provider, tokens_in, tokens_out, cost_usd)
    SELECT user_id, session_id, md5(session_id)::uuid, session_id, last_activity_at, 'm' || length(session_id), 'p',
           120, 40, 0.01
    FROM session_lifecycle.session_records
    """,
    """
    INSERT INTO session_lifecycle.session_runs
        (user_id, run_id, session_id, root_run_id, started_at, ended_at, first_seen, last_seen, status, provider, model)
    SELECT user_id, session_id, session_id, session_id, started_at, last_activity_at, started_at, last_activity_at,
           'completed', 'p', 'm'
    FROM session_lifecycle.session_records
    """,
)
PAGES = {
    "overview, 24 hours": "/",
    "overview, 30 days": "/?range=30d",
    "overview, all": "/?range=all",
    "sessions": "/sessions?range=all",
    "sessions, most expensive": "/sessions?range=all&order_by=cost_usd",
    "session with 10,000 steps": f"/session?id={LONG}&owner={USER}",
    "its last page": f"/session?id={LONG}&owner={USER}&offset=80",
}


def items_of_run(run_id: str, at: datetime) -> list[Run | Step]:
    """A run of the long session, with its steps."""
    key = {"user_id": USER, "run_id": run_id}
    steps = [
        Step(**key, step_id=str(step), kind="tool", name="search", started_at=at + step * STEP, output={"rows": [1, 2]},
             ended_at=at + (step + 1) * STEP)
        for step in range(STEPS_OF_A_RUN)
    ]  # fmt: skip
    ended_at = at + STEPS_OF_A_RUN * STEP
    return [Run(**key, session_id=LONG, status="completed", started_at=at, ended_at=ended_at), *steps]


async def fill(db: SessionDatabase, sessions: int) -> None:
    """Adds the sessions and the long one, rolls them up, and settles."""
    await seed(db, FIRST_USER, sessions, users=USERS, running_every=50, newest=timedelta(hours=2))
    await run(db, *ACTIVITY)
    began = datetime.now(UTC) - RUNS * timedelta(minutes=2)
    for number in range(RUNS):
        await db.lifecycle.record(items_of_run(f"run-{number}", began + number * timedelta(minutes=2)))
    await db.maintenance.roll_up()
    await settle(db)


async def milliseconds(client: httpx.AsyncClient, path: str) -> tuple[float, float, int]:
    """The first call, the median of the others, and the bytes of the answer."""
    took = []
    for _ in range(TURNS):
        began = time.perf_counter()
        answer = await client.get(path)
        took.append((time.perf_counter() - began) * 1_000)
        answer.raise_for_status()
    return took[0], median(took[1:]), len(answer.content)


async def measured(sizes: Sequence[int]) -> list[list[str]]:
    """A row for each page, viewer and size."""
    rows: list[list[str]] = []
    for size in sizes:
        async with AsyncExitStack() as stack:
            server, db = await stack.enter_async_context(database(SETTINGS))
            if not rows:
                print(machine(server), end="\n\n", flush=True)
            await fill(db, size)
            for who, viewer in VIEWERS.items():
                app = dashboard_app(db, viewer=lambda viewer=viewer: viewer)
                transport = httpx.ASGITransport(app=app)
                client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://host"))
                for name, path in PAGES.items():
                    first, others, length = await milliseconds(client, path)
                    rows.append([name, who, f"{size:,}", f"{first:.0f}", f"{others:.0f}", f"{length / 1_000:.0f}"])
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="how many sessions there are")
    arguments = parser.parse_args()
    rows = asyncio.run(measured(arguments.sizes))
    print(table("", ["page", "viewer", "sessions", "first ms", "median ms", "kB"], rows, names=2))


if __name__ == "__main__":
    main()
