"""What the tests of the adapter of OpenAI Agents share."""

from collections.abc import AsyncIterator, Iterator

import pytest
from agents import Model, OpenAIChatCompletionsModel, OpenAIResponsesModel, set_trace_processors, set_tracing_disabled
from openai import AsyncOpenAI

from support.model_server import ModelServer
from support.runtimes.openai_agents import Kind, MakeModel


@pytest.fixture(autouse=True)
def _processors() -> Iterator[None]:
    """Processors are the process's: no test leaves its own behind, and nothing is exported."""
    set_trace_processors([])
    yield
    set_trace_processors([])
    set_tracing_disabled(False)


@pytest.fixture
async def make_model(server: ModelServer) -> AsyncIterator[MakeModel]:
    client = AsyncOpenAI(base_url=server.openai, api_key="none")

    def made(kind: Kind) -> Model:
        if kind == "responses":
            return OpenAIResponsesModel("gpt-5", openai_client=client)
        return OpenAIChatCompletionsModel("gpt-5", openai_client=client)

    yield made
    await client.close()
