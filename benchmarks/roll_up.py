"""What roll-ups cost those who write: always, when a rolled-up session lives again, and while `roll_up` runs."""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import text

from session_lifecycle import RollUpReport, SessionDatabase, SessionWriter, Settings
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir
from session_lifecycle.settings import DEFAULT_SCHEMA

Call = Callable[[int], Awaitable[object]]
WRITERS = 16
LIVE = 200
REVIVALS_PER_SECOND = 50
"""At most: so long is the pause between two, and the call comes on top."""
CHUNK = 500
ROLLER = "roll-up"
"""What the process that rolls up calls itself, on its command line and to Postgres."""

# Sessions of so many users from the first on, with one or two models each; every so many-th was never ended.
SEED = """
    WITH given AS (
        SELECT CAST(:sessions AS integer) AS sessions, CAST(:users AS integer) AS users,
               CAST(:running_every AS integer) AS running_every, CAST(:first_user AS bigint) AS first_user,
               CAST(:newest AS timestamptz) AS newest, CAST(:span AS interval) AS span
    ),
    fleet AS MATERIALIZED (
        SELECT n, 'session-' || n AS session_id,
               lpad(to_hex(first_user + n % users), 32, '0')::uuid AS user_id,
               CASE WHEN n % 3 > 0 THEN lpad(to_hex(n % 47), 32, '0')::uuid END AS dataset_id,
               n % running_every = 0 AS runs, newest - n * (span / sessions) AS last_activity_at
        FROM given, generate_series(0, sessions - 1) n
    ),
    model_usage AS (
        INSERT INTO session_lifecycle.session_model_usage
            (user_id, session_id, model, tokens_in, tokens_out, cost_usd, events)
        SELECT user_id, session_id, 'm' || (n + 3 * part) % 7, 1200, 400, 0.0123, 5
        FROM fleet, generate_series(0, n % 2) part
    )
    INSERT INTO session_lifecycle.session_records
        (user_id, session_id, dataset_id, status, started_at, last_activity_at, ended_at, tokens_in, tokens_out,
         cost_usd)
    SELECT user_id, session_id, dataset_id, CASE WHEN runs THEN 'running' ELSE 'completed' END,
           last_activity_at - interval '20 minutes', last_activity_at, CASE WHEN NOT runs THEN last_activity_at END,
           1200 * (1 + n % 2), 400 * (1 + n % 2), 0.0123 * (1 + n % 2)
    FROM fleet
"""
# What revisions 0006 and 0008 did to the write path, taken back. The column `rolled_up` stays, which the library reads.
AS_BEFORE = (
    "DROP TRIGGER leave_rollups ON {schema}.session_records",
    "DROP INDEX {schema}.ix_session_records_user_id_status_activity_minute",
    "DROP INDEX {schema}.ix_session_records_dataset_id_status_activity_minute",
    "DROP INDEX {schema}.ix_session_records_status_activity_minute",
    "DROP INDEX {schema}.ix_session_usage_events_at",
    """
    CREATE INDEX ix_session_records_user_id_activity_minute
    ON {schema}.session_records (user_id, activity_minute) WHERE session_id <> ''
    """,
    """
    CREATE INDEX ix_session_records_dataset_id_activity_minute
    ON {schema}.session_records (dataset_id, activity_minute) WHERE dataset_id IS NOT NULL
    """,
)
# Who waits for a lock that the process holds which rolls up.
WAITING = """
    SELECT count(*)
    FROM pg_stat_activity waiting
    WHERE waiting.wait_event_type = 'Lock' AND EXISTS (
        SELECT FROM pg_stat_activity roller
        WHERE roller.pid = ANY(pg_blocking_pids(waiting.pid)) AND roller.application_name = :roller
    )
"""


class Cost(NamedTuple):
    """One case of the write path on both sides, by turns."""

    name: str
    before: Sequence[float]
    """Calls a second of each turn."""
    now: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Now by before, of each pair of turns, sorted."""
        return sorted(now / before for now, before in zip(self.now, self.before, strict=True))


class Window(NamedTuple):
    """A stretch of time in which something did, or did not, run beside the writers."""

    name: str
    began: float
    ended: float
    rolled_up: int = 0
    changes: int = 0
    """Put into the sums."""
    looks: int = 0
    """How often it was looked who waits."""
    waits: int = 0
    """How often somebody did."""


async def use(writer: SessionWriter, user_id: UUID, session_id: str) -> None:
    """One usage, with a key."""
    await writer.accumulate_usage(session_id, user_id, "gpt-4o", 120, 40, 0.012, idempotency_key=uuid4().hex)


async def counted(db: SessionDatabase, user_id: UUID) -> int:
    """How many calls the totals hold; a run whose totals are wrong has no speed."""
    return (await db.lifecycle.aggregate_stats(user_id)).tokens_in // 120


async def seed(
    db: SessionDatabase,
    first_user: int,
    sessions: int,
    *,
    users: int = 1,
    running_every: int = 1,
    newest: timedelta = timedelta(days=1),
    span: timedelta = timedelta(days=540),
) -> None:
    """So many sessions more, last active at so many moments of a span that ended so long ago."""
    values = {"first_user": first_user, "sessions": sessions, "users": users, "running_every": running_every}
    async with db.engine.begin() as connection:
        await connection.execute(text(SEED), {**values, "newest": datetime.now(UTC) - newest, "span": span})


async def settle(db: SessionDatabase) -> None:
    """Nothing dead in the tables, statistics of what is there, nothing left to write."""
    async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM ANALYZE"))
        await connection.execute(text("CHECKPOINT"))


async def scalar(db: SessionDatabase, statement: str, **values: object) -> Any:
    """The one value of a statement."""
    async with db.engine.connect() as connection:
        return await connection.scalar(text(statement), values)


# The write path, always.


async def measure_turn(call: Call, numbers: "count[int]", callers: int, seconds: float) -> float:
    """Calls a second, of callers that each await one call after another."""
    done = 0
    began = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        # A turn has at least a call of each, however slow the machine is just then.
        while True:
            await call(next(numbers))
            done += 1
            if time.perf_counter() >= began + seconds:
                return

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - began)


async def measure_case(
    name: str,
    sides: Sequence[SessionDatabase],
    turns: int,
    seconds: float,
    *,
    callers: int,
    sessions: int,
    recorded: bool,
) -> Cost:
    """Both sides in turns, the one that begins as well: a machine's speed varies over a run."""
    user_id = uuid4()
    speeds: list[list[float]] = [[] for _ in sides]
    calls = [count(1) for _ in sides]
    async with contextlib.AsyncExitStack() as stack:
        writers: list[SessionWriter] = [
            await stack.enter_async_context(db.recorder()) if recorded else db.lifecycle for db in sides
        ]

        async def turn(side: int, length: float) -> float:
            return await measure_turn(
                lambda number: use(writers[side], user_id, f"session-{number * 7919 % sessions}"),
                calls[side],
                callers,
                length,
            )

        for side in range(len(sides)):
            await turn(side, 1.0)
        for number in range(turns):
            for side in (0, 1) if number % 2 else (1, 0):
                speeds[side].append(await turn(side, seconds))
    for db, numbers in zip(sides, calls, strict=True):
        if await counted(db, user_id) != next(numbers) - 1:
            raise SystemExit(f"{name}: the calls are not what the database counted")
    return Cost(name, *speeds)


async def measure_write_path(server: EmbeddedPostgres, turns: int, seconds: float) -> list[Cost]:
    """What the trigger and the indexes cost: our schema twice on one server, once as it was before."""
    settings = Settings(pool_size=WRITERS, max_overflow=0)
    async with (
        SessionDatabase.connect(server.url, schema="before", settings=settings) as before,
        SessionDatabase.connect(server.url, schema="now", settings=settings) as now,
    ):
        for db in (before, now):
            await db.migrate()
        async with before.engine.begin() as connection:
            for statement in AS_BEFORE:
                await connection.execute(text(statement.replace("{schema}", "before")))

        async def case(name: str, callers: int, sessions: int, *, recorded: bool = False) -> Cost:
            await settle(now)
            return await measure_case(
                name, (before, now), turns, seconds, callers=callers, sessions=sessions, recorded=recorded
            )

        return [
            await case("single call, 1 caller, 200 sessions", 1, 200),
            await case(f"single call, {WRITERS} callers, 200 sessions", WRITERS, 200),
            await case("recorder, 256 callers, 200 sessions", 256, 200, recorded=True),
            await case("recorder, 256 callers, 100,000 sessions", 256, 100_000, recorded=True),
        ]


def write_path_table(costs: Sequence[Cost]) -> str:
    """The cases as Markdown."""
    rows = [
        "### The write path, calls/s\n",
        "| | before | now | now / before, median | of the turns |",
        "|---|---:|---:|---:|---:|",
    ]
    for cost in costs:
        ratios = cost.ratios
        rows.append(
            f"| {cost.name} | {median(cost.before):,.0f} | {median(cost.now):,.0f} | {median(ratios):.2f} "
            f"| {ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )
    return "\n".join(rows) + "\n"


# A session that lives again.


async def use_each(db: SessionDatabase, user_id: UUID, numbers: Iterable[int]) -> None:
    """One usage of each of these sessions, by all callers together."""
    left = iter(numbers)

    async def caller() -> None:
        for number in left:
            await use(db.lifecycle, user_id, f"session-{number}")

    await asyncio.gather(*(caller() for _ in range(WRITERS)))


async def measure_reviving(db: SessionDatabase, sessions: int) -> str:
    """The first usage since long of sessions rolled up, beside those that are not and those that live; as Markdown."""
    users = {"running, active now": 10, "idle, not rolled up": 20, "idle, rolled up": 30}
    rolled_up = users["idle, rolled up"]
    await seed(db, rolled_up, sessions)
    report = await db.maintenance.roll_up()
    if report.sessions != sessions:
        raise SystemExit(f"{report.sessions} of {sessions} sessions were rolled up")
    await seed(db, users["idle, not rolled up"], sessions)
    await seed(db, users["running, active now"], sessions, newest=timedelta(0), span=timedelta(minutes=1))
    await settle(db)

    speeds: dict[str, list[float]] = {name: [] for name in users}
    for start in range(0, sessions, CHUNK):
        for name, user in users.items():
            began = time.perf_counter()
            await use_each(db, UUID(int=user), range(start, start + CHUNK))
            speeds[name].append(CHUNK / (time.perf_counter() - began))
    left = await scalar(db, "SELECT count(*) FROM session_lifecycle.rolled_up_sessions")
    if left:
        raise SystemExit(f"{left} sessions are still rolled up")

    rows = [
        f"### Usage of {sessions:,} sessions, once each, {WRITERS} callers\n",
        "| | calls/s | x running |",
        "|---|---:|---:|",
    ]
    running = median(speeds["running, active now"])
    rows += [f"| {name} | {median(found):,.0f} | {median(found) / running:.2f} |" for name, found in speeds.items()]
    return "\n".join(rows) + "\n"


# While it runs.


class Writers:
    """Callers that write all the time, and how long each call took."""

    def __init__(self, db: SessionDatabase, spare_user: UUID, spare: int) -> None:
        self._db = db
        self.user_id = uuid4()
        self._spare_user = spare_user
        self._spare = spare
        self._numbers = count()
        self._stopped = False
        self.calls: list[tuple[float, float]] = []
        """When each began, and its seconds; of the usage of live sessions."""
        self.revivals: list[tuple[float, float]] = []
        """The same of rolled-up sessions that live again."""

    async def _timed(self, calls: list[tuple[float, float]], user_id: UUID, session_id: str) -> None:
        began = time.perf_counter()
        await use(self._db.lifecycle, user_id, session_id)
        calls.append((began, time.perf_counter() - began))

    async def _caller(self) -> None:
        while not self._stopped:
            await self._timed(self.calls, self.user_id, f"session-{next(self._numbers) % LIVE}")

    async def _reviver(self) -> None:
        for number in range(self._spare):
            await asyncio.sleep(1 / REVIVALS_PER_SECOND)
            if self._stopped:
                return
            await self._timed(self.revivals, self._spare_user, f"session-{number}")

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """They write meanwhile."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._caller())
            group.create_task(self._reviver())
            try:
                await asyncio.sleep(2)  # what is compiled and prepared once is not measured
                yield
            finally:
                self._stopped = True


async def roll_up_here() -> None:
    """What the other process does: rolls up, and says how far it is."""

    def say(report: RollUpReport) -> None:
        print(report.sessions, report.changes, flush=True)

    async with SessionDatabase.connect(settings=Settings(application_name=ROLLER)) as db:
        await db.maintenance.roll_up(on_progress=say)


async def watch(db: SessionDatabase, process: asyncio.subprocess.Process) -> list[int]:
    """Looks again and again, while it runs, how many wait for the process that rolls up."""
    seen: list[int] = []
    async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while process.returncode is None:
            seen.append(await connection.scalar(text(WAITING), {"roller": ROLLER}) or 0)
            await asyncio.sleep(0.02)
    return seen


async def measure_without(name: str, seconds: float) -> Window:
    """Nothing runs beside the writers."""
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    return Window(name, began, time.perf_counter())


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
        raise AssertionError("it was asked to be read")
    watching = asyncio.create_task(watch(db, process))
    began = None
    rolled_up = changes = 0
    async for line in process.stdout:
        began = began or time.perf_counter()
        rolled_up, changes = map(int, line.split())
        if rolled_up >= stop_at:
            process.send_signal(signal.SIGINT)
            stop_at = float("inf")
    failed = await process.wait()
    ended = time.perf_counter()
    seen = await watching
    if failed:
        raise SystemExit("the process that rolls up failed")
    return Window(name, began or ended, ended, rolled_up, changes, len(seen), sum(one > 0 for one in seen))


async def measure_beside(server: EmbeddedPostgres, db: SessionDatabase, sessions: int, seconds: float) -> str:
    """Writers' latency without and with a `roll_up` beside them, interrupted once and begun again; as Markdown."""
    spare_user = 40
    spare = sessions // 10
    await seed(db, spare_user, spare)
    await db.maintenance.roll_up()
    await seed(db, 1_000, sessions, users=997, running_every=10)
    await settle(db)
    writers = Writers(db, UUID(int=spare_user), spare)
    over = "SELECT count(*) FROM session_lifecycle.rolled_up_sessions WHERE user_id <> :spare_user"
    async with writers.at_work():
        windows = [
            await measure_without("nothing", seconds),
            await measure_with("roll_up, interrupted", server, db, sessions / 2),
            await measure_without("nothing", seconds),
        ]
        held = await scalar(db, over, spare_user=UUID(int=spare_user))
        windows += [
            await measure_with("roll_up, again", server, db, float("inf")),
            await measure_without("nothing", seconds),
        ]
    if windows[3].rolled_up != sessions - held or await scalar(db, over, spare_user=UUID(int=spare_user)) != sessions:
        raise SystemExit(f"{held} of {sessions} sessions, then {windows[3].rolled_up} were rolled up")
    if await counted(db, writers.user_id) != len(writers.calls):
        raise SystemExit("the calls are not what the database counted")
    return beside_table(sessions, held, windows, writers)


def latencies(calls: Sequence[tuple[float, float]], window: Window) -> list[str]:
    """Calls a second, and the p50, p99 and longest in milliseconds, of those that began in the window."""
    times = sorted(seconds for began, seconds in calls if window.began <= began < window.ended)
    if not times:
        return ["", "", "", ""]
    per_second = len(times) / (window.ended - window.began)
    found = (times[len(times) // 2], times[len(times) * 99 // 100], times[-1])
    return [f"{per_second:,.0f}", *(f"{seconds * 1e3:.1f}" for seconds in found)]


def beside_table(sessions: int, held: int, windows: Sequence[Window], writers: Writers) -> str:
    """The windows in their order, as Markdown."""
    columns = [
        "beside them",
        "s",
        "rolled up/s",
        "changes/s",
        "writes/s",
        "p50 ms",
        "p99 ms",
        "longest ms",
        "revivals/s",
        "p50 ms",
    ]
    columns += ["p99 ms", "longest ms", "looks at locks", "somebody waited"]
    rows = [
        f"### {WRITERS} writers and one that revives, beside a roll_up of {sessions:,} sessions\n",
        f"Interrupted, it had rolled up {held:,}; begun again, it rolled up the others.\n",
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 1)}",
    ]
    for window in windows:
        seconds = window.ended - window.began
        cells = [window.name, f"{seconds:.1f}"]
        cells += [f"{done / seconds:,.0f}" if window.looks else "" for done in (window.rolled_up, window.changes)]
        cells += [*latencies(writers.calls, window), *latencies(writers.revivals, window)]
        cells += [f"{looks:,}" if window.looks else "" for looks in (window.looks, window.waits)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


@asynccontextmanager
async def database(server: EmbeddedPostgres) -> AsyncGenerator[SessionDatabase]:
    """Our schema, empty, for one question. Nothing here takes longer than it is allowed to."""
    settings = Settings(statement_timeout_seconds=None, pool_size=WRITERS + 4, max_overflow=0)
    async with SessionDatabase.connect(server.url, settings=settings) as db:
        async with db.engine.begin() as connection:
            await connection.execute(text(f"DROP SCHEMA IF EXISTS {DEFAULT_SCHEMA} CASCADE"))
        await db.migrate()
        yield db


async def main() -> None:
    """One run: every question on the same server, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000, help="how many are rolled up beside the writers")
    parser.add_argument("--revived", type=int, default=10_000, help=f"how many live again, a multiple of {CHUNK}")
    parser.add_argument("--turns", type=int, default=10, help="how often each side of the write path has its turn")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long a turn is; a window without roll_up: twice"
    )
    arguments = parser.parse_args()
    # As long as a side of the write path is measured, the writers are measured with nothing beside them.
    window = arguments.turns * arguments.seconds

    with temporary_data_dir() as data_dir:
        async with await EmbeddedPostgres.start(data_dir) as server:
            machine = f"PostgreSQL {server.version}, CPython {platform.python_version()}, {os.cpu_count()} cores"
            print(f"{machine}, synchronous_commit=on, {arguments.turns} turns of {arguments.seconds:g} s a side\n")
            print(write_path_table(await measure_write_path(server, arguments.turns, arguments.seconds)), flush=True)
            async with database(server) as db:
                print(await measure_reviving(db, arguments.revived), flush=True)
            async with database(server) as db:
                print(await measure_beside(server, db, arguments.sessions, window), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == [ROLLER]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(roll_up_here())
    else:
        asyncio.run(main())
