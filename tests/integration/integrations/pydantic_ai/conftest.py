"""What the tests of the adapter of Pydantic AI share."""

from collections.abc import AsyncIterator

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from support.model_server import ModelServer
from support.runtimes.pydantic_ai import Kind, MakeModel


@pytest.fixture
async def make_model(server: ModelServer) -> AsyncIterator[MakeModel]:
    """Makes models of a kind, whose clients are closed at the end of the test."""
    openai = AsyncOpenAI(base_url=server.openai, api_key="none")
    anthropic = AsyncAnthropic(base_url=server.url, api_key="none")

    def made(kind: Kind) -> Model:
        if kind == "anthropic":
            return AnthropicModel("claude-sonnet-4-6", provider=AnthropicProvider(anthropic_client=anthropic))
        provider = OpenAIProvider(openai_client=openai)
        return (
            OpenAIResponsesModel("gpt-5", provider=provider)
            if kind == "responses"
            else OpenAIChatModel("gpt-5", provider=provider)
        )

    yield made
    await openai.close()
    await anthropic.close()
