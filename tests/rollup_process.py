"""One process of the storm of roll-ups: it rolls up again and again, until it is killed."""

import asyncio
import sys
from contextlib import suppress
from datetime import timedelta

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, Settings

# Every session that nobody writes to at this moment is over.
AT_ONCE = Settings(abandon_after=timedelta(microseconds=1), application_name="rolling up")


async def roll_up_until_killed(db: SessionDatabase) -> None:
    """Never ends by itself."""
    while True:
        # Its connections are killed as well.
        with suppress(DatabaseUnavailableError):
            await db.maintenance.roll_up()


async def main(url: str) -> None:
    """Says so on standard output once it begins."""
    async with SessionDatabase.connect(url, settings=AT_ONCE) as db:
        sys.stdout.write("rolling up\n")
        sys.stdout.flush()
        await roll_up_until_killed(db)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
