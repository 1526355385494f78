"""Agents of Pydantic AI with two tools."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
from pydantic_ai import Agent
from pydantic_ai.models import Model

from session_lifecycle.integrations.pydantic_ai import SessionCapability


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"7 degrees in {city}"


def get_time(city: str) -> str:
    """The time in a city."""
    return f"12:00 in {city}"


Kind = Literal["responses", "chat", "anthropic"]
MakeModel = Callable[[Kind], Model]


def agent_of(capability: SessionCapability | Sequence[SessionCapability], model: Model, **more: Any) -> Agent[Any, Any]:
    capabilities = [capability] if isinstance(capability, SessionCapability) else list(capability)
    options: dict[str, Any] = {"name": "main", "tools": [get_weather, get_time], **more}
    return Agent(model, capabilities=capabilities, **options)


KINDS = pytest.mark.parametrize("kind", ["responses", "chat", "anthropic"])
