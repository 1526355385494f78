"""A log of hooks and spans, played again: each is called as OpenAI Agents calls it.

A log has the ends of spans only, and not of all. Their beginnings, and the spans that have no line, are made up where
the runtime would have told them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

from agents.tracing.scope import Scope

from session_lifecycle.integrations.openai_agents import SessionHooks

Line = dict[str, Any]
Spans = Literal["all", "ends", "none"]
MODEL_SPANS = {"response", "generation"}


def read(file: Path) -> list[Line]:
    """The lines of a log."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


async def play(hooks: SessionHooks, lines: Sequence[Line], *, spans: Spans = "all") -> None:
    """Calls the hooks of the lines, in their order.

    Args:
        hooks: The adapter.
        lines: The log.
        spans: What is told of spans: all, as when `add_trace_processor` was called; only what has a line, which is
            less than the runtime tells; nothing.
    """
    await _Replay(hooks, lines, spans).play()


class _Replay:
    def __init__(self, hooks: SessionHooks, lines: Sequence[Line], spans: Spans) -> None:
        self.hooks = hooks
        self.lines = list(lines)
        self.has_spans = spans != "none"
        self.has_beginnings = spans == "all"
        self.position = 0
        self.trace: Any = None
        self.spans: dict[str, Any] = {}
        self.begun: set[str] = set()
        self.contexts: dict[str, Any] = {}
        self.usage = _usage({})

    async def play(self) -> None:
        [trace] = [line["trace"] for line in self.lines if line["method"] == "on_trace_start"]
        self.trace = SimpleNamespace(
            trace_id=trace["id"], name=trace.get("workflow_name"), group_id=trace.get("group_id")
        )
        self._make_spans()
        before = Scope.get_current_trace(), Scope.get_current_span()
        try:
            for position, line in enumerate(self.lines):
                self.position = position
                Scope.set_current_trace(self.trace)
                Scope.set_current_span(None)
                await self._call(line)
        finally:
            Scope.set_current_trace(before[0])
            Scope.set_current_span(before[1])

    async def _call(self, line: Line) -> None:
        method = line["method"]
        if method == "on_trace_start" and self.has_spans:
            self.hooks.on_trace_start(self.trace)
        elif method == "on_trace_end" and self.has_spans:
            self.hooks.on_trace_end(self.trace)
        elif method == "on_span_end" and self.has_spans:
            self._begin(line["id"])
            span = self.spans[line["id"]]
            if self.has_beginnings:
                Scope.set_current_span(span)
            self.hooks.on_span_end(span)
        elif "ctx" in line:
            await self._hook(line)

    async def _hook(self, line: Line) -> None:
        method, context = line["method"], self._context(line)
        agent = SimpleNamespace(name=line.get("agent"), model=_model(line.get("model")))
        hooks = cast(Any, self.hooks)
        if method in {"on_tool_start", "on_tool_end"}:
            tool = SimpleNamespace(name=line["tool"])
            self._stand_in(self._span_of_tool(line))
            more = (line.get("result"),) if method == "on_tool_end" else ()
            await getattr(hooks, method)(context, agent, tool, *more)
            return
        ahead = method in {"on_agent_start", "on_llm_start"}
        span = self._span_of_model(ahead=ahead)
        self._stand_in(None if span is None else span.parent_id)
        if method == "on_llm_start":
            await hooks.on_llm_start(context, agent, None, [{"role": "user", "content": "the prompt"}])
            if span is not None and self.has_spans:
                self._begin(span.span_id)
        elif method == "on_llm_end":
            await hooks.on_llm_end(context, agent, _response(line["response"]))
        elif method == "on_agent_end":
            await hooks.on_agent_end(context, agent, line.get("output"))
        elif method == "on_handoff":
            await hooks.on_handoff(context, agent, SimpleNamespace(name=line.get("to", line.get("to_agent"))))
        else:
            await hooks.on_agent_start(context, agent)

    def _stand_in(self, span_id: str | None) -> None:
        """Makes this the span around the hook."""
        if span_id is not None and self.has_beginnings:
            self._begin(span_id)
            Scope.set_current_span(self.spans[span_id])

    def _context(self, line: Line) -> Any:
        told = line["ctx"]
        key = json.dumps([told.get("tool_call_id"), told.get("type") if "tool_call_id" not in told else None])
        if key not in self.contexts:
            names = ("tool_call_id", "tool_name", "tool_arguments")
            self.contexts[key] = SimpleNamespace(
                usage=self.usage, context=None, **{name: told[name] for name in names if name in told}
            )
        return self.contexts[key]

    # Spans

    def _make_spans(self) -> None:
        ends = [line for line in self.lines if line["method"] == "on_span_end"]
        for line in ends:
            self.spans[line["id"]] = self._span(line["id"], line.get("parent_id"), _data(line), line.get("error"))
        tasks = [line for line in ends if _kind(line) == "task"]
        for line in ends:
            parent = line.get("parent_id")
            if parent is None or parent in self.spans:
                continue
            if _kind(line) == "agent":
                self.spans[parent] = self._span(parent, None, SimpleNamespace(type="task", name=None), None)
                continue
            agents = [one["id"] for one in ends if _kind(one) == "agent"]
            above = agents[0] if agents else f"{tasks[-1]['id']}:agent"
            if above not in self.spans:
                data = SimpleNamespace(type="agent", name=self._agent_name())
                self.spans[above] = self._span(above, tasks[-1]["id"], data, None)
            self.spans[parent] = self._span(parent, above, SimpleNamespace(type="turn", name=None), None)

    def _agent_name(self) -> str | None:
        return next((line["agent"] for line in self.lines if "agent" in line), None)

    def _span(self, span_id: str, parent_id: str | None, data: Any, error: Any) -> Any:
        return SimpleNamespace(
            span_id=span_id, parent_id=parent_id, trace_id=self.trace.trace_id, span_data=data, error=error
        )

    def _begin(self, span_id: str) -> None:
        span = self.spans[span_id]
        if span_id in self.begun or not self.has_beginnings:
            return
        self.begun.add(span_id)
        if span.parent_id is not None:
            self._begin(span.parent_id)
        around = Scope.get_current_span()
        Scope.set_current_span(self.spans.get(span.parent_id))
        self.hooks.on_span_start(span)
        Scope.set_current_span(around)

    def _span_of_model(self, *, ahead: bool) -> Any:
        """The span of the model call that comes next, or that came last."""
        where = self.lines[self.position :] if ahead else reversed(self.lines[: self.position])
        found = next((line for line in where if line["method"] == "on_span_end" and _kind(line) in MODEL_SPANS), None)
        return None if found is None else self.spans[found["id"]]

    def _span_of_tool(self, line: Line) -> str | None:
        for found in self.lines[self.position :]:
            is_span = found["method"] == "on_span_end" and _kind(found) == "function"
            if is_span and found["data"]["name"] == line["tool"]:
                return str(found["id"])
        return None


def _kind(line: Line) -> str:
    data = line["data"]
    return str(data.get("data", {}).get("sdk_span_type") or data["type"])


def _data(line: Line) -> Any:
    told, kind = line["data"], _kind(line)
    data = SimpleNamespace(type=kind, name=told.get("name"), usage=told.get("usage"), model=told.get("model"))
    if kind == "response" and "response_id" in told:
        data.response = SimpleNamespace(
            id=told["response_id"],
            model=line.get("span_data.response.model"),
            service_tier=line.get("service_tier"),
            output=[],
        )
    return data


def _model(told: str | None) -> Any:
    return SimpleNamespace(model="gpt-5") if told is not None and told.startswith("<") else told


def _usage(told: Line) -> Any:
    details = told.get("input_tokens_details", {}), told.get("output_tokens_details", {})
    return SimpleNamespace(
        requests=told.get("requests", 0),
        input_tokens=told.get("input_tokens", 0),
        output_tokens=told.get("output_tokens", 0),
        input_tokens_details=SimpleNamespace(**{"cached_tokens": 0, "cache_write_tokens": 0, **details[0]}),
        output_tokens_details=SimpleNamespace(**{"reasoning_tokens": 0, **details[1]}),
    )


def _response(told: Line) -> Any:
    return SimpleNamespace(
        response_id=told.get("response_id"), request_id=told.get("request_id"), usage=_usage(told["usage"]), output=[]
    )
