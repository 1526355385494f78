"""What the messages of the Claude Agent SDK say, as items: for a session without a transcript."""

from datetime import datetime
from typing import Any, Literal

from session_lifecycle.integrations.claude_code import CLIENT
from session_lifecycle.integrations.counts import anthropic_counts, number, value_at
from session_lifecycle.integrations.transcripts import (
    BadLineError,
    Fields,
    given,
    mapping,
    text_of,
)

_SYNTHETIC = "<synthetic>"
_ENDS = {"completed": "completed", "failed": "failed", "stopped": "cancelled", "killed": "cancelled"}
Billing = Literal["api", "plan"]


class StreamReader:
    """Makes items of messages, for a session without a transcript."""

    def __init__(
        self,
        session_id: str,
        user_id: str,
        prompt: str | None,
        *,
        content: bool,
        billing: Billing,
        adjusts: bool,
    ) -> None:
        self._ids = {"session_id": session_id, "user_id": user_id}
        self._prompt = prompt
        self._content = content
        self._billing = billing
        self._adjusts = adjusts
        self._run: str | None = None
        self._started = ""
        self._awaits = False
        self._fails: str | None = None
        self._children: dict[str, tuple[str, str]] = {}
        """The run of a sub-agent and its start, by the tool call that started it."""
        self._tools: dict[str, tuple[str, str]] = {}
        self._told: dict[str, dict[str, tuple[int, ...]]] = {}
        """The counts of the responses of each model, and of its adjustment."""

    def read(self, message: Any, at: datetime) -> list[Fields | BadLineError]:
        """The items of the next message."""
        match type(message).__name__:
            case "UserMessage":
                return [*self._begin(message, at), *self._user(message, at)]
            case "AssistantMessage":
                return [*self._begin(message, at), *self._assistant(message, at)]
            case "ResultMessage":
                return [*self._begin(message, at), *self._result(message, at)]
            case "ConversationResetMessage":
                self._told.clear()  # the program begins its totals anew
                return []
            case _:
                return [*self._system(message, at)]

    def close(self, at: datetime) -> list[Fields | BadLineError]:
        """The items of the end of the program."""
        if self._run is None:
            return []
        items: list[Fields | BadLineError] = []
        if self._awaits:
            items.append(self._event(f"attempt:{self._run}", self._run, at) | {"measured": False})
        for call, (run, started) in self._tools.items():
            items.append(self._step(call, run, started) | self._ended(at) | {"errors": given(type="cancelled")})
        return [*items, *self._end(at, "cancelled")]

    def _begin(self, message: Any, at: datetime) -> list[Fields]:
        if self._run is not None:
            return []
        told = value_at(message, "uuid") or value_at(message, "data", "uuid")
        self._run, self._started = str(told or self._ids["session_id"]), at.isoformat()
        self._awaits, self._fails = True, None
        prompt, self._prompt = self._prompt, None
        return [self._run_of(self._run) | given(input=prompt if self._content else None)]

    def _run_of(self, run_id: str, started: str | None = None) -> Fields:
        return {"kind": "run", **self._ids, "run_id": run_id, "client": CLIENT, "started_at": started or self._started}

    def _ended(self, at: datetime) -> Fields:
        return {"ended_at": at.isoformat()}

    def _end(self, at: datetime, status: str, error: str | None = None) -> list[Fields]:
        run, self._run, self._tools = self._run_of(self._run or ""), None, {}
        children = [
            self._run_of(child, started) | {"status": status} | self._ended(at)
            for child, started in self._children.values()
        ]
        self._children.clear()
        return [*children, run | {"status": status} | self._ended(at) | given(error=error)]

    def _system(self, message: Any, at: datetime) -> list[Fields]:
        data = mapping(value_at(message, "data"))
        subtype = value_at(message, "subtype")
        if subtype == "init":
            return self._begin(message, at)
        call, task = data.get("tool_use_id"), data.get("task_id")
        if subtype == "task_started" and isinstance(call, str) and isinstance(task, str) and _is_agent(data):
            self._children[call] = (task, at.isoformat())
            above = {"parent_run_id": self._run, "parent_tool_call_id": call}
            return [self._run_of(task, at.isoformat()) | above | given(agent_name=data.get("subagent_type"))]
        if subtype in {"task_notification", "task_updated"}:
            status = _ENDS.get(str(data.get("status") or mapping(data.get("patch")).get("status")))
            call = next((call for call, (child, _) in self._children.items() if child == task), None)
            if status is not None and call is not None:
                return self._end_child(call, at, status)
        return []

    def _end_child(self, call: str, at: datetime, status: str) -> list[Fields]:
        child, started = self._children.pop(call)
        return [self._run_of(child, started) | {"status": status} | self._ended(at)]

    def _run_at(self, message: Any) -> str:
        child = self._children.get(str(value_at(message, "parent_tool_use_id")))
        return child[0] if child is not None else self._run or ""

    def _user(self, message: Any, at: datetime) -> list[Fields]:
        items: list[Fields] = []
        content = value_at(message, "content")
        self._awaits = True
        for block in content if isinstance(content, list) else []:
            call = value_at(block, "tool_use_id")
            if not isinstance(call, str):
                continue
            run, started = self._tools.pop(call, (self._run_at(message), at.isoformat()))
            output = value_at(block, "content") if self._content else None
            step = self._step(call, run, started) | self._ended(at) | given(output=output)
            if value_at(block, "is_error") is True:
                step["errors"] = given(type="tool_error", message=text_of(output) or None)
            items.append(step)
            status = value_at(message, "tool_use_result", "status")
            if call in self._children and status == "completed":
                items += self._end_child(call, at, "completed")
        return items

    def _assistant(self, message: Any, at: datetime) -> list[Fields]:
        run, model = self._run_at(message), value_at(message, "model")
        message_id = str(value_at(message, "message_id") or value_at(message, "uuid"))
        error = value_at(message, "error")
        if model == _SYNTHETIC:
            if error is None:
                return []
            self._fails, self._awaits = str(error), False
            return [self._event(message_id, run, at) | {"errored": True}]
        self._awaits = False
        items = [self._usage(message, message_id, run, model, at)]
        for block in value_at(message, "content") or []:
            text, name = value_at(block, "text"), value_at(block, "name")
            if isinstance(text, str) and text and self._content:
                told = {"message_id": str(value_at(message, "uuid") or message_id), "run_id": run}
                told |= {"role": "assistant", "content": text, "created_at": at.isoformat()}
                items.append({"kind": "message", **self._ids} | told)
            elif isinstance(name, str) and isinstance(call := value_at(block, "id"), str):
                self._tools[call] = (run, at.isoformat())
                inputs = value_at(block, "input") if self._content else None
                items.append(self._step(call, run, at.isoformat()) | given(name=name, inputs=inputs))
        return items

    def _usage(self, message: Any, message_id: str, run: str, model: Any, at: datetime) -> Fields:
        counts = dict(anthropic_counts(value_at(message, "usage")))
        told = self._told.setdefault(_plain_model(model), {})
        told[message_id] = tuple(number(counts.get(name)) for name in _ADJUSTED)
        event = self._event(message_id, run, at) | given(model=model)
        if not counts.get("tokens_in") and not counts.get("tokens_out"):
            return event | {"measured": False}
        # The message has the output tokens of the beginning of the response, not of its end.
        is_partial = value_at(message, "stop_reason") is None
        return event | counts | {"partial": is_partial, "revision": counts.get("tokens_out", 0)}

    def _result(self, message: Any, at: datetime) -> list[Fields]:
        run = self._run or ""
        items: list[Fields] = []
        for model, usage in (mapping(value_at(message, "model_usage")) if self._adjusts else {}).items():
            items += self._adjustment(run, model, usage, at)
        is_cut = str(value_at(message, "terminal_reason") or "").startswith("aborted")
        if is_cut and self._awaits:
            items.append(self._event(f"attempt:{run}", run, at) | {"measured": False})
        error = self._fails or value_at(message, "api_error_status") or value_at(message, "subtype")
        if is_cut:
            return items + self._end(at, "cancelled")
        if value_at(message, "is_error") is True:
            return items + self._end(at, "failed", str(error))
        return items + self._end(at, "completed")

    def _adjustment(self, run: str, model: str, usage: Any, at: datetime) -> list[Fields]:
        """What the running total of a model has beyond its responses."""
        names = ("outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "webSearchRequests")
        out, read, written, searches = (number(mapping(usage).get(name)) for name in names)
        total = (number(mapping(usage).get("inputTokens")) + read + written, out, read, written, searches)
        told = self._told.setdefault(_plain_model(model), {})
        sums = [sum(counts[place] for counts in told.values()) for place in range(len(_ADJUSTED))]
        more = tuple(max(0, whole - known) for whole, known in zip(total, sums, strict=True))
        if not any(more):
            return []
        key = f"{run}:{model}"
        told[key] = more
        fields = dict(zip(_ADJUSTED, more, strict=True))
        fields["tokens_in"] = max(fields["tokens_in"], fields["cache_read_tokens"] + fields["cache_write_tokens"])
        return [self._event(key, run, at) | {"model": _plain_model(model), **fields}]

    def _event(self, key: str, run: str, at: datetime) -> Fields:
        fields = {"kind": "usage", **self._ids, "run_id": run, "idempotency_key": key, "at": at.isoformat()}
        return fields | {"key_scope": "user", "provider": "anthropic", "billing": self._billing}

    def _step(self, call: str, run: str, started: str) -> Fields:
        ids = {"kind": "step", "step_kind": "tool", "user_id": self._ids["user_id"], "run_id": run}
        return ids | {"step_id": call, "tool_call_id": call, "started_at": started}


_ADJUSTED = ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "web_searches")


def _is_agent(data: Any) -> bool:
    return bool(data.get("subagent_type")) or data.get("task_type") == "local_agent"


def _plain_model(model: Any) -> str:
    """The model without what Claude Code adds for itself, as the size of its context."""
    return str(model).partition("[")[0]
