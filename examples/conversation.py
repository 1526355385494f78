"""Records a conversation with its messages and steps, then reads it as a host shows it.

Run: python examples/conversation.py
It uses the database of SESSION_LIFECYCLE_DATABASE_URL, or an embedded Postgres if that is not set.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from session_lifecycle import Message, Run, SessionDatabase, Settings, Step, SummaryFilters, Touch, UsageEvent
from session_lifecycle.models import Item, MessageRole

NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)


def turn(number: int, user_id: UUID, prompt: str, reply: str, errors: list[str] | None = None) -> list[Item]:
    """The items of one turn: a run, its task, two messages and the usage. Recording them again changes nothing."""
    run_id = f"turn-{number}"
    asked_at = NOON + timedelta(minutes=number)
    answered_at = asked_at + timedelta(seconds=2)
    said = [
        Message(
            message_id=f"{run_id}-{role}",
            user_id=user_id,
            session_id="order-1",
            run_id=run_id,
            role=role,
            content=content,
            created_at=at,
        )
        for role, content, at in (
            (MessageRole.USER, prompt, asked_at),
            (MessageRole.ASSISTANT, reply, answered_at),
        )
    ]
    return [
        Run(run_id=run_id, user_id=user_id, session_id="order-1", started_at=asked_at, ended_at=answered_at),
        Step(
            step_id="stock",
            run_id=run_id,
            user_id=user_id,
            kind="task",
            name="look at the stock",
            started_at=asked_at,
            ended_at=answered_at,
            errors=errors,
        ),
        *said,
        UsageEvent(
            session_id="order-1",
            user_id=user_id,
            model="gpt-4o-mini",
            tokens_in=1_000,
            tokens_out=500,
            run_id=run_id,
            idempotency_key=run_id,
            at=answered_at,
        ),
    ]


async def main() -> None:
    """Records a conversation of two turns and prints it."""
    user_id = uuid4()
    db = SessionDatabase.connect() if Settings.load().database_url else SessionDatabase.embedded()
    async with db:
        await db.migrate()
        await db.lifecycle.record(
            [
                Touch(session_id="order-1", user_id=user_id, agent_name="baker", title="Bread for Sunday", at=NOON),
                *turn(1, user_id, "Do you have 100% rye?", "The oven is out of order.", ["the stock did not answer"]),
            ]
        )
        await db.lifecycle.record(turn(2, user_id, "And tomorrow?", "Two loaves are yours."))

        page = await db.activity.list_session_summaries(SummaryFilters(user_id=user_id, search="100% RYE"))
        for found in page.sessions:
            print(f"{found.record.title}: {found.cost_usd} USD, runs {found.runs_count}, errors {found.errors_count}")
            print(f"last said: {found.last_message}")

        if detail := await db.activity.get_session_detail("order-1", user_id):
            for run in detail.runs:
                print(f"{run.run_id}: {run.duration_ms} ms, {[step.errors for step in run.steps]}")

        # The newest messages that fit whole into the next prompt, oldest first.
        for message in await db.activity.chat_history("order-1", user_id, max_characters=60):
            print(f"{message.role}: {message.content}")


if __name__ == "__main__":
    asyncio.run(main())
