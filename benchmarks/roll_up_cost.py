"""What do roll-ups cost those who write: in each call, and when a rolled-up session lives again?"""

import argparse
import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count
from statistics import median
from typing import NamedTuple
from uuid import UUID, uuid4

from session_lifecycle import SessionDatabase, SessionWriter, Settings
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from support.databases import counted, emptied_database, machine, run, running_server, scalar, seed, settle, use
from support.measuring import measure
from support.tables import table

WRITERS = 16
CHUNK = 500
RUNNING, IDLE, ROLLED_UP = "running, active now", "idle, not rolled up", "idle, rolled up"
USERS = {RUNNING: 10, IDLE: 20, ROLLED_UP: 30}
SETTINGS = Settings(pool_size=WRITERS, max_overflow=0)
# No roll_up here has a time limit.
UNLIMITED = Settings(statement_timeout_seconds=None, pool_size=WRITERS, max_overflow=0)

# Takes back what roll-ups added to the write path. The column `rolled_up` stays, since the library reads it.
WITHOUT_ROLL_UPS = (
    "DROP TRIGGER leave_roll_ups ON {schema}.session_records",
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


class Cost(NamedTuple):
    """One case of the write path: the calls a second of each turn, of both sides."""

    name: str
    before: Sequence[float]
    now: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Now by before, of each pair of turns, sorted."""
        return sorted(now / before for now, before in zip(self.now, self.before, strict=True))


async def measure_case(
    name: str,
    sides: tuple[SessionDatabase, SessionDatabase],
    turns: int,
    seconds: float,
    *,
    callers: int,
    sessions: int,
    recorded: bool = False,
) -> Cost:
    """Both sides in turns, and the side that begins in turns: a machine's speed varies over a run."""
    await settle(sides[1])
    user_id = uuid4()
    speeds: tuple[list[float], list[float]] = ([], [])
    calls = (count(1), count(1))
    async with AsyncExitStack() as stack:
        writers: list[SessionWriter] = [
            await stack.enter_async_context(db.recorder()) if recorded else db.lifecycle for db in sides
        ]

        async def turn(side: int, length: float) -> float:
            measured = await measure(
                lambda number: use(writers[side], user_id, f"session-{number * 7919 % sessions}"),
                length,
                callers=callers,
                numbers=calls[side],
            )
            return measured.per_second

        for side in (0, 1):
            await turn(side, 1.0)
        for number in range(turns):
            for side in (0, 1) if number % 2 else (1, 0):
                speeds[side].append(await turn(side, seconds))
    for db, numbers in zip(sides, calls, strict=True):
        found, made = await counted(db, user_id), next(numbers) - 1
        if found != made:
            raise SystemExit(f"{name}: the database counted {found} usages for {made} calls")
    return Cost(name, *speeds)


async def measure_write_path(server: EmbeddedPostgres, turns: int, seconds: float) -> list[Cost]:
    """The cost of the trigger and the indexes: our schema twice on one server, once without them."""
    async with (
        SessionDatabase.connect(server.url, schema="before", settings=SETTINGS) as before,
        SessionDatabase.connect(server.url, schema="now", settings=SETTINGS) as now,
    ):
        for db in (before, now):
            await db.migrate()
            # The library looks at the schema before its first statement, and would refuse one without the trigger.
            await counted(db, uuid4())
        await run(before, *(statement.replace("{schema}", "before") for statement in WITHOUT_ROLL_UPS))
        sides = (before, now)
        return [
            await measure_case("single call, 1 caller, 200 sessions", sides, turns, seconds, callers=1, sessions=200),
            await measure_case(
                f"single call, {WRITERS} callers, 200 sessions", sides, turns, seconds, callers=WRITERS, sessions=200
            ),
            await measure_case(
                "recorder, 256 callers, 200 sessions", sides, turns, seconds, callers=256, sessions=200, recorded=True
            ),
            await measure_case(
                "recorder, 256 callers, 100,000 sessions",
                sides,
                turns,
                seconds,
                callers=256,
                sessions=100_000,
                recorded=True,
            ),
        ]


def write_path_table(costs: Sequence[Cost]) -> str:
    """The cases as Markdown."""
    rows = []
    for cost in costs:
        ratios = cost.ratios
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        cells = [cost.name, f"{median(cost.before):,.0f}", f"{median(cost.now):,.0f}", f"{median(ratios):.2f}", spread]
        rows.append(cells)
    return table("The write path, calls/s", ["", "before", "now", "now / before, median", "of the turns"], rows)


async def use_each(db: SessionDatabase, user_id: UUID, numbers: Iterable[int]) -> None:
    """Records one usage of each of these sessions, by all callers together."""
    left = iter(numbers)

    async def caller() -> None:
        for number in left:
            await use(db.lifecycle, user_id, f"session-{number}")

    await asyncio.gather(*(caller() for _ in range(WRITERS)))


async def measure_reviving(db: SessionDatabase, sessions: int) -> dict[str, float]:
    """Calls a second of the first usage in a long time: of rolled-up sessions, of idle ones, and of running ones."""
    await seed(db, USERS[ROLLED_UP], sessions)
    report = await db.maintenance.roll_up()
    if report.sessions != sessions:
        raise SystemExit(f"{report.sessions} of {sessions} sessions were rolled up")
    await seed(db, USERS[IDLE], sessions)
    await seed(db, USERS[RUNNING], sessions, newest=timedelta(0), span=timedelta(minutes=1))
    await settle(db)

    speeds: dict[str, list[float]] = {name: [] for name in USERS}
    for start in range(0, sessions, CHUNK):
        for name, user in USERS.items():
            began = time.perf_counter()
            await use_each(db, UUID(int=user), range(start, start + CHUNK))
            speeds[name].append(CHUNK / (time.perf_counter() - began))
    left = await scalar(db, "SELECT count(*) FROM session_lifecycle.rolled_up_sessions")
    if left:
        raise SystemExit(f"{left} sessions are still rolled up")
    return {name: median(found) for name, found in speeds.items()}


def reviving_table(sessions: int, speeds: dict[str, float]) -> str:
    """The speeds as Markdown, each as a multiple of the running sessions'."""
    rows = [[name, f"{speed:,.0f}", f"{speed / speeds[RUNNING]:.2f}"] for name, speed in speeds.items()]
    title = f"Usage of {sessions:,} sessions, once each, {WRITERS} callers"
    return table(title, ["", "calls/s", "x running"], rows)


async def main() -> None:
    """One run: both questions on the same server, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10, help="how often each side of the write path has its turn")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a turn is")
    parser.add_argument("--revived", type=int, default=10_000, help=f"how many live again, a multiple of {CHUNK}")
    arguments = parser.parse_args()
    if arguments.revived % CHUNK:
        parser.error(f"--revived: got {arguments.revived}, expected a multiple of {CHUNK}")

    async with running_server() as server:
        print(f"{machine(server)}, synchronous_commit=on, {arguments.turns} turns of {arguments.seconds:g} s a side\n")
        print(write_path_table(await measure_write_path(server, arguments.turns, arguments.seconds)), flush=True)
        async with emptied_database(server, UNLIMITED) as db:
            print(reviving_table(arguments.revived, await measure_reviving(db, arguments.revived)))


if __name__ == "__main__":
    asyncio.run(main())
