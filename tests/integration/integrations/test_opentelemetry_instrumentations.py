"""Instrumentations of OpenTelemetry as they are, against the stand-in of model APIs: the books equal what it served.

OpenLLMetry and OpenInference for OpenAI's client, and Pydantic AI's own, which Logfire shows.
"""

import asyncio
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.opentelemetry import SessionSpanExporter, SessionSpanProcessor
from support import instrumented_openai
from support.model_server import ModelServer
from support.transcripts import events, rows, runs, steps
from support.usage import A

ROOT = Path(__file__).parents[3]
UNMEASURED = [0, 0, 0, 0, 0, False, False]


def is_here(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not here
        return False


@pytest.mark.skipif(
    not all(map(is_here, instrumented_openai.MODULES.values())), reason="the instrumentations are not installed"
)
@pytest.mark.parametrize("names", ["openinference", "openllmetry", "openinference,openllmetry"])
async def test_H44_H46_H48_openai_by_its_instrumentations(
    session_database: SessionDatabase, session_database_url: str, names: str
) -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "support.instrumented_openai", session_database_url, names],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert ran.returncode == 0, ran.stderr
    served: dict[str, Any] = json.loads(ran.stdout)
    assert served.pop("failures") == 0, ran.stderr
    found: dict[str, list[list[Any]]] = {case: [] for case in served}
    for case, *figures in await rows(
        session_database,
        "SELECT session_id, tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens, measured, "
        "errored FROM session_lifecycle.session_usage_events ORDER BY session_id, tokens_in",
    ):
        found[case].append(figures)
    assert found.pop("no_usage") == [UNMEASURED]
    assert found.pop("cancelled") == [UNMEASURED]
    assert found.pop("error") == [[0, 0, 0, 0, 0, True, True]]
    if "," in names:
        # OpenLLMetry makes the span of a Responses call when the call is over, beside that of OpenInference and not
        # around it. OpenInference does not tell the response's id, so nothing says that the two are one.
        assert len(found.pop("responses")) == 2
    for case, figures in found.items():
        assert len(figures) == len(served[case])
        for got, (*counts, _) in zip(figures, sorted(served[case]), strict=True):
            assert got[5:] == [True, False]
            assert got[:2] == counts[:2], case
            if names == "openinference":  # OpenLLMetry tells no cache writes, and not all parts of streams
                assert got[:5] == counts, case
    assert set((await runs(session_database)).values()) == {"completed"}


@pytest.mark.parametrize("sums", [True, False], ids=["sums by names of their own", "sums by the names of usage"])
@pytest.mark.parametrize("way", ["processor", "exporter"])
async def test_H40_pydantic_ai_by_its_own_instrumentation(
    session_database: SessionDatabase, way: str, sums: bool
) -> None:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI
    from pydantic_ai import Agent, RunContext
    from pydantic_ai.capabilities import Instrumentation
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.instrumented import InstrumentationSettings
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = TracerProvider(shutdown_on_exit=False)
    settings = InstrumentationSettings(tracer_provider=provider, use_aggregated_usage_attribute_names=sums)
    async with (
        session_database.recorder() as recorder,
        ModelServer() as server,
        AsyncAnthropic(base_url=server.url, api_key="none") as anthropic_client,
        AsyncOpenAI(base_url=server.openai, api_key="none") as openai_client,
    ):
        processor: Any = SessionSpanProcessor(recorder, user_id=A)
        if way == "exporter":
            processor = SimpleSpanProcessor(SessionSpanExporter(recorder, user_id=A))
        provider.add_span_processor(processor)
        anthropic = AnthropicProvider(anthropic_client=anthropic_client)
        child: Agent[None, str] = Agent(
            AnthropicModel("claude-made", provider=anthropic),
            name="child",
            capabilities=[Instrumentation(settings=settings)],
        )
        openai = OpenAIProvider(openai_client=openai_client)
        parent: Agent[None, str] = Agent(
            OpenAIResponsesModel("gpt-5", provider=openai),
            name="parent",
            capabilities=[Instrumentation(settings=settings)],
        )

        @parent.tool
        async def ask_child(context: RunContext[None], question: str) -> str:
            return (await child.run(question, usage=context.usage)).output

        await parent.run("[[tools]]", conversation_id="conv-1")
        await recorder.flush()
        assert recorder.snapshot().failures == 0
    columns = "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens, provider, model"
    found = await events(session_database, columns)
    assert found == {
        one.response_id: (
            one.tokens_in,
            one.tokens_out,
            one.cache_read_tokens,
            one.cache_write_tokens,
            # Pydantic AI does not put the reasoning of Anthropic on the span.
            one.reasoning_tokens if one.api == "responses" else 0,
            "openai" if one.api == "responses" else "anthropic",
            one.served_model,
        )
        for one in server.served
    }
    assert len(found) == 3
    assert await steps(session_database) != {}
    agents = await runs(session_database, "agent_name, status")
    expected = {("parent", "completed"), ("child", "completed")} if way == "processor" else {("parent", "completed")}
    assert set(agents.values()) == expected
