"""What do 10^4 writes a second, 10^9 ledger rows and 10^6 users need: how many servers, and what of each?"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from record_activity import BEGINNING, SESSIONS, items_of_run
from session_lifecycle import SessionDatabase, SessionWriter, Settings, UsageEvent, Viewer
from session_lifecycle.entities import metadata
from session_lifecycle.models import Item
from session_lifecycle.postgres.embedded import EmbeddedPostgres
from session_lifecycle.settings import DEFAULT_SCHEMA
from simulation import Cost, Kind, Line, Measured, Move, Server, Stages, Stored, Workload
from support.databases import TOKENS_IN, emptied_database, machine, run, running_server, scalar
from support.scale_report import report
from support.spending import replay_seconds, server_seconds

USERS = [UUID(int=number) for number in range(1, 32)]
ALL_SESSIONS = len(USERS) * SESSIONS
AFTER_SECONDS = 10 / ALL_SESSIONS
"""Each session has a call every ten seconds."""
# Every session is idle at once, so it can be rolled up.
SETTINGS = Settings(pool_size=16, max_overflow=0, abandon_after=timedelta(seconds=1))
# Vacuum and images of pages are measured apart. A table that is vacuumed meanwhile would cost either more or less.
WITHOUT_IMAGES = ("ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()", "CHECKPOINT")
WITH_IMAGES = ("ALTER SYSTEM SET full_page_writes = on", "SELECT pg_reload_conf()", "CHECKPOINT")
WITHOUT_AUTOVACUUM = ("ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()")
WARM_UP_ITEMS = 400
SPARSE_SESSIONS = 32
"""So few sessions of all that hardly two of them share a page."""

Make = Callable[[int], list[Item]]
"""The items of one call, by its number."""


def uses(number: int) -> list[Item]:
    """One use with a key, in a session of its own among those of the calls around it."""
    return [
        UsageEvent(
            session_id=f"session-{number * 7919 % SESSIONS}",
            user_id=USERS[number % len(USERS)],
            model="gpt-4o",
            tokens_in=TOKENS_IN,
            tokens_out=40,
            cost_usd=Decimal("0.012"),
            idempotency_key=f"response-{number}",
            at=BEGINNING + timedelta(seconds=number * AFTER_SECONDS),
        )
    ]


def activity(number: int) -> list[Item]:
    """The six items of a run."""
    return [*items_of_run(USERS[number % len(USERS)], number, after=AFTER_SECONDS)]


class Spent(NamedTuple):
    """What a server and this process have spent so far."""

    server_seconds: float
    client_seconds: float
    wal_bytes: int


class Costs:
    """Measures on one database, which has its server for itself."""

    def __init__(self, server: EmbeddedPostgres, db: SessionDatabase, make: Make) -> None:
        self._server = server
        self.db = db
        self._make = make
        self._number = 0
        self.items = 0
        """How many items were written."""

    async def _spent(self) -> Spent:
        wal = await scalar(self.db, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
        return Spent(server_seconds(self._server), time.process_time(), wal)

    async def spent_by(self, work: Callable[[], Awaitable[object]]) -> Cost:
        """What this and the checkpoint after it cost."""
        before = await self._spent()
        await work()
        await run(self.db, "CHECKPOINT")
        after = await self._spent()
        server, client, wal = (now - then for now, then in zip(after, before, strict=True))
        return Cost(server_seconds=server, client_seconds=client, wal_bytes=wal)

    def _calls(self, items: int) -> int:
        """How many calls make about so many items."""
        return max(items // len(self._make(0)), 1)

    async def write(self, writer: SessionWriter, items: int, callers: int, *, one_by_one: bool = False) -> None:
        """Writes about so many items; each caller awaits one call after another."""
        last = self._number + self._calls(items)

        async def caller() -> None:
            while self._number < last:
                made = self._make(self._number)
                self._number += 1
                for part in [[one] for one in made] if one_by_one else [made]:
                    await writer.record(part)
                    self.items += len(part)

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def record(self, items: int, batch: int) -> float:
        """Writes through a recorder whose batches are full. Returns how many items a batch had."""
        async with self.db.recorder(max_batch=batch) as recorder:
            await self.write(recorder, items, 4 * self._calls(batch))
            snapshot = recorder.snapshot()
        return snapshot.items / snapshot.batches

    async def line(self, items: int, batch: int) -> Line:
        """One way to write. A batch of 1 is a call for each item, by 16 callers."""
        size = 1.0
        # A backend plans a statement anew five times, and does so for each of its sixteen connections.
        await self.write(self.db.lifecycle, WARM_UP_ITEMS, 16, one_by_one=True)
        before = self.items

        async def work() -> None:
            nonlocal size
            if batch == 1:
                await self.write(self.db.lifecycle, items, 16, one_by_one=True)
            else:
                size = await self.record(items, batch)

        cost = await self.spent_by(work)
        name = "one item a call" if batch == 1 else f"recorder, batches of {batch}"
        return Line(name=name, batch=size, cost=cost.times(1 / (self.items - before)))

    async def image_bytes(self) -> float:
        """The WAL of images of pages, for each of a few sessions far from each other."""
        wal = []
        for settings in (WITHOUT_IMAGES, WITH_IMAGES):
            await run(self.db, *settings)
            numbers = [self._number + i * ALL_SESSIONS // SPARSE_SESSIONS for i in range(SPARSE_SESSIONS)]
            self._number += ALL_SESSIONS
            items = [item for number in numbers for item in self._make(number)]
            before = await self._spent()
            await self.db.lifecycle.record(items)
            self.items += len(items)
            wal.append((await self._spent()).wal_bytes - before.wal_bytes)
        await run(self.db, *WITHOUT_IMAGES)
        return (wal[1] - wal[0]) / SPARSE_SESSIONS

    async def replay_seconds(self, items: int) -> float:
        """The CPU time of replaying an item, which one process does on a replica, and here after a crash."""
        before = self.items
        await self.record(items, 256)
        await self.db.engine.dispose()
        await self._server.restart("immediate")
        return replay_seconds(self._server) / (self.items - before)

    async def check(self) -> None:
        """Stops where the totals are not those of the items that were written."""
        found = (await self.db.lifecycle.aggregate_stats(Viewer.auditor())).tokens_in // TOKENS_IN
        if found != self.items // len(self._make(0)):
            raise SystemExit(f"the database counted {found} uses of {self.items} items")


async def stored(db: SessionDatabase) -> dict[str, Stored]:
    """The tables of the library that have rows."""
    found = {}
    for one in metadata.sorted_tables:
        name = f"{DEFAULT_SCHEMA}.{one.name}"
        if rows := await scalar(db, f"SELECT count(*) FROM {name}"):  # noqa: S608 - the name is of our metadata
            sizes = [await scalar(db, f"SELECT pg_{what}_size('{name}')") for what in ("table", "indexes")]
            found[one.name] = Stored(rows=rows, table_bytes=sizes[0], index_bytes=sizes[1])
    return found


async def measure_kind(server: EmbeddedPostgres, name: str, make: Make, fill: int, items: int) -> Kind:
    """Measures one kind of items in an empty schema."""
    async with emptied_database(server, SETTINGS) as db:
        costs = Costs(server, db, make)
        await run(db, *WITHOUT_AUTOVACUUM, *WITHOUT_IMAGES)
        await costs.record(fill, 500)
        await run(db, "VACUUM ANALYZE", "CHECKPOINT")
        vacuumed = costs.items
        lines = [await costs.line(items // 5 if batch == 1 else items, batch) for batch in (1, 16, 256)]
        vacuum = (await costs.spent_by(lambda: run(db, "VACUUM"))).times(1 / (costs.items - vacuumed))
        image_bytes = await costs.image_bytes()
        replay_seconds = await costs.replay_seconds(items)
        await costs.check()
        roll_up = await costs.spent_by(db.maintenance.roll_up)
        await costs.check()
        await run(db, "VACUUM ANALYZE")
        tables = await stored(db)
        sessions = tables["session_records"].rows
        prune = await costs.spent_by(lambda: db.maintenance.prune_sessions(timedelta(seconds=1)))
        prune += await costs.spent_by(lambda: run(db, "VACUUM"))
        if "session_usage_events" in await stored(db):
            raise SystemExit("prune_sessions left rows")
        return Kind(
            name=name,
            items=costs.items,
            sessions=sessions,
            lines=lines,
            image_bytes=image_bytes,
            replay_seconds=replay_seconds,
            tables=tables,
            roll_up=roll_up.times(1 / sessions),
            prune=prune.times(1 / costs.items),
            vacuum=vacuum,
        )


def _stages(seconds: Sequence[float]) -> Stages:
    return Stages(**dict(zip(Stages.model_fields, seconds, strict=True)))


@asynccontextmanager
async def stages(old: EmbeddedPostgres, new: EmbeddedPostgres) -> AsyncGenerator[list[float]]:
    """The CPU seconds of the old server, of this process and of the new server within the block, known at its end."""

    def now() -> list[float]:
        return [server_seconds(old), time.process_time(), server_seconds(new)]

    found: list[float] = []
    before = now()
    yield found
    found += [after - earlier for after, earlier in zip(now(), before, strict=True)]


async def measure_move(fill: int, items: int) -> Move:
    """Moves a bucket to another server, and back while uses are written into it."""
    async with (
        running_server() as old,
        running_server() as new,
        SessionDatabase.buckets([old.url], settings=SETTINGS) as db,
    ):
        await db.migrate()
        numbers = count()

        async def write(make: Make, goes_on: Callable[[int], bool]) -> int:
            """Writes as long as the function says. Returns how many calls there were."""
            calls = 0
            async with db.recorder(max_batch=256) as recorder:

                async def caller() -> None:
                    nonlocal calls
                    while goes_on(calls):
                        calls += 1
                        await recorder.record(make(next(numbers)))

                await asyncio.gather(*(caller() for _ in range(512)))
            return calls

        await write(activity, lambda calls: calls < fill // 6)
        async with SessionDatabase.connect(old.url) as plain:
            sizes = await stored(plain)
        async with stages(old, new) as copying:
            await db.placement.move(0, new.url)
        async with stages(new, old) as writing:
            await write(uses, lambda calls: calls < items)
        copied: list[str] = []
        async with stages(new, old) as together:
            written, report = await asyncio.gather(
                write(uses, lambda _: len(copied) < len(metadata.sorted_tables) - 1),
                db.placement.move(0, old.url, on_progress=copied.append),
            )
    size = sum(one.table_bytes + one.index_bytes for one in sizes.values())
    # The changes cost what both together take more than the copy alone and the writes alone.
    alone = [copy + written * write / items for copy, write in zip(copying, writing, strict=True)]
    more = [max(both - one, 0) for both, one in zip(together, alone, strict=True)]
    return Move(
        a_byte=_stages([one / size for one in copying]),
        a_change=_stages([one / report.changes for one in more]),
        changes_of_item=report.changes / written,
    )


async def measure(fill: int, items: int) -> Measured:
    """Measures everything."""
    kinds = []
    for name, make in (("uses", uses), ("activity", activity)):
        async with running_server() as server:
            kinds.append(await measure_kind(server, name, make, fill, items))
            machine_name = machine(server)
        print(f"{name}: measured", file=sys.stderr)
    return Measured(machine=machine_name, kinds=kinds, move=await measure_move(fill, items))


def arguments_of(default: Workload | Server, parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field, which `simulation.py` describes."""
    group = parser.add_argument_group(type(default).__name__.lower())
    for one in fields(default):
        value = getattr(default, one.name)
        group.add_argument(f"--{one.name.replace('_', '-')}", type=type(value), default=value, help="%(default)s")


async def main() -> None:
    """Measures, or reads what an earlier run measured, and simulates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=40_000, help="how many items a line writes")
    parser.add_argument("--fill", type=int, default=200_000, help="how many items there are before")
    parser.add_argument("--save", type=Path, help="where to write what was measured, as JSON")
    parser.add_argument("--measured", type=Path, help="a file of --save: nothing is measured")
    parser.add_argument("--limit-ms", type=float, default=50, help="what the p99 of a recorder's callers may be")
    arguments_of(Workload(), parser)
    arguments_of(Server(), parser)
    given = vars(parser.parse_args())
    workload = Workload(**{one.name: given[one.name] for one in fields(Workload)})
    server = Server(**{one.name: given[one.name] for one in fields(Server)})
    if given["measured"]:
        measured = Measured.model_validate_json(given["measured"].read_bytes())
    else:
        measured = await measure(given["fill"], given["items"])
    if given["save"]:
        given["save"].write_text(measured.model_dump_json(indent=1) + "\n")
    print(report(measured, workload, server, given["limit_ms"]))


if __name__ == "__main__":
    asyncio.run(main())
