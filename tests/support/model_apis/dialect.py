"""What every API of the stand-in shares: a request that was served, and how an answer is made."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
WORDS = re.compile(r"\[\[(\w+)(?::([^\]@]*))?(?:@(\d+))?\]\]")
ANSWER = "It is seven degrees in Tartu."
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
    is_shown: bool = False
    """Whether the answer, which was made in the background, was shown later."""
    tool_calls: list[tuple[str, str]] = field(default_factory=list)
    """Id and name of the tool calls of the answer."""


class Kept:
    """The answers that later requests name."""

    def __init__(self) -> None:
        self.made: dict[str, Json] = {}
        """Answers that a later request fetches, by their ids."""
        self._said: dict[str, tuple[int, list[str], str]] = {}

    def remembered(self, response_id: str | None) -> tuple[int, list[str], str]:
        """The turns, the tools called, and the prompt, of a response that a request names as the one before it."""
        return self._said.get(response_id or "", (0, [], ""))

    def remember(self, response_id: str, turns: int, called: list[str], prompt: str) -> None:
        """Remembers a response, which a later request may name."""
        self._said[response_id] = (turns, called, prompt)


class Dialect:
    """One API: reads the request, and writes the answer."""

    api = ""
    id_prefix = ""

    def __init__(self, kept: Kept, body: Json, answer: str) -> None:
        self.body = body
        self.model = str(body.get("model"))
        self.is_stream = bool(body.get("stream"))
        self.prompt = ""
        self.turn = 0
        self.called: list[str] = []
        self.tool: tuple[str, str, Json] | None = None
        """Id, name and input of the tool that the answer calls."""
        self._kept = kept
        self._plain_text = answer
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
        self._kept.remember(
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
        return self._plain_text if schema is None else json.dumps(made_of(schema, ""))

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
