"""What do notes of changed sessions cost those who write?"""

import argparse
import asyncio
from statistics import median
from uuid import uuid4

from session_lifecycle import SessionDatabase
from support.databases import age, counted, database, machine, recycle_wal, use
from support.measuring import measure_warm
from support.tables import table

CALLERS = (1, 16)
SESSIONS = 200


async def per_second(db: SessionDatabase, callers: int, seconds: float) -> float:
    """Calls of `accumulate_usage` a second, each a transaction."""
    user_id = uuid4()
    measured, calls = await measure_warm(lambda n: use(db.lifecycle, user_id, f"s-{n % SESSIONS}"), seconds, callers)
    if await counted(db, user_id) != calls:
        raise SystemExit("the totals are wrong")
    return measured.per_second


async def recorded_per_second(db: SessionDatabase, callers: int, seconds: float) -> float:
    """The same through one recorder."""
    user_id = uuid4()
    async with db.recorder() as recorder:
        measured, calls = await measure_warm(lambda n: use(recorder, user_id, f"s-{n % SESSIONS}"), seconds, callers)
    if await counted(db, user_id) != calls:
        raise SystemExit("the totals are wrong")
    return measured.per_second


async def main() -> None:
    """One run: without and with notes in turns, while one connection listens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="how long each side is measured in each turn")
    parser.add_argument("--turns", type=int, default=5, help="how often the sides take turns")
    arguments = parser.parse_args()
    sides = [(f"single call, {callers} callers", per_second, callers) for callers in CALLERS]
    sides.append(("recorder, 256 callers", recorded_per_second, 256))
    async with database() as (server, db):
        await age(db)
        rows = []
        for name, measure, callers in sides:
            found: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(arguments.turns):
                for notes, rates in found.items():
                    await db.migrate(notes=notes)
                    await recycle_wal(db)
                    rates.append(await measure(db, callers, arguments.seconds))
            ratio = median(on / off for off, on in zip(found[False], found[True], strict=True))
            rows.append([name, f"{median(found[False]):,.0f}", f"{median(found[True]):,.0f}", f"{ratio:.2f}"])
        print(f"{machine(server)}, {SESSIONS} sessions, medians of {arguments.turns} turns\n")
        print(table("", ["", "without notes, calls a second", "with notes", "ratio"], rows))


if __name__ == "__main__":
    asyncio.run(main())
