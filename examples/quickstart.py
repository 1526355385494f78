"""Records a session, its usage and its end, then reads the figures of a dashboard.

Run: python examples/quickstart.py
It uses the database of SESSION_LIFECYCLE_DATABASE_URL, or an embedded Postgres if that is not set.
"""

import asyncio
from uuid import uuid4

from session_lifecycle import SessionDatabase, SessionListFilters, SessionStatus, Settings


async def main() -> None:
    """Records one session and prints it."""
    user_id = uuid4()
    db = SessionDatabase.connect() if Settings.load().database_url else SessionDatabase.embedded()
    async with db:
        await db.migrate()
        await db.lifecycle.ensure_and_touch_session("chat-1", user_id, agent_name="helper")
        receipt = await db.lifecycle.accumulate_usage(
            "chat-1", user_id, "gpt-4o-mini", tokens_in=1_000, tokens_out=500, idempotency_key="response-1"
        )
        print(f"{receipt.outcome}: {receipt.cost_usd} USD")
        await db.lifecycle.end_session("chat-1", user_id, SessionStatus.COMPLETED)

        page = await db.lifecycle.list_session_rows(SessionListFilters(user_id=user_id))
        for row in page.sessions:
            print(row.record.session_id, row.effective_status, row.record.tokens_in, row.record.cost_usd)
        stats = await db.lifecycle.aggregate_stats(user_id)
        print(f"{stats.sessions} session, {stats.total_spend_usd} USD, success rate {stats.success_rate:.0%}")


if __name__ == "__main__":
    asyncio.run(main())
