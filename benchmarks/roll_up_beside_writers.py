"""How long do writers wait while `roll_up` runs, and does anyone wait for a lock of it?"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import text

from session_lifecycle import SessionDatabase, Settings
from session_lifecycle.models import RollUpReport
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from support.databases import counted, emptied_database, machine, running_server, scalar, seed, settle, use
from support.measuring import percentile
from support.tables import table

WRITERS = 16
LIVE_SESSIONS = 200
REVIVALS_PER_SECOND = 50
"""At most: the pause between two revivals is this long, and each call takes its time as well."""
REVIVED_USER, SEEDED_USER = 40, 1_000
ROLLER = "roll-up"
"""The name of the process that rolls up, on its command line and in Postgres."""
NEVER = float("inf")
SETTINGS = Settings(statement_timeout_seconds=None, pool_size=WRITERS + 4, max_overflow=0)

# How many connections wait for a lock of the process that rolls up.
WAITING = """
    SELECT count(*)
    FROM pg_stat_activity waiting
    WHERE waiting.wait_event_type = 'Lock' AND EXISTS (
        SELECT FROM pg_stat_activity roller
        WHERE roller.pid = ANY(pg_blocking_pids(waiting.pid)) AND roller.application_name = :roller
    )
"""
ROLLED_UP = "SELECT count(*) FROM session_lifecycle.rolled_up_sessions WHERE user_id <> :revived_user"


class TimedCall(NamedTuple):
    """When a call began, and how long it took."""

    began: float
    seconds: float


class Window(NamedTuple):
    """A stretch of time in which `roll_up` ran beside the writers, or nothing."""

    name: str
    began: float
    ended: float
    rolled_up: int = 0
    changes: int = 0
    """How many changes `roll_up` added to the sums."""
    looks: int = 0
    """How often the locks were looked at."""
    waits: int = 0
    """How often somebody waited then."""


class Writers:
    """Callers that write all the time, and the time of each call."""

    def __init__(self, db: SessionDatabase, revived_user: UUID, revivals: int) -> None:
        self._db = db
        self.user_id = uuid4()
        self._revived_user = revived_user
        self._most_revivals = revivals
        self._numbers = count()
        self._stopped = False
        self.calls: list[TimedCall] = []
        """Usage of live sessions."""
        self.revivals: list[TimedCall] = []
        """Usage of rolled-up sessions, which live again by it."""

    async def _timed(self, calls: list[TimedCall], user_id: UUID, session_id: str) -> None:
        began = time.perf_counter()
        await use(self._db.lifecycle, user_id, session_id)
        calls.append(TimedCall(began, time.perf_counter() - began))

    async def _caller(self) -> None:
        while not self._stopped:
            await self._timed(self.calls, self.user_id, f"session-{next(self._numbers) % LIVE_SESSIONS}")

    async def _reviver(self) -> None:
        for number in range(self._most_revivals):
            await asyncio.sleep(1 / REVIVALS_PER_SECOND)
            if self._stopped:
                return
            await self._timed(self.revivals, self._revived_user, f"session-{number}")

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """Lets the callers write until the block ends."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._caller())
            group.create_task(self._reviver())
            try:
                await asyncio.sleep(2)  # statements are compiled and prepared in this time
                yield
            finally:
                self._stopped = True


async def roll_up_here() -> None:
    """The work of the other process: rolls up, and prints its progress."""

    def report_progress(report: RollUpReport) -> None:
        print(report.sessions, report.changes, flush=True)

    async with SessionDatabase.connect(settings=Settings(application_name=ROLLER)) as db:
        await db.maintenance.roll_up(on_progress=report_progress)


async def watch(db: SessionDatabase, process: asyncio.subprocess.Process) -> list[int]:
    """Looks again and again how many connections wait for the process, until it ends."""
    seen: list[int] = []
    async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while process.returncode is None:
            seen.append(await connection.scalar(text(WAITING), {"roller": ROLLER}) or 0)
            await asyncio.sleep(0.02)
    return seen


async def measure_without(seconds: float) -> Window:
    """Nothing runs beside the writers."""
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    return Window("nothing", began, time.perf_counter())


async def measure_with(name: str, server: EmbeddedPostgres, db: SessionDatabase, stop_at: float) -> Window:
    """A process of its own rolls up beside the writers, as an operator's does; interrupted at so many sessions."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        ROLLER,
        env={**os.environ, "SESSION_LIFECYCLE_DATABASE_URL": server.url},
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdout is None:
        raise RuntimeError("the process has no output although it was started with a pipe")
    watching = asyncio.create_task(watch(db, process))
    began = None
    rolled_up = changes = 0
    async for line in process.stdout:
        began = began or time.perf_counter()
        rolled_up, changes = map(int, line.split())
        if rolled_up >= stop_at:
            process.send_signal(signal.SIGINT)
            stop_at = NEVER
    failed = await process.wait()
    ended = time.perf_counter()
    seen = await watching
    if failed:
        raise SystemExit("the process that rolls up failed")
    return Window(name, began or ended, ended, rolled_up, changes, len(seen), sum(one > 0 for one in seen))


async def measure_beside(server: EmbeddedPostgres, db: SessionDatabase, sessions: int, seconds: float) -> str:
    """The writers' latency without and with a `roll_up`, interrupted once and begun again; as Markdown."""
    revived_user, revivals = UUID(int=REVIVED_USER), sessions // 10
    await seed(db, REVIVED_USER, revivals)
    await db.maintenance.roll_up()
    await seed(db, SEEDED_USER, sessions, users=997, running_every=10)
    await settle(db)
    writers = Writers(db, revived_user, revivals)
    async with writers.at_work():
        windows = [
            await measure_without(seconds),
            await measure_with("roll_up, interrupted", server, db, sessions / 2),
            await measure_without(seconds),
        ]
        held = await scalar(db, ROLLED_UP, revived_user=revived_user)
        again = await measure_with("roll_up, again", server, db, NEVER)
        windows += [again, await measure_without(seconds)]
    if again.rolled_up != sessions - held or await scalar(db, ROLLED_UP, revived_user=revived_user) != sessions:
        raise SystemExit(f"{held} of {sessions} sessions, then {again.rolled_up} were rolled up")
    found = await counted(db, writers.user_id)
    if found != len(writers.calls):
        raise SystemExit(f"the database counted {found} usages for {len(writers.calls)} calls")
    return windows_table(sessions, held, windows, writers)


def latencies(calls: Sequence[TimedCall], window: Window) -> list[str]:
    """Calls a second, and the p50, p99 and longest in milliseconds, of the calls that began in the window."""
    times = sorted(call.seconds for call in calls if window.began <= call.began < window.ended)
    if not times:
        return ["", "", "", ""]
    per_second = len(times) / (window.ended - window.began)
    found = (percentile(times, 50), percentile(times, 99), times[-1] * 1e3)
    return [f"{per_second:,.0f}", *(f"{milliseconds:.1f}" for milliseconds in found)]


def windows_table(sessions: int, held: int, windows: Sequence[Window], writers: Writers) -> str:
    """The windows in their order, as Markdown."""
    times = ["p50 ms", "p99 ms", "longest ms"]
    columns = ["beside the writers", "s", "rolled up/s", "changes/s", "writes/s", *times, "revivals/s", *times]
    rows = []
    for window in windows:
        seconds = window.ended - window.began
        cells = [window.name, f"{seconds:.1f}"]
        cells += [f"{done / seconds:,.0f}" if window.looks else "" for done in (window.rolled_up, window.changes)]
        cells += [*latencies(writers.calls, window), *latencies(writers.revivals, window)]
        rows.append(cells + [f"{looks:,}" if window.looks else "" for looks in (window.looks, window.waits)])
    title = f"{WRITERS} writers and one that revives, beside a roll_up of {sessions:,} sessions"
    note = f"The interrupted roll_up rolled up {held:,}; begun again, it rolled up the others.\n"
    return f"{note}\n{table(title, [*columns, 'looks at locks', 'somebody waited'], rows)}"


async def main() -> None:
    """One run: the windows one after another, on one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000, help="how many are rolled up beside the writers")
    parser.add_argument("--seconds", type=float, default=50.0, help="how long a window without roll_up is")
    arguments = parser.parse_args()

    async with running_server() as server, emptied_database(server, SETTINGS) as db:
        print(f"{machine(server)}, synchronous_commit=on\n")
        print(await measure_beside(server, db, arguments.sessions, arguments.seconds))


if __name__ == "__main__":
    if sys.argv[1:] == [ROLLER]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(roll_up_here())
    else:
        asyncio.run(main())
