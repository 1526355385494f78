"""What a span of OpenTelemetry says, by the names of the GenAI conventions, OpenInference, OpenLLMetry and Logfire.

It needs no package of OpenTelemetry: spans of an SDK and of an OTLP request are both given as `Span`.

Sources, read in November 2026: https://opentelemetry.io/docs/specs/semconv/gen-ai/,
https://arize-ai.github.io/openinference/spec/, `opentelemetry.semconv_ai` 0.5.1 (OpenLLMetry), Pydantic AI 2.68.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, cast, get_args

from session_lifecycle.models.usage_classes import ServiceTier

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INPUT_WITHOUT_CACHE = frozenset({"opentelemetry.instrumentation.bedrock"})
"""Instrumentation scopes that give the input without the cache. OpenLLMetry's Bedrock does, seen in 0.62.4:
https://github.com/traceloop/openllmetry/issues/4449"""


class Kind(StrEnum):
    """What a span stands for."""

    MODEL = "model"
    """A call of a model. Only such a span can have usage that counts."""
    EMBEDDING = "embedding"
    """A call of a model for embeddings: the same."""
    AGENT = "agent"
    TOOL = "tool"
    TASK = "task"
    """Other work of an agent: a chain, a workflow, a retrieval. Its usage is a sum of spans below it."""


MODEL_CALLS = frozenset({Kind.MODEL, Kind.EMBEDDING})


@dataclass(frozen=True, slots=True)
class Span:
    """A span, of whichever source.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        parent_id: The span above it; None: it is the root of its trace.
        is_parent_remote: Whether the span above it is one of another process.
        name: Its name.
        scope: The name of its instrumentation scope.
        started_at: When it began.
        ended_at: When it ended; None: it is open.
        attributes: Its attributes.
        error: The type of its error; None: it has none.
        error_text: What its error says, which may be content.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    is_parent_remote: bool
    name: str
    scope: str
    started_at: datetime
    ended_at: datetime | None
    attributes: Mapping[str, Any]
    error: str | None = None
    error_text: str | None = None

    @property
    def key(self) -> str:
        """Names the span among all spans."""
        return f"{self.trace_id}:{self.span_id}"

    @property
    def is_local_root(self) -> bool:
        """Whether no span of its process is above it."""
        return self.parent_id is None or self.is_parent_remote


def moment(nanoseconds: int) -> datetime:
    """A time in nanoseconds since 1970, in the microseconds of Postgres."""
    return EPOCH + timedelta(microseconds=nanoseconds // 1_000)


# Kinds

_OPERATIONS = {
    "chat": Kind.MODEL,
    "completion": Kind.MODEL,
    "text_completion": Kind.MODEL,
    "generate_content": Kind.MODEL,
    "embeddings": Kind.EMBEDDING,
    "embedding": Kind.EMBEDDING,
    "invoke_agent": Kind.AGENT,
    "execute_tool": Kind.TOOL,
    **dict.fromkeys(("create_agent", "invoke_workflow", "invoke_node", "plan", "retrieval", "rerank"), Kind.TASK),
}
_OPENINFERENCE = {
    "LLM": Kind.MODEL,
    "DECISION": Kind.MODEL,
    "EMBEDDING": Kind.EMBEDDING,
    "AGENT": Kind.AGENT,
    "TOOL": Kind.TOOL,
    **dict.fromkeys(("CHAIN", "RETRIEVER", "RERANKER", "GUARDRAIL", "EVALUATOR", "PROMPT"), Kind.TASK),
}
_TRACELOOP = {"agent": Kind.AGENT, "tool": Kind.TOOL, "task": Kind.TASK, "workflow": Kind.TASK}


def kind_of(attributes: Mapping[str, Any]) -> Kind | None:
    """What the span stands for; None: nothing of an agent.

    Where two namings are on one span and one of them says that it is no call of a model, it is none.
    """
    operation = attributes.get("gen_ai.operation.name")
    named = (
        _OPERATIONS.get(_word(operation)),
        _OPENINFERENCE.get(_word(attributes.get("openinference.span.kind")).upper()),
        _TRACELOOP.get(_word(attributes.get("traceloop.span.kind"))),
        _OPERATIONS.get(_word(attributes.get("llm.request.type"))),  # OpenLLMetry, before it had the operation
    )
    found = [kind for kind in named if kind is not None]
    if found:
        return next((kind for kind in found if kind not in MODEL_CALLS), found[0])
    if operation is not None:
        # An operation that came after this was written. A response's own id is on no span of a sum.
        return Kind.MODEL if _has_usage(attributes) and response_id(attributes) else Kind.TASK
    if "gen_ai.request.model" in attributes and provider_of(attributes) is not None:
        return Kind.MODEL  # OpenLLMetry and Vercel's AI SDK, before the conventions had the operation
    if "agent_name" in attributes and "model_name" in attributes:
        return Kind.AGENT  # Logfire's `agent run`, before Pydantic AI named the operation
    return Kind.TOOL if "gen_ai.tool.name" in attributes else None


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


# Names

_SESSIONS = (
    "gen_ai.conversation.id",
    "session.id",  # OpenInference, Langfuse
    "langfuse.session.id",
    "traceloop.association.properties.session_id",
    "traceloop.association.properties.conversation_id",
    "traceloop.association.properties.thread_id",
    "ai.telemetry.metadata.sessionId",
)
_AGENTS = ("gen_ai.agent.name", "agent.name", "agent_name")
_PROVIDERS = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system", "decision.provider")
_MODELS = (
    "gen_ai.response.model",
    "llm.response.model",
    "decision.response.model_name",
    "llm.model_name",
    "embedding.model_name",
    "gen_ai.request.model",
    "llm.request.model",
    "decision.model_name",
)
_TOOLS = ("gen_ai.tool.name", "tool.name", "traceloop.entity.name")
_TOOL_CALLS = ("gen_ai.tool.call.id", "tool_call.id", "tool.id")
_TOOL_INPUTS = (
    "gen_ai.tool.call.arguments",
    "tool_arguments",
    "tool.parameters",
    "input.value",
    "traceloop.entity.input",
)
_TOOL_OUTPUTS = ("gen_ai.tool.call.result", "tool_response", "output.value", "traceloop.entity.output")
_TIERS = ("openai.response.service_tier", "gen_ai.openai.response.service_tier", "gen_ai.response.service_tier")
KEY_CHARACTERS = 512
"""How long the key of a usage event may be."""
_NO_IDS = frozenset({"__fake_id__", "no-op", "<synthetic>"})


def _text(attributes: Mapping[str, Any], names: Collection[str]) -> str | None:
    values = (attributes.get(name) for name in names)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), None)


def session_of(attributes: Mapping[str, Any]) -> str | None:
    """The session that the span names, or None."""
    return _text(attributes, _SESSIONS)


def agent_of(attributes: Mapping[str, Any]) -> str | None:
    """The agent that the span names, or None."""
    name = _text(attributes, _AGENTS)
    return name or (_text(attributes, ["traceloop.entity.name"]) if kind_of(attributes) is Kind.AGENT else None)


def provider_of(attributes: Mapping[str, Any]) -> str | None:
    """The model's provider by the source's name, or None."""
    return _text(attributes, _PROVIDERS)


def model_of(attributes: Mapping[str, Any]) -> str | None:
    """The model that answered, else the one that was asked, or None."""
    return _text(attributes, _MODELS)


def response_id(attributes: Mapping[str, Any]) -> str | None:
    """The provider's id of the response, or None. Ids that runtimes invent for all responses are none."""
    found = _text(attributes, ["gen_ai.response.id"])
    return None if found is None or found in _NO_IDS or len(found) > KEY_CHARACTERS else found


def tool_of(attributes: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The tool's name and the id of its call; None: not told."""
    return _text(attributes, _TOOLS), _text(attributes, _TOOL_CALLS)


def tool_content(attributes: Mapping[str, Any]) -> tuple[Any, Any]:
    """The input and the output of a tool, from JSON where they are JSON; None: not told."""
    return _from_json(_text(attributes, _TOOL_INPUTS)), _from_json(_text(attributes, _TOOL_OUTPUTS))


def _from_json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# Usage

_IN = "tokens_in"
_OUT = "tokens_out"
_COUNTS = {
    _IN: (
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.prompt_tokens",
        "llm.token_count.prompt",
        "llm.usage.prompt_tokens",
        "decision.token_count.input",
    ),
    _OUT: (
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "llm.token_count.completion",
        "llm.usage.completion_tokens",
        "decision.token_count.output",
    ),
    "cache_read_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_read_input_tokens",
        "llm.token_count.prompt_details.cache_read",
        "gen_ai.usage.details.cache_read_tokens",
    ),
    "cache_write_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "llm.token_count.prompt_details.cache_write",
        "gen_ai.usage.details.cache_write_tokens",
    ),
    "reasoning_tokens": (
        "gen_ai.usage.reasoning.output_tokens",
        "gen_ai.usage.reasoning_tokens",
        "llm.token_count.completion_details.reasoning",
        "llm.usage.reasoning_tokens",
        "gen_ai.usage.details.reasoning_tokens",
    ),
    "audio_tokens_in": ("llm.token_count.prompt_details.audio", "gen_ai.usage.details.input_audio_tokens"),
    "audio_tokens_out": ("llm.token_count.completion_details.audio", "gen_ai.usage.details.output_audio_tokens"),
}


def _has_usage(attributes: Mapping[str, Any]) -> bool:
    return any(attributes.get(name) for part in (_IN, _OUT) for name in _COUNTS[part])


def counts_of(span: Span, input_without_cache: Collection[str] = INPUT_WITHOUT_CACHE) -> dict[str, Any]:
    """The usage of the span, as the inclusive counts of a `UsageEvent`. Empty: it has none.

    An answered call with 0 in and 0 out has none: no model answers from nothing. Values are as the source gives them,
    so a count may be one that a `UsageEvent` refuses.

    Args:
        span: A call of a model.
        input_without_cache: The instrumentation scopes whose input does not have the cache in it.
    """
    counts = {
        part: next((_whole(span.attributes[name]) for name in names if name in span.attributes), 0)
        for part, names in _COUNTS.items()
    }
    if not counts[_IN] and not counts[_OUT]:
        return {}
    if all(type(count) is int for count in counts.values()):
        cache = counts["cache_read_tokens"] + counts["cache_write_tokens"]
        # A part is never larger than the whole: where it is, the whole was told without its parts.
        if cache > counts[_IN] or span.scope in input_without_cache:
            counts[_IN] += cache
        if counts["reasoning_tokens"] > counts[_OUT]:
            counts[_OUT] += counts["reasoning_tokens"]
    tier = _text(span.attributes, _TIERS)
    if tier in get_args(ServiceTier):
        counts["service_tier"] = tier
    return counts


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Errors

_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Timeout|Cancelled|Canceled))(?::|$)")
_GIVEN_UP = ("cancel", "generatorexit", "keyboardinterrupt", "abort")
_NO_ANSWER = ("timeout", "connect", "deadline", "incompleteread", "protocolerror")
_REFUSED_ANSWER = ("validationerror", "jsondecodeerror", "finishreasonerror", "outputparser")
"""The client could not use the answer, which was billed."""


def error_of(
    attributes: Mapping[str, Any],
    exceptions: Sequence[Mapping[str, Any]],
    description: str | None,
    *,
    has_failed: bool,
) -> tuple[str | None, str | None]:
    """The type and the text of a span's error; None: it has none.

    Args:
        attributes: The span's.
        exceptions: The attributes of the exceptions among its events.
        description: What its status says.
        has_failed: Whether its status is an error.
    """
    if not has_failed and "error.type" not in attributes:
        return None, None
    told = list(reversed(exceptions))
    # OpenTelemetry's API describes an exception as `Type: text`. Another first word may be content.
    described = _EXCEPTION.match(description or "")
    kinds = [
        attributes.get("error.type"),
        *(one.get("exception.type") for one in told),
        described and described[1],
    ]
    texts = [description, *(one.get("exception.message") for one in told)]
    kind, text = (next((str(value) for value in values if value), None) for values in (kinds, texts))
    return kind or "error", text


def is_given_up(error: str | None) -> bool:
    """Whether the type of an error says that the call was cancelled."""
    return error is not None and any(word in error.lower() for word in _GIVEN_UP)


def is_answer(error: str) -> bool:
    """Whether the type of an error says, or may say, that the provider answered with an error, which bills nothing.

    Of a call that was cancelled, timed out or lost its connection, or whose answer the client could not use, nobody
    knows what was billed.
    """
    told = error.lower().replace("_", "")
    return not is_given_up(error) and not any(word in told for word in (*_NO_ANSWER, *_REFUSED_ANSWER))


# Content


def messages_of(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Role and text of the user's message that the call ends with, if it does, and of the model's answer."""
    asked = list(_conversation(attributes, "gen_ai.input.messages", "llm.input_messages", "gen_ai.prompt"))
    if asked and asked[-1][0] in {"user", "human"} and asked[-1][1]:
        yield "user", asked[-1][1]
    told = _conversation(attributes, "gen_ai.output.messages", "llm.output_messages", "gen_ai.completion")
    answer = "\n".join(text for _, text in told if text)
    if answer:
        yield "assistant", answer


def _conversation(
    attributes: Mapping[str, Any], conventions: str, openinference: str, openllmetry: str
) -> Iterator[tuple[str, str]]:
    told = attributes.get(conventions)
    messages = _from_json(told) if isinstance(told, str) else told
    if isinstance(messages, list | tuple):
        for message in cast("list[Any]", messages):
            if isinstance(message, Mapping):
                yield _word(message.get("role")), _text_of_parts(cast("Mapping[str, Any]", message))
        return
    for prefix, infix in ((openinference, ".message"), (openllmetry, "")):
        number = 0
        while f"{prefix}.{number}{infix}.role" in attributes:
            at = f"{prefix}.{number}{infix}"
            content = attributes.get(f"{at}.content")
            if content is None:
                content = "\n".join(_flattened_texts(attributes, f"{at}.contents"))
            yield _word(attributes[f"{at}.role"]), _word(content)
            number += 1


def _text_of_parts(message: Mapping[str, Any]) -> str:
    parts = message.get("parts", message.get("content"))
    if not isinstance(parts, list):
        return _word(parts)
    found = (part.get("content", part.get("text")) for part in parts if isinstance(part, Mapping) and _is_text(part))
    return "\n".join(text for text in found if isinstance(text, str))


def _is_text(part: Mapping[str, Any]) -> bool:
    return bool(part.get("type", "text") == "text")


def _flattened_texts(attributes: Mapping[str, Any], prefix: str) -> Iterator[str]:
    number = 0
    while f"{prefix}.{number}.message_content.type" in attributes:
        text = attributes.get(f"{prefix}.{number}.message_content.text")
        if isinstance(text, str):
            yield text
        number += 1
