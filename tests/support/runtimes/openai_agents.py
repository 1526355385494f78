"""Agents of OpenAI's runtime with two tools, and their runs with the adapter."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
from agents import Agent, Model, ModelSettings, RunConfig, Runner, function_tool

from session_lifecycle import SessionRecorder
from session_lifecycle.integrations.openai_agents import SessionHooks
from support.usage import A


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"7 degrees in {city}"


@function_tool
def get_time(city: str) -> str:
    """The time in a city."""
    return f"12:00 in {city}"


Kind = Literal["responses", "chat"]
MakeModel = Callable[[Kind], Model]
KINDS = pytest.mark.parametrize("kind", ["responses", "chat"])


def hooks_of(recorder: SessionRecorder, **more: Any) -> SessionHooks:
    """The adapter, registered."""
    return SessionHooks(recorder, **{"user_id": A, **more}).install()


def agent_of(model: Model, name: str = "main", **more: Any) -> Agent[Any]:
    settings = ModelSettings(include_usage=True)
    return Agent(**{"name": name, "model": model, "tools": [get_weather, get_time], "model_settings": settings, **more})


async def run(agent: Agent[Any], prompt: str, hooks: SessionHooks | None, *, streams: bool = False, **more: Any) -> Any:
    config = RunConfig(**{"group_id": "chat-1", **more})
    if not streams:
        return await Runner.run(agent, prompt, hooks=hooks, run_config=config)
    result = Runner.run_streamed(agent, prompt, hooks=hooks, run_config=config)
    async for _ in result.stream_events():
        pass
    return result


STREAMS = pytest.mark.parametrize("streams", [False, True])
