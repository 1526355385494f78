"""Spans that the exporter reads once they have ended: which count, what they count, and which content they have."""

import itertools
import json
from typing import Any

import pytest

from session_lifecycle import SessionDatabase, SessionLifecycleError
from session_lifecycle.integrations.opentelemetry import SessionSpanExporter
from session_lifecycle.integrations.span_reader import INPUT_WITHOUT_CACHE
from support.runtimes.spans import AGENT, CHAT, COUNTS, NAMES, TOOL, TRACE_ID, USAGE, exported, key, made_span
from support.transcripts import events, everything, rows, runs
from support.usage import A


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
    # Also where the span between them comes before both, when nobody knows yet that its trace is of an agent.
    assert [tuple(figures) for _, *figures in found] == [(1200, 80, 1)] * 6


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


async def test_R06_calls_inside_calls_without_usage_are_one_in_every_order(session_database: SessionDatabase) -> None:
    three = [made_span(1, CHAT), made_span(2, {"http.request.method": "POST"}, parent=1), made_span(3, CHAT, parent=2)]
    for number, order in enumerate(itertools.permutations(three), 1):
        await exported(session_database, *([span] for span in order), user_id=f"{number:032x}")
    found = await rows(
        session_database,
        "SELECT user_id::text, tokens_in, unmeasured_events FROM session_lifecycle.session_records ORDER BY 1",
    )
    assert [figures for _, *figures in found] == [[0, 1]] * 6


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
        ("pydantic_core._pydantic_core.ValidationError", False, False, "failed"),
        ("openai.LengthFinishReasonError", False, False, "failed"),
        ("botocore.errorfactory.ValidationException", True, True, "failed"),
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
