"""What one usage costs: the reference's pattern, our single call, the recorder, and pgbench running our statement."""

import argparse
import asyncio
import math
import os
import platform
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, Numeric, Text, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from session_lifecycle import SessionDatabase, Settings
from session_lifecycle.database import asyncpg_url
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir

Call = Callable[[int], Awaitable[object]]
WAL_FILES = 20
ORDER = ("reference", "single call", "pgbench floor", "recorder")


class Base(DeclarativeBase):
    """The reference's tables, as far as usage touches them."""


class ReferenceRecord(Base):
    """A session: counters added to by UPDATE."""

    __tablename__ = "reference_records"
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(Text, primary_key=True)
    tokens_in: Mapped[int] = mapped_column(BigInteger, default=0)
    tokens_out: Mapped[int] = mapped_column(BigInteger, default=0)
    cost_usd: Mapped[float] = mapped_column(Numeric, default=0)
    last_model: Mapped[str | None]


class ReferenceModelUsage(Base):
    """A session's usage by model: upserted."""

    __tablename__ = "reference_model_usage"
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[float] = mapped_column(Numeric)


class Measured(NamedTuple):
    """One line of the table."""

    name: str
    callers: int
    per_second: float
    p50_ms: float
    p99_ms: float


class Workload(NamedTuple):
    """Which sessions are written to, and how."""

    user_id: UUID
    sessions: int
    keyed: bool
    seconds: float

    def session(self, number: int) -> str:
        """The session of a call: spread evenly, in an order nobody planned."""
        return f"session-{number * 7919 % self.sessions}"

    def key(self) -> str | None:
        """A new key, or none."""
        return uuid4().hex if self.keyed else None


async def reference_usage(sessions: async_sessionmaker[AsyncSession], workload: Workload, number: int) -> None:
    """The reference's two statements on an ORM session, then commit."""
    key = {"user_id": workload.user_id, "session_id": workload.session(number)}
    async with sessions() as session:
        record, usage = ReferenceRecord, ReferenceModelUsage
        await session.execute(
            update(record)
            .where(record.user_id == key["user_id"], record.session_id == key["session_id"])
            .values(
                tokens_in=record.tokens_in + 120,
                tokens_out=record.tokens_out + 40,
                cost_usd=record.cost_usd + 0.012,
                last_model="gpt-4o",
            )
        )
        added = insert(usage).values(**key, model="gpt-4o", tokens_in=120, tokens_out=40, cost_usd=0.012)
        await session.execute(
            added.on_conflict_do_update(
                index_elements=[usage.user_id, usage.session_id, usage.model],
                set_={
                    name: getattr(usage, name) + added.excluded[name]
                    for name in ("tokens_in", "tokens_out", "cost_usd")
                },
            )
        )
        await session.commit()


async def measure(name: str, call: Call, callers: int, seconds: float) -> tuple[Measured, int]:
    """Callers that each await one call after another; the line, and how many calls there were."""
    times: list[float] = []
    number = 0
    until = 0.0

    async def caller() -> None:
        nonlocal number
        while (began := time.perf_counter()) < until:
            number += 1
            await call(number)
            times.append(time.perf_counter() - began)

    for warm_up in (True, False):
        times.clear()
        began = time.perf_counter()
        until = began + (1.0 if warm_up else seconds)
        await asyncio.gather(*(caller() for _ in range(callers)))
    took = time.perf_counter() - began
    times.sort()
    line = Measured(name, callers, len(times) / took, times[len(times) // 2] * 1e3, times[len(times) * 99 // 100] * 1e3)
    return line, number


@asynccontextmanager
async def database() -> AsyncGenerator[tuple[EmbeddedPostgres, SessionDatabase]]:
    """A durable server of this run's own, migrated, with the reference's tables beside ours."""
    with temporary_data_dir() as data_dir:
        async with (
            await EmbeddedPostgres.start(data_dir) as server,
            SessionDatabase.connect(server.url, settings=Settings(pool_size=16, max_overflow=0)) as db,
        ):
            await db.migrate()
            async with db.engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            await age(db)
            yield server, db


async def age(db: SessionDatabase) -> None:
    """Gives the server the WAL files of one that has run for a while; everybody waits when another one is made."""
    async with db.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql(f"ALTER SYSTEM SET min_wal_size = '{WAL_FILES * 16}MB'")
        await autocommit.exec_driver_sql("SELECT pg_reload_conf()")
        for _ in range(WAL_FILES):
            await autocommit.exec_driver_sql("SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal()")


async def recycle_wal(db: SessionDatabase) -> None:
    """Lets the next line write over the WAL files of those before it."""
    async with db.engine.connect() as connection:
        await connection.exec_driver_sql("CHECKPOINT")


async def counted(db: SessionDatabase, user_id: UUID) -> int:
    """How many calls the totals hold; a run whose totals are wrong has no speed."""
    return (await db.lifecycle.aggregate_stats(user_id)).tokens_in // 120


async def measure_reference(url: str, workload: Workload, callers: int) -> Measured:
    """The reference's pattern, its sessions made before."""
    engine = create_async_engine(asyncpg_url(url), pool_size=16, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions.begin() as session:
        session.add_all(
            ReferenceRecord(user_id=workload.user_id, session_id=f"session-{number}")
            for number in range(workload.sessions)
        )
    line, calls = await measure(
        "reference", lambda number: reference_usage(sessions, workload, number), callers, workload.seconds
    )
    async with sessions() as session:
        total = await session.scalar(
            func.sum(ReferenceRecord.tokens_in).select().where(ReferenceRecord.user_id == workload.user_id)
        )
    await engine.dispose()
    if total != calls * 120:
        raise SystemExit(f"the reference counted {total} tokens for {calls} calls")
    return line


async def measure_single(db: SessionDatabase, workload: Workload, callers: int) -> Measured:
    """Our call, each a transaction of its own."""

    async def call(number: int) -> None:
        await db.lifecycle.accumulate_usage(
            workload.session(number), workload.user_id, "gpt-4o", 120, 40, 0.012, idempotency_key=workload.key()
        )

    line, calls = await measure("single call", call, callers, workload.seconds)
    if await counted(db, workload.user_id) != calls:
        raise SystemExit("the single calls are not what the database counted")
    return line


async def measure_recorder(db: SessionDatabase, workload: Workload, callers: int) -> Measured:
    """The same calls through a recorder."""
    async with db.recorder() as recorder:

        async def call(number: int) -> None:
            await recorder.accumulate_usage(
                workload.session(number), workload.user_id, "gpt-4o", 120, 40, 0.012, idempotency_key=workload.key()
            )

        line, calls = await measure("recorder", call, callers, workload.seconds)
    if await counted(db, workload.user_id) != calls:
        raise SystemExit("the recorder's calls are not what the database counted")
    return line


PGBENCH_SCRIPT = """\\set session random(0, {last})
SELECT * FROM session_lifecycle.record_v4(('[[{{"kind": "usage", "position": 0, "user_id": "{user}", "session_id": '
    '"session-' || :session || '", "event_id": "' || gen_random_uuid() || '", "model": "gpt-4o", "tokens_in": 120, '
    '"tokens_out": 40, "cost_usd": "0.012", "given_cost_usd": "0.012", "price_source": "given", '
    '"idempotency_key": "' || gen_random_uuid() || '"}}]]')::jsonb, '[]', NULL, true);
"""


async def measure_floor(server: EmbeddedPostgres, db: SessionDatabase, workload: Workload, clients: int) -> Measured:
    """The statement of a single call, prepared, by pgbench: what a client without any Python reaches."""
    for number in range(workload.sessions):
        await db.lifecycle.ensure_and_touch_session(f"session-{number}", workload.user_id)
    url = make_url(server.url)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH_SCRIPT.format(last=workload.sessions - 1, user=workload.user_id))
        script.flush()
        command: list[str | Path] = [server.bin_dir / "pgbench", "-n", "-M", "prepared", "-f", script.name]
        command += ["-c", str(clients), "-j", str(min(clients, 2)), "-T", str(round(workload.seconds)), "-r"]
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
    latency_ms = float(re.findall(r"latency average = ([\d.]+) ms", ran.stdout)[0])
    if await counted(db, workload.user_id) != transactions:
        raise SystemExit("pgbench's transactions are not what the database counted")
    return Measured("pgbench floor", clients, per_second, latency_ms, float("nan"))


def table(title: str, lines: Sequence[Measured]) -> str:
    """The lines as Markdown, each as a multiple of the reference with one caller."""
    [reference] = [line for line in lines if line.name == "reference" and line.callers == 1]
    rows = [
        f"### {title}\n",
        "| | callers | calls/s | x reference | p50 ms | p99 ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        p99 = "" if math.isnan(line.p99_ms) else f"{line.p99_ms:.1f}"
        ratio = line.per_second / reference.per_second
        rows.append(
            f"| {line.name} | {line.callers:,} | {line.per_second:,.0f} | {ratio:.1f} | {line.p50_ms:.2f} | {p99} |"
        )
    return "\n".join(rows) + "\n"


def plot(lines: Sequence[Measured], file: Path, caption: str) -> None:
    """Calls a second by callers, one line per side, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name in dict.fromkeys(line.name for line in lines):
        points = [line for line in lines if line.name == name]
        axes.plot([one.callers for one in points], [one.per_second for one in points], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="callers", ylabel="calls a second", title=caption)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def sides(
    server: EmbeddedPostgres, db: SessionDatabase, callers: int, *, with_floor: bool
) -> list[Callable[[int, Workload], Awaitable[Measured]]]:
    """What is measured with so many callers, one right after the other: a machine's speed varies over a run."""
    found: list[Callable[[int, Workload], Awaitable[Measured]]] = []
    if callers <= 16:
        found += [
            lambda callers, workload: measure_reference(server.url, workload, callers),
            lambda callers, workload: measure_single(db, workload, callers),
        ]
        if with_floor:
            found.append(lambda callers, workload: measure_floor(server, db, workload, callers))
    return [*found, lambda callers, workload: measure_recorder(db, workload, callers)]


async def main() -> None:
    """One run: every side on the same server, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    parser.add_argument("--quick", action="store_true", help="200 sessions with keys only")
    parser.add_argument("--plot", type=Path, help="where to write the SVG")
    arguments = parser.parse_args()

    def workload(sessions: int, *, keyed: bool) -> Workload:
        return Workload(uuid4(), sessions, keyed, arguments.seconds)

    async with database() as (server, db):
        machine = f"PostgreSQL {server.version}, CPython {platform.python_version()}, {os.cpu_count()} cores"
        print(f"{machine}, synchronous_commit=on, {arguments.seconds:g} s a line\n")
        cases = [("200 sessions, with keys", 200, True)]
        if not arguments.quick:
            cases += [("200 sessions, without keys", 200, False), ("one session, with keys", 1, True)]
            cases += [("100,000 sessions, with keys", 100_000, True)]
        for title, sessions, keyed in cases:
            lines = []
            for callers in (1, 16, 256, 2_000):
                for measure_side in sides(server, db, callers, with_floor=sessions <= 1_000):
                    await recycle_wal(db)
                    lines.append(await measure_side(callers, workload(sessions, keyed=keyed)))
            lines.sort(key=lambda line: ORDER.index(line.name))
            print(table(title, lines), flush=True)
            if arguments.plot and (title, sessions, keyed) == cases[0]:
                plot(lines, arguments.plot, f"{title} · {machine}")
        print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    asyncio.run(main())
