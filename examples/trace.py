"""Records OpenTelemetry traces: a trace becomes a run, a span a step, and a model call a usage event as well.

The attribute names follow https://opentelemetry.io/docs/specs/semconv/gen-ai/ as of November 2026.

Run: python examples/trace.py
It uses the database of SESSION_LIFECYCLE_DATABASE_URL, or an embedded Postgres if that is not set.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from session_lifecycle import Run, SessionDatabase, Settings, Step, SummaryFilters, UsageEvent
from session_lifecycle.models import Item, RunStatus

MODEL_CALLS = {"chat", "embeddings", "generate_content", "text_completion"}
TOKENS = {
    "tokens_in": "gen_ai.usage.input_tokens",
    "tokens_out": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}
# The conventions have no attribute for cost. This one belongs to the framework that made the spans.
COST_USD = "agent.cost_usd"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Span:
    """An ended span, as an exporter receives it. Times are nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]


def session_of(trace: Sequence[Span]) -> str:
    """The session id of a trace: the first conversation id of its spans, else the first session id, else its own id."""
    for name in ("gen_ai.conversation.id", "session.id"):
        for span in trace:
            if named := span.attributes.get(name):
                return str(named)
    return trace[0].trace_id


def moment(nanoseconds: int) -> datetime:
    """The time in microseconds, the precision of Postgres."""
    return EPOCH + timedelta(microseconds=nanoseconds // 1_000)


def end_of(root: Span) -> dict[str, Any]:
    """The fields of a run that come from its root span: how the run ended and, without a model call, its totals.

    The tokens and cost of a root span are sums over the spans below it. Recorded as usage, they would count twice. As
    reported totals, they count only where they exceed the recorded usage.
    """
    get = root.attributes.get
    error = get("error.type")
    end = {
        "name": root.name,
        "ended_at": moment(root.end_ns),
        "status": RunStatus.FAILED if error else RunStatus.COMPLETED,
        "error": error,
    }
    if get("gen_ai.operation.name") not in MODEL_CALLS:
        end["reported_cost_usd"] = get(COST_USD)
        end["reported_tokens"] = get(TOKENS["tokens_in"], 0) + get(TOKENS["tokens_out"], 0) or None
    return end


def items_of(span: Span, session_id: str, user_id: UUID, project: str | None = None) -> list[Item]:
    """The items of a span: its run, itself as a step, and a usage event if it called a model."""
    get = span.attributes.get
    operation, provider = get("gen_ai.operation.name"), get("gen_ai.provider.name")
    model = get("gen_ai.response.model") or get("gen_ai.request.model")
    started_at, ended_at = moment(span.start_ns), moment(span.end_ns)
    run = Run(
        run_id=span.trace_id,
        user_id=user_id,
        session_id=session_id,
        project=project,
        agent_name=get("gen_ai.agent.name"),
        provider=provider,
        model=model,
        started_at=started_at,
        **(end_of(span) if span.parent_id is None else {}),
    )
    step = Step(
        step_id=span.span_id,
        run_id=span.trace_id,
        user_id=user_id,
        parent_step_id=span.parent_id,
        kind="tool" if operation == "execute_tool" else "span",
        name=get("gen_ai.tool.name") or span.name,
        started_at=started_at,
        ended_at=ended_at,
        inputs=get("gen_ai.tool.call.arguments"),
        output=get("gen_ai.tool.call.result"),
        errors=get("error.type"),
        tool_call_id=get("gen_ai.tool.call.id"),
    )
    if operation not in MODEL_CALLS:
        return [run, step]
    usage = UsageEvent(
        session_id=session_id,
        user_id=user_id,
        model=model,
        provider=provider,
        errored="error.type" in span.attributes,
        run_id=span.trace_id,
        # With a key of the user's scope, a span that is exported twice counts once, even under another session id.
        idempotency_key=span.span_id,
        key_scope="user",
        at=ended_at,
        measured=not span.attributes.keys().isdisjoint(TOKENS.values()),
        **{ours: get(theirs, 0) for ours, theirs in TOKENS.items()},
    )
    return [run, step, usage]


async def export(db: SessionDatabase, trace: Sequence[Span], user_id: UUID, project: str | None = None) -> None:
    """Records all spans of a trace in one transaction."""
    session_id = session_of(trace)
    # A run keeps the agent and the model it is given first. In this order they come from the root span if it has them.
    spans = sorted(trace, key=lambda span: span.start_ns)
    await db.lifecycle.record([item for span in spans for item in items_of(span, session_id, user_id, project)])


NOON_NS = round(datetime(2026, 1, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000_000


def at_second(second: float) -> int:
    """The time in nanoseconds, this many seconds after noon."""
    return NOON_NS + round(second * 1_000_000_000)


ASSISTANT = [  # in the order in which they ended
    Span(
        trace_id="trace-1",
        span_id="span-2",
        parent_id="span-1",
        name="chat gpt-4o-mini",
        start_ns=at_second(0.5),
        end_ns=at_second(2),
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.usage.input_tokens": 1_000,
            "gen_ai.usage.output_tokens": 500,
        },
    ),
    Span(
        trace_id="trace-1",
        span_id="span-3",
        parent_id="span-1",
        name="execute_tool weather",
        start_ns=at_second(2),
        end_ns=at_second(2.5),
        attributes={
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "weather",
            "gen_ai.tool.call.id": "call-1",
            "gen_ai.tool.call.arguments": {"city": "Bern"},
            "error.type": "timeout",
        },
    ),
    Span(
        trace_id="trace-1",
        span_id="span-1",
        parent_id=None,
        name="invoke_agent guide",
        start_ns=at_second(0),
        end_ns=at_second(3),
        attributes={
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "guide",
            "gen_ai.conversation.id": "trip-1",
            "gen_ai.usage.input_tokens": 1_200,
            "gen_ai.usage.output_tokens": 600,
            COST_USD: 0.0006,
        },
    ),
]
SEARCH = [
    Span(
        trace_id="trace-2",
        span_id="span-4",
        parent_id=None,
        name="embeddings text-embedding-3-small",
        start_ns=at_second(4),
        end_ns=at_second(4.2),
        attributes={
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "text-embedding-3-small",
            "gen_ai.usage.input_tokens": 1_000,
            "session.id": "trip-1",
        },
    ),
]


async def main() -> None:
    """Exports two traces of one session, one of them twice, then prints the session as a whole and by project."""
    user_id = uuid4()
    db = SessionDatabase.connect() if Settings.load().database_url else SessionDatabase.embedded()
    async with db:
        await db.migrate()
        await export(db, ASSISTANT, user_id, "assistant")
        await export(db, SEARCH, user_id, "search")
        await export(db, ASSISTANT, user_id, "assistant")

        for project in (None, "assistant", "search"):
            page = await db.activity.list_session_summaries(SummaryFilters(user_id=user_id, project=project))
            for found in page.sessions:
                figures = f"{found.cost_usd} USD, {found.tokens_total} tokens, {found.total_duration_ms} ms"
                print(f"{found.session_id} in {project or 'all'}: {figures}, errors {found.errors_count}")

        if detail := await db.activity.get_session_detail("trip-1", user_id, project="assistant"):
            for run in detail.runs:
                print(f"{run.agent_name} by {run.model}: {', '.join(step.name or '' for step in run.steps)}")


if __name__ == "__main__":
    asyncio.run(main())
