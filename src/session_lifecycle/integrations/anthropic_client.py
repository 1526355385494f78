"""Anthropic's Python client, recorded: one event for each call of a model.

    client = recorded_anthropic(AsyncAnthropic(), recorder, user_id=user_id)

Messages, the beta's too, of clients with and without `async`, those of Bedrock and Vertex included, with every helper.
Needs the extra `anthropic`. A stream that is cut off has told its whole input, and its output so far: a lower bound.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar, Unpack
from urllib.parse import urlsplit

from session_lifecycle.integrations.adapter import TakesQuietly, text_of
from session_lifecycle.integrations.counts import anthropic_counts, value_at
from session_lifecycle.integrations.generated_clients import Api, Operation, recorded_client
from session_lifecycle.integrations.model_calls import Answer, CallOptions, ModelCalls, check_client, last_prompt

try:
    from anthropic import Anthropic, AsyncAnthropic
    from anthropic.lib.bedrock import AnthropicBedrock, AsyncAnthropicBedrock
    from anthropic.lib.vertex import AnthropicVertex, AsyncAnthropicVertex
except ImportError as error:
    raise ImportError(
        "session_lifecycle.integrations.anthropic_client needs anthropic: pip install 'session-lifecycle[anthropic]'"
    ) from error

Client = TypeVar(
    "Client",
    bound=Anthropic
    | AsyncAnthropic
    | AnthropicBedrock
    | AsyncAnthropicBedrock
    | AnthropicVertex
    | AsyncAnthropicVertex,
)


def recorded_anthropic(
    client: Client,
    recorder: TakesQuietly,
    **options: Unpack[CallOptions],
) -> Client:
    """A copy of the client whose calls are recorded. The copy shares the connections of the client.

    A call inside a run block belongs to that run. Any other call is a run of its own, in the session block around it,
    else in `session_id`, else in a session of its own. Calls of copies (`with_options`) are recorded too.

    Args:
        client: The host's client. It stays as it is.
        recorder: Takes the items: `db.recorder()` or `db.synchronous_recorder()`.
        **options: See `CallOptions`. A `provider` of None is `anthropic`, `aws` or `google` by the client's kind and
            address, and else unknown.
    """
    check_client(client, "anthropic", "Anthropic, AsyncAnthropic, or a client of Bedrock or Vertex")
    options["provider"] = options.get("provider") or _provider(client)
    calls = ModelCalls(recorder, **options)
    return recorded_client(client, Api(_operation, _pending, re.compile("(?!)")), calls)


def _provider(client: Any) -> str | None:
    kind = type(client).__name__
    for word, provider in (("Bedrock", "aws"), ("AWS", "aws"), ("Vertex", "google"), ("GoogleCloud", "google")):
        if word in kind:
            return provider
    host = urlsplit(str(client.base_url)).hostname or ""
    return "anthropic" if host == "anthropic.com" or host.endswith(".anthropic.com") else None


def _pending(body: Any) -> None:
    """No answer is made in the background."""


def _operation(path: str) -> Operation | None:
    return _MESSAGES if path == "/v1/messages" else None


def _read_message(answer: Answer, body: Any) -> None:
    _told(answer, body)
    answer.counts = anthropic_counts(value_at(body, "usage"))
    answer.text = text_of(value_at(body, "content"))


def _told(answer: Answer, message: Any) -> None:
    answer.response_id = value_at(message, "id") or answer.response_id
    answer.model = value_at(message, "model") or answer.model


def _hear_message(answer: Answer, event: dict[str, Any]) -> None:
    kind = event.get("type")
    if kind == "message_start":
        _told(answer, event.get("message"))
        _count(answer, value_at(event, "message", "usage"))
    elif kind == "message_delta":
        _count(answer, event.get("usage"))
        answer.is_whole = value_at(event, "delta", "stop_reason") is not None
    elif kind == "message_stop":
        answer.is_whole = True
    elif kind == "error":
        answer.is_error = True
    elif kind == "content_block_delta":
        answer.text += value_at(event, "delta", "text") or ""


def _count(answer: Answer, usage: Any) -> None:
    """A later usage has the counts that have grown, and leaves out what has not."""
    if isinstance(usage, Mapping):
        answer.usage.update((name, value) for name, value in usage.items() if value is not None)
        answer.counts = anthropic_counts(answer.usage)


def _prompt(body: Mapping[str, Any]) -> str:
    return last_prompt(body.get("messages"))


_MESSAGES = Operation("messages", _read_message, _hear_message, _prompt)
