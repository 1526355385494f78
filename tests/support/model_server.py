"""A loopback stand-in of three model APIs, with a list of what it served.

OpenAI (Chat Completions, Responses, embeddings, images), Anthropic (Messages), Google GenAI (generateContent), each
plain and as server-sent events. Paths are told apart by their ends, so the addresses of Azure and Vertex work too.

    with ModelServer() as server:  # or `async with`; the server has a thread of its own
        client = AsyncOpenAI(base_url=server.openai, api_key="none")
        ...
    assert server.served[0].tokens_in == 1200

Usage of the first turn, inclusive. Each turn more (an answer of the model in the request) adds a little.

| api       | in                                                    | out              | each turn more |
|-----------|-------------------------------------------------------|------------------|----------------|
| openai    | 1,200 (1,024 read, 64 written)                        | 80 (48 reasoning)| 100 in, 1 out  |
| anthropic | 7,120 (5,000 read, 2,000 written, of it 500 for 1 h)  | 64 (20 thinking) | 1 in, 1 out    |
| google    | 1,500 (1,024 read)                                    | 80 (20 thoughts) | 10 in, 1 out   |

Words in the last prompt choose the case. `@1` at its end limits a word to that turn, counted from 0.

- `[[tools]]`: each turn calls the next of the offered tools that has not been called, and then answers.
  `[[tools:get_weather,get_time]]` calls only these, in this order. A tool's input is made from its schema; a text that
  is called input, request, query, question, prompt or task gets the prompt's words `{{…}}` as `[[…]]`.
- `[[nousage]]`: the answer has no usage (Anthropic: zeros).
- `[[slow]]`: plain, the answer does not come within `slow_seconds`; streaming, three pieces come, and the rest not.
- `[[broken]]`: the connection is cut in the middle of the answer.
- `[[err500]]`: the answer is status 500, each time. `[[err400]]` is 400. `[[midfail]]`: a stream tells an error.
- `[[once429:name]]`, `[[once500:name]]`: the first request with this name is refused, the next is answered.
- `[[priority]]`: the answer names the service tier `priority`. `[[search]]`: it tells two web searches.
"""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
WORDS = re.compile(r"\[\[(\w+)(?::([^\]@]*))?(?:@(\d+))?\]\]")
ANSWER = "It is seven degrees in Tartu."
SERVED_MODELS = {"gpt-5": "gpt-5-2025-08-07", "gpt-4o": "gpt-4o-2024-08-06", "gpt-4o-mini": "gpt-4o-mini-2024-07-18"}
"""The name of the model that answers, where it is not the one that was asked for."""
_VALUES = {
    "city": "Tartu",
    "command": "echo seven",
    "subagent_type": "general-purpose",
    "agent_name": "child",
    "timezone": "Europe/Tallinn",
}
_PASSED_ON = {"input", "request", "query", "question", "prompt", "task"}


@dataclass
class Served:
    """A request, and what it was answered with. Counts are inclusive, and 0 where no answer was begun."""

    api: str
    """`chat`, `responses`, `anthropic`, `google`, `embeddings` or `images`."""
    model: str
    """The model that was asked for."""
    served_model: str
    is_stream: bool
    turn: int
    case: tuple[str, ...]
    body: Json
    headers: dict[str, str]
    response_id: str
    request_id: str
    status: int = 200
    tokens_in: int = 0
    tokens_out: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    tells_usage: bool = False
    """Whether the answer has its usage."""
    is_whole: bool = False
    """Whether the answer was sent to its end."""
    tool_calls: list[tuple[str, str]] = field(default_factory=list)
    """Id and name of the tool calls of the answer."""


class ModelServer:
    """The stand-in. It listens on a free port of 127.0.0.1, in a thread of its own, while its block lasts.

    Attributes:
        served: The requests for answers, in the order in which they came.
        slow_seconds: How long an answer in the case `[[slow]]` takes.
        answer: The text of every answer.
        fixed_id: The id of every response; None: ids count up.
        changed: Changes the body of plain answers before they are sent.
    """

    def __init__(self, *, slow_seconds: float = 30, answer: str = ANSWER) -> None:
        """Does not listen yet."""
        self.served: list[Served] = []
        self.slow_seconds = slow_seconds
        self.answer = answer
        self.fixed_id: str | None = None
        self.changed: Callable[[Json], Json] = lambda body: body
        self.port = 0
        self._once: set[str] = set()
        self._remembered: dict[str, tuple[int, list[str], str]] = {}
        self._number = 0
        self._made: dict[str, Json] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        """The base address of Anthropic's and Google's clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai(self) -> str:
        """The base address of OpenAI's clients."""
        return f"{self.url}/v1"

    @property
    def answered(self) -> list[Served]:
        """The requests whose answer was sent to its end, with its usage."""
        return [one for one in self.served if one.status == 200 and one.is_whole and one.tells_usage]

    def __enter__(self) -> Self:
        listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), name="model server")
        self._thread.start()
        if not listening.wait(20):
            raise TimeoutError("the model server does not listen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    async def _serve(self, listening: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                connections[task] = writer
                task.add_done_callback(connections.pop)
            try:
                await self._converse(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client went away, or the server stops
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        await self._stop.wait()
        server.close()
        left = dict(connections)
        for task, writer in left.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.01)  # a transport closes its socket in a later turn of the loop

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ", 2)
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
            }
            text = await reader.readexactly(int(headers.get("content-length") or 0))
            body: Json = json.loads(text) if text.startswith(b"{") else {}
            if not await self._respond(_Out(reader, writer), method, target, headers, body):
                return

    async def _respond(self, out: "_Out", method: str, target: str, headers: dict[str, str], body: Json) -> bool:
        """Answers a request. Returns whether the connection may be used again."""
        place = urlsplit(target)
        path = place.path
        if method == "GET" and path.rsplit("/", 1)[-1] in self._made:
            return await out.plain(200, self._made[path.rsplit("/", 1)[-1]])
        google = re.search(r"/models/([^:]+):(generateContent|streamGenerateContent|countTokens)$", path)
        if method == "POST" and path.endswith("/chat/completions"):
            dialect: _Dialect = _Chat(self, body)
        elif method == "POST" and path.endswith("/responses"):
            dialect = _Responses(self, body)
        elif method == "POST" and path.endswith("/v1/messages"):
            dialect = _Anthropic(self, body)
        elif method == "POST" and path.endswith("/embeddings"):
            dialect = _Embeddings(self, body)
        elif method == "POST" and path.endswith("/images/generations"):
            dialect = _Images(self, body)
        elif google and google[2] != "countTokens":
            is_stream = google[2] == "streamGenerateContent"
            if is_stream and parse_qs(place.query).get("alt") != ["sse"]:
                return await out.plain(400, {"error": {"code": 400, "message": "alt=sse is expected"}})
            dialect = _Google(self, body | {"model": google[1], "stream": is_stream})
        elif google or path.endswith("/count_tokens"):
            return await out.plain(200, {"totalTokens": 1500, "input_tokens": 7120})
        else:
            return await out.plain(200 if method == "HEAD" else 404, {"error": {"message": f"no such path: {path}"}})
        return await self._serve_model(out, dialect, headers)

    async def _serve_model(self, out: "_Out", dialect: "_Dialect", headers: dict[str, str]) -> bool:
        self._number += 1
        words = {
            word: argument for word, argument, turn in WORDS.findall(dialect.prompt) if turn in ("", str(dialect.turn))
        }
        served = Served(
            api=dialect.api,
            model=dialect.model,
            served_model=SERVED_MODELS.get(dialect.model, dialect.model),
            is_stream=dialect.is_stream,
            turn=dialect.turn,
            case=tuple(words),
            body=dialect.body,
            headers=headers,
            response_id=f"{dialect.id_prefix}local{self._number:04}" if self.fixed_id is None else self.fixed_id,
            request_id=f"req_{dialect.api}_{self._number:04}",
        )
        self.served.append(served)
        out.headers = {
            "x-request-id": served.request_id,
            "request-id": served.request_id,
            "retry-after-ms": "1",
            "retry-after": "0",
        }
        status = self._refusal(words)
        if status != 200:
            served.status = status
            served.is_whole = True
            return await out.plain(status, dialect.error(status))
        dialect.answer(served, words, self._number)
        if not dialect.is_stream:
            return await self._send_plain(out, dialect, served, words)
        return await self._send_stream(out, dialect, served, words)

    async def _send_plain(self, out: "_Out", dialect: "_Dialect", served: Served, words: Mapping[str, str]) -> bool:
        if "slow" in words and not await self._wait(out):
            return False
        if "broken" in words:
            await out.cut(dialect.whole(served))
            return False
        # Before the last byte: a test looks as soon as its client has the answer.
        served.is_whole = True
        return await out.plain(200, self.changed(dialect.whole(served)))

    async def _send_stream(self, out: "_Out", dialect: "_Dialect", served: Served, words: Mapping[str, str]) -> bool:
        await out.begin_stream()
        events = list(dialect.events(served))
        for position, event in enumerate(events):
            if position == min(3, len(events) - 1):
                if "slow" in words and not await self._wait(out):
                    return False
                if "broken" in words:
                    return False
                if "midfail" in words:
                    await out.event(dialect.failure(served))
                    return await out.end_stream()
            if out.is_left:
                return False
            served.is_whole = position == len(events) - 1
            try:
                await out.event(event)
            except ConnectionError:
                served.is_whole = False
                raise
        return await out.end_stream()

    async def _wait(self, out: "_Out") -> bool:
        """Waits as long as a slow answer takes. Returns whether the client is still there."""
        try:
            await asyncio.wait_for(out.left(), self.slow_seconds)
        except TimeoutError:
            return True
        return False

    def _refusal(self, words: Mapping[str, str]) -> int:
        for word in words:
            if word in {"err500", "err400"}:
                return int(word[3:])
            if word in {"once429", "once500"}:
                name = f"{word}:{words[word]}"
                if name not in self._once:
                    self._once.add(name)
                    return int(word[4:])
        return 200

    def make(self, body: Json) -> None:
        """Makes an answer that a later request fetches by its id."""
        self._made[body["id"]] = body

    def remembered(self, response_id: str | None) -> tuple[int, list[str], str]:
        """The turns, the tools called, and the prompt, of a response that a request names as the one before it."""
        return self._remembered.get(response_id or "", (0, [], ""))

    def remember(self, response_id: str, turns: int, called: list[str], prompt: str) -> None:
        """Remembers a response, which a later request may name."""
        self._remembered[response_id] = (turns, called, prompt)


class _Out:
    """The answer's side of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.headers: dict[str, str] = {}
        self._reader = reader
        self._writer = writer

    @property
    def is_left(self) -> bool:
        return self._reader.at_eof()

    async def left(self) -> None:
        """Returns when the client has gone."""
        while await self._reader.read(1):
            pass

    async def plain(self, status: int, body: Json) -> bool:
        data = json.dumps(body).encode()
        await self._head(status, {"content-type": "application/json", "content-length": str(len(data))}, data)
        return True

    async def cut(self, body: Json) -> None:
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(data))}
        await self._head(200, headers, data[: len(data) // 2])

    async def begin_stream(self) -> None:
        await self._head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}, b"")

    async def event(self, event: Json | str) -> None:
        """Sends an event. One with `type` is named by it, as OpenAI's Responses and Anthropic name theirs."""
        if isinstance(event, str):
            text = f"data: {event}\n\n"
        else:
            name = f"event: {event['type']}\n" if "type" in event else ""
            text = f"{name}data: {json.dumps(event)}\n\n"
        data = text.encode()
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()
        await asyncio.sleep(0)

    async def end_stream(self) -> bool:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        return True

    async def _head(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in {**self.headers, **headers}.items())]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await self._writer.drain()


class _Dialect:
    """One API: reads the request, and writes the answer."""

    api = ""
    id_prefix = ""

    def __init__(self, server: ModelServer, body: Json) -> None:
        self.body = body
        self.model = str(body.get("model"))
        self.is_stream = bool(body.get("stream"))
        self.prompt = ""
        self.turn = 0
        self.called: list[str] = []
        self.tool: tuple[str, str, Json] | None = None
        """Id, name and input of the tool that the answer calls."""
        self._server = server
        self.read()

    def read(self) -> None:
        """Finds the prompt, the turn and the tools that were called."""
        raise NotImplementedError

    def offered(self) -> dict[str, Json]:
        """The tools that the request offers, with the schemas of their inputs."""
        return {}

    def answer(self, served: Served, words: Mapping[str, str], number: int) -> None:
        """Decides the counts, and which tool is called."""
        self.words = words
        served.tells_usage = "nousage" not in words
        self.count(served)
        offered = self.offered()
        if "tools" in words:
            wanted = words["tools"].split(",") if words["tools"] else list(offered)
            left = [name for name in wanted if name in offered and name not in self.called]
            if left:
                call_id = f"{'toolu' if self.api == 'anthropic' else 'call'}_local{number:04}"
                self.tool = (call_id, left[0], made_of(offered[left[0]], self.prompt))
                served.tool_calls.append((call_id, left[0]))
        self._server.remember(
            served.response_id, self.turn + 1, [*self.called, *(name for _, name in served.tool_calls)], self.prompt
        )

    def count(self, served: Served) -> None:
        """Decides the counts."""
        served.tokens_in, served.tokens_out = 1200 + 100 * self.turn, 80 + self.turn
        served.cache_read_tokens, served.cache_write_tokens, served.reasoning_tokens = 1024, 64, 48

    def whole(self, served: Served) -> Json:
        """The whole answer."""
        raise NotImplementedError

    def events(self, served: Served) -> Iterator[Json | str]:
        """The answer as a stream."""
        raise NotImplementedError

    def error(self, status: int) -> Json:
        """The body of an answer with this status."""
        kind = "rate_limit_exceeded" if status == 429 else "server_error"
        message = "Rate limit reached" if status == 429 else "The server had an error"
        return {"error": {"message": message, "type": kind, "param": None, "code": kind}}

    def failure(self, served: Served) -> Json:
        """The event of a stream that tells an error."""
        return self.error(500)

    def text(self, schema: Json | None) -> str:
        """The text of the answer: by the schema, where the request wants one."""
        return self._server.answer if schema is None else json.dumps(made_of(schema, ""))

    def _tier(self) -> str:
        return "priority" if "priority" in self.words else "default"


def made_of(schema: Json, prompt: str, definitions: Json | None = None) -> Any:
    """A value that the JSON schema takes."""
    defined: Json = schema.get("$defs") or definitions or {}
    if "$ref" in schema:
        return made_of(defined.get(schema["$ref"].rsplit("/", 1)[-1], {}), prompt, defined)
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return made_of(schema[choice][0], prompt, defined)
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = str(schema.get("type", "object")).lower()
    if kind == "object":
        properties = schema.get("properties") or {}
        wanted = schema.get("required") or []
        passed = re.sub(r"\{\{(.*?)\}\}", r"[[\1]]", re.sub(WORDS, "", prompt)).strip() or "go on"
        value = {name: made_of(of, prompt, defined) for name, of in properties.items() if name in wanted}
        for name, of in properties.items():
            if name in wanted and str(of.get("type", "string")).lower() == "string" and not of.get("enum"):
                value[name] = passed if name in _PASSED_ON else _VALUES.get(name, f"a {name}")
        return value
    simple: dict[str, Any] = {"array": [], "integer": 7, "number": 7.5, "boolean": True, "null": None}
    return simple.get(kind, "seven")


def texts_of(content: Any) -> str:
    """The text of a content: text, a block, or a list of blocks. What a program adds for the model is left out."""
    if isinstance(content, str):
        return "" if content.startswith("<system-reminder>") else content
    if isinstance(content, list):
        return " ".join(texts_of(block) for block in content)
    if isinstance(content, dict):
        return texts_of(content.get("text"))
    return ""


def pieces(text: str) -> list[str]:
    """A text in pieces, as a stream tells it."""
    return re.findall(r"\S+\s*", text) or [text]


def told_as_called(prompt: str) -> list[str]:
    """Tools that the prompt tells were called, as Google ADK does after a transfer."""
    return re.findall(r"called tool `(\w+)`", prompt)


class _Chat(_Dialect):
    api, id_prefix = "chat", "chatcmpl-"

    def read(self) -> None:
        for message in self.body.get("messages") or []:
            if message.get("role") == "user" and texts_of(message.get("content")).strip():
                text = texts_of(message["content"])
                self.called += told_as_called(text)
                if not text.startswith("For context:"):
                    self.prompt = text
            elif message.get("role") == "assistant":
                self.turn += 1
                self.called += [call["function"]["name"] for call in message.get("tool_calls") or []]

    def offered(self) -> dict[str, Json]:
        tools = [tool["function"] for tool in self.body.get("tools") or [] if tool.get("type") == "function"]
        return {tool["name"]: tool.get("parameters") or {} for tool in tools}

    def _usage(self, served: Served) -> Json | None:
        if not served.tells_usage:
            return None
        return {
            "prompt_tokens": served.tokens_in,
            "completion_tokens": served.tokens_out,
            "total_tokens": served.tokens_in + served.tokens_out,
            "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0, "cache_write_tokens": 64},
            "completion_tokens_details": {
                "reasoning_tokens": 48,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def _schema(self) -> Json | None:
        wanted = self.body.get("response_format") or {}
        schema: Json | None = (wanted.get("json_schema") or {}).get("schema")
        return schema

    def _common(self, served: Served, kind: str) -> Json:
        told = {"id": served.response_id, "object": kind, "created": 1795000000, "model": served.served_model}
        return {**told, "service_tier": self._tier()}

    def whole(self, served: Served) -> Json:
        message: Json = {"role": "assistant", "content": self.text(self._schema()), "refusal": None, "annotations": []}
        if self.tool:
            call_id, name, arguments = self.tool
            function = {"name": name, "arguments": json.dumps(arguments)}
            message |= {"content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]}
        reason = "tool_calls" if self.tool else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        whole = {**self._common(served, "chat.completion"), "choices": [choice]}
        usage = self._usage(served)
        return whole if usage is None else whole | {"usage": usage}

    def events(self, served: Served) -> Iterator[Json | str]:
        wants_usage = bool((self.body.get("stream_options") or {}).get("include_usage"))
        served.tells_usage = served.tells_usage and wants_usage
        common = self._common(served, "chat.completion.chunk") | ({"usage": None} if wants_usage else {})

        def chunk(delta: Json, reason: str | None = None) -> Json:
            return {
                **common,
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}],
            }

        yield chunk({"role": "assistant", "content": "" if self.tool is None else None})
        if self.tool:
            call_id, name, arguments = self.tool
            call = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            yield chunk({"tool_calls": [call]})
            for piece in pieces(json.dumps(arguments)):
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        else:
            for piece in pieces(self.text(self._schema())):
                yield chunk({"content": piece})
        yield chunk({}, "tool_calls" if self.tool else "stop")
        if served.tells_usage:
            yield {**common, "choices": [], "usage": self._usage(served)}
        yield "[DONE]"


class _Responses(_Dialect):
    api, id_prefix = "responses", "resp_"

    def read(self) -> None:
        self.turn, called, self.prompt = self._server.remembered(self.body.get("previous_response_id"))
        self.called = list(called)
        items = self.body.get("input")
        if isinstance(items, str):
            self.prompt = items
            return
        was_answer = False
        for item in items or []:
            kind = item.get("type", "message")
            is_answer = kind in {"reasoning", "function_call"} or item.get("role") == "assistant"
            if is_answer and not was_answer:
                self.turn += 1
            was_answer = is_answer
            if kind == "function_call":
                self.called.append(item["name"])
            elif item.get("role") == "user":
                text = texts_of(item.get("content"))
                self.prompt = text if text.strip() else self.prompt

    def offered(self) -> dict[str, Json]:
        tools = [tool for tool in self.body.get("tools") or [] if tool.get("type") == "function"]
        return {tool["name"]: tool.get("parameters") or {} for tool in tools}

    def _response(self, served: Served, status: str = "completed") -> Json:
        is_over = status == "completed"
        usage = {
            "input_tokens": served.tokens_in,
            "input_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 64},
            "output_tokens": served.tokens_out,
            "output_tokens_details": {"reasoning_tokens": 48},
            "total_tokens": served.tokens_in + served.tokens_out,
        }
        return {
            "id": served.response_id,
            "object": "response",
            "created_at": 1795000000,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": served.served_model,
            "output": self._output(served) if is_over else [],
            "parallel_tool_calls": True,
            "previous_response_id": self.body.get("previous_response_id"),
            "service_tier": self._tier() if is_over else "auto",
            "temperature": 1.0,
            "text": self.body.get("text") or {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": self.body.get("tools") or [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": usage if is_over and served.tells_usage else None,
            "user": None,
        }

    def _item_id(self, served: Served) -> str:
        return served.response_id.replace("resp_", "fc_" if self.tool else "msg_")

    def _output(self, served: Served) -> list[Json]:
        searches = [
            {
                "id": f"ws_{number}",
                "type": "web_search_call",
                "status": "completed",
                "action": {"type": "search", "query": "Tartu"},
            }
            for number in range(2 if "search" in self.words else 0)
        ]
        return [*searches, self._item(served)]

    def _item(self, served: Served) -> Json:
        if self.tool:
            call_id, name, arguments = self.tool
            told = {"id": self._item_id(served), "type": "function_call", "status": "completed", "call_id": call_id}
            return {**told, "name": name, "arguments": json.dumps(arguments)}
        text = {"type": "output_text", "text": self._answer(), "annotations": [], "logprobs": []}
        told = {"id": self._item_id(served), "type": "message", "status": "completed", "role": "assistant"}
        return {**told, "content": [text]}

    def _answer(self) -> str:
        wanted = (self.body.get("text") or {}).get("format") or {}
        return self.text(wanted.get("schema"))

    def whole(self, served: Served) -> Json:
        if self.body.get("background"):
            self._server.make(self._response(served))
            return self._response(served, "queued")
        return self._response(served)

    def failure(self, served: Served) -> Json:
        failed = self._response(served, "failed")
        failed["error"] = {"code": "server_error", "message": "The server had an error"}
        return {"type": "response.failed", "sequence_number": 3, "response": failed}

    def events(self, served: Served) -> Iterator[Json | str]:
        numbers = iter(range(1000))

        def event(kind: str, **fields: Any) -> Json:
            return {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}

        item, item_id = self._item(served), self._item_id(served)
        place = {"item_id": item_id, "output_index": 0}
        yield event("created", response=self._response(served, "in_progress"))
        yield event("in_progress", response=self._response(served, "in_progress"))
        if self.tool:
            begun = {**item, "status": "in_progress", "arguments": ""}
            yield event("output_item.added", output_index=0, item=begun)
            for piece in pieces(item["arguments"]):
                yield event("function_call_arguments.delta", **place, delta=piece)
            done = {**place, "arguments": item["arguments"], "name": item["name"]}
            yield event("function_call_arguments.done", **done)
        else:
            place["content_index"] = 0
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield event("output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []})
            yield event("content_part.added", **place, part=empty)
            for piece in pieces(self._answer()):
                yield event("output_text.delta", **place, delta=piece, logprobs=[])
            yield event("output_text.done", **place, text=self._answer(), logprobs=[])
            yield event("content_part.done", **place, part=item["content"][0])
        yield event("output_item.done", output_index=0, item=item)
        yield event("completed", response=self._response(served))


class _Anthropic(_Dialect):
    api, id_prefix = "anthropic", "msg_"

    def read(self) -> None:
        for message in self.body.get("messages") or []:
            content = message.get("content")
            if message.get("role") == "assistant":
                self.turn += 1
                blocks = content if isinstance(content, list) else []
                self.called += [block["name"] for block in blocks if block.get("type") == "tool_use"]
            elif texts_of(content).strip():
                self.prompt = texts_of(content)

    def offered(self) -> dict[str, Json]:
        tools = [tool for tool in self.body.get("tools") or [] if "input_schema" in tool]
        return {tool["name"]: tool["input_schema"] for tool in tools}

    def count(self, served: Served) -> None:
        served.tokens_in, served.tokens_out = 7120 + self.turn, 64 + self.turn
        served.cache_read_tokens, served.reasoning_tokens = 5000, 20
        served.cache_write_tokens, served.cache_write_1h_tokens = 2000, 500

    def _usage(self, served: Served) -> Json:
        if not served.tells_usage:
            return {"input_tokens": 0, "output_tokens": 0}
        usage: Json = {
            "input_tokens": 120 + self.turn,
            "cache_creation_input_tokens": 2000,
            "cache_creation": {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500},
            "cache_read_input_tokens": 5000,
            "output_tokens": served.tokens_out,
            "output_tokens_details": {"thinking_tokens": 20},
            "service_tier": "priority" if "priority" in self.words else "standard",
            "inference_geo": "not_available",
        }
        if "search" in self.words:
            usage["server_tool_use"] = {"web_search_requests": 2, "web_fetch_requests": 0}
        return usage

    def _block(self) -> Json:
        if self.tool:
            call_id, name, arguments = self.tool
            return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}
        wanted = (self.body.get("output_config") or {}).get("format") or self.body.get("output_format") or {}
        return {"type": "text", "text": self.text(wanted.get("schema"))}

    def _reason(self) -> str:
        return "tool_use" if self.tool else "end_turn"

    def _message(self, served: Served) -> Json:
        told = {"id": served.response_id, "type": "message", "role": "assistant", "model": served.served_model}
        return {**told, "content": [], "stop_reason": None, "stop_sequence": None}

    def whole(self, served: Served) -> Json:
        told = {"content": [self._block()], "stop_reason": self._reason(), "usage": self._usage(served)}
        return {**self._message(served), **told}

    def error(self, status: int) -> Json:
        kind = "rate_limit_error" if status == 429 else "api_error"
        return {"type": "error", "error": {"type": kind, "message": "Rate limited" if status == 429 else "Internal"}}

    def events(self, served: Served) -> Iterator[Json | str]:
        usage = self._usage(served)
        begun = {name: value for name, value in usage.items() if name != "output_tokens_details"}
        begun["output_tokens"] = min(3, usage["output_tokens"])
        yield {"type": "message_start", "message": {**self._message(served), "usage": begun}}
        block = self._block()
        empty: Json = {**block, "input": {}} if self.tool else {**block, "text": ""}
        yield {"type": "content_block_start", "index": 0, "content_block": empty}
        for piece in pieces(json.dumps(block["input"]) if self.tool else block["text"]):
            delta = (
                {"type": "input_json_delta", "partial_json": piece}
                if self.tool
                else {"type": "text_delta", "text": piece}
            )
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        last = {name: value for name, value in usage.items() if name in _DELTA_COUNTS}
        reason = {"stop_reason": self._reason(), "stop_sequence": None}
        yield {"type": "message_delta", "delta": reason, "usage": last}
        yield {"type": "message_stop"}


_DELTA_COUNTS = {
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
}


class _Google(_Dialect):
    api, id_prefix = "google", "google_"

    def read(self) -> None:
        for content in self.body.get("contents") or []:
            parts = content.get("parts") or []
            if content.get("role") == "model":
                self.turn += 1
                self.called += [part["functionCall"]["name"] for part in parts if "functionCall" in part]
            elif texts_of(parts).strip():
                text = texts_of(parts)
                self.called += told_as_called(text)
                if not text.startswith("For context:"):
                    self.prompt = text

    def offered(self) -> dict[str, Json]:
        functions = [
            one
            for tool in self.body.get("tools") or []
            for one in tool.get("functionDeclarations") or tool.get("function_declarations") or []
        ]
        return {
            one["name"]: one.get("parameters")
            or one.get("parametersJsonSchema")
            or one.get("parameters_json_schema")
            or {}
            for one in functions
        }

    def count(self, served: Served) -> None:
        served.tokens_in, served.tokens_out = 1500 + 10 * self.turn, 80 + self.turn
        served.cache_read_tokens, served.reasoning_tokens = 1024, 20

    def error(self, status: int) -> Json:
        name = "RESOURCE_EXHAUSTED" if status == 429 else "INTERNAL"
        return {"error": {"code": status, "message": "The service had an error", "status": name}}

    def _usage(self, served: Served) -> Json:
        if not served.tells_usage:
            return {}
        usage: Json = {
            "promptTokenCount": served.tokens_in,
            "candidatesTokenCount": served.tokens_out - 20,
            "thoughtsTokenCount": 20,
            "cachedContentTokenCount": 1024,
            "totalTokenCount": served.tokens_in + served.tokens_out,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": served.tokens_in}],
        }
        return {"usageMetadata": usage}

    def _chunk(self, served: Served, parts: list[Json], reason: str | None) -> Json:
        candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
        if reason:
            candidate["finishReason"] = reason
        told = {"modelVersion": served.served_model, "responseId": served.response_id}
        return {"candidates": [candidate], **told}

    def _parts(self) -> list[Json]:
        if self.tool:
            call_id, name, arguments = self.tool
            return [{"functionCall": {"id": call_id, "name": name, "args": arguments}}]
        wanted = self.body.get("generationConfig") or {}
        return [{"text": self.text(wanted.get("responseJsonSchema") or wanted.get("responseSchema"))}]

    def whole(self, served: Served) -> Json:
        return self._chunk(served, self._parts(), "STOP") | self._usage(served)

    def events(self, served: Served) -> Iterator[Json | str]:
        parts = self._parts()
        if not self.tool:
            for piece in pieces(parts[0]["text"]):
                begun = self._usage(served)
                if begun:  # a stream tells its counts so far with each piece
                    counts = begun["usageMetadata"]
                    counts |= {"candidatesTokenCount": 1, "totalTokenCount": served.tokens_in + 21}
                yield self._chunk(served, [{"text": piece}], None) | begun
            parts = [{"text": ""}]
        yield self._chunk(served, parts, "STOP") | self._usage(served)


class _Embeddings(_Dialect):
    api, id_prefix = "embeddings", "emb_"

    def read(self) -> None:
        self.prompt = texts_of(self.body.get("input"))
        self.is_stream = False

    def count(self, served: Served) -> None:
        served.tokens_in = 8

    def whole(self, served: Served) -> Json:
        embedding = "AACAPwAAAEA=" if self.body.get("encoding_format") == "base64" else [1.0, 2.0]
        data = [{"object": "embedding", "index": 0, "embedding": embedding}]
        whole: Json = {"object": "list", "data": data, "model": served.served_model}
        return whole | ({"usage": {"prompt_tokens": 8, "total_tokens": 8}} if served.tells_usage else {})


class _Images(_Dialect):
    api, id_prefix = "images", "img_"

    def read(self) -> None:
        self.prompt = texts_of(self.body.get("prompt"))
        self.is_stream = False

    def count(self, served: Served) -> None:
        served.tokens_in, served.tokens_out = 50, 1056

    def whole(self, served: Served) -> Json:
        usage: Json = {
            "input_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens": 1056,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": 1056},
            "total_tokens": 1106,
        }
        whole: Json = {"created": 1795000000, "data": [{"b64_json": "AAAA"}]}
        return whole | ({"usage": usage} if served.tells_usage else {})
