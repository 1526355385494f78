"""A loopback stand-in of three model APIs, with a list of what it served.

OpenAI (Chat Completions, Responses, decisions, embeddings, images), Anthropic (Messages), Google GenAI
(generateContent), each plain and as server-sent events. Paths are told apart by their ends, so the addresses of Azure
and Vertex work too.

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
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from support.model_apis.anthropic import Anthropic
from support.model_apis.dialect import ANSWER, WORDS, Dialect, Json, Kept, Served
from support.model_apis.google import Google
from support.model_apis.openai import Chat, Decisions, Embeddings, Images, Responses

SERVED_MODELS = {"gpt-5": "gpt-5-2025-08-07", "gpt-4o": "gpt-4o-2024-08-06", "gpt-4o-mini": "gpt-4o-mini-2024-07-18"}
"""The name of the model that answers, where it is not the one that was asked for."""

_DIALECTS: dict[str, type[Dialect]] = {
    "/chat/completions": Chat,
    "/responses": Responses,
    "/decisions": Decisions,
    "/v1/messages": Anthropic,
    "/embeddings": Embeddings,
    "/images/generations": Images,
}


class ModelServer:
    """The stand-in. It listens on a free port of 127.0.0.1, in a thread of its own, while its block lasts.

    Attributes:
        served: The requests for answers, in the order in which they came.
        slow_seconds: How long an answer in the case `[[slow]]` takes.
        thinking_seconds: How long every plain answer takes.
        answer: The text of every answer.
        fixed_id: The id of every response; None: ids count up.
        changed: Changes the body of plain answers before they are sent.
    """

    def __init__(self, *, slow_seconds: float = 30, thinking_seconds: float = 0, answer: str = ANSWER) -> None:
        """Does not listen yet."""
        self.served: list[Served] = []
        self.slow_seconds = slow_seconds
        self.thinking_seconds = thinking_seconds
        self.answer = answer
        self.fixed_id: str | None = None
        self.changed: Callable[[Json], Json] = lambda body: body
        self.port = 0
        self._once: set[str] = set()
        self._kept = Kept()
        self._number = 0
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
        """The requests whose answer was sent to its end or shown later, with its usage."""
        told = (one for one in self.served if one.is_whole or one.is_shown)
        return [one for one in told if one.status == 200 and one.tells_usage]

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
        if method == "GET" and (made := self._kept.made.get(path.rsplit("/", 1)[-1])) is not None:
            return await self._show(out, made, is_stream=parse_qs(place.query).get("stream") == ["true"])
        google = re.search(r"/([^/:]+):(generateContent|streamGenerateContent|countTokens)$", path)
        kind = next((made for end, made in _DIALECTS.items() if method == "POST" and path.endswith(end)), None)
        if kind is not None:
            dialect: Dialect = kind(self._kept, body, self.answer)
        elif google and google[2] != "countTokens":
            is_stream = google[2] == "streamGenerateContent"
            if is_stream and parse_qs(place.query).get("alt") != ["sse"]:
                return await out.plain(400, {"error": {"code": 400, "message": "alt=sse is expected"}})
            dialect = Google(self._kept, body | {"model": google[1], "stream": is_stream}, self.answer)
        elif google or path.endswith("/count_tokens"):
            return await out.plain(200, {"totalTokens": 1500, "input_tokens": 7120})
        else:
            return await out.plain(200 if method == "HEAD" else 404, {"error": {"message": f"no such path: {path}"}})
        return await self._serve_model(out, dialect, headers)

    async def _show(self, out: "_Out", made: Json, *, is_stream: bool) -> bool:
        """Shows a response that was made in the background."""
        # Who asked for it as a stream may have left before its end.
        for one in self.served:
            one.is_shown = one.is_shown or one.response_id == made["id"]
        if not is_stream:
            return await out.plain(200, made)
        await out.begin_stream()
        await out.event({"type": "response.completed", "sequence_number": 9, "response": made})
        return await out.end_stream()

    async def _serve_model(self, out: "_Out", dialect: "Dialect", headers: dict[str, str]) -> bool:
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

    async def _send_plain(self, out: "_Out", dialect: "Dialect", served: Served, words: Mapping[str, str]) -> bool:
        await asyncio.sleep(self.thinking_seconds)
        if "slow" in words and not await self._wait(out):
            return False
        if "broken" in words:
            await out.cut(dialect.whole(served))
            return False
        # Before the last byte: a test looks as soon as its client has the answer.
        served.is_whole = True
        return await out.plain(200, self.changed(dialect.whole(served)))

    async def _send_stream(self, out: "_Out", dialect: "Dialect", served: Served, words: Mapping[str, str]) -> bool:
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
