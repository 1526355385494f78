"""Google's Agent Development Kit: a plugin of an `App`.

    plugin = SessionPlugin(recorder, user_id=user_id)
    runner = Runner(app=App(name="app", root_agent=agent, plugins=[plugin]), session_service=sessions)

An invocation is a run of ADK's session. A model's answer is a usage event, whose key is the id of its event. An agent
that is called as a tool has an invocation of its own, in a session that ADK makes up: its run is below the run of the
tool's caller, in the caller's session.
"""
# ruff: noqa: ARG002 - ADK decides what a callback is given

from asyncio import CancelledError
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Unpack

from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.adapter import (
    Adapter,
    AdapterOptions,
    OpenParts,
    TakesQuietly,
    is_answer,
    recorded,
    text_or_none,
)
from session_lifecycle.integrations.counts import Counts, google_counts, number, value_at
from session_lifecycle.writing.attempt import Attempt
from session_lifecycle.writing.run_block import RunBlock
from session_lifecycle.writing.step_block import StepBlock

try:
    from google.adk.models.llm_response import LlmResponse
    from google.adk.plugins.base_plugin import BasePlugin
except ImportError as error:
    raise ImportError("Google ADK is not installed: pip install 'session-lifecycle[google-adk]'") from error

_RESOURCES = ("projects/", "publishers/", "models/", "apigee/")
"""What the name of a model begins with where it is a path and names no provider."""
BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
"""The `error_code` of the event in place of a model's answer where a budget refuses the call."""


@dataclass(eq=False, slots=True)
class _Call:
    """A model call. Its answer may come as several events, of which any may have the usage."""

    attempt: Attempt
    branch: str | None
    provider: str | None
    is_answered: bool = False
    """Whether a model has answered, and not a callback in its place."""
    usage: Any = None
    model: str | None = None
    event_id: str | None = None
    counts: Counts = field(default_factory=Counts)


@dataclass(eq=False, slots=True)
class _Invocation:
    """An invocation that is open."""

    invocation_id: str
    agent: str | None
    """The agent that the invocation began with."""
    run: RunBlock
    is_cut: bool = False
    """Whether one of its agents was cancelled."""
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    """The newest calls of each agent, one for each branch."""
    steps: dict[str, tuple[str | None, StepBlock]] = field(default_factory=dict)
    """The steps that are open with their agents, by the id of the tool call."""
    step_ids: set[str] = field(default_factory=set)
    agents: list[str] = field(default_factory=list)
    number_of_calls: int = 0
    refusal: BudgetExceededError | None = None
    """Why the last model call was refused."""

    def call(self, agent: str, branch: str | None) -> _Call | None:
        """The newest call of the agent in this branch; the one there is, where no call has this branch."""
        calls = self.calls.get(agent, ())
        found = next((call for call in calls if call.branch == branch), None)
        return found if found is not None or len(calls) != 1 else calls[0]


_calling: ContextVar[tuple[_Invocation, str | None] | None] = ContextVar("session_lifecycle_adk_tool", default=None)
"""The invocation whose tool runs here, and the id of the tool call."""


class SessionPlugin(Adapter, BasePlugin):
    """Records what ADK tells its plugins. One plugin serves any number of runners and invocations at once.

    It waits for nothing, changes nothing and raises nothing: a failure of its own is counted and told to the recorder's
    `on_lost`. Register it first: a plugin before it that answers in ADK's place hides the callback from it. With
    `budgets`, a model call waits for their answer, and a call that they refuse is answered with an error.
    """

    def __init__(
        self, recorder: TakesQuietly, *, name: str = "session_lifecycle", **options: Unpack[AdapterOptions]
    ) -> None:
        """Makes a plugin. Of ADK neither user ids are taken, as they are any text, nor a session that it does not name.

        Args:
            recorder: What it hands its items to.
            name: The plugin's name, which is unique in a runner.
            **options: See `AdapterOptions`. In place of a model that `budgets` refuse, the plugin answers with the
                `error_code` `BUDGET_EXCEEDED`.
        """
        Adapter.__init__(self, recorder, **options)
        BasePlugin.__init__(self, name)
        self._invocations: OpenParts[str, _Invocation] = OpenParts(self._give_up)

    # Runs

    @recorded
    async def before_run_callback(self, *, invocation_context: Any) -> None:
        """An invocation begins."""
        invocation = self._begin(invocation_context)
        said = _text_of(value_at(invocation_context, "user_content")) if self.content else ""
        if said:
            invocation.run.message("user", said, message_id=f"{invocation.invocation_id}-user")

    @recorded
    async def after_run_callback(self, *, invocation_context: Any) -> None:
        """An invocation ended, or its events are not read any further."""
        self._end(self._begin(invocation_context), None)

    @recorded
    async def on_run_error_callback(self, *, invocation_context: Any, error: Exception) -> None:
        """An invocation failed. What failed in it has told this error before."""
        self._end(self._begin(invocation_context), error)

    @recorded
    async def after_agent_callback(self, *, agent: Any, callback_context: Any) -> None:
        """An agent ended. A call that is open then was cancelled, and ADK calls nothing else."""
        invocation = self._invocations.get(str(value_at(callback_context, "invocation_id")))
        name = text_or_none(value_at(callback_context, "agent_name")) or text_or_none(value_at(agent, "name"))
        if invocation is None or name is None:
            return
        call = invocation.call(name, _branch_of(callback_context))
        if call is not None:
            self._settle(call)
            invocation.is_cut = invocation.is_cut or _is_open(call)
        invocation.is_cut = invocation.is_cut or any(agent == name for agent, _ in invocation.steps.values())
        if invocation.is_cut and name == invocation.agent:
            self._cut(invocation)

    def _begin(self, context: Any) -> _Invocation:
        """The invocation, which begins here where it has not begun."""
        invocation_id = str(value_at(context, "invocation_id"))
        found = self._invocations.get(invocation_id)
        if found is not None:
            return found
        agent = text_or_none(value_at(context, "agent", "name")) or text_or_none(value_at(context, "agent_name"))
        around = _calling.get()
        if around is not None and around[0].invocation_id != invocation_id:
            caller, tool_call_id = around
            run = caller.run.run(agent, run_id=invocation_id, agent_name=agent, parent_tool_call_id=tool_call_id)
        else:
            trace = self.session_of(text_or_none(value_at(context, "session", "id")), invocation_id, agent_name=agent)
            run = trace.run(agent, run_id=invocation_id, agent_name=agent)
        run.begin()
        self._quiet.opened(run)
        return self._invocations.put(invocation_id, _Invocation(invocation_id, agent, run))

    def _end(self, invocation: _Invocation, error: Exception | None) -> None:
        self._invocations.take(invocation.invocation_id)
        self._quiet.closed(invocation.run)
        self._close_parts(invocation, error)
        metadata = {"agents": invocation.agents} if len(invocation.agents) > 1 else None
        error = error or invocation.refusal
        if error is None:
            invocation.run.finish(status="cancelled" if invocation.is_cut else None, metadata=metadata)
        else:
            invocation.run.finish(self.shown_error(error), metadata=metadata)

    def _close_parts(self, invocation: _Invocation, error: Exception | None = None) -> None:
        for call in _calls_of(invocation):
            self._settle(call)
            invocation.is_cut = invocation.is_cut or _is_open(call)
        was_cut = self.shown_error(CancelledError()) if error is not None or invocation.is_cut else None
        for _, step in invocation.steps.values():
            step.finish(was_cut)
        invocation.steps.clear()

    def _cut(self, invocation: _Invocation) -> None:
        """Records that the invocation was cancelled. What is told of it later takes the place of that."""
        invocation.is_cut = True
        self._close_parts(invocation)
        invocation.run.cancel()

    def _give_up(self, invocation: _Invocation) -> None:
        self._cut(invocation)
        self._quiet.closed(invocation.run)

    # Model calls

    async def before_model_callback(self, *, callback_context: Any, llm_request: Any) -> LlmResponse | None:
        """A model is called. Where a budget refuses that, the answer is an error in place of the model's."""
        begun = self._begin_call(callback_context, llm_request)
        if not self.asks_budgets:
            return None
        refusal = await self.refusal(None if begun is None else begun[1].attempt, llm_request)
        if begun is not None:
            invocation, call = begun
            invocation.refusal = refusal
            if refusal is not None:
                for calls in invocation.calls.values():
                    calls[:] = [one for one in calls if one is not call]
        if refusal is None:
            return None
        return LlmResponse(error_code=BUDGET_EXCEEDED, error_message=str(refusal))

    @recorded
    def _begin_call(self, callback_context: Any, llm_request: Any) -> tuple[_Invocation, _Call] | None:
        invocation = self._begin(callback_context)
        agent, branch = str(value_at(callback_context, "agent_name")), _branch_of(callback_context)
        calls = invocation.calls.setdefault(agent, [])
        for call in [call for call in calls if call.branch == branch]:
            self._settle(call)
            calls.remove(call)
        provider, model = _provider_and_model(value_at(llm_request, "model"))
        invocation.number_of_calls += 1
        key = f"{invocation.invocation_id}:{invocation.number_of_calls}"
        attempt = invocation.run.attempt(model, provider, idempotency_key=key)
        call = _Call(attempt, branch, provider)
        calls.append(call)
        return invocation, call

    @recorded
    async def after_model_callback(self, *, callback_context: Any, llm_response: Any) -> None:
        """A model answered, or sent a piece of its answer."""
        invocation = self._invocations.get(str(value_at(callback_context, "invocation_id")))
        if invocation is None:
            return
        call = invocation.call(str(value_at(callback_context, "agent_name")), _branch_of(callback_context))
        if call is not None:
            call.is_answered = call.is_answered or value_at(llm_response, "partial") is not True
            call.usage = value_at(llm_response, "usage_metadata") or call.usage
            call.model = text_or_none(value_at(llm_response, "model_version")) or call.model

    @recorded
    async def on_model_error_callback(self, *, callback_context: Any, llm_request: Any, error: Exception) -> None:
        """A model call failed."""
        invocation = self._invocations.get(str(value_at(callback_context, "invocation_id")))
        if invocation is None:
            return
        call = invocation.call(str(value_at(callback_context, "agent_name")), _branch_of(callback_context))
        if call is not None:
            call.is_answered = True
            if is_answer(error):
                call.attempt.fail(error)
            else:
                call.attempt.cancel()

    @recorded
    async def on_event_callback(self, *, invocation_context: Any, event: Any) -> None:
        """An event of the session. The last event of a model's answer has its usage, and the id that is the key."""
        if value_at(event, "partial") is True:
            return
        invocation = self._begin(invocation_context)
        agent = text_or_none(value_at(event, "author"))
        event_id = text_or_none(value_at(event, "id"))
        call = None if agent is None else invocation.call(agent, text_or_none(value_at(event, "branch")))
        usage = value_at(event, "usage_metadata")
        if usage is not None and value_at(usage, "prompt_token_count") is None and call is not None:
            usage = call.usage
        if call is not None:
            call.model = text_or_none(value_at(event, "model_version")) or call.model
        if usage is not None:
            self._record(invocation, agent, call, event_id, google_counts_with_writes(usage), event)
        elif call is not None and call.attempt.is_open and not _has_tool_result(event):
            if call.is_answered:
                call.event_id = call.event_id or event_id  # a later event of the answer may have the usage
            else:
                self.discard(call.attempt)  # a callback answered in the model's place
                call.is_answered = True
        said = _text_of(value_at(event, "content")) if self.content and agent != "user" else ""
        if said and event_id is not None:
            invocation.run.message("assistant", said, message_id=event_id)

    def _record(
        self,
        invocation: _Invocation,
        agent: str | None,
        call: _Call | None,
        event_id: str | None,
        counts: Counts,
        event: Any,
    ) -> None:
        if agent is not None and agent not in invocation.agents:
            invocation.agents.append(agent)
        if call is None:  # a live session has no call of its own for each answer
            model = text_or_none(value_at(event, "model_version"))
            invocation.run.attempt(model).usage(model, idempotency_key=event_id, **counts)
            return
        if call.event_id is not None and not call.attempt.is_open and not _is_more(counts, call.counts):
            return  # a further event of the same answer
        call.is_answered = True
        call.event_id, call.counts = call.event_id or event_id, counts
        call.attempt.usage(self._served(call), idempotency_key=call.event_id, **counts)

    def _settle(self, call: _Call) -> None:
        """Closes a call that nothing more is expected of."""
        if call.attempt.is_open and call.event_id is not None:
            call.attempt.usage(self._served(call), idempotency_key=call.event_id)  # an answer without usage
        call.attempt.cancel()

    @staticmethod
    def _served(call: _Call) -> str | None:
        """The model that answered. Streaming, ADK names the one that was asked, as it was asked."""
        if call.model is None or call.provider is None:
            return call.model
        return call.model.removeprefix(f"{call.provider}/")

    # Tools

    @recorded
    async def before_tool_callback(self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any) -> None:
        """A tool begins."""
        invocation = self._begin(tool_context)
        tool_call_id = text_or_none(value_at(tool_context, "function_call_id"))
        name = text_or_none(value_at(tool, "name"))
        step_id = tool_call_id
        if step_id is None or step_id in invocation.step_ids:  # a call that is tried again has its id once more
            step_id = f"{invocation.invocation_id}:{len(invocation.step_ids)}"
        invocation.step_ids.add(step_id)
        step = invocation.run.step(
            "tool", name, step_id=step_id, tool_call_id=tool_call_id, inputs=self.shown(tool_args)
        )
        agent = text_or_none(value_at(tool_context, "agent_name"))
        invocation.steps[tool_call_id or step_id] = (agent, step.begin())
        # For an agent that this tool runs. ADK calls the tool in this context.
        _calling.set((invocation, tool_call_id))

    @recorded
    async def after_tool_callback(
        self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any, result: Any
    ) -> None:
        """A tool returned."""
        self._end_step(tool_context, None, result)

    @recorded
    async def on_tool_error_callback(
        self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any, error: Exception
    ) -> None:
        """A tool raised."""
        self._end_step(tool_context, error, None)

    def _end_step(self, context: Any, error: Exception | None, output: Any) -> None:
        _calling.set(None)
        invocation = self._invocations.get(str(value_at(context, "invocation_id")))
        tool_call_id = text_or_none(value_at(context, "function_call_id"))
        open_step = None if invocation is None or tool_call_id is None else invocation.steps.pop(tool_call_id, None)
        if open_step is not None:
            open_step[1].finish(None if error is None else self.shown_error(error), output=self.shown(output))


def google_counts_with_writes(usage: Any) -> Counts:
    """The counts of the usage, with the cache writes that ADK's LiteLLM model leaves on it beside the fields."""
    counts = google_counts(usage)
    room = counts.get("tokens_in", 0) - counts.get("cache_read_tokens", 0)
    written = min(number(value_at(usage, "cache_creation_input_tokens")), room)
    if written:
        counts["cache_write_tokens"] = written
    return counts


def _is_open(call: _Call) -> bool:
    """Whether no whole answer has come."""
    return not call.is_answered and call.event_id is None


def _calls_of(invocation: _Invocation) -> list[_Call]:
    return [call for calls in invocation.calls.values() for call in calls]


def _is_more(counts: Counts, before: Counts) -> bool:
    def both(one: Counts) -> tuple[int, int]:
        return one.get("tokens_in", 0), one.get("tokens_out", 0)

    return both(counts) > both(before)


def _provider_and_model(asked: Any) -> tuple[str | None, str | None]:
    model = text_or_none(asked)
    if model is None or model.startswith(_RESOURCES) or "/" not in model:
        is_google = model is not None and model.rpartition("/")[2].startswith(("gemini", "gemma"))
        return "google" if is_google else None, model
    provider, _, name = model.partition("/")
    return provider, name


def _branch_of(context: Any) -> str | None:
    return text_or_none(value_at(context, "branch")) or text_or_none(value_at(context, "_invocation_context", "branch"))


def _has_tool_result(event: Any) -> bool:
    return any(value_at(part, "function_response") is not None for part in value_at(event, "content", "parts") or ())


def _text_of(content: Any) -> str:
    parts: Iterable[Any] = value_at(content, "parts") or ()
    texts = (value_at(part, "text") for part in parts if not value_at(part, "thought"))
    return "\n".join(text for text in texts if isinstance(text, str) and text)
