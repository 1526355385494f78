"""One process of the storm of roll-ups: it repeats roll_up until it is killed."""

import asyncio
import sys
from contextlib import suppress
from datetime import timedelta

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, Settings

# A session without a write in this microsecond counts as abandoned.
AT_ONCE = Settings(abandon_after=timedelta(microseconds=1), application_name="rolling up")


async def roll_up_until_killed(db: SessionDatabase) -> None:
    """Repeats roll_up; never returns."""
    while True:
        # The storm kills connections as well.
        with suppress(DatabaseUnavailableError):
            await db.maintenance.roll_up()


async def main(url: str) -> None:
    """Prints a line when the roll-ups begin."""
    async with SessionDatabase.connect(url, settings=AT_ONCE) as db:
        sys.stdout.write("rolling up\n")
        sys.stdout.flush()
        await roll_up_until_killed(db)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
