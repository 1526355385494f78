"""Models and agents of LangChain with two tools, their books, and callbacks as a runtime makes them."""

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.langchain import SessionCallbackHandler
from session_lifecycle.writing.recorder import SessionRecorder
from support.model_apis.dialect import Served
from support.model_server import ModelServer
from support.transcripts import written

Fields = dict[str, Any]
COUNTS = (
    "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, "
    "coalesce((parts->>'cache_write_1h_tokens')::int, 0), reasoning_tokens"
)
NO_COUNTS = (0, 0, 0, 0, 0, 0)


def model_of(kind: str, server: ModelServer, **options: Any) -> BaseChatModel:
    if kind == "anthropic":
        model: dict[str, Any] = {"model_name": "claude-sonnet-4-6", "base_url": server.url, "api_key": "none"}
        return ChatAnthropic(**model, **options)
    told = {"model": "gpt-5", "base_url": server.openai, "api_key": "none", "stream_usage": True}
    return ChatOpenAI(**told, use_responses_api=kind == "responses", **options)


def counts_of(served: Served, *, is_split: bool = True) -> tuple[int, ...]:
    hour = served.cache_write_1h_tokens if is_split else 0
    parts = (served.cache_read_tokens, served.cache_write_tokens, hour, served.reasoning_tokens)
    return (served.tokens_in, served.tokens_out, *parts)


async def books(db: SessionDatabase, recorder: SessionRecorder, columns: str = COUNTS) -> list[tuple[Any, ...]]:
    """The events in the order in which they were recorded, without their keys."""
    return list((await written(db, recorder, columns)).values())


KINDS = pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])


def answered(*, tokens_in: Any = 10, tokens_out: Any = 2, **usage: Any) -> LLMResult:
    told: Any = {"input_tokens": tokens_in, "output_tokens": tokens_out, "total_tokens": 12} | usage
    message = AIMessage("It is 7.")
    message.usage_metadata = told
    return LLMResult(generations=[[ChatGeneration(message=message)]])


@tool
def get_weather(city: str) -> str:
    """Tells the weather."""
    return f"7 degrees in {city}"


@tool
def get_time(city: str) -> str:
    """Fails."""
    raise ValueError(f"no clock in {city}")


def agent_of(model: BaseChatModel, tools: list[Any], name: str, **options: Any) -> Any:
    """A graph of a model and tools that calls itself as long as the model calls tools."""
    bound = model.bind_tools(tools)

    async def think(state: MessagesState) -> Any:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    async def act(state: MessagesState) -> Any:
        by_name = {one.name: one for one in tools}
        said: Any = state["messages"][-1]
        results: list[ToolMessage] = []
        for call in said.tool_calls:
            try:
                results.append(await by_name[call["name"]].ainvoke({**call, "type": "tool_call"}))
            except ValueError:
                results.append(ToolMessage("failed", tool_call_id=call["id"]))
        return {"messages": results}

    def goes_on(state: MessagesState) -> str:
        said: Any = state["messages"][-1]
        return "act" if said.tool_calls else "__end__"

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("act", act)
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", goes_on, ["act", "__end__"])
    graph.add_edge("act", "think")
    return graph.compile(name=name, **options)


async def run_chain(handler: SessionCallbackHandler, chain: Any, given: Any) -> None:
    await chain.ainvoke(given, config={"callbacks": [handler]})


class Fake(FakeMessagesListChatModel):
    """A model that says what it is made with."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self
