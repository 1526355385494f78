"""What does one usage cost: the reference's pattern, our single call, the recorder, and pgbench with our statement?"""

import argparse
import asyncio
import os
import re
import resource
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import func
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from session_lifecycle import SessionDatabase, SessionWriter
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from session_lifecycle.postgres.engines import asyncpg_url
from support.databases import TOKENS_IN, age, counted, database, machine, recycle_wal, use
from support.measuring import Line, Measured, measure_warm
from support.reference import Base, ReferenceRecord, reference_usage
from support.tables import Curve, plot, table

REFERENCE, SINGLE_CALL, FLOOR, RECORDER = "reference", "single call", "pgbench floor", "recorder"
ORDER = (REFERENCE, SINGLE_CALL, FLOOR, RECORDER)
CALLERS = (1, 16, 256, 2_000)
# A connection of its own for each of more callers would measure the pool, not the statement.
MOST_CALLERS_WITHOUT_RECORDER = 16
MOST_SESSIONS_OF_FLOOR = 1_000


class Workload(NamedTuple):
    """The sessions that one line writes to, and how."""

    sessions: int
    keyed: bool
    seconds: float
    user_id: UUID

    def session(self, number: int) -> str:
        """The session of a call: the calls are spread evenly over the sessions, out of their order."""
        return f"session-{number * 7919 % self.sessions}"


Side = Callable[[Workload, int], Awaitable[Measured]]
"""Measures one side with this workload and so many callers."""


async def measure_reference(url: str, workload: Workload, callers: int) -> Measured:
    """The reference's pattern; its sessions exist before the first usage."""
    engine = create_async_engine(asyncpg_url(url), pool_size=16, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    user_id = workload.user_id
    async with sessions.begin() as session:
        session.add_all(
            ReferenceRecord(user_id=user_id, session_id=f"session-{number}") for number in range(workload.sessions)
        )
    measured, calls = await measure_warm(
        lambda number: reference_usage(sessions, user_id, workload.session(number)), workload.seconds, callers
    )
    async with sessions() as session:
        total = await session.scalar(
            func.sum(ReferenceRecord.tokens_in).select().where(ReferenceRecord.user_id == user_id)
        )
    await engine.dispose()
    if total != calls * TOKENS_IN:
        raise SystemExit(f"the reference counted {total} tokens for {calls} calls")
    return measured


async def measure_writer(db: SessionDatabase, writer: SessionWriter, workload: Workload, callers: int) -> Measured:
    """Our call, made directly or through a recorder."""
    user_id = workload.user_id
    measured, calls = await measure_warm(
        lambda number: use(writer, user_id, workload.session(number), keyed=workload.keyed), workload.seconds, callers
    )
    found = await counted(db, user_id)
    if found != calls:
        raise SystemExit(f"the database counted {found} usages for {calls} calls")
    return measured


async def measure_recorder(db: SessionDatabase, workload: Workload, callers: int) -> Measured:
    """Our call, made through a recorder of this line alone."""
    async with db.recorder() as recorder:
        return await measure_writer(db, recorder, workload, callers)


PGBENCH_SCRIPT = """\\set session random(0, {last})
SELECT * FROM session_lifecycle.record_v1(('[[{{"kind": "usage", "position": 0, "user_id": "{user}", "session_id": '
    '"session-' || :session || '", "event_id": "' || gen_random_uuid() || '", "model": "gpt-4o", "tokens_in": 120, '
    '"tokens_out": 40, "cost_usd": "0.012", "given_cost_usd": "0.012", "price_source": "given", '
    '"idempotency_key": "' || gen_random_uuid() || '"}}]]')::jsonb, '[]', NULL, true);
"""


async def measure_floor(server: EmbeddedPostgres, db: SessionDatabase, workload: Workload, clients: int) -> Measured:
    """The statement of a single call, prepared and run by pgbench: the speed of a client without any Python."""
    for number in range(workload.sessions):
        await db.lifecycle.ensure_and_touch_session(f"session-{number}", workload.user_id)
    url = make_url(server.url)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH_SCRIPT.format(last=workload.sessions - 1, user=workload.user_id))
        script.flush()
        command: list[str | Path] = [server.bin_dir / "pgbench", "-n", "-M", "prepared", "-f", script.name]
        command += ["-c", str(clients), "-j", str(min(clients, 2)), "-T", str(max(1, round(workload.seconds))), "-r"]
        command += ["-h", str(url.host), "-p", str(url.port), "-U", str(url.username), str(url.database)]
        ran = await asyncio.to_thread(
            subprocess.run,
            command,
            env={**os.environ, "PGPASSWORD": str(url.password)},
            capture_output=True,
            text=True,
            check=True,
        )
    transactions = int(re.findall(r"transactions actually processed: (\d+)", ran.stdout)[0])
    per_second = float(re.findall(r"tps = ([\d.]+)", ran.stdout)[-1])
    average_ms = float(re.findall(r"latency average = ([\d.]+) ms", ran.stdout)[0])
    found = await counted(db, workload.user_id)
    if found != transactions:
        raise SystemExit(f"the database counted {found} usages for {transactions} transactions of pgbench")
    return Measured(per_second, average_ms)


def sides(server: EmbeddedPostgres, db: SessionDatabase, callers: int, *, with_floor: bool) -> dict[str, Side]:
    """The sides that are measured with so many callers, one right after the other: a machine's speed varies."""
    found: dict[str, Side] = {}
    if callers <= MOST_CALLERS_WITHOUT_RECORDER:
        found[REFERENCE] = lambda workload, callers: measure_reference(server.url, workload, callers)
        found[SINGLE_CALL] = lambda workload, callers: measure_writer(db, db.lifecycle, workload, callers)
        if with_floor:
            found[FLOOR] = lambda workload, callers: measure_floor(server, db, workload, callers)
    found[RECORDER] = lambda workload, callers: measure_recorder(db, workload, callers)
    return found


def lines_table(title: str, lines: Sequence[Line]) -> str:
    """The lines as Markdown, each as a multiple of the reference with one caller."""
    [reference] = [line.measured for line in lines if (line.name, line.size) == (REFERENCE, 1)]
    rows = []
    for name, callers, measured in lines:
        ratio = measured.per_second / reference.per_second
        p99 = "" if measured.p99_ms is None else f"{measured.p99_ms:.1f}"
        rows.append(
            [name, f"{callers:,}", f"{measured.per_second:,.0f}", f"{ratio:.1f}", f"{measured.p50_ms:.2f}", p99]
        )
    return table(title, ["", "callers", "calls/s", "x reference", "p50 ms", "p99 ms"], rows)


def draw(file: Path, lines: Sequence[Line], title: str) -> None:
    """Draws calls a second by callers, one curve for each side."""
    curves = [
        Curve(name, [(line.size, line.measured.per_second) for line in lines if line.name == name]) for name in ORDER
    ]
    plot(file, curves, x="callers", y="calls a second", title=title)


async def main() -> None:
    """One run: every side on the same server, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    parser.add_argument("--quick", action="store_true", help="200 sessions with keys only")
    parser.add_argument("--plot", type=Path, help="where to write the SVG")
    arguments = parser.parse_args()

    async with database() as (server, db):
        async with db.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await age(db)
        print(f"{machine(server)}, synchronous_commit=on, {arguments.seconds:g} s a line\n")
        cases = [("200 sessions, with keys", 200, True)]
        if not arguments.quick:
            cases += [("200 sessions, without keys", 200, False), ("one session, with keys", 1, True)]
            cases += [("100,000 sessions, with keys", 100_000, True)]
        for title, sessions, keyed in cases:
            lines: list[Line] = []
            for callers in CALLERS:
                found = sides(server, db, callers, with_floor=sessions <= MOST_SESSIONS_OF_FLOOR)
                for name, measure_side in found.items():
                    await recycle_wal(db)
                    workload = Workload(sessions, keyed, arguments.seconds, uuid4())
                    lines.append(Line(name, callers, await measure_side(workload, callers)))
            lines.sort(key=lambda line: ORDER.index(line.name))
            print(lines_table(title, lines), flush=True)
            if arguments.plot and title == cases[0][0]:
                draw(arguments.plot, lines, f"{title} · {machine(server)}")
        print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    asyncio.run(main())
