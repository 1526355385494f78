"""The OpenAPI document holds: schemathesis asks every route, and finds no server error and no undocumented answer."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_lifecycle import Message, Run, SessionDatabase, Step, Touch, UsageEvent
from support.usage import A
from support.web import host_app

schemathesis = pytest.importorskip("schemathesis")
import jsonschema_rs  # noqa: E402 - it comes with schemathesis
from schemathesis.checks import CHECKS, load_all_checks  # noqa: E402 - after the look whether it is there
from schemathesis.generation import GenerationMode  # noqa: E402

load_all_checks()
CHECKED = CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DOCUMENT = host_app(SessionDatabase.connect("postgresql://nobody@localhost/nothing")).openapi()
OPERATIONS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]


async def seed(db: SessionDatabase) -> None:
    await db.lifecycle.record(
        [
            Touch(session_id="0", user_id=A, agent_name="x", title="t", tags={"a": "b"}, metadata={"k": [1.5]}),
            Run(run_id="r", user_id=A, session_id="0", model="m", quality_score=0.5, started_at=NOW, ended_at=NOW),
            Step(step_id="t", run_id="r", user_id=A, kind="tool", inputs={"a": [None]}, started_at=NOW),
            Message(message_id="m", user_id=A, session_id="0", role="user", content="hello", created_at=NOW),
            UsageEvent(session_id="0", user_id=A, model="m", tokens_in=3, cost_usd="0.1", run_id="r"),
            UsageEvent(session_id="0", user_id=A, model="unpriced", tokens_in=3),
        ]
    )


@pytest.mark.parametrize("label", IDS)
def test_schemathesis_finds_nothing(label: str, session_database_url: str) -> None:
    db = SessionDatabase.connect(session_database_url)
    method, _, path = label.partition(" ")
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method]
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app=host_app(db)), base_url="http://host", headers={"X-User": "a"}
    )
    # Of one session id that is there, and of any other.
    cases = st.one_of(
        operation.as_strategy(GenerationMode.POSITIVE),
        operation.as_strategy(GenerationMode.POSITIVE, path_parameters={"session_id": "0"}),
        operation.as_strategy(GenerationMode.NEGATIVE),
    )

    with asyncio.Runner() as runner:
        runner.run(seed(db))

        @settings(max_examples=10, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=cases)
        def check(case: Any) -> None:
            asked = case.as_transport_kwargs(base_url="http://host", headers={"X-User": "a"})
            asked["content"] = asked.pop("data", None)
            asked.pop("cookies", None)
            case.validate_response(runner.run(client.request(**asked)), checks=CHECKED)

        check()
        runner.run(client.aclose())
        runner.run(db.close())


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_the_document_is_complete(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["description"]
    assert operation["tags"]
    [(kind, success)] = operation["responses"]["200"]["content"].items()
    assert kind == ("text/event-stream" if path.endswith("/events") else "application/json")
    assert success["schema"]
    for parameter in operation.get("parameters", []):
        assert parameter["description"], parameter
    assert "HTTPValidationError" not in json.dumps(operation)
    assert ("requestBody" in operation) == (method in {"post", "patch"})


def test_the_examples_are_valid() -> None:
    checked = 0
    for _, _, operation in OPERATIONS:
        answers = [answer.get("content", {}) for answer in operation["responses"].values()]
        for media_types in [operation.get("requestBody", {}).get("content", {}), *answers]:
            for content in media_types.values():
                if "example" in content:
                    jsonschema_rs.validate(content["schema"], content["example"])
                    checked += 1
    for model in DOCUMENT["components"]["schemas"].values():
        for field in model.get("properties", {}).values():
            for example in field.get("examples", []):
                jsonschema_rs.validate(field, example)
                checked += 1
    assert checked > 100
