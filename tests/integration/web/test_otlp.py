"""The receiver of OTLP over HTTP, by the protocol: what it records, what it answers, what it refuses."""

import base64
import gzip
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI, Header, HTTPException
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from sqlalchemy.engine import make_url

from session_lifecycle import DatabaseUnavailableError, SessionDatabase, SessionWriter, Settings
from session_lifecycle.testing import TemplateServer
from session_lifecycle.web.otlp import otlp_router
from support.transcripts import events, everything, rows, runs, steps, totals
from support.usage import A

PROTOBUF, JSON = "application/x-protobuf", "application/json"
BEGAN = 1_788_000_000_000_000_000
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5"}
USAGE = {"gen_ai.usage.input_tokens": 1200, "gen_ai.usage.output_tokens": 80}
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "guide", "session.id": "trip-1"} | USAGE
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather", "gen_ai.tool.call.id": "call-1"}


def value(one: Any) -> AnyValue:
    if isinstance(one, bool):
        return AnyValue(bool_value=one)
    if isinstance(one, int):
        return AnyValue(int_value=one)
    return AnyValue(string_value=one)


def span(
    number: int,
    attributes: dict[str, Any],
    *,
    parent: int | None = None,
    trace: int = 1,
    begin: float = 0,
    seconds: float = 1,
    error: str | None = None,
    **more: Any,
) -> Span:
    start = BEGAN + round(begin * 1e9)
    fields: dict[str, Any] = {
        "trace_id": trace.to_bytes(16),
        "span_id": number.to_bytes(8),
        "parent_span_id": b"" if parent is None else parent.to_bytes(8),
        "name": f"span {number}",
        "start_time_unix_nano": start,
        "end_time_unix_nano": start + round(seconds * 1e9),
        "attributes": [KeyValue(key=key, value=value(one)) for key, one in attributes.items()],
        "status": Status(
            code=Status.STATUS_CODE_UNSET if error is None else Status.STATUS_CODE_ERROR, message="secret"
        ),
    }
    if error is not None:
        told = [KeyValue(key="exception.type", value=value(error))]
        fields["events"] = [Span.Event(name="exception", attributes=told)]
    return Span(**(fields | more))


TREE = (
    span(4, CHAT | USAGE | {"gen_ai.response.id": "resp-1"}, parent=2, begin=1),
    span(3, TOOL, parent=2, begin=3),
    span(2, AGENT, parent=1, seconds=8),
    span(1, {"http.request.method": "POST"}, seconds=9),
)


def request_of(spans: Sequence[Span]) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.scope.name = "made"
    scope.spans.extend(spans)
    return request


def in_json(request: ExportTraceServiceRequest) -> bytes:
    """OTLP's JSON: ids are hexadecimal."""
    told = MessageToDict(request, use_integers_for_enums=True)
    for resource in told.get("resourceSpans", []):
        for scope in resource["scopeSpans"]:
            for one in scope.get("spans", []):
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in one:
                        one[name] = base64.b64decode(one[name]).hex()
                one["aFieldOfALaterVersion"] = {"x": [1]}
    return json.dumps(told).encode()


async def owner(authorization: Annotated[str | None, Header()] = None) -> str:
    if authorization is None:
        raise HTTPException(401)
    return f"{int(authorization):032x}"


@asynccontextmanager
async def receiver(db: SessionDatabase, **more: Any) -> AsyncGenerator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(otlp_router(db.lifecycle, owner, **more), prefix="/otlp")
    transport = httpx.ASGITransport(app)
    headers = {"authorization": str(A.int), "content-type": PROTOBUF}
    async with httpx.AsyncClient(transport=transport, base_url="http://made/otlp", headers=headers) as client:
        yield client


async def send(client: httpx.AsyncClient, spans: Sequence[Span]) -> ExportTraceServiceResponse:
    """Sends the spans in protobuf; they are all right."""
    answer = await client.post("/v1/traces", content=request_of(spans).SerializeToString())
    assert (answer.status_code, answer.headers["content-type"]) == (200, PROTOBUF), answer.content
    return ExportTraceServiceResponse.FromString(answer.content)


TRACE_ID = f"{1:032x}"
CODINGS: dict[str, tuple[str, Callable[[ExportTraceServiceRequest], bytes], dict[str, str]]] = {
    "protobuf": (PROTOBUF, lambda request: request.SerializeToString(), {}),
    "json": (JSON, in_json, {}),
    "json with a charset": (f"{JSON}; charset=utf-8", in_json, {}),
    "protobuf in gzip": (
        PROTOBUF,
        lambda request: gzip.compress(request.SerializeToString()),
        {"content-encoding": "gzip"},
    ),
    "json in gzip": (JSON, lambda request: gzip.compress(in_json(request)), {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("coding", CODINGS)
async def test_H40_a_request_in_each_coding_sent_twice(session_database: SessionDatabase, coding: str) -> None:
    content_type, write, headers = CODINGS[coding]
    async with receiver(session_database) as client:
        for _ in range(2):
            answer = await client.post(
                "/v1/traces", content=write(request_of(TREE)), headers=headers | {"content-type": content_type}
            )
            assert answer.status_code == 200, answer.content
            assert answer.headers["content-type"] == content_type.partition(";")[0]
            assert answer.content == (b"{}" if JSON in content_type else b"")
    columns = "run_id, session_id, tokens_in, tokens_out, model, provider, key_scope"
    assert await events(session_database, columns) == {
        "resp-1": (TRACE_ID, "trip-1", 1200, 80, "gpt-5", "openai", "user")
    }
    assert await runs(session_database, "name, agent_name, status, session_id") == {
        TRACE_ID: ("span 1", "guide", "completed", "trip-1")
    }
    assert await steps(session_database) == {
        (TRACE_ID, f"{2:016x}"): ("guide", "completed"),
        (TRACE_ID, f"{3:016x}"): ("weather", "completed"),
    }


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
async def test_H40_spans_of_a_trace_in_several_requests_of_any_order(
    session_database: SessionDatabase, order: Sequence[int]
) -> None:
    for _ in range(2):  # by another process, which remembers nothing
        async with receiver(session_database) as client:
            for number in order:
                await send(client, [TREE[number]])
    assert await totals(session_database) in ({"trip-1": (1200, 80, 0, 0)}, {TRACE_ID: (1200, 80, 0, 0)})
    # Whichever came first: the run is in the session that is named.
    assert await runs(session_database, "agent_name, status, session_id") == {
        TRACE_ID: ("guide", "completed", "trip-1")
    }
    assert len(await events(session_database)) == 1
    assert len(await steps(session_database)) == 2


async def test_spans_of_other_owners_have_nothing_to_do_with_each_other(session_database: SessionDatabase) -> None:
    outer, inner = span(1, CHAT | USAGE, seconds=3), span(2, CHAT | USAGE, parent=1, begin=1)
    async with receiver(session_database) as client:
        await send(client, [inner])
        client.headers["authorization"] = "77"
        await send(client, [outer])
    found = await rows(
        session_database, "SELECT user_id::text, tokens_in FROM session_lifecycle.session_usage_events ORDER BY 1"
    )
    assert found == [(str(A), 1200), ("00000000-0000-0000-0000-00000000004d", 1200)]


async def test_H42_an_error_and_a_remote_parent(session_database: SessionDatabase) -> None:
    async with receiver(session_database) as client:
        remote = Span(flags=0x300)
        await send(client, [span(2, CHAT, parent=9, error="openai.APIError", flags=remote.flags)])
    assert await events(session_database, "errored, tokens_in") == {f"{TRACE_ID}:{2:016x}": (True, 0)}
    assert await runs(session_database, "status, error") == {TRACE_ID: ("failed", "openai.APIError")}
    assert "secret" not in str(await everything(session_database))


async def test_an_empty_request_and_spans_of_no_agent_are_taken(session_database: SessionDatabase) -> None:
    async with receiver(session_database) as client:
        assert await send(client, []) == ExportTraceServiceResponse()
        assert await send(client, [span(1, {"http.request.method": "POST"})]) == ExportTraceServiceResponse()
    assert await everything(session_database) == [[]] * 5


# What is not recorded is told


@pytest.mark.parametrize(
    "broken",
    [
        {"trace_id": b""},
        {"trace_id": b"\0" * 16},
        {"trace_id": b"\1" * 15},
        {"span_id": b"\0" * 8},
        {"span_id": b""},
        {"parent_span_id": b"\1"},
        {"start_time_unix_nano": 0, "end_time_unix_nano": 0},
    ],
    ids=str,
)
async def test_a_malformed_span_is_rejected_and_others_are_recorded(
    session_database: SessionDatabase, broken: dict[str, Any]
) -> None:
    async with receiver(session_database) as client:
        told = (await send(client, [span(5, CHAT, trace=2, **broken), *TREE])).partial_success
    assert (told.rejected_spans, told.error_message) == (1, "a span has no valid ids or times")
    assert list(await events(session_database)) == ["resp-1"]


async def test_times_of_a_clock_that_was_set_back_are_no_reason_to_lose_usage(
    session_database: SessionDatabase,
) -> None:
    spans = [span(1, CHAT | USAGE, end_time_unix_nano=5), span(2, CHAT | USAGE, trace=2, start_time_unix_nano=0)]
    async with receiver(session_database) as client:
        assert await send(client, spans) == ExportTraceServiceResponse()
    assert len(await events(session_database)) == 2


async def test_a_trace_that_is_refused_takes_no_other_with_it(session_database: SessionDatabase) -> None:
    # Ten years ahead of the database's clock.
    ahead = [span(number, CHAT | USAGE, trace=2, begin=10 * 365 * 86400) for number in (1, 2)]
    ahead[1].start_time_unix_nano = ahead[1].end_time_unix_nano = 2**64 - 1
    too_long = span(1, CHAT | {"session.id": "x" * 600}, trace=3)
    async with receiver(session_database) as client:
        for _ in range(2):
            told = (await send(client, [*ahead, *TREE, too_long])).partial_success
            assert told.rejected_spans == 3
            assert "at: expected" in told.error_message
            assert "session_id: expected" in told.error_message
    assert list(await events(session_database)) == ["resp-1"]
    assert list(await runs(session_database)) == [TRACE_ID]


async def test_counts_that_are_refused_leave_an_unmeasured_event_and_a_warning(
    session_database: SessionDatabase,
) -> None:
    async with receiver(session_database) as client:
        told = (await send(client, [span(1, CHAT | {"gen_ai.usage.input_tokens": -1})])).partial_success
    assert (told.rejected_spans, told.error_message.partition(":")[0]) == (0, "tokens_in")
    assert await events(session_database, "measured") == {f"{TRACE_ID}:{1:016x}": (False,)}


async def test_a_partial_success_in_json(session_database: SessionDatabase) -> None:
    broken = in_json(request_of([span(5, CHAT, span_id=b"\1")]))
    async with receiver(session_database) as client:
        answer = await client.post("/v1/traces", content=broken, headers={"content-type": JSON})
    assert answer.json() == {
        "partialSuccess": {"rejectedSpans": "1", "errorMessage": "a span has no valid ids or times"}
    }


async def test_R26_a_text_that_javascript_has_cut_takes_no_span_with_it(session_database: SessionDatabase) -> None:
    cut = in_json(request_of(TREE)).replace(b'"gpt-5"', b'"gpt-5\\ud83d"')
    assert b"ud83d" in cut
    async with receiver(session_database) as client:
        answer = await client.post("/v1/traces", content=cut, headers={"content-type": JSON})
    assert (answer.status_code, answer.json()) == (200, {})
    [cost] = await session_database.lifecycle.cost_by_model(A)
    assert cost.model == "gpt-5\N{REPLACEMENT CHARACTER}"


# What is refused


GOOD = request_of(TREE).SerializeToString()


@pytest.mark.parametrize(
    ("status", "content", "headers"),
    [
        (400, b"\xff\xff\xff", {}),
        (400, b"{", {"content-type": JSON}),
        (400, b"[]", {"content-type": JSON}),
        (400, b'{"resourceSpans": 5}', {"content-type": JSON}),
        (400, b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', {"content-type": JSON}),
        (400, b"\xff\xfe", {"content-type": JSON}),
        (400, b"[" * 4_000, {"content-type": JSON}),
        *(
            (400, b'{"resourceSpans": [{"scopeSpans": [{"spans": [%b]}]}]}' % span, {"content-type": JSON})
            for span in (
                b'{"kind": Infinity}',
                b'{"kind": 1e400}',
                b'{"status": {"code": NaN}}',
            )
        ),
        (400, GOOD, {"content-encoding": "gzip"}),
        (400, gzip.compress(GOOD)[:-9], {"content-encoding": "gzip"}),
        (400, gzip.compress(GOOD) + b"more", {"content-encoding": "gzip"}),
        (413, b"x" * 5_001, {}),
        (413, gzip.compress(b"\0" * 50_000_000), {"content-encoding": "gzip"}),
        (413, gzip.compress(GOOD) + b"x" * 5_001, {"content-encoding": "gzip"}),
        (415, GOOD, {"content-type": "text/plain"}),
        (415, GOOD, {"content-encoding": "br"}),
    ],
)
async def test_what_is_no_request_is_refused_and_nothing_is_recorded(
    session_database: SessionDatabase, status: int, content: bytes, headers: dict[str, str]
) -> None:
    async with receiver(session_database, max_body_bytes=5_000) as client:
        if status == 413 and "content-encoding" in headers:
            client.headers["transfer-encoding"] = "chunked"
        answer = await client.post("/v1/traces", content=content, headers=headers)
    assert answer.status_code == status
    if status != 415:
        # A `google.rpc.Status` with a message, in the coding of the request.
        if headers.get("content-type") == JSON:
            assert answer.json()["message"]
        else:
            assert answer.content[:1] == b"\x12"
            assert answer.content[-answer.content[1] :].decode().isascii()
    assert await everything(session_database) == [[]] * 5


async def test_the_hosts_dependency_decides_who_sends(session_database: SessionDatabase) -> None:
    async with receiver(session_database) as client:
        del client.headers["authorization"]
        answer = await client.post("/v1/traces", content=GOOD)
    assert answer.status_code == 401
    assert await everything(session_database) == [[]] * 5


class OftenAway:
    """A writer of a host whose database is away at every other call."""

    def __init__(self, writer: SessionWriter) -> None:
        self._writer = writer
        self._is_away = False

    async def record(self, items: Any) -> Any:
        self._is_away = not self._is_away
        if self._is_away:
            raise DatabaseUnavailableError("away")
        return await self._writer.record(items)


async def test_R06_calls_inside_calls_count_once_where_each_request_fails_at_first(
    session_database: SessionDatabase,
) -> None:
    call = CHAT | {"gen_ai.usage.input_tokens": 1_200}
    three = [
        span(1, call, seconds=3),
        span(2, {"http.request.method": "POST"}, parent=1, seconds=2),
        span(3, call, parent=2),
    ]
    away: Any = SimpleNamespace(lifecycle=OftenAway(session_database.lifecycle))
    for number, order in enumerate(itertools.permutations(three), 1):
        user_id = UUID(int=number)
        statuses: list[int] = []
        async with receiver(away) as client:
            client.headers["authorization"] = str(user_id.int)
            for one in order:
                for _ in range(2):
                    answer = await client.post("/v1/traces", content=request_of([one]).SerializeToString())
                    statuses.append(answer.status_code)
        assert set(statuses) == {200, 503}
        stats = await session_database.lifecycle.aggregate_stats(user_id)
        assert (stats.tokens_in, stats.unmeasured_events) == (1_200, 0), [one.name for one in order]


async def test_while_the_database_is_away_the_sender_tries_again() -> None:
    db = SessionDatabase.connect("postgresql://u@127.0.0.1:1/x", settings=Settings(retries=0))
    async with db, receiver(db) as client:
        answer = await client.post("/v1/traces", content=GOOD)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
async def test_whatever_keeps_the_database_from_recording_has_an_answer_of_the_protocol(
    session_template_server: TemplateServer, content_type: str
) -> None:
    content = GOOD if content_type == PROTOBUF else in_json(request_of(TREE))
    url = make_url(session_template_server.url)
    nobody = url.set(username="nobody", database="postgres").render_as_string(hide_password=False)
    for unusable, status, retry_after in (
        (session_template_server.url_of("postgres"), 503, "5"),  # not migrated
        (nobody, 500, None),
    ):
        async with SessionDatabase.connect(unusable) as db, receiver(db) as client:
            answer = await client.post("/v1/traces", content=content, headers={"content-type": content_type})
        assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
        assert answer.headers["content-type"] == content_type
        assert b"the " in answer.content


async def test_content_is_recorded_by_choice_only(session_database: SessionDatabase) -> None:
    told = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "Where?"}
    arguments = {"gen_ai.tool.call.arguments": '{"city": "Bern"}', "gen_ai.tool.call.result": "[" * 10_000}
    spans = [span(1, CHAT | USAGE | told), span(2, TOOL | arguments, parent=1)]
    async with receiver(session_database) as client:
        await send(client, spans)
    stored = str(await everything(session_database))
    assert "Where" not in stored
    assert "Bern" not in stored
    async with receiver(session_database, content=True) as client:
        client.headers["authorization"] = "77"
        await send(client, spans)
    assert await rows(session_database, "SELECT content FROM session_lifecycle.session_messages") == [("Where?",)]


WITHOUT = """
import sys
sys.modules[{missing!r}] = None
try:
    import session_lifecycle.web.otlp
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("fastapi", "the HTTP routes need"),
        ("opentelemetry.proto", "opentelemetry-proto"),
        ("google.protobuf", ""),
    ],
)
def test_without_the_extra(missing: str, named: str) -> None:
    program = WITHOUT.format(missing=missing)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(named)
    assert ran.stdout.endswith(": pip install 'session-lifecycle[web]'\n")
