"""A proxy between clients and models. It records each request as a run with its messages, tool calls and usage.

Run: python examples/proxied_request.py
It uses the database of SESSION_LIFECYCLE_DATABASE_URL, or an embedded Postgres if that is not set.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from session_lifecycle import Message, Run, RunFilters, SessionDatabase, Settings, Step, SummaryFilters, UsageEvent
from session_lifecycle.models import Item, MessageRole

NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Interception:
    """A request and its response, as the proxy saw them. `after_s` is seconds after noon."""

    request_id: str
    after_s: float
    duration_s: float
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int = 0
    client: str | None = None
    client_session_id: str | None = None
    prompt: str | None = None
    thought: str | None = None
    tool_call_id: str | None = None
    """The tool call that the response asks for."""
    tool_result_of: str | None = None
    """The tool call whose result the request starts with."""


class Proxy:
    """Records the requests of one user."""

    def __init__(self, db: SessionDatabase, user_id: UUID) -> None:
        self._db = db
        self._user_id = user_id

    async def on_response(self, seen: Interception) -> None:
        """Records a request and its response in one transaction. Recording them again changes nothing."""
        session_id = await self._session_of(seen)
        await self._db.lifecycle.record(self._items(seen, session_id))

    async def _session_of(self, seen: Interception) -> str:
        """The session id: the client's own, else that of the thread the request continues, else the request's id.

        Messages and usage events must name their session. A run could do without: the library finds its session by the
        tool call.
        """
        if seen.client_session_id is not None:
            return seen.client_session_id
        if seen.tool_result_of is None:
            return seen.request_id
        lineage = await self._db.activity.find_lineage(self._user_id, seen.tool_result_of)
        return seen.request_id if lineage is None else lineage.root_run_id

    def _items(self, seen: Interception, session_id: str) -> list[Item]:
        run_id, user_id = seen.request_id, self._user_id
        started_at = NOON + timedelta(seconds=seen.after_s)
        ended_at = started_at + timedelta(seconds=seen.duration_s)
        items: list[Item] = [
            Run(
                run_id=run_id,
                user_id=user_id,
                session_id=session_id,
                parent_tool_call_id=seen.tool_result_of,
                client=seen.client,
                provider="anthropic",
                model="claude-sonnet-4-5",
                started_at=started_at,
                ended_at=ended_at,
            ),
            UsageEvent(
                session_id=session_id,
                user_id=user_id,
                model="claude-sonnet-4-5",
                provider="anthropic",
                # Anthropic reports the input without cached tokens; `tokens_in` includes them.
                tokens_in=seen.tokens_in + seen.cache_read_tokens,
                tokens_out=seen.tokens_out,
                cache_read_tokens=seen.cache_read_tokens,
                run_id=run_id,
                idempotency_key=run_id,
                at=ended_at,
            ),
        ]
        for role, content in ((MessageRole.USER, seen.prompt), (MessageRole.THOUGHT, seen.thought)):
            if content is not None:
                items.append(
                    Message(
                        message_id=f"{run_id}-{role}",
                        user_id=user_id,
                        session_id=session_id,
                        run_id=run_id,
                        role=role,
                        content=content,
                        created_at=started_at,
                    )
                )
        if seen.tool_call_id is not None:
            items.append(
                Step(
                    step_id=seen.tool_call_id,
                    run_id=run_id,
                    user_id=user_id,
                    kind="tool",
                    name="search",
                    started_at=ended_at,
                    inputs={"query": "session"},
                    tool_call_id=seen.tool_call_id,
                    server_url="https://tools.example",
                    injected=True,
                )
            )
        return items


SEEN = [
    Interception(
        "request-1",
        after_s=0,
        duration_s=4,
        tokens_in=2_000,
        tokens_out=100,
        client="Cursor",
        prompt="Where do sessions end?",
        thought="A search will tell.",
        tool_call_id="call-1",
    ),
    Interception(
        "request-2",
        after_s=5,
        duration_s=2,
        tokens_in=500,
        tokens_out=300,
        cache_read_tokens=2_000,
        client="Cursor",
        tool_result_of="call-1",
    ),
    Interception(
        "request-3", after_s=9, duration_s=3, tokens_in=10, tokens_out=20, client_session_id="chat", prompt="Hello"
    ),
]


async def main() -> None:
    """Records two requests of one thread and one of another client, then prints what an operator looks at."""
    user_id = uuid4()
    db = SessionDatabase.connect() if Settings.load().database_url else SessionDatabase.embedded()
    async with db:
        await db.migrate()
        proxy = Proxy(db, user_id)
        for seen in SEEN:
            await proxy.on_response(seen)

        if page := await db.activity.list_threads("request-1", user_id):
            for thread in page.threads:
                print(f"{thread.prompt} {thread.runs_count} requests, {thread.cost_usd} USD")
                for action in thread.actions:
                    thoughts, tools = [one.content for one in action.thoughts], [one.name for one in action.tools]
                    print(f"{action.run_id}: {thoughts}, {tools}")

        runs = await db.activity.list_runs(RunFilters(user_id=user_id, client="Cursor"))
        print([(run.run_id, run.parent_run_id, run.tokens_in, run.cache_read_tokens) for run in runs.runs])
        sessions = await db.activity.list_session_summaries(SummaryFilters(user_id=user_id, client="Unknown"))
        print([session.session_id for session in sessions.sessions])
        print(await db.activity.list_clients(user_id), await db.activity.list_models(user_id))

        telemetry = await db.reports.telemetry(user_id, provider="anthropic")
        print(f"{telemetry.runs_count} requests, p50 {telemetry.duration_p50_ms} ms, {telemetry.prompts_count} prompts")


if __name__ == "__main__":
    asyncio.run(main())
