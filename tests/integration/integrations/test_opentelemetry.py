"""Spans of OpenTelemetry as an SDK hands them over: to the span processor, and in batches to the exporter."""

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from session_lifecycle import SessionDatabase, SessionLifecycleError, SessionRecorder
from session_lifecycle.integrations.opentelemetry import SessionSpanExporter, SessionSpanProcessor
from session_lifecycle.integrations.span_reader import INPUT_WITHOUT_CACHE
from support.books import items_needed
from support.transcripts import SHARED, events, everything, rows, runs, steps, totals
from support.usage import A

COUNTS = "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens, measured, errored"
MINUTE = 60_000_000_000
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


# The names of each source


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


@pytest.mark.parametrize("naming", NAMES)
async def test_H40_H44_H46_a_call_by_the_names_of_each_source(session_database: SessionDatabase, naming: str) -> None:
    await exported(session_database, [made_span(2, NAMES[naming], parent=9)])
    found = await events(session_database, f"{COUNTS}, model, provider, run_id, session_id")
    assert found == {key(2): (1200, 80, 1024, 64, 48, True, False, "gpt-5", "openai", TRACE_ID, TRACE_ID)}
    assert await runs(session_database) == {TRACE_ID: "completed"}


ROLL_UPS: dict[str, dict[str, Any]] = {
    "conventions": AGENT | USAGE,
    "a workflow": {"gen_ai.operation.name": "invoke_workflow"} | USAGE,
    "openinference agent": {"openinference.span.kind": "AGENT", "llm.token_count.prompt": 1200},
    "openinference chain": {"openinference.span.kind": "CHAIN", "llm.token_count.prompt": 1200},
    "openinference on a call's operation": CHAT | USAGE | {"openinference.span.kind": "CHAIN"},
    "openllmetry": {"traceloop.span.kind": "workflow"} | USAGE,
    "logfire, new": AGENT | {"gen_ai.aggregated_usage.input_tokens": 1200, "model_name": "gpt-5"},
    "logfire, old": {"agent_name": "guide", "model_name": "gpt-5", "all_messages_events": "[]"} | USAGE,
    "an operation nobody knows": {"gen_ai.operation.name": "orchestrate"} | USAGE,
    "vercel": {"ai.operationId": "ai.generateText", "ai.model.id": "gpt-5", "ai.usage.promptTokens": 1200},
    "nothing of an agent": {"http.request.method": "POST"},
}


@pytest.mark.parametrize("naming", ROLL_UPS)
async def test_H40_a_sum_is_never_usage_by_its_kind(session_database: SessionDatabase, naming: str) -> None:
    # Alone, so that only its kind can tell.
    await exported(session_database, [made_span(1, ROLL_UPS[naming])])
    assert await events(session_database) == {}


async def test_an_operation_nobody_knows_with_a_response_of_its_own_counts(session_database: SessionDatabase) -> None:
    told = {"gen_ai.operation.name": "decide", "gen_ai.response.id": "resp-1"} | USAGE
    await exported(session_database, [made_span(1, told)])
    assert await events(session_database, "tokens_in") == {"resp-1": (1200,)}


# Sums, by any order


TREE = (
    made_span(1, AGENT | USAGE | {"session.id": "trip-1"}, seconds=9),
    made_span(2, {"openinference.span.kind": "CHAIN"} | USAGE, parent=1, begin=1, seconds=7),
    # Two instrumentations of one call: the outer one has the usage too.
    made_span(3, NAMES["openinference"] | {"session.id": "trip-1"}, parent=2, begin=2, seconds=3),
    made_span(4, {"http.request.method": "POST"}, parent=3, begin=2.1, seconds=2.8),
    made_span(5, CHAT | USAGE | {"gen_ai.response.id": "resp-1", "session.id": "trip-1"}, parent=4, begin=3, seconds=1),
    made_span(6, TOOL | USAGE, parent=2, begin=6, seconds=1),
)


async def test_H46_calls_inside_calls_count_once_in_every_order(session_database: SessionDatabase) -> None:
    three = [TREE[2], TREE[3], TREE[4]]
    for user, order in enumerate(itertools.permutations(three), 1):
        # One batch for each span: a parent may come before and after its child.
        await exported(session_database, *([span] for span in order), user_id=f"{user:032x}")
    found = await rows(
        session_database,
        "SELECT user_id::text, sum(tokens_in)::int, sum(tokens_out)::int, count(*) FILTER (WHERE tokens_in > 0)::int "
        "FROM session_lifecycle.session_usage_events GROUP BY 1 ORDER BY 1",
    )
    # Where the span between them comes before both, nobody remembers it: it is of no agent, nor was its trace yet.
    once = [number for number, order in enumerate(itertools.permutations(three)) if order[0] is not TREE[3]]
    assert [tuple(figures) for _, *figures in found] == [
        (1200, 80, 1) if number in once else (2400, 160, 2) for number in range(6)
    ]


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
async def test_H40_a_tree_in_any_order_and_any_batches_is_the_same(
    session_database: SessionDatabase, parts: int
) -> None:
    linked = [span for span in TREE if span.name != "span 4"]
    linked[3] = made_span(5, dict(linked[3].attributes or {}), parent=3, begin=3, seconds=1)
    orders = [linked, linked[::-1], [linked[3], linked[0], linked[4], linked[2], linked[1]]]
    for number, order in enumerate(orders, 1):
        batches = [order[at : at + -(-len(order) // parts)] for at in range(0, len(order), -(-len(order) // parts))]
        for _ in range(2):  # the same batches again add nothing
            await exported(session_database, *batches, user_id=f"{number:032x}")
    for number in range(1, len(orders) + 1):
        whose = f"WHERE user_id = '{number:032x}'::uuid"
        select = "SELECT sum({}), sum({}) FROM session_lifecycle.session_{} "
        assert await rows(session_database, select.format("tokens_in", "tokens_out", "usage_events") + whose) == [
            (1200, 80)
        ]
        found = await rows(
            session_database,
            f"SELECT run_id, session_id, name, agent_name, status FROM session_lifecycle.session_runs {whose}",
        )
        assert found == [(TRACE_ID, "trip-1", "span 1", "guide", "completed")]
        found = await rows(
            session_database,
            f"SELECT step_id, kind, name, tool_call_id FROM session_lifecycle.session_steps {whose} ORDER BY 1",
        )
        assert found == [
            (f"{2:016x}", "task", "span 2", None),
            (f"{6:016x}", "tool", "weather", "call-1"),
        ]


async def test_a_call_whose_inner_call_tells_nothing_counts_itself(session_database: SessionDatabase) -> None:
    outer, inner = made_span(1, CHAT | USAGE, seconds=3), made_span(2, CHAT, parent=1, begin=1)
    for number, batches in enumerate([[[outer, inner]], [[inner], [outer]], [[outer], [inner]]], 1):
        await exported(session_database, *batches, user_id=f"{number:032x}")
    found = await rows(
        session_database,
        "SELECT user_id::text, tokens_in, unmeasured_events FROM session_lifecycle.session_records ORDER BY 1",
    )
    assert [figures for _, *figures in found] == [[1200, 0]] * 3


async def test_calls_with_one_response_id_are_one(session_database: SessionDatabase) -> None:
    told = CHAT | {"gen_ai.response.id": "resp-1"}
    silent, telling = made_span(1, told), made_span(2, told | USAGE, parent=1)
    for number, order in enumerate(itertools.permutations([silent, telling]), 1):
        await exported(session_database, *([span] for span in order), user_id=f"{number:032x}")
    assert {
        tuple(row)
        for row in await rows(
            session_database, "SELECT tokens_in, measured FROM session_lifecycle.session_usage_events"
        )
    } == {(1200, True)}


# Counts


@pytest.mark.parametrize(
    ("told", "scope", "expected"),
    [
        ({}, "made", (1200, 80, 0, 0)),
        # A part larger than the whole: the input was told without the cache.
        ({"gen_ai.usage.cache_read.input_tokens": 5000}, "made", (6200, 80, 5000, 0)),
        # A smaller one tells nothing; the scope does.
        ({"gen_ai.usage.cache_read.input_tokens": 500}, "made", (1200, 80, 500, 0)),
        ({"gen_ai.usage.cache_read.input_tokens": 500}, *[*INPUT_WITHOUT_CACHE], (1700, 80, 500, 0)),
        ({"gen_ai.usage.reasoning.output_tokens": 100}, "made", (1200, 180, 0, 100)),
    ],
)
async def test_counts_are_inclusive(
    session_database: SessionDatabase, told: dict[str, int], scope: str, expected: tuple[int, ...]
) -> None:
    await exported(session_database, [made_span(1, CHAT | USAGE | told, scope=scope)])
    columns = "tokens_in, tokens_out, cache_read_tokens, reasoning_tokens"
    assert await events(session_database, columns) == {key(1): expected}


@pytest.mark.parametrize("count", [-5, "many", True, 2**70])
async def test_counts_that_are_refused_leave_an_unmeasured_event(session_database: SessionDatabase, count: Any) -> None:
    span = made_span(1, CHAT | {"gen_ai.usage.input_tokens": count, "gen_ai.usage.output_tokens": 3})
    lost: list[SessionLifecycleError] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(error)) as recorder:
        SessionSpanExporter(recorder, user_id=A).export([span])
        await recorder.flush()
    assert [type(error).__name__ for error in lost] == ["InvalidValueError"]
    assert await events(session_database, "measured, tokens_in") == {key(1): (False, 0)}


@pytest.mark.parametrize(
    ("error", "measured", "errored", "status"),
    [
        ("<class 'openai.InternalServerError'>", True, True, "failed"),
        ("500", True, True, "failed"),
        ("_OTHER", True, True, "failed"),
        # No answer came: nobody knows what was used.
        ("CancelledError", False, False, "cancelled"),
        ("openai.APITimeoutError", False, False, "failed"),
        ("DEADLINE_EXCEEDED", False, False, "failed"),
        ("APIConnectionError", False, False, "failed"),
    ],
)
async def test_H42_errors(
    session_database: SessionDatabase, error: str, measured: bool, errored: bool, status: str
) -> None:
    await exported(session_database, [made_span(2, CHAT, parent=9, error=error)])
    assert await events(session_database, "measured, errored") == {key(2): (measured, errored)}
    assert await runs(session_database, "status, error") == {TRACE_ID: (status, error)}


@pytest.mark.parametrize(
    ("description", "error", "errored", "status"),
    [
        ("CancelledError: ", "CancelledError", False, "cancelled"),
        ("CancelledError", "CancelledError", False, "cancelled"),
        ("InternalServerError: Error code: 500", "InternalServerError", True, "failed"),
        ("Error code: 500", "error", True, "failed"),
        ("Tartu: is a secret", "error", True, "failed"),
        ("", "error", True, "failed"),
    ],
)
async def test_H45_an_error_that_only_the_status_tells(
    session_database: SessionDatabase, description: str, error: str, errored: bool, status: str
) -> None:
    await exported(session_database, [made_span(2, CHAT, parent=9, description=description)])
    assert await events(session_database, "measured, errored") == {key(2): (errored, errored)}
    assert await runs(session_database, "status, error") == {TRACE_ID: (status, error)}


async def test_a_cancelled_call_with_counts_is_a_lower_bound(session_database: SessionDatabase) -> None:
    await exported(session_database, [made_span(1, CHAT | USAGE, error="CancelledError")])
    assert await events(session_database, "tokens_in, measured, partial") == {key(1): (1200, True, True)}


async def test_embeddings_are_of_their_kind(session_database: SessionDatabase) -> None:
    told = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "e", "gen_ai.usage.input_tokens": 7}
    await exported(session_database, [made_span(1, told), made_span(2, {"openinference.span.kind": "EMBEDDING"})])
    assert await events(session_database, "kind, measured") == {
        key(1): ("embedding", True),
        key(2): ("embedding", False),
    }


# Content


@pytest.mark.parametrize(
    "told",
    [
        {
            "gen_ai.input.messages": json.dumps(
                [
                    {"role": "system", "parts": [{"type": "text", "content": "You guide."}]},
                    {
                        "role": "user",
                        "parts": [{"type": "text", "content": "Where?"}, {"type": "blob", "content": "x"}],
                    },
                ]
            ),
            "gen_ai.output.messages": json.dumps(
                [{"role": "assistant", "parts": [{"type": "text", "content": "There."}, {"type": "tool_call"}]}]
            ),
        },
        {
            "llm.input_messages.0.message.role": "system",
            "llm.input_messages.0.message.content": "You guide.",
            "llm.input_messages.1.message.role": "user",
            "llm.input_messages.1.message.contents.0.message_content.type": "text",
            "llm.input_messages.1.message.contents.0.message_content.text": "Where?",
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": "There.",
        },
        {
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": "Where?",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": "There.",
        },
    ],
    ids=["conventions", "openinference", "openllmetry"],
)
async def test_content_is_recorded_by_choice_only(session_database: SessionDatabase, told: dict[str, Any]) -> None:
    inputs = {"gen_ai.tool.call.arguments": '{"city": "Bern"}', "gen_ai.tool.call.result": "seven degrees"}
    spans = [
        made_span(1, CHAT | USAGE | told, parent=9, error="500"),
        made_span(2, TOOL | inputs, parent=9, error="ValueError"),
    ]
    await exported(session_database, spans)
    assert await rows(session_database, "SELECT 1 FROM session_lifecycle.session_messages") == []
    stored = str(await everything(session_database))
    assert not any(word in stored for word in ("Where", "There", "Bern", "degrees", "secret"))

    await exported(session_database, spans, content=True, user_id=f"{99:032x}")
    found = await rows(session_database, "SELECT role, content FROM session_lifecycle.session_messages ORDER BY 2 DESC")
    assert found == [("user", "Where?"), ("assistant", "There.")]
    [step] = await rows(
        session_database, "SELECT inputs, output, errors FROM session_lifecycle.session_steps WHERE inputs IS NOT NULL"
    )
    assert step == ({"city": "Bern"}, "seven degrees", [{"type": "ValueError", "message": "secret"}])


# The logs that are kept beside the project


def logged(name: str) -> list[ReadableSpan]:
    """The spans of a captured log."""
    lines = [json.loads(line) for line in (SHARED / "payloads" / f"otel-{name}.jsonl").read_text("utf-8").splitlines()]
    flags = TraceFlags(TraceFlags.SAMPLED)
    return [
        ReadableSpan(
            name=line["name"],
            context=SpanContext(int(line["trace_id"], 16), int(line["span_id"], 16), False, flags),
            parent=SpanContext(int(line["trace_id"], 16), int(line["parent"], 16), False, flags),
            attributes=line["attributes"],
            status=Status(StatusCode[line["status"]], line.get("status_desc")),
            instrumentation_scope=InstrumentationScope(*line["scope"].rsplit(" ", 1)),
            start_time=BEGAN,
            end_time=BEGAN + round(line["duration_ms"] * 1e6),
        )
        for line in lines
        if line["method"] == "on_end"
    ]


Row = tuple[int, int, int, int, int, bool, bool, str]
SERVED = "gpt-5-2025-08-07"
EXPECTED: list[tuple[str, str | None, str | None, Row | None, str]] = [
    ("openai-v2-chat", "0f0a3de2b9ce084f335ddf7c57659e32", "chatcmpl-local0001",
     (1200, 80, 0, 0, 0, True, False, SERVED), "completed"),
    ("openai-v2-chat-stream", "e2e9355adf3f2ed6f647b827e874c50c", "chatcmpl-local0003",
     (0, 0, 0, 0, 0, False, False, SERVED), "completed"),
    ("openai-v2-chat-err500", "b67da2cdb42a406315435b84f9c85692", "b67da2cdb42a406315435b84f9c85692:499715291873a2fc",
     (0, 0, 0, 0, 0, True, True, "gpt-5"), "failed"),
    ("openai-v2-metrics", None, None, None, ""),
    ("openinference-openai-chat", "4475b3bf31ff6a6c4c4878c9487a1b23",
     "4475b3bf31ff6a6c4c4878c9487a1b23:7680e5af8633376f", (1200, 80, 1024, 64, 48, True, False, SERVED), "completed"),
    ("openinference-openai-chat-cancel-stream", "7519cb238df064d339fdb721e18f6f63",
     "7519cb238df064d339fdb721e18f6f63:b4c9a823e62be00d", (0, 0, 0, 0, 0, False, False, SERVED), "completed"),
    ("traceloop-openai-chat", "98af5139afd4438b5f5d737a077ac930", "chatcmpl-local0013",
     (1200, 80, 1024, 0, 48, True, False, SERVED), "completed"),
    ("traceloop-openai-responses", "4222267b7cff149087d0c2a8c57b89c2", "resp_local0023",
     (1200, 80, 1024, 0, 48, True, False, SERVED), "completed"),
    ("traceloop-openai-chat-cancel", None, None, None, ""),
]  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
@pytest.mark.parametrize("way", ["exporter", "processor"])
@pytest.mark.parametrize(("name", "run", "key", "row", "status"), EXPECTED, ids=[one[0] for one in EXPECTED])
async def test_H40_and_H41_and_H42_and_H43_and_H44_and_H45_and_H46_and_H47_and_H48_captured_spans(
    session_database: SessionDatabase,
    way: str,
    name: str,
    run: str | None,
    key: str | None,
    row: Row | None,
    status: str,
) -> None:
    spans = logged(name)
    assert len(spans) == (0 if row is None else 1)
    for _ in range(2):  # the same log again adds nothing
        async with session_database.recorder() as recorder:
            if way == "exporter":
                SessionSpanExporter(recorder, user_id=A).export(spans)
            else:
                processor = SessionSpanProcessor(recorder, user_id=A)
                for span in spans:
                    processor.on_end(span)
            await recorder.flush()
            assert recorder.snapshot().failures == 0
    found = await events(session_database, f"{COUNTS}, model, provider, run_id")
    assert found == ({} if row is None else {key: (*row, "openai", run)})
    assert await runs(session_database) == ({} if run is None else {run: status})
    assert await steps(session_database) == {}


# The processor


async def test_H40_the_processor_knows_runs_and_sessions_from_the_spans_above(
    session_database: SessionDatabase,
) -> None:
    async with session_database.recorder() as recorder:
        with (
            processed(recorder) as tracer,
            tracer.start_as_current_span("POST /ask", attributes={"session.id": "trip-1"}) as root,
        ):
            trace_id = f"{root.get_span_context().trace_id:032x}"
            with tracer.start_as_current_span("invoke_agent", attributes=AGENT) as agent:
                agent_id = f"{trace_id}:{agent.get_span_context().span_id:016x}"
                agent.set_attributes(USAGE)
                call(tracer, "resp-1")
                with tracer.start_as_current_span("execute_tool", attributes=TOOL) as tool:
                    tool_id = f"{tool.get_span_context().span_id:016x}"
                    with tracer.start_as_current_span("below") as below:
                        # OpenLLMetry says what a span is after it has begun.
                        below.set_attributes({"traceloop.span.kind": "agent", "traceloop.entity.name": "helper"})
                        below_id = f"{trace_id}:{below.get_span_context().span_id:016x}"
                        call(tracer, "resp-2")
            call(tracer, "resp-3")
        await recorder.flush()
        assert recorder.snapshot().failures == 0
    assert await events(session_database, "run_id, session_id, tokens_in") == {
        "resp-1": (agent_id, "trip-1", 1200),
        "resp-2": (below_id, "trip-1", 1200),
        "resp-3": (trace_id, "trip-1", 1200),
    }
    assert await runs(session_database, "parent_run_id, agent_name, name, status, session_id") == {
        trace_id: (None, None, "POST /ask", "completed", "trip-1"),
        agent_id: (trace_id, "guide", "invoke_agent", "completed", "trip-1"),
        below_id: (agent_id, "helper", "below", "completed", "trip-1"),
    }
    assert await steps(session_database) == {(agent_id, tool_id): ("weather", "completed")}


async def test_a_tool_whose_parent_was_not_seen_to_begin_is_a_step(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        SessionSpanProcessor(recorder, user_id=A).on_end(made_span(2, TOOL, parent=9))
        await recorder.flush()
    assert await steps(session_database) == {(TRACE_ID, f"{2:016x}"): ("weather", "completed")}
    assert await runs(session_database) == {TRACE_ID: "completed"}


async def test_an_agent_at_the_root_is_the_run_of_the_trace(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        with (
            processed(recorder, session_id="mine") as tracer,
            pytest.raises(ValueError, match="no"),
            tracer.start_as_current_span("invoke_agent", attributes=AGENT) as root,
            tracer.start_as_current_span("chat", attributes=CHAT | USAGE),
        ):
            raise ValueError("no")
        await recorder.flush()
    trace_id = f"{root.get_span_context().trace_id:032x}"
    assert await runs(session_database, "agent_name, status, error, session_id") == {
        trace_id: ("guide", "failed", "ValueError", "mine")
    }
    # The call had its usage before the error of the host.
    assert await rows(session_database, "SELECT run_id, tokens_in FROM session_lifecycle.session_usage_events") == [
        (trace_id, 1200)
    ]


async def test_an_agent_that_another_process_calls_is_a_run_below_the_trace(session_database: SessionDatabase) -> None:
    caller = SpanContext(77, 5, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    async with session_database.recorder() as recorder:
        with processed(recorder) as tracer:
            context = set_span_in_context(NonRecordingSpan(caller))
            span = tracer.start_span("invoke_agent", context, attributes=AGENT)
            span.end()
        await recorder.flush()
    own = f"{77:032x}:{span.get_span_context().span_id:016x}"
    assert await runs(session_database, "parent_run_id, agent_name") == {own: (f"{77:032x}", "guide")}


async def test_H48_a_call_that_never_ends_is_unmeasured(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        with processed(recorder) as tracer:
            with tracer.start_as_current_span("POST /ask"):
                open_span = tracer.start_span("chat", attributes=CHAT)
            await recorder.flush()
            key_of_call = f"{(c := open_span.get_span_context()).trace_id:032x}:{c.span_id:016x}"
            columns = "measured, model, provider, tokens_in, revision"
            assert await events(session_database, columns) == {key_of_call: (False, "gpt-5", "openai", 0, 0)}

            # It ends after all: the response takes the place of the record without usage.
            open_span.set_attributes(USAGE | {"gen_ai.response.id": "resp-1"})
            open_span.end()
        await recorder.flush()
    assert await events(session_database, columns) == {key_of_call: (True, "gpt-5", "openai", 1200, 1)}
    assert list((await runs(session_database)).values()) == ["completed"]


async def test_H48_a_call_is_given_up_after_the_timeout_and_when_the_recorder_closes(
    session_database: SessionDatabase,
) -> None:
    async with session_database.recorder() as recorder:
        with processed(recorder, attempt_timeout=0.05) as tracer:
            tracer.start_span("chat", attributes=CHAT)
            found: dict[str, Any] = {}
            for _ in range(400):
                await recorder.flush()
                if found := await events(session_database, "measured"):
                    break
                await asyncio.sleep(0.05)
            assert list(found.values()) == [(False,)]
        with processed(recorder) as tracer:
            tracer.start_span("chat", attributes=CHAT)
    assert list((await events(session_database, "measured")).values()) == [(False,), (False,)]


async def test_calls_inside_calls_are_one_attempt_and_one_event(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        with processed(recorder) as tracer:
            for telling in ("both", "the inner", "the outer"):
                with tracer.start_as_current_span(
                    telling, attributes=NAMES["openinference"] | {"session.id": telling}
                ) as outer:
                    with tracer.start_as_current_span("POST"):
                        call(tracer, None if telling == "the outer" else telling)
                    if telling == "the inner":
                        outer.set_attribute("llm.token_count.prompt", 0)
                        outer.set_attribute("llm.token_count.completion", 0)
            # An inner call ends after the outer one.
            with tracer.start_as_current_span("late", attributes=CHAT | USAGE | {"session.id": "late"}):
                inner = tracer.start_span("chat", attributes=CHAT | {"session.id": "late"})
            inner.set_attributes(USAGE)
            inner.end()
            # An inner call never ends, and the outer one has counted it.
            with tracer.start_as_current_span("left", attributes=CHAT | {"session.id": "left"}) as outer:
                tracer.start_span("chat", attributes=CHAT | {"session.id": "left"})
                outer.set_attributes(USAGE | {"gen_ai.response.id": "resp-left"})
            with tracer.start_as_current_span("chat", attributes=CHAT | {"session.id": "lost"}):
                tracer.start_span("chat", attributes=CHAT | {"session.id": "lost"})
            # Neither ends.
            with tracer.start_as_current_span("POST", attributes={"session.id": "never"}):
                outer = tracer.start_span("chat", attributes=CHAT)
                tracer.start_span("chat", set_span_in_context(outer), attributes=CHAT)
        await recorder.flush()
        assert recorder.snapshot().failures == 0
    assert await totals(session_database) == {
        "both": (1200, 80, 0, 0),
        "the inner": (1200, 80, 0, 0),
        "the outer": (1200, 80, 0, 0),
        "late": (1200, 80, 0, 0),
        "left": (1200, 80, 0, 0),
        "lost": (0, 0, 1, 0),
        "never": (0, 0, 1, 0),
    }
    assert "resp-left" in await events(session_database)


@pytest.mark.parametrize("begins", [{}, {"gen_ai.agent.name": "guide"}])
async def test_an_agent_that_is_named_when_its_span_begins_or_ends(
    session_database: SessionDatabase, begins: dict[str, Any]
) -> None:
    async with session_database.recorder() as recorder:
        with processed(recorder) as tracer:
            attributes = {"gen_ai.operation.name": "invoke_agent", **begins}
            with tracer.start_as_current_span("agent", attributes=attributes) as agent:
                call(tracer, "resp-1")
                agent.set_attributes(AGENT)
        await recorder.flush()
        is_named_later = not begins
        assert recorder.snapshot().items == await items_needed(session_database) + is_named_later
    assert await runs(session_database, "status, agent_name") == {
        f"{agent.get_span_context().trace_id:032x}": ("completed", "guide")
    }


async def test_calls_in_a_run_of_the_host_are_in_that_run(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        with processed(recorder, user_id=None) as tracer:
            async with recorder.session("task-1", A, quiet=True) as session:
                with session.run("answer", run_id="run-1"):
                    with tracer.start_as_current_span("POST"):
                        call(tracer, "resp-1")
                    with tracer.start_as_current_span("invoke_agent", attributes=AGENT) as agent:
                        call(tracer, "resp-2")
                        with session.run("inner", run_id="run-2"):
                            call(tracer, "resp-3")
        await recorder.flush()
        assert recorder.snapshot().failures == 0
    trace_id = f"{agent.get_span_context().trace_id:032x}"
    assert await events(session_database, "run_id, session_id") == {
        "resp-1": ("run-1", "task-1"),
        "resp-2": (trace_id, "task-1"),
        "resp-3": ("run-2", "task-1"),
    }
    assert await runs(session_database, "parent_run_id, agent_name") == {
        "run-1": (None, None),
        trace_id: ("run-1", "guide"),
        "run-2": ("run-1", None),
    }


async def test_an_attempt_that_is_discarded_records_nothing_unless_it_has(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        async with recorder.session("task-1", A, quiet=True) as session:
            with session.run() as run:
                first, second = run.attempt("gpt-5"), run.attempt("gpt-5")
                assert first.discard()
                assert not first.discard()
                second.cancel()
                assert not second.discard()
        await recorder.flush()
    assert len(await events(session_database)) == 1


async def test_two_traces_at_once_stay_apart(session_database: SessionDatabase) -> None:
    async def ask(tracer: Tracer, number: int) -> None:
        with tracer.start_as_current_span("invoke_agent", attributes=AGENT | {"session.id": f"trip-{number}"}):
            for turn in range(3):
                with tracer.start_as_current_span("chat", attributes=CHAT) as asked:
                    await asyncio.sleep(0)
                    asked.set_attributes(USAGE | {"gen_ai.response.id": f"resp-{number}-{turn}"})

    def owner(attributes: Any) -> str | None:
        return {"trip-0": f"{1:032x}", "trip-1": f"{2:032x}"}.get(str(attributes.get("session.id")))

    async with session_database.recorder() as recorder:
        with processed(recorder, user_id=None, user_of=owner) as tracer:
            await asyncio.gather(*(ask(tracer, number) for number in range(2)))
        await recorder.flush()
        assert recorder.snapshot().failures == 0
    assert await totals(session_database) == {"trip-0": (3600, 240, 0, 0), "trip-1": (3600, 240, 0, 0)}
    owners = await rows(
        session_database, "SELECT session_id, user_id::text FROM session_lifecycle.session_records ORDER BY 1"
    )
    assert [owner[-1] for _, owner in owners] == ["1", "2"]


async def test_the_processor_in_threads(session_database: SessionDatabase) -> None:
    def work() -> None:
        with session_database.synchronous_recorder() as recorder:
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(SessionSpanProcessor(recorder, user_id=A))
            with provider.get_tracer("made").start_as_current_span("chat", attributes=CHAT | USAGE):
                pass

    await asyncio.to_thread(work)
    assert list((await events(session_database, "tokens_in")).values()) == [(1200,)]


# Trouble


class Broken(ReadableSpan):
    """A span that raises whatever it is asked."""

    @property
    def attributes(self) -> Any:
        raise RuntimeError("a bug of a runtime")


@pytest.mark.parametrize("way", ["exporter", "processor"])
async def test_a_broken_span_is_told_and_the_next_is_recorded(session_database: SessionDatabase, way: str) -> None:
    async with session_database.recorder() as recorder:
        good = made_span(1, CHAT | USAGE)
        broken = Broken("broken", good.get_span_context())
        if way == "exporter":
            exporter = SessionSpanExporter(recorder, user_id=A)
            assert exporter.export([broken]) is SpanExportResult.SUCCESS
            exporter.export([good])
        else:
            processor = SessionSpanProcessor(recorder, user_id=A)
            processor.on_end(broken)
            processor.on_end(good)
        await recorder.flush()
        assert recorder.snapshot().failures == 1
    assert await events(session_database, "tokens_in") == {key(1): (1200,)}


async def test_without_an_owner_the_loss_is_told_and_other_spans_are_no_loss(session_database: SessionDatabase) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(type(error).__name__)) as recorder:
        with processed(recorder, user_id=None) as tracer:
            with tracer.start_as_current_span("POST"), tracer.start_as_current_span("chat", attributes=CHAT | USAGE):
                pass
            with tracer.start_as_current_span("POST"):
                pass
        SessionSpanExporter(recorder, user_of=lambda _: None).export(
            [made_span(1, CHAT), made_span(1, {"http.request.method": "POST"}, trace=2)]
        )
        await asyncio.sleep(0)  # losses are told in the recorder's event loop
    assert lost == ["ConfigurationError"] * 2
    assert await everything(session_database) == [[]] * 5


async def test_spans_that_never_end_do_not_fill_the_memory(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_lifecycle.integrations.adapter.MOST_OPEN", 3)
    async with session_database.recorder() as recorder:
        processor = SessionSpanProcessor(recorder, user_id=A)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor)
        for _ in range(5):
            provider.get_tracer("made").start_span("chat", attributes=CHAT)
        await recorder.flush()
        assert len((await events(session_database)).values()) == 2


def test_neither_waits_for_a_database_that_is_away() -> None:
    async def work() -> None:
        db = SessionDatabase.connect("postgresql://u@127.0.0.1:1/x")
        async with db, db.recorder(give_up_after=0, drain_within=0) as recorder:
            with processed(recorder) as tracer, tracer.start_as_current_span("chat", attributes=CHAT | USAGE):
                pass
            SessionSpanExporter(recorder, user_id=A).export([made_span(1, CHAT | USAGE)])

    asyncio.run(asyncio.wait_for(work(), 60))


WITHOUT = """
import sys
sys.modules["opentelemetry.sdk"] = None
try:
    import session_lifecycle.integrations.opentelemetry
except ImportError as error:
    print(error)
"""
CORE = """
import sys
import session_lifecycle
from session_lifecycle import SessionRecorder, traced, current_run
import session_lifecycle.writing.run_block
print([name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "google")])
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [(WITHOUT, "the SDK of OpenTelemetry is missing: pip install 'session-lifecycle[otel]'\n"), (CORE, "[]\n")],
)
def test_without_opentelemetry(program: str, printed: str) -> None:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, printed, "")


# The other way


async def test_a_run_tells_the_current_span_what_it_is_a_span_of(session_database: SessionDatabase) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("made")
    async with session_database.session("task-1", A, agent_name="coder") as session:
        with tracer.start_as_current_span("POST") as span:
            with session.run("answer", run_id="run-1"):
                pass
            with tracer.start_as_current_span("inner") as inner, session.run(run_id="run-2", agent_name="helper"):
                pass
        with session.run():  # there is no span
            pass
    told = {"gen_ai.conversation.id": "task-1", "session_lifecycle.run.id": "run-1", "gen_ai.agent.name": "coder"}
    assert isinstance(span, ReadableSpan)
    assert isinstance(inner, ReadableSpan)
    assert dict(span.attributes or {}) == told
    assert dict(inner.attributes or {}) == told | {"session_lifecycle.run.id": "run-2", "gen_ai.agent.name": "helper"}


async def test_a_span_that_takes_no_attributes_does_not_end_the_hosts_work(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("a bug of a tracer")

    monkeypatch.setattr("opentelemetry.trace.get_current_span", broken)
    async with session_database.recorder() as recorder:
        async with recorder.session("task-1", A, quiet=True) as session:
            with session.run(run_id="run-1"):
                pass
        await recorder.flush()
        assert recorder.snapshot().failures == 1
    assert await runs(session_database) == {"run-1": "completed"}
