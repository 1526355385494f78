"""LangChain and LangGraph: a callback handler, for `invoke` and `ainvoke` alike.

    handler = SessionCallbackHandler(recorder, user_id=user_id)
    await graph.ainvoke(inputs, config={"callbacks": [handler], "configurable": {"thread_id": "chat-1"}})

The outermost call of a chain, a graph or a model is a run. A graph inside it, such as a sub-agent, is a run below it
with the graph's name as its agent. A tool or a retriever is a step. A model call is a usage event. Its key is the
call's own run id: every call has one, and it stays the same when the client tries again.
"""
# ruff: noqa: ARG002 - LangChain decides what a callback is given

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, ParamSpec, Unpack, cast
from uuid import NAMESPACE_URL, UUID, uuid5

from session_lifecycle.integrations.adapter import (
    Adapter,
    AdapterOptions,
    OpenParts,
    TakesQuietly,
    is_answer,
    recorded,
    text_of,
    text_or_none,
)
from session_lifecycle.integrations.counts import Counts, fitted, number, openai_chat_counts, tier_counts, value_at
from session_lifecycle.writing.attempt import Attempt, ends_as_cancelled, now
from session_lifecycle.writing.run_block import RunBlock
from session_lifecycle.writing.step_block import StepBlock

try:
    from langchain_core.callbacks import BaseCallbackHandler
except ImportError as error:
    raise ImportError("LangChain is not installed: pip install 'session-lifecycle[langchain]'") from error

_SESSION_KEYS = ("thread_id", "session_id", "conversation_id")
"""The keys of `metadata` that name a session: LangGraph's, and those of LangSmith."""
_PREFIXES = ("", "priority_", "flex_")
Arguments = ParamSpec("Arguments")


@dataclass(eq=False, slots=True)
class _Node:
    """A call of a chain, graph, tool or retriever, or a model call without a parent. Calls are a tree."""

    run_id: str
    name: str | None
    parent: "_Node | None" = None
    namespace: str | None = None
    session_id: str | None = None
    started_at: datetime = field(default_factory=now)
    is_graph: bool = False
    tool_call_id: str | None = None
    run: RunBlock | None = None
    step: StepBlock | None = None
    runs: list[RunBlock] = field(default_factory=list)
    """Of the outermost call: the runs below its own."""
    steps: set[str] = field(default_factory=set)
    """Of a call with a run: the ids of its steps."""

    def cancel(self) -> None:
        """Called when the recorder closes: nobody tells the end of this call any more."""
        for run in [*reversed(self.runs), self.run]:
            if run is not None:
                run.cancel()

    @property
    def root(self) -> "_Node":
        node = self
        while node.parent is not None:
            node = node.parent
        return node


@dataclass(eq=False, slots=True)
class _Call:
    """A model call that is open."""

    attempt: Attempt
    run: RunBlock
    is_whole_run: bool
    knows_provider: bool
    task: "asyncio.Task[Any] | None" = None

    def give_up(self, _: object = None) -> None:
        self.attempt.cancel()


class _AskingCallback:
    """A callback that opens a call, and then asks the budgets where the host wants that.

    LangChain awaits a callback of `ainvoke` only where it is a coroutine function. What a coroutine function raises in
    `invoke`, it swallows. So whoever reads the attribute gets the callback that the reader can use: LangChain reads it
    in a coroutine for `ainvoke` alone.
    """

    def __init__(self, begin: Callable[..., "_Call | None"]) -> None:
        self._begin = begin

    def __get__(self, handler: "SessionCallbackHandler | None", kind: type | None = None) -> Any:
        if handler is None:
            return self._begin
        begin = partial(self._begin, handler)
        if not handler.asks_budgets:
            return begin
        # The documented way to the caller.
        caller = sys._getframe(1)  # noqa: SLF001 - the documented way # pyright: ignore[reportPrivateUsage]
        is_awaited = caller.f_code.co_flags & inspect.CO_COROUTINE
        return partial(handler.begin_and_ask if is_awaited else handler.begin_and_ask_now, begin)


def _asking(begin: Callable[Arguments, "_Call | None"]) -> Callable[Arguments, Any]:
    return cast(Callable[Arguments, Any], _AskingCallback(begin))


class SessionCallbackHandler(Adapter, BaseCallbackHandler):
    """Records what LangChain and LangGraph tell of their calls. One handler serves any number of calls at once.

    It waits for nothing and raises nothing: a failure of its own is counted and told to the recorder's `on_lost`. With
    `budgets`, a model call waits for their answer, and a call that they refuse raises `BudgetExceededError`.
    """

    # LangChain then calls it in the caller's task and context, also from `ainvoke`, and starts no thread.
    run_inline = True

    def __init__(self, recorder: TakesQuietly, **options: Unpack[AdapterOptions]) -> None:
        """Makes a handler. Arguments: see `AdapterOptions`.

        The session is `thread_id`, `session_id` or `conversation_id` of the call's metadata, else `session_id` here.
        """
        super().__init__(recorder, **options)
        self.raise_error = self.asks_budgets  # LangChain logs other errors of callbacks, and goes on
        self._nodes: OpenParts[str, _Node] = OpenParts(self._give_up)
        self._namespaces: OpenParts[str, _Node] = OpenParts(lambda _: None)
        self._calls: OpenParts[str, _Call] = OpenParts(_Call.give_up)

    # Chains and graphs

    @recorded
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chain, a graph or a node of a graph begins."""
        node = self._node(run_id, parent_run_id, metadata, _name(serialized, kwargs))
        self._nodes.put(node.run_id, node)
        if node.parent is None:
            self._quiet.opened(node)
        if node.namespace is not None:
            self._namespaces.put(node.namespace, node)
        graph = node.parent
        if graph is not None and node.namespace is not None and node.namespace != graph.namespace:
            # Only a graph gives what it calls a namespace of its own.
            graph.is_graph = True
            if node.root.session_id is not None:
                self._run_of(graph)

    @recorded
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain, a graph or a node ended."""
        self._end_node(run_id, None)

    @recorded
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain, a graph or a node failed, was cancelled, or was interrupted by LangGraph."""
        self._end_node(run_id, error)

    def _end_node(self, run_id: UUID, error: BaseException | None) -> None:
        node = self._nodes.take(str(run_id))
        if node is None:
            return
        if node.namespace is not None and self._namespaces.get(node.namespace) is node:
            self._namespaces.take(node.namespace)
        self._quiet.closed(node)
        if node.parent is None:
            self._run_of(node)
            for run in reversed(node.runs):
                run.cancel()
        if node.run is not None:
            self._finish(node.run, error)

    def _give_up(self, node: _Node) -> None:
        node.cancel()
        self._quiet.closed(node)

    def _finish(self, run: RunBlock, error: BaseException | None) -> None:
        if error is None or _goes_on(error):
            run.finish()
        else:
            run.finish(self.shown_error(error), status="cancelled" if ends_as_cancelled(error) else None)

    def _node(
        self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any] | None, name: str | None
    ) -> _Node:
        told = metadata or {}
        namespace = text_or_none(told.get("langgraph_checkpoint_ns"))
        node = _Node(str(run_id), name, namespace=namespace)
        if parent_run_id is not None:
            node.parent = self._nodes.get(str(parent_run_id)) or self._by_namespace(namespace)
        node.session_id = next((found for key in _SESSION_KEYS if (found := text_or_none(told.get(key)))), None)
        root = node.root
        if root.session_id is None:
            root.session_id = node.session_id
        return node

    def _by_namespace(self, namespace: str | None) -> _Node | None:
        """The innermost call of this namespace, or of one around it: for a call whose parent was not told."""
        while namespace:
            if (found := self._namespaces.get(namespace)) is not None:
                return found
            namespace = namespace.rpartition("|")[0]
        return None

    def _run_of(self, node: _Node) -> RunBlock:
        """The run that the call belongs to, which begins here where it has not begun.

        Runs begin no earlier, as the outermost call may not know its session, and a graph is known by what it calls.
        """
        tool_call_id = None
        while node.parent is not None and not node.is_graph:
            tool_call_id = tool_call_id or node.tool_call_id
            node = node.parent
        if node.run is not None:
            return node.run
        agent_name = node.name if node.is_graph else None
        if node.parent is None:
            trace = self.session_of(node.session_id, node.run_id, agent_name=agent_name)
            node.run = trace.run(node.name, run_id=node.run_id, agent_name=agent_name)
        else:
            above = node.parent
            while above.parent is not None and not above.is_graph and above.tool_call_id is None:
                above = above.parent
            node.run = self._run_of(node.parent).run(
                node.name, run_id=node.run_id, agent_name=agent_name, parent_tool_call_id=above.tool_call_id
            )
            node.root.runs.append(node.run)
        return node.run.begin(at=node.started_at)

    # Model calls

    async def begin_and_ask(
        self, begin: Callable[..., _Call | None], /, *told: Any, run_id: UUID, **named: Any
    ) -> None:
        """Opens a call, and raises `BudgetExceededError` where a budget refuses it. For `ainvoke`."""
        call = begin(*told, run_id=run_id, **named)
        try:
            refusal = await self.refusal(None if call is None else call.attempt, told[-1] if told else None)
        except BaseException as error:
            self._drop_call(run_id, error)
            raise
        if refusal is not None:
            self._drop_call(run_id, refusal)
            raise refusal

    def begin_and_ask_now(self, begin: Callable[..., _Call | None], /, *told: Any, run_id: UUID, **named: Any) -> None:
        """As `begin_and_ask`, for `invoke`."""
        call = begin(*told, run_id=run_id, **named)
        try:
            refusal = self.refusal_now(None if call is None else call.attempt, told[-1] if told else None)
        except BaseException as error:
            self._drop_call(run_id, error)
            raise
        if refusal is not None:
            self._drop_call(run_id, refusal)
            raise refusal

    @recorded
    def _drop_call(self, run_id: UUID, error: BaseException) -> None:
        """Forgets a call that is not made: LangChain tells no end of it."""
        call = self._close_call(run_id)
        if call is not None and call.is_whole_run:
            self._finish(call.run, error)

    @_asking
    @recorded
    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[Any]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> _Call | None:
        """A chat model is called."""
        call = self._open_call(serialized, run_id, parent_run_id, metadata, kwargs)
        if self.content:
            for message in _new_prompts(messages[0] if messages else ()):
                said = text_of(value_at(message, "content"))
                # The same prompt may be sent again, by another call of the run or of the session.
                message_id = text_or_none(value_at(message, "id")) or str(
                    uuid5(NAMESPACE_URL, f"{call.run.run_id} {said}")
                )
                call.run.message("user", said, message_id=message_id, at=call.attempt.started_at)
        return call

    @_asking
    @recorded
    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> _Call | None:
        """A model that completes text is called."""
        call = self._open_call(serialized, run_id, parent_run_id, metadata, kwargs)
        if self.content:
            for number_of_prompt, prompt in enumerate(prompts):
                message_id = f"{run_id}-prompt-{number_of_prompt}"
                call.run.message("user", prompt, message_id=message_id, at=call.attempt.started_at)
        return call

    def _open_call(
        self,
        serialized: Mapping[str, Any] | None,
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
    ) -> _Call:
        node = self._node(run_id, parent_run_id, metadata, _name(serialized, kwargs))
        run = self._run_of(node)
        told = (
            value_at(metadata, "ls_model_name"),
            value_at(kwargs, "invocation_params", "model"),
            value_at(kwargs, "invocation_params", "model_name"),
        )
        is_whole_run = node.run is run
        provider = text_or_none(value_at(metadata, "ls_provider"))
        attempt = run.attempt(
            next(filter(None, map(text_or_none, told)), None),
            provider,
            idempotency_key=node.run_id,
            started_at=node.started_at,
            on_cancelled=run.cancel if is_whole_run else None,
        )
        call = _Call(attempt, run, is_whole_run, provider is not None)
        if is_whole_run and (task := _current_task()) is not None:
            # A cancelled `ainvoke` calls nothing. Where a chain is around it, the chain tells.
            call.task = task
            task.add_done_callback(call.give_up)
        return self._calls.put(node.run_id, call)

    @recorded
    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered."""
        call = self._close_call(run_id)
        if call is None:
            return
        try:
            self._record_answer(call, response, str(run_id))
        finally:
            call.attempt.cancel()  # where the answer cannot be read, the call is known all the same
            if call.is_whole_run:
                call.run.finish()

    def _record_answer(self, call: _Call, response: Any, message_id: str) -> None:
        answer = _answer(response)
        if value_at(answer, "message", "usage_metadata", "total_cost") == 0:
            self.discard(call.attempt)  # LangChain had the answer in its cache, and marks it so
        else:
            told = None if call.knows_provider else value_at(answer, "message", "response_metadata", "model_provider")
            call.attempt.usage(
                _served_model(response, answer), provider=text_or_none(told), **_counts(response, answer)
            )
        said = text_of(value_at(answer, "message", "content")) or value_at(answer, "text")
        if self.content and said:
            call.run.message("assistant", said, message_id=message_id)

    @recorded
    def on_llm_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        response: Any = None,
        **kwargs: Any,
    ) -> None:
        """A model call failed or was cancelled, or its stream was left."""
        call = self._close_call(run_id)
        if call is None:
            return
        answer = _answer(response)
        counts = _counts(response, answer)
        # OpenAI's client raises the answer that it could not parse, as it was cut at its limit of tokens.
        unparsed = value_at(error, "completion")
        if counts.get("tokens_in") or counts.get("tokens_out"):
            call.attempt.usage(_served_model(response, answer), **counts, partial=True)
        elif whole := openai_chat_counts(value_at(unparsed, "usage")):
            call.attempt.usage(text_or_none(value_at(unparsed, "model")), **whole)
        elif is_answer(error):
            call.attempt.fail(error)
        else:
            call.attempt.cancel()
        if call.is_whole_run:
            self._finish(call.run, error)

    def _close_call(self, run_id: UUID) -> _Call | None:
        call = self._calls.take(str(run_id))
        if call is not None and call.task is not None:
            call.task.remove_done_callback(call.give_up)
        return call

    # Tools and retrievers

    @recorded
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool begins."""
        node = self._node(run_id, parent_run_id, metadata, _name(serialized, kwargs))
        node.tool_call_id = text_or_none(kwargs.get("tool_call_id"))
        self._begin_step("tool", node, input_str if inputs is None else inputs)

    @recorded
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool returned. A message of the status `error` stands for a failure that the tool has handled."""
        self._end_step(run_id, None, output)

    @recorded
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool raised."""
        self._end_step(run_id, error)

    @recorded
    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A retriever begins."""
        self._begin_step("retriever", self._node(run_id, parent_run_id, metadata, _name(serialized, kwargs)), query)

    @recorded
    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        """A retriever returned."""
        found = [value_at(document, "page_content") for document in documents] if self.content else None
        self._end_step(run_id, None, found)

    @recorded
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A retriever raised."""
        self._end_step(run_id, error)

    def _begin_step(self, kind: str, node: _Node, inputs: Any) -> None:
        run = self._run_of(node)
        owner = node
        while owner.run is not run and owner.parent is not None:
            owner = owner.parent
        # A tool call that is tried again has its id once more.
        step_id = node.tool_call_id
        if step_id is None or step_id in owner.steps:
            step_id = node.run_id
        owner.steps.add(step_id)
        above = node.parent
        while above is not None and above.step is None and above is not owner:
            above = above.parent
        around = above.step if above is not None and above is not owner else None
        node.step = run.step(
            kind,
            node.name,
            step_id=step_id,
            parent_step_id=None if around is None else around.step_id,
            tool_call_id=node.tool_call_id,
            inputs=self.shown(inputs),
        ).begin(at=node.started_at)
        self._nodes.put(node.run_id, node)

    def _end_step(self, run_id: UUID, error: BaseException | None, output: Any = None) -> None:
        node = self._nodes.take(str(run_id))
        if node is None or node.step is None:
            return
        failure: BaseException | str | None = None
        if error is not None and not _goes_on(error):
            failure = self.shown_error(error)
        elif value_at(output, "status") == "error":
            failure = text_of(value_at(output, "content")) if self.content else "tool_error"
        content = value_at(output, "content")
        node.step.finish(failure, output=self.shown(output if content is None else content))
        if node.run is not None:  # a tool that was called by itself
            self._finish(node.run, error)


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def _name(serialized: Mapping[str, Any] | None, kwargs: Mapping[str, Any]) -> str | None:
    return text_or_none(kwargs.get("name")) or text_or_none(value_at(serialized, "name"))


def _goes_on(error: BaseException) -> bool:
    """Whether LangGraph raised this to pause a graph, or to go on in the graph around it: nothing failed."""
    return any(kind.__name__ == "GraphBubbleUp" for kind in type(error).__mro__)


def _answer(response: Any) -> Any:
    """The first generation of a result. Each of several repeats the usage of all."""
    generations = value_at(response, "generations") or ()
    return next((one for some in generations for one in some), None)


def _served_model(response: Any, answer: Any) -> str | None:
    told = (
        value_at(answer, "message", "response_metadata", "model_name"),
        value_at(answer, "message", "response_metadata", "model"),
        value_at(answer, "generation_info", "model_name"),
        value_at(response, "llm_output", "model_name"),
    )
    return next(filter(None, map(text_or_none, told)), None)


def _counts(response: Any, answer: Any) -> Counts:
    usage = value_at(answer, "message", "usage_metadata")
    metadata = value_at(answer, "message", "response_metadata")
    if usage is None:
        counts = Counts()
        if value_at(answer, "message") is None:  # a model that completes text
            counts = openai_chat_counts(value_at(response, "llm_output", "token_usage"))
    else:
        put_in, put_out = (value_at(usage, name) for name in ("input_token_details", "output_token_details"))
        written_1h = number(value_at(put_in, "ephemeral_1h_input_tokens"))
        by_time = number(value_at(put_in, "ephemeral_5m_input_tokens")) + written_1h
        counts = fitted(
            tokens_in=value_at(usage, "input_tokens"),
            tokens_out=value_at(usage, "output_tokens"),
            cache_read_tokens=_part(put_in, "cache_read"),
            # Anthropic's writes are told as a sum, or by how long they last, as the stream or the whole answer has it.
            cache_write_tokens=max(_part(put_in, "cache_creation"), by_time),
            cache_write_1h_tokens=written_1h,
            audio_tokens_in=_part(put_in, "audio"),
            reasoning_tokens=_part(put_out, "reasoning"),
            audio_tokens_out=_part(put_out, "audio"),
            web_searches=value_at(metadata, "usage", "server_tool_use", "web_search_requests"),
        )
    for place in (("service_tier",), ("usage", "service_tier")):
        counts.update(tier_counts(value_at(metadata, *place)))
    if value_at(metadata, "usage", "speed") == "fast":
        counts["service_tier"] = "fast"
    return counts


def _part(details: Any, name: str) -> int:
    """A part of the input or output. langchain-openai puts the service tier before its name."""
    return max(number(value_at(details, prefix + name)) for prefix in _PREFIXES)


def _new_prompts(messages: Iterable[Any]) -> list[Any]:
    """What the user said since the model's last answer. What came before was sent with an earlier call."""
    new: list[Any] = []
    for message in messages:
        kind = value_at(message, "type")
        if kind == "ai":
            new = []
        elif kind == "human":
            new.append(message)
    return new
