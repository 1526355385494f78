"""One process of the storm of roll-ups: it rolls up again and again, until it is killed."""

import asyncio
import sys
from datetime import timedelta

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, Settings

# Every session that nobody writes to at this moment is over.
AT_ONCE = Settings(abandon_after=timedelta(microseconds=1), application_name="rolling up")


async def roll_up_until_killed(db: SessionDatabase) -> None:
    """Says so on standard output, once it has rolled up for the first time."""
    told = False
    while True:
        try:
            await db.maintenance.roll_up()
        except DatabaseUnavailableError:  # its connections are killed as well
            continue
        if not told:
            told = True
            sys.stdout.write("rolled up\n")
            sys.stdout.flush()


async def main(url: str) -> None:
    async with SessionDatabase.connect(url, settings=AT_ONCE) as db:
        await roll_up_until_killed(db)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
