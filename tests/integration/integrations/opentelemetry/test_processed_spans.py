"""Spans that the processor sees begin and end: runs, sessions and attempts."""

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, set_span_in_context

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.opentelemetry import SessionSpanProcessor
from support.books import items_needed
from support.runtimes.spans import AGENT, CHAT, NAMES, TOOL, TRACE_ID, USAGE, call, made_span, processed
from support.transcripts import events, rows, runs, steps, totals
from support.usage import A

MINUTE = 60_000_000_000


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
