"""What every adapter refuses when it is made, so that a host does not find it in the log of each run."""

from typing import Any
from uuid import uuid4

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from session_lifecycle import ConfigurationError, InvalidValueError, SessionDatabase
from session_lifecycle.integrations.adapter import Adapter
from session_lifecycle.integrations.anthropic_client import recorded_anthropic
from session_lifecycle.integrations.google_genai import recorded_genai
from session_lifecycle.integrations.openai_client import recorded_openai
from support.usage import A


@pytest.fixture
def db() -> SessionDatabase:
    return SessionDatabase.connect("postgresql://nobody@127.0.0.1:1/none")


def test_a_database_in_place_of_a_recorder_is_refused(db: SessionDatabase) -> None:
    no_recorder: Any = db
    with pytest.raises(ConfigurationError) as refused:
        Adapter(no_recorder, user_id=A)
    expected = "recorder: got a SessionDatabase, expected db.recorder() or db.synchronous_recorder()"
    assert str(refused.value) == expected


@pytest.mark.parametrize("user_id", ["ann", "", 5, b"ann"])
def test_a_user_id_that_is_none_is_refused(db: SessionDatabase, user_id: Any) -> None:
    with pytest.raises(
        InvalidValueError, match=r"^user_id: got .*, expected a UUID, its text, or a function that finds it$"
    ):
        Adapter(db.recorder(), user_id=user_id)


@pytest.mark.parametrize("user_id", [None, A, str(A), uuid4], ids=["none", "id", "text", "function"])
def test_an_owner_and_a_function_that_finds_one_are_taken(db: SessionDatabase, user_id: Any) -> None:
    Adapter(db.recorder(), user_id=user_id)


@pytest.mark.parametrize(
    ("hook_up", "client", "message"),
    [
        (
            recorded_openai,
            AsyncAnthropic(api_key="none"),
            "client: got a AsyncAnthropic, expected OpenAI, AsyncOpenAI, or a client of Azure's",
        ),
        (
            recorded_anthropic,
            AsyncOpenAI(api_key="none"),
            "client: got a AsyncOpenAI, expected Anthropic, AsyncAnthropic, or a client of Bedrock or Vertex",
        ),
        (recorded_genai, "gemini-2.5-flash", "client: got a str, expected a google.genai.Client"),
    ],
)
def test_a_client_of_another_provider_is_refused(db: SessionDatabase, hook_up: Any, client: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        hook_up(client, db.recorder(), user_id=A)
    assert str(refused.value) == message
