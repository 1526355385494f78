"""OpenAI Agents: hooks and a trace processor in one, which record runs, their model calls, and their tool calls.

    hooks = SessionHooks(recorder, user_id=user_id).install()
    result = await Runner.run(agent, "…", hooks=hooks, run_config=RunConfig(group_id="chat-1"))

Hooks tell the agent and the usage of a response. Spans tell the model that answered, errors, and which run is below
which. Only runs with these hooks are recorded, and what those runs call.
"""

import re
from asyncio import CancelledError
from collections.abc import Callable
from json import loads
from typing import Any, Self, Unpack
from uuid import uuid4

from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.adapter import Adapter, AdapterOptions, OpenParts, TakesQuietly, recorded, text_of
from session_lifecycle.integrations.counts import fitted, tier_counts, value_at
from session_lifecycle.integrations.openai_agents_runs import (
    Call,
    Family,
    KnownSpan,
    Place,
    Unit,
    kind_of,
    totals_of,
)
from session_lifecycle.models import RunStatus

try:
    from agents import (
        Agent,
        AgentHookContext,
        AgentsException,
        ModelResponse,
        RunContextWrapper,
        RunHooks,
        Tool,
        TResponseInputItem,
    )
    from agents.tracing import Span, Trace, TracingProcessor, add_trace_processor, get_current_span, get_current_trace
except ImportError as missing:
    raise ImportError("OpenAI Agents is not installed: pip install 'session-lifecycle[openai-agents]'") from missing


class BudgetRefusedError(BudgetExceededError, AgentsException):
    """A budget refuses a call of a model. The runtime ends the run with it, and gives it the `run_data` of the run."""


_NO_IDS = {None, "", "no-op", "__fake_id__"}
_MODEL_SPANS = {"response", "generation"}
_ANSWER = re.compile(r"Error code: \d{3}|Error details are redacted|litellm\.(?!Timeout|APIConnectionError)\w+Error")
"""What the text of an error begins with, where the provider answered with that error."""

_claimed: OpenParts[str, Adapter] = OpenParts(lambda _: None)
"""Who records the model calls below a span. It is for the whole process, as the runtime's processors are."""


class SessionHooks(Adapter, RunHooks[Any], TracingProcessor):
    """Records the runs that have these hooks. One may serve many agents, and many runs at once.

    Install it once, and give it to `Runner.run(…, hooks=…)`. A run is recorded in the session that its `group_id`
    names, else in the adapter's `session_id`, else in that of the session block around it, else in a session of its
    own. An agent that is a tool is a run below the run that calls it, with `as_tool(…, hooks=…)` or without. To have
    hooks of your own, derive a class and call `super()`.

    Attributes:
        content: Whether messages, and the inputs and outputs of runs and steps, are recorded.
    """

    def __init__(
        self,
        recorder: TakesQuietly,
        *,
        find_session: Callable[[Any], str | None] | None = None,
        provider: str | None = "openai",
        every_run: bool = False,
        **options: Unpack[AdapterOptions],
    ) -> None:
        """Makes the hooks. It needs no event loop.

        Args:
            recorder: What it hands its items to.
            find_session: Finds the session in the `context` that the host gave the run; it comes before `group_id`.
            provider: The provider of the models; the runtime does not tell it.
            every_run: Whether runs without hooks are recorded too, by their spans alone.
            **options: See `AdapterOptions`. A call that `budgets` refuse ends the run with `BudgetRefusedError`.
        """
        super().__init__(recorder, **options)
        self._is_installed = False
        self._find_session = find_session
        self._provider = provider
        self._every_run = every_run
        self._spans: OpenParts[str, KnownSpan] = OpenParts(lambda _: None)
        self._families: OpenParts[str | int, Family] = OpenParts(self._finish_family)

    def install(self) -> Self:
        """Adds it to the runtime's trace processors, beside those that are there. Without this no span is told to it.

        `set_trace_processors` of the runtime removes it again.
        """
        if not self._is_installed:
            self._is_installed = True
            add_trace_processor(self)
        return self

    # Hooks

    @recorded
    async def on_agent_start(self, context: AgentHookContext[Any], agent: Agent[Any]) -> None:
        """Begins the run."""
        span = self._current_span()
        if span is not None:
            # Without spans this context does not tell the run; the first model call does.
            self._unit(context, agent, span)

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,  # noqa: ARG002 - the runtime gives it by place
        input_items: list[TResponseInputItem],
    ) -> None:
        """Opens an attempt, and asks the budgets where the host wants that.

        Raises:
            BudgetRefusedError: A budget refuses the call.
        """
        begun = self._begin_call(context, agent, input_items)
        if not self.asks_budgets:
            return
        refusal = await self.refusal(None if begun is None else begun[1].attempt, input_items)
        if refusal is None:
            return
        if begun is not None:
            unit, call = begun
            unit.calls = [one for one in unit.calls if one is not call]
            unit.error = str(refusal)
        raise BudgetRefusedError(refusal.budget_ids, str(refusal))

    @recorded
    def _begin_call(
        self, context: RunContextWrapper[Any], agent: Agent[Any], input_items: list[TResponseInputItem]
    ) -> tuple[Unit, Call] | None:
        unit = self._unit(context, agent, self._current_span())
        if unit is None:
            return None
        unit.agent_name = agent.name
        for left in [call for call in unit.calls if call.context is context]:
            self._close(unit, left)
        call = self._open(unit, _model_of(agent), _span_id(), context, is_hooked=True)
        self._show_prompt(unit, call, input_items)
        return unit, call

    @recorded
    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse) -> None:
        """Closes the attempt with the response."""
        unit = self._unit(context, agent, self._current_span())
        if unit is None:
            return
        open_calls = [call for call in unit.calls if call.is_hooked]
        call = next((one for one in open_calls if one.context is context), open_calls[-1] if open_calls else None)
        if call is None:
            call = self._open(unit, _model_of(agent), _span_id(), context, is_hooked=True)
        call.usage = response.usage
        ids = (response.response_id, response.request_id)
        call.response_id = next((one for one in ids if one not in _NO_IDS and one not in unit.keys), None)
        for item in response.output:
            if (tool_call_id := value_at(item, "call_id")) is not None:
                unit.family.units_of_tool_calls[tool_call_id] = unit
        self._close(unit, call)
        self._show_answer(unit, call, response.output)

    @recorded
    async def on_agent_end(self, context: AgentHookContext[Any], agent: Agent[Any], output: Any) -> None:
        """Remembers the output; ends the run where no span will."""
        span, family = self._current_span(), self._family_of(context)
        if family is None:
            return
        unit = family.latest(agent.name) if span is None else self._unit(context, agent, span)
        if unit is None:
            return
        unit.has_output, unit.output = True, self.shown(output)
        if not family.is_told:
            self._end(family, unit)

    @recorded
    async def on_handoff(self, context: RunContextWrapper[Any], from_agent: Agent[Any], to_agent: Agent[Any]) -> None:
        """Records a step: the run goes on with another agent."""
        unit = self._unit(context, from_agent, self._current_span())
        if unit is None:
            return
        unit.agent_name = to_agent.name
        unit.handoffs += 1
        step_id = f"{unit.block.run_id}:handoff:{unit.handoffs}"
        unit.block.step("handoff", to_agent.name, step_id=step_id).begin().finish()

    @recorded
    async def on_tool_start(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool) -> None:
        """Begins a step."""
        unit = self._unit_of_tool(context, agent, tool)
        if unit is None:
            return
        tool_call_id = _tool_call_id(context, tool)
        if tool_call_id is not None:
            unit.family.units_of_tool_calls[tool_call_id] = unit
        span = self._current_span()
        step_id = tool_call_id or (None if span is None else span.span_id)
        if step_id is not None:
            step_id = self._again(unit, step_id)
        arguments = _json_of(value_at(context, "tool_arguments")) if self.content and tool_call_id else None
        step = unit.block.step("tool", tool.name, step_id=step_id, tool_call_id=tool_call_id, inputs=arguments).begin()
        unit.steps[tool_call_id or tool.name] = step
        if span is not None and span.kind == "function":
            span.step, span.tool_call_id = step, tool_call_id

    @recorded
    async def on_tool_end(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: Any) -> None:
        """Ends the step."""
        unit = self._unit_of_tool(context, agent, tool)
        tool_call_id = _tool_call_id(context, tool)
        step = None if unit is None else unit.steps.pop(tool_call_id or tool.name, None)
        if unit is not None and step is None and tool_call_id is not None:
            # An agent in the tool waited for an approval: the step began in the run before this one.
            step = unit.block.step("tool", tool.name, step_id=tool_call_id, tool_call_id=tool_call_id).begin()
        if step is not None:
            span = self._current_span()
            # A tool whose failure is told to the model has a result as well.
            error = get_current_span() if span is not None and span.step is step else None
            step.finish(self._told(value_at(error, "error")), output=self.shown(result))

    # Spans. The runtime calls these in the thread and the context of the run.

    @recorded
    def on_trace_start(self, trace: Trace) -> None:
        """Remembers the trace."""
        if self._families.get(trace.trace_id) is None:
            self._families.put(trace.trace_id, Family(trace, None, is_told=True, will_end=True))

    @recorded
    def on_trace_end(self, trace: Trace) -> None:
        """Ends the run of the trace."""
        family = self._families.get(trace.trace_id)
        if family is not None:
            self._finish_family(family)

    @recorded
    def on_span_start(self, span: Span[Any]) -> None:
        """Remembers the span; opens an attempt for a model call that no hook told of."""
        if self._spans.get(span.span_id) is not None:
            return
        known = self._spans.put(span.span_id, KnownSpan(span))
        if (family := self._families.get(span.trace_id)) is not None:
            family.knows_spans = True
        if known.kind in _MODEL_SPANS:
            known.call = self._call_of(span, known)

    @recorded
    def on_span_end(self, span: Span[Any]) -> None:
        """Keeps what the span tells of a model call, a tool call or an error; ends the run of the span."""
        known = self._spans.take(span.span_id)
        _claimed.take(span.span_id)
        family = self._families.get(span.trace_id)
        if family is None or (known is None and family.knows_spans):
            # A processor that was added twice is told everything twice.
            return
        kind = kind_of(span)
        unit = None if known is None else family.units.get(self._place_of(known).key)
        if kind in _MODEL_SPANS:
            self._answer_of(family, unit, known, span)
        elif kind == "function":
            self._end_tool(unit, known, span)
            unit = family.units.get(span.span_id)
        elif kind in {"agent", "turn", "task"} and span.error is not None:
            failed = unit if known is not None else family.latest(value_at(span.span_data, "name"))
            if failed is not None:
                failed.error = _text_of_error(span.error)
        if unit is not None and kind in {"task", "function"}:
            self._end(family, unit)

    def shutdown(self) -> None:
        """Does nothing: the recorder writes what is left."""

    def force_flush(self) -> None:
        """Does nothing: the recorder writes in its own time."""

    # Which run

    def _current_span(self) -> KnownSpan | None:
        """The span around this code, where it is told to this adapter."""
        span = get_current_span()
        return None if span is None else self._spans.get(span.span_id)

    def _place_of(self, span: KnownSpan) -> Place:
        task: KnownSpan | None = None
        node: KnownSpan | None = span
        while node is not None:
            if node.kind in {"task", "function"} and task is not None:
                return Place(task.span_id, task.span_id, node.span_id, node.tool_call_id)
            if node.kind == "function" and node is not span:
                # The runtime can be told to make no spans of tasks: the calling tool's span stands for the task.
                return Place(node.span_id, node.span_id, node.parent_id, node.tool_call_id)
            if node.kind == "task":
                task = node
            node = None if node.parent_id is None else self._spans.get(node.parent_id)
        return Place(None if task is None else task.span_id)

    def _family_of(self, context: Any) -> Family | None:
        trace = get_current_trace()
        key = id(context.usage) if trace is None or trace.trace_id in _NO_IDS else trace.trace_id
        return self._families.get(key)

    def _unit(self, context: Any, agent: Agent[Any], span: KnownSpan | None) -> Unit | None:
        """The run that a hook is called in. It begins here, where it has not begun."""
        family = self._family_of(context)
        if family is None:
            trace = get_current_trace()
            trace = None if trace is None or trace.trace_id in _NO_IDS else trace
            family = Family(trace, context.usage, is_told=span is not None)
            self._families.put(family.key, family)
        if span is not None:
            family.is_told = True
            place = self._place_of(span)
        else:
            place = self._place_of_context(family, context)
        found = family.units.get(place.key)
        if found is not None and not found.has_ended:
            return found
        return self._begin(family, place, agent.name, context)

    def _place_of_context(self, family: Family, context: Any) -> Place:
        """The run by the context of a model call: that of an agent which is a tool has the id of the tool call."""
        tool_call_id = value_at(context, "tool_call_id")
        caller = None if tool_call_id is None else family.units_of_tool_calls.get(tool_call_id)
        if tool_call_id is None or caller is None:
            return Place(None)
        run_id = f"{caller.block.run_id}:{tool_call_id}"
        return Place(run_id, run_id, None, tool_call_id)

    def _unit_of_tool(self, context: Any, agent: Agent[Any], tool: Tool) -> Unit | None:
        span, family = self._current_span(), self._family_of(context)
        if span is not None:
            return self._unit(context, agent, span)
        if family is None:
            return None
        tool_call_id = _tool_call_id(context, tool)
        found = None if tool_call_id is None else family.units_of_tool_calls.get(tool_call_id)
        return found or family.latest(agent.name)

    def _begin(self, family: Family, place: Place, agent_name: str | None, context: Any) -> Unit | None:
        if family.is_refused:
            return None
        outermost_id = family.trace_id or (family.block.run_id if family.block is not None else str(uuid4()))
        if family.session is None:
            family.is_refused = True
            named = self._find_session(value_at(context, "context")) if self._find_session is not None else None
            family.session = self.session_of(named or family.group_id, outermost_id, agent_name=agent_name)
            family.is_refused = False
        if place.run_id is None:
            if family.block is None:
                name = family.name or agent_name
                family.block = family.session.run(name, run_id=outermost_id, agent_name=agent_name).begin()
            block, caller = family.block, None
        else:
            above = None if place.above is None else self._spans.get(place.above)
            caller = None if place.tool_call_id is None else family.units_of_tool_calls.get(place.tool_call_id)
            parent_id = None if caller is None else caller.block.run_id
            if above is not None:
                # The run above may be recorded by another adapter.
                above_it = self._place_of(above)
                parent_id, caller = above_it.run_id, family.units.get(above_it.key)
            block = family.session.run(
                agent_name,
                run_id=place.run_id,
                agent_name=agent_name,
                parent_run_id=parent_id or outermost_id,
                parent_tool_call_id=place.tool_call_id,
            ).begin()
        unit = Unit(family, place, block, agent_name, caller)
        family.units[place.key] = unit
        return unit

    # Model calls

    def _open(self, unit: Unit, model: str | None, span_id: str | None, context: object, *, is_hooked: bool) -> Call:
        """Opens a call. Its key is that of the span around it, which no other call has."""
        trace_id = None if span_id is None else _trace_id()
        key = f"{unit.block.run_id}:call" if span_id is None else f"{trace_id}:{span_id}"
        if span_id is not None:
            _claimed.put(span_id, self)
        attempt = unit.block.attempt(model, self._provider, idempotency_key=self._again(unit, key))
        call = Call(attempt, span_id, context, is_hooked=is_hooked)
        unit.calls.append(call)
        return call

    def _again(self, unit: Unit, one: str) -> str:
        """The id, with a number where it has been used in this run."""
        unit.family.times[f"{unit.block.run_id}:{one}"] += 1
        number = unit.family.times[f"{unit.block.run_id}:{one}"]
        return one if number == 1 else f"{one}:{number}"

    def _call_of(self, span: Span[Any], known: KnownSpan) -> Call | None:
        """The call that a model's span belongs to: the one that a hook has opened, else one of its own."""
        family = self._families.get(span.trace_id)
        if family is None and self._every_run and (trace := get_current_trace()) is not None:
            family = self._families.put(trace.trace_id, Family(trace, None, is_told=True))
        above = None if known.parent_id is None else self._spans.get(known.parent_id)
        if family is None or family.is_refused:
            return None
        place = self._place_of(above or known)
        unit = family.units.get(place.key)
        if unit is not None and unit.calls:
            # The runtime may try a call again: each try has a span, and they are one call.
            call = next((one for one in unit.calls if one.span_id == known.parent_id), unit.calls[-1])
            call.error = None
            return call
        owner = None if known.parent_id is None else _claimed.get(known.parent_id)
        if owner not in {None, self} or not (self._every_run or self._owns(family, place)):
            return None
        agent_name = self._agent_of(known)
        if unit is None or unit.has_ended:
            unit = self._begin(family, place, agent_name, None)
        if unit is None:
            return None
        unit.agent_name = agent_name or unit.agent_name
        return self._open(unit, None, known.parent_id, None, is_hooked=False)

    def _owns(self, family: Family, place: Place) -> bool:
        """Whether this adapter records the run, or a run above it."""
        while place.key not in family.units:
            above = None if place.above is None else self._spans.get(place.above)
            if above is None:
                return False
            place = self._place_of(above)
        return True

    def _agent_of(self, span: KnownSpan) -> str | None:
        node: KnownSpan | None = span
        while node is not None and node.kind != "agent":
            node = None if node.parent_id is None else self._spans.get(node.parent_id)
        return None if node is None else node.name

    def _answer_of(self, family: Family, unit: Unit | None, known: KnownSpan | None, span: Span[Any]) -> None:
        """Keeps what the span of a model call tells. It ends before the hook is called."""
        call = None if known is None else known.call
        if known is None:
            unit = next((one for one in reversed(family.units.values()) if one.calls), None)
            call = None if unit is None else unit.calls[-1]
        if call is None and known is None and (unit := family.latest()) is not None:
            # A call without a hook, in a span whose beginning was not told.
            call = self._open(unit, None, None, None, is_hooked=False)
        if call is None:
            return
        data = span.span_data
        response = value_at(data, "response")
        call.model = value_at(response, "model") or value_at(data, "model")
        call.tier = value_at(response, "service_tier")
        call.usage = value_at(data, "usage") or value_at(response, "usage")
        response_id = value_at(response, "id")
        call.response_id = None if response_id in _NO_IDS else response_id
        call.error = None if span.error is None else _text_of_error(span.error)
        if unit is not None and not call.is_hooked and call.usage is not None:
            self._close(unit, call)
            self._show_prompt(unit, call, value_at(data, "input"))
            self._show_answer(unit, call, value_at(response, "output"))

    def _close(self, unit: Unit, call: Call) -> None:
        """Closes a call with what is known of it."""
        unit.calls = [one for one in unit.calls if one is not call]
        usage = call.usage
        if usage is None:
            error = call.error if call.error is not None else unit.error
            if error is not None and _ANSWER.match(error):
                call.attempt.fail()
            else:
                call.attempt.cancel()
            return
        # An id that comes again is no id: it must not hide a call.
        key = None if call.response_id in unit.keys else call.response_id
        if key is not None:
            unit.keys.add(key)
        totals = totals_of(usage)
        unit.family.in_books += totals
        counts = fitted(**totals)
        counts.update(tier_counts(call.tier))
        call.attempt.usage(call.model, idempotency_key=key, **counts)

    # Ends

    def _end_tool(self, unit: Unit | None, known: KnownSpan | None, span: Span[Any]) -> None:
        """Ends the step of a tool that failed or was cancelled; the end of others is known."""
        step = None if known is None else known.step
        if unit is None or known is None or step is None:
            return
        if known.is_paused:
            unit.steps = {name: one for name, one in unit.steps.items() if one is not step}
        elif span.error is not None:
            step.finish(self._told(span.error))
        elif step in unit.steps.values():
            step.finish(CancelledError())

    def _end(self, family: Family, unit: Unit) -> None:
        """Ends a run. The outermost one lasts as long as its trace, in which more of them may come."""
        if unit.has_ended:
            return
        unit.has_ended = True
        family.units.pop(unit.place.key, None)
        caller = None if unit.place.above is None else self._spans.get(unit.place.above)
        # Only a cancellation ends a run before a run below it.
        is_orphan = unit.caller is not None and unit.caller.has_ended
        is_cut = is_orphan or any(call.usage is None for call in unit.calls) or bool(unit.steps)
        for call in unit.calls:
            self._close(unit, call)
        for step in unit.steps.values():
            step.finish(CancelledError())
        ending: dict[str, Any] = {"output": unit.output}
        if unit.error is not None:
            ending |= {"error": unit.error if self.content else "error", "status": RunStatus.FAILED}
        elif is_cut and not unit.has_output:
            ending |= {"status": RunStatus.CANCELLED}
        elif caller is not None:
            caller.is_paused = not unit.has_output
        if unit.place.run_id is not None:
            unit.block.finish(**ending)
            return
        family.ending = ending
        if not family.will_end:
            self._finish_family(family)

    def _finish_family(self, family: Family) -> None:
        self._families.take(family.key)
        family.will_end = True
        for unit in list(family.units.values()):
            self._end(family, unit)
        if family.block is None:
            return
        if not family.is_told and (left := totals_of(family.usage) - family.in_books):
            # Without spans, the calls of an agent that is a tool and has no hooks are known by their sum alone.
            family.block.usage(
                provider=self._provider, idempotency_key=f"{family.block.run_id}:unseen", **fitted(**left)
            )
        family.block.finish(**(family.ending or {}))

    def _told(self, error: Any) -> str | None:
        """An error of a span as it may be recorded: its text may hold content."""
        if error is None:
            return None
        return _text_of_error(error) if self.content else "error"

    # Content

    def _show_prompt(self, unit: Unit, call: Call, items: Any) -> None:
        if not self.content or unit.has_prompt:
            return
        unit.has_prompt = True
        text = items if isinstance(items, str) else ""
        if not isinstance(items, str):
            asked = [item for item in items or () if value_at(item, "role") == "user"]
            text = text_of(value_at(asked[-1], "content")) if asked else ""
        if text:
            unit.block.message("user", text, message_id=f"{call.own_key}:prompt")

    def _show_answer(self, unit: Unit, call: Call, items: Any) -> None:
        if not self.content:
            return
        said = [text_of(value_at(item, "content")) for item in items or () if value_at(item, "type") == "message"]
        if text := "\n".join(one for one in said if one):
            unit.block.message("assistant", text, message_id=f"{call.own_key}:reply")


def _trace_id() -> str | None:
    """The id of the trace around this code; None without tracing."""
    trace = get_current_trace()
    return None if trace is None or trace.trace_id in _NO_IDS else trace.trace_id


def _span_id() -> str | None:
    span = get_current_span()
    return None if span is None or span.span_id in _NO_IDS else span.span_id


def _model_of(agent: Agent[Any]) -> str | None:
    """The model that is asked, where the agent names one: a text, or an object with a name."""
    model = agent.model
    found = model if isinstance(model, str) else value_at(model, "model")
    return found if isinstance(found, str) else None


def _tool_call_id(context: Any, tool: Tool) -> str | None:
    """The id of the call of this tool. The context of an agent that is a tool has the id of the agent's call."""
    is_of_tool = value_at(context, "tool_name") == tool.name
    return value_at(context, "tool_call_id") if is_of_tool else None


def _text_of_error(error: Any) -> str:
    return str(value_at(error, "data", "error") or value_at(error, "message") or "error")


def _json_of(text: Any) -> Any:
    try:
        return loads(text)
    except (TypeError, ValueError):
        return text
