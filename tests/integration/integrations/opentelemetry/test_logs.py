"""Spans that were logged, read again."""

import json

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.opentelemetry import SessionSpanExporter, SessionSpanProcessor
from support.runtimes.spans import BEGAN, COUNTS
from support.transcripts import SHARED, events, runs, steps
from support.usage import A


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
