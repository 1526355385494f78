"""OpenAI's Python client, recorded: one event for each call of a model.

    client = recorded_openai(AsyncOpenAI(), recorder, user_id=user_id)

Chat Completions, Responses (in the background too), the older completions, decisions, embeddings, images and
transcriptions, of clients with and without `async`, Azure's included, with every helper of these. Needs the extra
`openai`.

A stream of Chat Completions tells its usage only where the request has `stream_options={"include_usage": True}`. The
request stays as the host made it, unless `include_usage=True` is given; without usage the event is unmeasured.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar, Unpack
from urllib.parse import urlsplit

from session_lifecycle.integrations.adapter import TakesQuietly, text_of
from session_lifecycle.integrations.counts import (
    openai_chat_counts,
    openai_embedding_counts,
    openai_responses_counts,
    tier_counts,
    value_at,
)
from session_lifecycle.integrations.generated_clients import Api, Operation, recorded_client
from session_lifecycle.integrations.model_calls import Answer, CallOptions, ModelCalls, check_client, last_prompt

try:
    from openai import AsyncOpenAI, OpenAI
except ImportError as error:
    raise ImportError(
        "session_lifecycle.integrations.openai_client needs openai: pip install 'session-lifecycle[openai]'"
    ) from error

Client = TypeVar("Client", bound=OpenAI | AsyncOpenAI)
_IS_BEING_MADE = {"queued", "in_progress"}
_IS_OVER = {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}


def recorded_openai(
    client: Client,
    recorder: TakesQuietly,
    *,
    include_usage: bool = False,
    **options: Unpack[CallOptions],
) -> Client:
    """A copy of the client whose calls are recorded. The copy shares the connections of the client.

    A call inside a run block belongs to that run. Any other call is a run of its own, in the session block around it,
    else in `session_id`, else in a session of its own. Calls of copies (`with_options`) are recorded too.

    Args:
        client: The host's client. It stays as it is.
        recorder: Takes the items: `db.recorder()` or `db.synchronous_recorder()`.
        include_usage: Whether streams of Chat Completions are asked for their usage where the host asks for no
            `stream_options`. The host then gets one more chunk, without choices.
        **options: See `CallOptions`. A `provider` of None is `openai` or `azure` by the client's address, and else
            unknown.
    """
    check_client(client, "openai", "OpenAI, AsyncOpenAI, or a client of Azure's")
    options["provider"] = options.get("provider") or _provider(client)
    calls = ModelCalls(recorder, **options)
    change = _with_usage if include_usage else None
    return recorded_client(client, Api(_operation, _pending, _RESULT_PATH, change), calls)


def _provider(client: Any) -> str | None:
    host = urlsplit(str(client.base_url)).hostname or ""
    if "Azure" in type(client).__name__ or host.endswith((".azure.com", ".azure.us", ".azure.cn")):
        return "azure"
    return "openai" if host == "openai.com" or host.endswith(".openai.com") else None


def _with_usage(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    if path != "/chat/completions" or body.get("stream") is not True or isinstance(body.get("stream_options"), Mapping):
        return body
    return {**body, "stream_options": {"include_usage": True}}


def _told(answer: Answer, source: Any) -> None:
    """Takes what all answers have: id, model."""
    answer.response_id = value_at(source, "id") or answer.response_id
    answer.model = value_at(source, "model") or answer.model


# Chat Completions, and the older completions


def _read_chat(answer: Answer, body: Any) -> None:
    _told(answer, body)
    answer.counts = openai_chat_counts(value_at(body, "usage"))
    answer.counts.update(tier_counts(value_at(body, "service_tier")))
    choices = value_at(body, "choices") or [None]
    answer.text = value_at(choices[0], "message", "content") or value_at(choices[0], "text") or ""


def _hear_chat(answer: Answer, event: dict[str, Any]) -> None:
    if event.get("error"):
        answer.is_error = True
        return
    _told(answer, event)
    choices = event.get("choices") or []
    if event.get("usage"):
        answer.counts = openai_chat_counts(event["usage"])
        answer.counts.update(tier_counts(event.get("service_tier")))
        # The last chunk has the usage and no choices. Some servers tell the usage so far in every chunk.
        answer.is_whole = not choices
    for choice in choices[:1]:
        answer.text += value_at(choice, "delta", "content") or value_at(choice, "text") or ""


def _chat_prompt(body: Mapping[str, Any]) -> str:
    return last_prompt(body.get("messages") or body.get("prompt"))


# Responses


def _read_response(answer: Answer, body: Any) -> None:
    _told(answer, body)
    output = value_at(body, "output")
    answer.counts = openai_responses_counts(value_at(body, "usage"), output)
    answer.counts.update(tier_counts(value_at(body, "service_tier")))
    answer.is_error = value_at(body, "status") == "failed"
    answer.text = "\n".join(
        text
        for item in output or []
        if value_at(item, "type") == "message" and (text := text_of(value_at(item, "content")))
    )


def _hear_response(answer: Answer, event: dict[str, Any]) -> None:
    response = event.get("response")
    if event.get("type") in _IS_OVER:
        _read_response(answer, response)
        answer.is_whole = True
    elif event.get("type") == "error":
        answer.is_error = True
    elif response is not None:
        _told(answer, response)
        if value_at(response, "background") is True:
            answer.pending = _pending(response)


def _response_prompt(body: Mapping[str, Any]) -> str:
    return last_prompt(body.get("input"))


def _pending(body: Any) -> str | None:
    if value_at(body, "object") == "response" and value_at(body, "status") in _IS_BEING_MADE:
        return str(value_at(body, "id"))
    return None


# Embeddings, images and transcriptions


def _read_embeddings(answer: Answer, body: Any) -> None:
    answer.model = value_at(body, "model")
    answer.counts = openai_embedding_counts(value_at(body, "usage"))


def _read_usage(answer: Answer, body: Any) -> None:
    answer.counts = openai_responses_counts(value_at(body, "usage"))


def _hear_usage(answer: Answer, event: dict[str, Any]) -> None:
    if event.get("error") or event.get("type") == "error":
        answer.is_error = True
    elif event.get("usage"):
        _read_usage(answer, event)
        answer.is_whole = True


def _image_prompt(body: Mapping[str, Any]) -> str:
    return str(body.get("prompt") or "")


def _hear_nothing(answer: Answer, event: dict[str, Any]) -> None:
    """Embeddings and decisions have no streams."""


def _no_prompt(_: Mapping[str, Any]) -> str:
    """What is embedded is no prompt."""
    return ""


_RESPONSES = Operation("responses", _read_response, _hear_response, _response_prompt)
_IMAGES = Operation("images", _read_usage, _hear_usage, _image_prompt)
_OPERATIONS = {
    "/chat/completions": Operation("chat.completions", _read_chat, _hear_chat, _chat_prompt),
    "/completions": Operation("completions", _read_chat, _hear_chat, _chat_prompt),
    "/responses": _RESPONSES,
    "/responses/compact": _RESPONSES,
    "/decisions": Operation("decisions", _read_response, _hear_nothing, _response_prompt),
    "/embeddings": Operation("embeddings", _read_embeddings, _hear_nothing, _no_prompt, "embedding"),
    "/images/generations": _IMAGES,
    "/images/edits": _IMAGES,
    "/audio/transcriptions": Operation("audio.transcriptions", _read_usage, _hear_usage, _no_prompt),
}
_operation = _OPERATIONS.get
_RESULT_PATH = re.compile(r"/responses/([^/]+)(?:/cancel)?")
