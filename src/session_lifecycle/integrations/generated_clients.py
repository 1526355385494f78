"""Hooks into the clients of OpenAI and of Anthropic, which one generator makes.

Every call of these clients goes through the public method `post` of the client: plain calls, streams, `parse`, the
helpers of streams, `with_raw_response` and `with_streaming_response`. So the host gets a copy of its client, of a class
below the client's, with a `post` of its own. No class is changed, and the host's client stays as it is.

What a stream says is heard where its bytes pass `iter_bytes` of the HTTP response, whatever reads them: an object of
the client would be seen by some readers only.
"""

import inspect
import json
import re
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from copy import copy as shallow_copy
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, cast

from session_lifecycle.integrations.adapter import OpenParts
from session_lifecycle.integrations.counts import value_at
from session_lifecycle.integrations.model_calls import Answer, ModelCall, ModelCalls

Client = TypeVar("Client")
# Bedrock's streams are frames, each with an event in base64.
_FRAME = re.compile(rb'"bytes"\s*:\s*"([A-Za-z0-9+/=]+)"')


class Operation(NamedTuple):
    """A kind of call of an API: what begins it, and who reads its answer."""

    name: str
    read: Callable[[Answer, Any], None]
    """Reads a whole answer, which is an object or a dict."""
    hear: Callable[[Answer, dict[str, Any]], None]
    """Hears an event of a stream."""
    prompt: Callable[[Mapping[str, Any]], str]
    """Finds the last prompt in the request."""
    kind: Literal["llm", "embedding"] = "llm"


class Api(NamedTuple):
    """What differs from client to client."""

    operation: Callable[[str], Operation | None]
    """The kind of call by the path of a POST, without a query; None: no model answers."""
    pending: Callable[[Any], str | None]
    """The id of an answer that is still being made, in the background; None: it is made."""
    result_path: re.Pattern[str]
    """The paths where the answer of a call in the background may be found. Its group is the answer's id."""
    change: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Changes the body of a request, by its path; None: the request stays as the host made it."""


def recorded_client(client: Client, api: Api, calls: ModelCalls) -> Client:
    """A copy of the client whose calls are recorded. The copy shares the connections of the client.

    Args:
        client: The host's client.
        api: What differs from client to client.
        calls: Takes the calls.
    """
    like: Any = shallow_copy(client)
    kind: Any = type(client)
    like.__class__ = _recorded(getattr(kind, "session_lifecycle_kind", kind))
    like.session_lifecycle_hooks = _Hooks(api, calls)
    return cast(Client, like.copy())


class _Hooks:
    """What the recorded copies of one client share."""

    def __init__(self, api: Api, calls: ModelCalls) -> None:
        self.api = api
        self.calls = calls
        self.pending: OpenParts[str, ModelCall] = OpenParts(lambda call: call.attempt.cancel())

    def operation(self, path: str) -> Operation | None:
        """The kind of call by the path of a POST; None: no model answers."""
        return self.api.operation(_bare(path))

    def begin(self, operation: Operation, body: Any) -> ModelCall | None:
        request: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
        prompt = None
        if self.calls.content:
            prompt = self._tried(lambda: operation.prompt(request))
        return self.calls.begin(operation.name, request.get("model"), operation.kind, prompt)

    def take(self, operation: Operation, call: ModelCall | None, result: Any) -> None:
        """Takes what `post` returned: an answer, a stream, or a response that the host reads by itself."""
        self._tried(lambda: self._take(operation, call, result))

    def _take(self, operation: Operation, call: ModelCall | None, result: Any) -> None:
        if call is None:
            return
        response = _http_response(result)
        if response is None:
            self.read(operation, call, result)
        else:
            self._listen(operation, call, response)

    def _listen(self, operation: Operation, call: ModelCall, response: Any, pending: str | None = None) -> None:
        listener = _Listener(self, operation, call, response.headers, pending)
        if not response.is_closed:
            response.session_lifecycle_listener = listener
            response.__class__ = _heard(cast(Any, type(response)))
        elif listener.hears_events:  # somebody has read the whole stream, as an event hook of the HTTP client does
            listener.hear_all(response.content)
        else:
            self.read(operation, call, json.loads(response.content), pending)

    def read(self, operation: Operation, call: ModelCall, body: Any, pending: str | None = None) -> None:
        """Reads a whole body. It may say that the answer is still being made, as `pending` said before it."""
        still_pending = self.api.pending(body)
        if still_pending is not None:
            self.pending.put(still_pending, call)
            return
        if pending is not None and value_at(body, "id") != pending:
            return  # an error, or nothing that we know
        answer = Answer()
        operation.read(answer, body)
        self.finish(call, answer)

    def finish(self, call: ModelCall, answer: Answer) -> None:
        """Closes a call with its whole answer."""
        if len(self.pending):
            self.pending.take(str(answer.response_id))
        self.calls.finish(call, answer)

    def cut(self, call: ModelCall, answer: Answer, error: BaseException | None) -> None:
        """Closes a call whose stream ended before its answer did, unless that is still being made."""
        if answer.pending is None:
            self.calls.cut(call, answer, error)
        else:
            self.pending.put(answer.pending, call)

    def look(self, path: str, result: Any) -> None:
        """Looks whether this is the answer of a call in the background."""
        self._tried(lambda: self._look(path, result))

    def _look(self, path: str, result: Any) -> None:
        found = self.api.result_path.fullmatch(_bare(path)) if len(self.pending) else None
        call = None if found is None else self.pending.get(found[1])
        operation = self.api.operation("/responses")
        if found is None or call is None or operation is None:
            return
        response = _http_response(result)
        if response is None:
            self.read(operation, call, result, found[1])
        else:
            self._listen(operation, call, response, found[1])

    def changed(
        self, path: str, operation: Operation, call: ModelCall | None, arguments: dict[str, Any], noted: list[bool]
    ) -> dict[str, Any]:
        """The arguments of `post`, with a body that is changed where the host wants that.

        A parser among them lets the answer be seen first: a parser that raises does not hide what was billed. Then
        there is an entry in `noted`.
        """
        body, options = arguments.get("body"), arguments.get("options")
        change = self.api.change
        if change is not None and isinstance(body, Mapping):
            arguments = {**arguments, "body": change(_bare(path), body)}
        parser = value_at(options, "post_parser")
        if call is None or not callable(parser) or not isinstance(options, Mapping):
            return arguments

        def parse(result: Any) -> Any:
            if not noted and _http_response(result) is None:
                noted.append(True)
                self._tried(lambda: self.read(operation, call, result))
            return parser(result)

        return {**arguments, "options": {**options, "post_parser": parse}}

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - a failure of the adapter must not end the host's work
            self.calls.fail(error)
            return None


@cache
def _recorded(kind: Any) -> Any:
    """The class of recorded clients, below their own. Its objects have their hooks in `session_lifecycle_hooks`.

    Not methods on the object: some clients make their resources, which keep `post`, before anybody has the object.
    """

    def copy(self: Any, *arguments: Any, **options: Any) -> Any:
        made = kind.copy(self, *arguments, **options)  # of the class of `self`
        made.session_lifecycle_hooks = self.session_lifecycle_hooks
        return made

    methods = _asynchronous(kind) if inspect.iscoroutinefunction(kind.post) else _synchronous(kind)
    methods |= {"copy": copy, "with_options": copy, "session_lifecycle_kind": kind}
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})


def _asynchronous(kind: Any) -> dict[str, Any]:
    async def post(self: Any, path: str, **arguments: Any) -> Any:
        hooks: _Hooks = self.session_lifecycle_hooks
        operation = hooks.operation(path)
        if operation is None:
            result = await kind.post(self, path, **arguments)
            hooks.look(path, result)
            return result
        call = hooks.begin(operation, arguments.get("body"))
        noted: list[bool] = []
        arguments = hooks.changed(path, operation, call, arguments, noted)
        try:
            await hooks.calls.ask(call, arguments.get("body"))
            result = await kind.post(self, path, **arguments)
        except BaseException as error:
            if not noted:
                hooks.calls.failed(call, error)
            raise
        if not noted:
            noted.append(True)
            hooks.take(operation, call, result)
        return result

    async def get(self: Any, path: str, **arguments: Any) -> Any:
        result = await kind.get(self, path, **arguments)
        self.session_lifecycle_hooks.look(path, result)
        return result

    return {"post": post, "get": get}


def _synchronous(kind: Any) -> dict[str, Any]:
    def post(self: Any, path: str, **arguments: Any) -> Any:
        hooks: _Hooks = self.session_lifecycle_hooks
        operation = hooks.operation(path)
        if operation is None:
            result = kind.post(self, path, **arguments)
            hooks.look(path, result)
            return result
        call = hooks.begin(operation, arguments.get("body"))
        noted: list[bool] = []
        arguments = hooks.changed(path, operation, call, arguments, noted)
        try:
            hooks.calls.ask_now(call, arguments.get("body"))
            result = kind.post(self, path, **arguments)
        except BaseException as error:
            if not noted:
                hooks.calls.failed(call, error)
            raise
        if not noted:
            noted.append(True)
            hooks.take(operation, call, result)
        return result

    def get(self: Any, path: str, **arguments: Any) -> Any:
        result = kind.get(self, path, **arguments)
        self.session_lifecycle_hooks.look(path, result)
        return result

    return {"post": post, "get": get}


def _bare(path: str) -> str:
    """The path without its query, which says that an API is a beta."""
    return path.partition("?")[0]


def _http_response(result: Any) -> Any:
    """The HTTP response of a stream or of a raw response; None where the result is the answer."""
    for found in (getattr(result, "http_response", None), getattr(result, "response", None), result):
        if all(hasattr(found, name) for name in ("iter_bytes", "aiter_bytes", "is_closed", "headers")):
            return found
    return None


@cache
def _heard(kind: Any) -> Any:
    """The class of a response that is listened to, below its own. All that decode its bytes go through these methods.

    Not methods on the object: it would then be in a cycle, and closed by the garbage collector when the host drops it.
    """

    def iter_bytes(self: Any, *arguments: Any, **named: Any) -> Iterator[bytes]:
        return cast("_Listener", self.session_lifecycle_listener).listened(kind.iter_bytes(self, *arguments, **named))

    def aiter_bytes(self: Any, *arguments: Any, **named: Any) -> AsyncIterator[bytes]:
        return cast("_Listener", self.session_lifecycle_listener).alistened(kind.aiter_bytes(self, *arguments, **named))

    def close(self: Any) -> None:
        try:
            kind.close(self)
        finally:
            self.session_lifecycle_listener.closed()

    async def aclose(self: Any) -> None:
        try:
            await kind.aclose(self)
        finally:
            self.session_lifecycle_listener.closed()

    methods = {"iter_bytes": iter_bytes, "aiter_bytes": aiter_bytes, "close": close, "aclose": aclose}
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})


class _Listener:
    """Hears what a response says while the host reads it, and closes the call when that ends."""

    def __init__(
        self, hooks: _Hooks, operation: Operation, call: ModelCall, headers: Any, pending: str | None = None
    ) -> None:
        self._hooks = hooks
        self._calls = hooks.calls
        self._operation = operation
        self._call = call
        self._answer = Answer(pending=pending)
        self._heard = b""
        self._is_told = self._is_reading = False
        kind = str(headers.get("content-type", ""))
        self._take = self._take_body
        if kind.startswith("text/event-stream"):
            self._take = self._take_lines
        elif "eventstream" in kind:
            self._take = self._take_frames

    @property
    def hears_events(self) -> bool:
        """Whether the response is a stream of events."""
        return self._take != self._take_body

    def hear_all(self, content: bytes) -> None:
        """Hears a response that was read before."""
        self._hear(content)
        self._end(None)

    def listened(self, inner: Iterator[bytes]) -> Generator[bytes, None, None]:
        """The bytes as they are, heard on their way."""
        error: BaseException | None = None
        try:
            while (piece := self._next(inner)) is not None:
                self._hear(piece)
                yield piece
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._end(error)

    async def alistened(self, inner: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The bytes as they are, heard on their way."""
        error: BaseException | None = None
        try:
            while (piece := await self._anext(inner)) is not None:
                self._hear(piece)
                yield piece
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._end(error)

    def _next(self, inner: Iterator[bytes]) -> bytes | None:
        self._is_reading = True
        try:
            return next(inner, None)
        finally:
            self._is_reading = False

    async def _anext(self, inner: AsyncIterator[bytes]) -> bytes | None:
        self._is_reading = True
        try:
            return await anext(inner, None)
        finally:
            self._is_reading = False

    def closed(self) -> None:
        """The response was closed."""
        # A response closes itself at its end, while it is read: what it has said is then not heard to the end yet.
        if not self._is_reading:
            self._end(GeneratorExit())

    def _hear(self, piece: bytes) -> None:
        if self._is_told:
            return
        try:
            self._heard += piece
            self._take()
            if self._answer.is_whole:
                self._tell()
        except Exception as error:  # noqa: BLE001 - a failure of the adapter must not end the host's work
            self._give_up(error)

    def _end(self, error: BaseException | None) -> None:
        if self._is_told:
            return
        try:
            if not self.hears_events and self._heard and error is None:
                self._is_told = True
                self._hooks.read(self._operation, self._call, json.loads(self._heard), self._answer.pending)
                return
        except Exception as failure:  # noqa: BLE001 - a failure of the adapter must not end the host's work
            self._give_up(failure)
            return
        if self._answer.is_whole:
            self._tell()
            return
        self._is_told = True
        self._hooks.cut(self._call, self._answer, error)

    def _tell(self) -> None:
        self._is_told = True
        self._heard = b""
        self._hooks.finish(self._call, self._answer)

    def _give_up(self, error: Exception) -> None:
        self._is_told = True
        self._heard = b""
        self._calls.fail(error)
        self._hooks.cut(self._call, Answer(pending=self._answer.pending), None)

    def _take_body(self) -> None:
        """The body of a plain answer is read at its end."""

    def _take_lines(self) -> None:
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def _take_frames(self) -> None:
        end = 0
        for found in _FRAME.finditer(self._heard):
            self._event(b64decode(found[1]))
            end = found.end()
        self._heard = self._heard[end:]

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._answer.is_whole = True
            return
        # Most events of a stream are a word of text. They are read only where the text is wanted.
        is_wanted = self._calls.content or self._answer.response_id is None
        if is_wanted or b'"usage"' in data or b'"error"' in data or b"_reason" in data:
            event = json.loads(data)
            if isinstance(event, dict):
                self._operation.hear(self._answer, event)
