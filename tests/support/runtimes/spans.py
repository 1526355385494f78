"""Spans as sources of OpenTelemetry make them, and the exporter and the processor that read them."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, Tracer

from session_lifecycle import SessionDatabase, SessionRecorder
from session_lifecycle.integrations.opentelemetry import SessionSpanExporter, SessionSpanProcessor
from support.usage import A

COUNTS = "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens, measured, errored"
BEGAN = 1_788_000_000_000_000_000
"""A time in nanoseconds: August 2026."""
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5",
}
USAGE: dict[str, Any] = {"gen_ai.usage.input_tokens": 1200, "gen_ai.usage.output_tokens": 80}
AGENT: dict[str, Any] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "guide"}
TOOL: dict[str, Any] = {
    "gen_ai.operation.name": "execute_tool",
    "gen_ai.tool.name": "weather",
    "gen_ai.tool.call.id": "call-1",
}


def made_span(
    number: int,
    attributes: dict[str, Any],
    *,
    parent: int | None = None,
    trace: int = 1,
    begin: float = 0,
    seconds: float = 1,
    error: str | None = None,
    description: str | None = None,
    scope: str = "made",
    remote: bool = False,
) -> ReadableSpan:
    """A span that has ended."""
    flags = TraceFlags(TraceFlags.SAMPLED)
    start = BEGAN + round(begin * 1e9)
    if error is not None:
        attributes, description = attributes | {"error.type": error}, "secret"
    status = Status(StatusCode.UNSET) if description is None else Status(StatusCode.ERROR, description)
    return ReadableSpan(
        name=f"span {number}",
        context=SpanContext(trace, number, is_remote=False, trace_flags=flags),
        parent=None if parent is None else SpanContext(trace, parent, is_remote=remote, trace_flags=flags),
        attributes=attributes,
        status=status,
        instrumentation_scope=InstrumentationScope(scope),
        start_time=start,
        end_time=start + round(seconds * 1e9),
    )


TRACE_ID = f"{1:032x}"


def key(number: int, trace: int = 1) -> str:
    return f"{trace:032x}:{number:016x}"


async def exported(db: SessionDatabase, *batches: Sequence[ReadableSpan], **more: Any) -> None:
    async with db.recorder() as recorder:
        exporter = SessionSpanExporter(recorder, **({"user_id": A} | more))
        for batch in batches:
            assert exporter.export(batch) is SpanExportResult.SUCCESS
        await recorder.flush()
        assert recorder.snapshot().failures == 0


@contextmanager
def processed(recorder: SessionRecorder, **more: Any) -> Generator[Tracer]:
    """A tracer of a provider of its own, whose spans are recorded."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SessionSpanProcessor(recorder, **({"user_id": A} | more)))
    try:
        yield provider.get_tracer("made")
    finally:
        provider.shutdown()


def call(tracer: Tracer, response_id: str | None) -> None:
    """A call of a model; without an id it tells no usage."""
    with tracer.start_as_current_span("chat", attributes=CHAT) as span:
        if response_id is not None:
            span.set_attributes(USAGE | {"gen_ai.response.id": response_id})


NAMES: dict[str, dict[str, Any]] = {
    "conventions": CHAT
    | USAGE
    | {
        "gen_ai.usage.cache_read.input_tokens": 1024,
        "gen_ai.usage.cache_creation.input_tokens": 64,
        "gen_ai.usage.reasoning.output_tokens": 48,
    },
    "openinference": {
        "openinference.span.kind": "LLM",
        "llm.system": "openai",
        "llm.model_name": "gpt-5",
        "llm.token_count.prompt": 1200,
        "llm.token_count.completion": 80,
        "llm.token_count.total": 1280,
        "llm.token_count.prompt_details.cache_read": 1024,
        "llm.token_count.prompt_details.cache_write": 64,
        "llm.token_count.completion_details.reasoning": 48,
    },
    "openllmetry": {
        "llm.request.type": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.usage.prompt_tokens": 1200,
        "gen_ai.usage.completion_tokens": 80,
        "llm.usage.total_tokens": 1280,
        "gen_ai.usage.cache_read_input_tokens": 1024,
        "gen_ai.usage.cache_creation_input_tokens": 64,
        "gen_ai.usage.reasoning_tokens": 48,
    },
    "logfire": CHAT
    | USAGE
    | {
        "gen_ai.usage.details.cache_read_tokens": 1024,
        "gen_ai.usage.details.cache_write_tokens": 64,
        "gen_ai.usage.details.reasoning_tokens": 48,
    },
    "without an operation": {"gen_ai.system": "openai", "gen_ai.request.model": "gpt-5"}
    | USAGE
    | {
        "gen_ai.usage.cache_read_input_tokens": 1024.0,
        "gen_ai.usage.cache_creation_input_tokens": 64,
        "gen_ai.usage.reasoning_tokens": 48,
    },
}
