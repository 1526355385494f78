"""What our own runs tell the spans of the host."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from session_lifecycle import SessionDatabase
from support.transcripts import runs
from support.usage import A


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
