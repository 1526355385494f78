"""Google's GenAI client, recorded: one event for each call of a model.

    client = recorded_genai(genai.Client(), recorder, user_id=user_id)

`generate_content`, its streams, chats and embeddings, with and without `async`, of the Gemini API and of Vertex. Needs
the extra `google-genai`.

`generate_content` calls the model several times where it runs the host's functions itself, and returns the last answer
only. So the hook is below it: in the one object that sends the requests of all parts of a client.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, Unpack

from session_lifecycle.integrations.adapter import TakesQuietly, text_of
from session_lifecycle.integrations.counts import fitted, google_counts, number, value_at
from session_lifecycle.integrations.model_calls import (
    Answer,
    CallOptions,
    ModelCall,
    ModelCalls,
    check_client,
    has_error_status,
)

try:
    from google.genai import Client as GenaiClient
except ImportError as error:
    raise ImportError(
        "session_lifecycle.integrations.google_genai needs google-genai: pip install 'session-lifecycle[google-genai]'"
    ) from error

Client = TypeVar("Client", bound=GenaiClient)
# The name stands behind `models/`, `tunedModels/` or `endpoints/`. What is done with it stands behind the colon.
_PATH = re.compile(r"(?:.*/)?([^/:?]+):(\w+)(?:\?.*)?")
_NAMES = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embed_content",
    "batchEmbedContents": "embed_content",
}


def recorded_genai(
    client: Client,
    recorder: TakesQuietly,
    **options: Unpack[CallOptions],
) -> Client:
    """The client, whose calls are recorded from now on. Such a client cannot be copied, so it is the host's own.

    A call inside a run block belongs to that run. Any other call is a run of its own, in the session block around it,
    else in `session_id`, else in a session of its own.

    Args:
        client: The host's client.
        recorder: Takes the items: `db.recorder()` or `db.synchronous_recorder()`.
        **options: See `CallOptions`. The `provider` is `google` where none is given.
    """
    check_client(client, "google.genai", "a google.genai.Client")
    options.setdefault("provider", "google")
    calls = ModelCalls(recorder, **options)
    # The client has no public name for it. Every version since 1.0 has it under this one. Without it, streams and
    # automatic function calls would go unrecorded.
    sender: Any = client._api_client  # noqa: SLF001 - no public name # pyright: ignore[reportPrivateUsage]
    kind: Any = type(sender)
    sender.session_lifecycle_calls = calls
    sender.__class__ = _recorded(getattr(kind, "session_lifecycle_kind", kind))
    return client


@cache
def _recorded(kind: Any) -> Any:
    """The class of an object that sends requests and is listened to, below its own."""

    def request(self: Any, method: str, path: str, body: Any, *more: Any, **named: Any) -> Any:
        calls: ModelCalls = self.session_lifecycle_calls
        call = _begin(calls, path, body)
        try:
            _ask_now(calls, call, path, body)
            response = kind.request(self, method, path, body, *more, **named)
        except BaseException as error:
            calls.failed(call, error)
            raise
        _finish(calls, call, response)
        return response

    async def async_request(self: Any, method: str, path: str, body: Any, *more: Any, **named: Any) -> Any:
        calls: ModelCalls = self.session_lifecycle_calls
        call = _begin(calls, path, body)
        try:
            await _ask(calls, call, path, body)
            response = await kind.async_request(self, method, path, body, *more, **named)
        except BaseException as error:
            calls.failed(call, error)
            raise
        _finish(calls, call, response)
        return response

    def request_streamed(self: Any, method: str, path: str, body: Any, *more: Any, **named: Any) -> Iterator[Any]:
        calls: ModelCalls = self.session_lifecycle_calls
        call, answer = _begin(calls, path, body), Answer()
        failure: BaseException | None = None
        try:
            _ask_now(calls, call, path, body)
            for piece in kind.request_streamed(self, method, path, body, *more, **named):
                _hear(calls, answer, piece)
                yield piece
        except BaseException as error:
            failure = error
            raise
        finally:
            _end(calls, call, answer, failure)

    async def async_request_streamed(
        self: Any, method: str, path: str, body: Any, *more: Any, **named: Any
    ) -> AsyncIterator[Any]:
        calls: ModelCalls = self.session_lifecycle_calls
        call = _begin(calls, path, body)
        try:
            await _ask(calls, call, path, body)
            pieces = await kind.async_request_streamed(self, method, path, body, *more, **named)
        except BaseException as error:
            calls.failed(call, error)
            raise
        return _heard(calls, call, pieces)

    methods = {
        "request": request,
        "async_request": async_request,
        "request_streamed": request_streamed,
        "async_request_streamed": async_request_streamed,
        "session_lifecycle_kind": kind,
    }
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})


async def _heard(calls: ModelCalls, call: ModelCall | None, pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
    answer = Answer()
    failure: BaseException | None = None
    try:
        async for piece in pieces:
            _hear(calls, answer, piece)
            yield piece
    except BaseException as error:
        failure = error
        raise
    finally:
        _end(calls, call, answer, failure)


def _called(path: Any, body: Any) -> tuple[str, str] | None:
    """The model and the name of the call; None where no model is called."""
    found = _PATH.fullmatch(path) if isinstance(path, str) else None
    name = found and _NAMES.get(found[2])
    if found and found[2] == "predict":  # Vertex: embeddings have contents, and images and videos have prompts
        instances = value_at(body, "instances")
        first = instances[0] if isinstance(instances, list) and instances else None
        name = "embed_content" if value_at(first, "content") is not None else None
    return (found[1], name) if found and name else None


def _begin(calls: ModelCalls, path: Any, body: Any) -> ModelCall | None:
    called = _called(path, body)
    if called is None:
        return None
    model, name = called
    prompt = None
    if calls.content:
        contents = value_at(body, "contents")
        last = contents[-1] if isinstance(contents, list) and contents else None
        prompt = text_of(value_at(last, "parts")) if value_at(last, "role") in {None, "user"} else None
    return calls.begin(name, model, "embedding" if name == "embed_content" else "llm", prompt)


async def _ask(calls: ModelCalls, call: ModelCall | None, path: Any, body: Any) -> None:
    if _called(path, body) is not None:
        await calls.ask(call, body)


def _ask_now(calls: ModelCalls, call: ModelCall | None, path: Any, body: Any) -> None:
    if _called(path, body) is not None:
        calls.ask_now(call, body)


def _finish(calls: ModelCalls, call: ModelCall | None, response: Any) -> None:
    if call is None:
        return
    answer = Answer()
    _hear(calls, answer, response)
    calls.finish(call, answer)


def _end(calls: ModelCalls, call: ModelCall | None, answer: Answer, error: BaseException | None) -> None:
    if answer.is_whole:
        calls.finish(call, answer)
    elif error is not None and not answer.counts and has_error_status(error):
        calls.failed(call, error)
    else:
        calls.cut(call, answer, error)


def _hear(calls: ModelCalls, answer: Answer, response: Any) -> None:
    """Hears an answer, or a piece of one: each has the usage so far."""
    try:
        body = json.loads(value_at(response, "body") or "{}")
        _take(answer, body if isinstance(body, Mapping) else {})
    except Exception as error:  # noqa: BLE001 - a failure of the adapter must not end the host's work
        calls.fail(error)


def _take(answer: Answer, body: Mapping[str, Any]) -> None:
    answer.response_id = body.get("responseId") or answer.response_id
    answer.model = body.get("modelVersion") or answer.model
    if body.get("usageMetadata"):
        answer.counts = google_counts(body["usageMetadata"])
    elif isinstance(predictions := body.get("predictions"), list):
        told = (value_at(one, "embeddings", "statistics", "token_count") for one in predictions)
        answer.counts = fitted(tokens_in=sum(map(number, told)))
    candidates = body.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else None
    answer.text += text_of(value_at(candidate, "content", "parts"))
    if value_at(candidate, "finishReason") or value_at(body, "promptFeedback", "blockReason"):
        answer.is_whole = True
