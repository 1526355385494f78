"""The hooks of an agent runtime. With keys, a response that is delivered twice counts once.

Run: python examples/agent_hook.py
It uses the database of SESSION_LIFECYCLE_DATABASE_URL, or an embedded Postgres if that is not set.
"""

import asyncio
from dataclasses import dataclass
from uuid import UUID, uuid4

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, SessionStatus, SessionWriter, Settings


@dataclass(frozen=True)
class Response:
    """A response of a model's API. Its id stays the same when the runtime delivers it again."""

    response_id: str
    model: str
    tokens_in: int
    tokens_out: int


class Hooks:
    """The hooks of one session. They need a `SessionWriter` only. A database outage does not stop `on_response`."""

    def __init__(self, sessions: SessionWriter, session_id: str, user_id: UUID) -> None:
        self._sessions = sessions
        self._session_id = session_id
        self._user_id = user_id

    async def on_start(self, agent_name: str) -> None:
        """Called when the agent starts or resumes."""
        await self._sessions.ensure_and_touch_session(self._session_id, self._user_id, agent_name=agent_name)

    async def on_response(self, response: Response) -> bool:
        """Called when a model answered. Returns False if the database was away: deliver the response again later."""
        try:
            receipt = await self._sessions.accumulate_usage(
                self._session_id,
                self._user_id,
                response.model,
                response.tokens_in,
                response.tokens_out,
                idempotency_key=response.response_id,
            )
        except DatabaseUnavailableError:
            return False
        print(f"{response.response_id}: {receipt.outcome}, session at {receipt.session_cost_usd} USD")
        return True

    async def on_end(self, *, failed: bool) -> None:
        """Called when the agent has finished."""
        status = SessionStatus.FAILED if failed else SessionStatus.COMPLETED
        await self._sessions.end_session(self._session_id, self._user_id, status)


async def main() -> None:
    """Runs one agent whose runtime delivers a response twice."""
    db = SessionDatabase.connect() if Settings.load().database_url else SessionDatabase.embedded()
    async with db:
        await db.migrate()
        hooks = Hooks(db.lifecycle, "task-1", uuid4())
        await hooks.on_start("coder")
        for response in (
            Response("resp-1", "gpt-4o", 1_200, 300),
            Response("resp-2", "gpt-4o", 1_900, 250),
            Response("resp-1", "gpt-4o", 1_200, 300),
        ):
            await hooks.on_response(response)
        await hooks.on_end(failed=False)


if __name__ == "__main__":
    asyncio.run(main())
