"""What goes wrong with spans is told, and holds up no host."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.opentelemetry import SessionSpanExporter, SessionSpanProcessor
from support.runtimes.spans import CHAT, USAGE, key, made_span, processed
from support.transcripts import events, everything
from support.usage import A


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
