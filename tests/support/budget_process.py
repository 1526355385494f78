"""One process that reserves: it prints what it was answered, and then keeps what it reserved until it is killed."""

import asyncio
import sys
from uuid import UUID

from session_lifecycle import SessionDatabase, Settings


async def main(url: str, user: str, callers: int) -> None:
    """Reserves one USD for each caller, all at once, and prints how many were admitted."""
    async with SessionDatabase.connect(url, settings=Settings(pool_size=callers)) as db:
        asked = (
            db.budgets.reserve("s", UUID(user), cost_usd=1, idempotency_key=f"{id(db)}-{number}")
            for number in range(callers)
        )
        answers = await asyncio.gather(*asked)
        sys.stdout.write(f"{sum(answer.admitted for answer in answers)}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
