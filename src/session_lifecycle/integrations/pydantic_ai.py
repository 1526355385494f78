"""Pydantic AI: a capability that records the runs of an agent, their model calls, and their tool calls.

    agent = Agent(model, capabilities=[SessionCapability(recorder, user_id=user_id)])

A run is recorded in the session of the run around it, else in that of the session block around it, else in the
adapter's `session_id`, else in the run's `conversation_id`.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Unpack

from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.adapter import Adapter, AdapterOptions, OpenParts, TakesQuietly, recorded
from session_lifecycle.integrations.counts import Counts, fitted, tier_counts, value_at
from session_lifecycle.models import RunStatus
from session_lifecycle.writing.attempt import Attempt, ends_as_cancelled
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.run_block import RunBlock, current_run
from session_lifecycle.writing.session_trace import SessionTrace, current_trace
from session_lifecycle.writing.step_block import StepBlock

try:
    from pydantic_ai import ModelResponse, RunContext, ToolDefinition, exceptions
    from pydantic_ai.capabilities import (
        AbstractCapability,
        CapabilityOrdering,
        ValidatedToolArgs,
        WrapModelRequestHandler,
        WrapRunHandler,
        WrapToolExecuteHandler,
    )
    from pydantic_ai.messages import ModelRequestAttempt, ToolCallPart
    from pydantic_ai.models import ModelRequestContext
    from pydantic_ai.run import AgentRunResult
    from pydantic_ai.usage import RequestUsage
except ImportError as missing:
    raise ImportError("Pydantic AI is not installed: pip install 'session-lifecycle[pydantic-ai]'") from missing


class BudgetRefusedError(BudgetExceededError, exceptions.UsageLimitExceeded):
    """A budget refuses a call of a model. The runtime ends the run with it."""


class _Place(NamedTuple):
    """Where code runs: in a run that an adapter records, and there perhaps in a tool call."""

    quiet: QuietWriter
    run_id: str
    tool_call_id: str | None = None


_place: ContextVar[_Place | None] = ContextVar("session_lifecycle_pydantic_ai", default=None)


@contextmanager
def _within(place: _Place) -> Generator[None]:
    outer = _place.get()
    _place.set(place)
    try:
        yield
    finally:
        # Not by a token: the runtime brings values of another context into this one.
        _place.set(outer)


class _OpenRun:
    """A run that has begun, and the request to a model that it waits for."""

    def __init__(self, block: RunBlock) -> None:
        self.block = block
        self.attempt: Attempt | None = None
        self.request_step = 0
        self.requests = 0
        self.keys: set[str] = set()
        self.tool_calls: Counter[str] = Counter()
        self.told_attempts = 0
        """How many of the request's attempts that failed are recorded."""
        self.rejected: list[tuple[int, int]] = []
        """Counts of the request's responses that are recorded, and that another capability may reject."""

    def key_of(self, response: ModelResponse) -> str | None:
        """The id of the response; None where it has none of its own."""
        key = response.provider_response_id
        if not key or key in self.keys:
            return None
        self.keys.add(key)
        return key


class SessionCapability(Adapter, AbstractCapability[Any]):
    """Records the runs of the agents that have it. One may serve many agents, and many runs at once.

    It sees each response as the provider gave it, before other capabilities do, and changes nothing. Agents that are
    called in a tool of a run, and that have it too, are runs below that run. A run with two of one recorder is
    recorded once.

    Attributes:
        content: Whether messages, and the inputs and outputs of runs and steps, are recorded.
    """

    def __init__(self, recorder: TakesQuietly, **options: Unpack[AdapterOptions]) -> None:
        """Makes a capability. It needs no event loop. Arguments: see `AdapterOptions`.

        `session_id` is the session of runs outside of a session block; without it, the run's `conversation_id` is. A
        call that `budgets` refuse ends the run with `BudgetRefusedError`.
        """
        super().__init__(recorder, **options)
        self._runs: OpenParts[str, _OpenRun] = OpenParts(lambda run: run.block.finish(status=RunStatus.CANCELLED))

    def get_ordering(self) -> CapabilityOrdering:
        """Innermost: a capability outside of it may reject a response, which is paid all the same."""
        return CapabilityOrdering(position="innermost")

    # Runs

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Records the run around `handler`."""
        run = self._begin_run(ctx)
        if run is None:
            return await handler()
        try:
            with run.block.active(), _within(_Place(self._quiet, run.block.run_id)):
                result = await handler()
        except BaseException as error:
            self._finish_run(run, error, None)
            raise
        self._finish_run(run, None, result)
        return result

    @recorded
    def _begin_run(self, ctx: RunContext[Any]) -> _OpenRun | None:
        run_id, agent_name, place = ctx.run_id, value_at(ctx, "agent", "name"), _place.get()
        if run_id is None or (place is not None and place.quiet is self._quiet and place.run_id == run_id):
            return None
        prompt = None if ctx.prompt is None else self.shown(_text_of(ctx.prompt))
        fields: dict[str, Any] = {"run_id": run_id, "agent_name": agent_name, "input": prompt}
        outer, around = current_run(), current_trace()
        if outer is not None and (around is None or around.session_id == outer.session_id):
            if place is not None and place.run_id == outer.run_id:
                fields["parent_tool_call_id"] = place.tool_call_id
            block = outer.run(agent_name, **fields)
        else:
            block = self._session(ctx, run_id, agent_name, around).run(agent_name, **fields)
        run = self._runs.put(run_id, _OpenRun(block.begin()))
        if prompt is not None:
            block.message("user", prompt, message_id=f"{run_id}:prompt")
        return run

    def _session(
        self, ctx: RunContext[Any], run_id: str, agent_name: str | None, around: SessionTrace | None
    ) -> SessionTrace:
        # Pydantic AI makes up a conversation for every run that the host names none for, and tells neither which.
        named = None if around is not None or self._session_id is not None else ctx.conversation_id
        if around is not None:
            named = around.session_id
        return self.session_of(named, run_id, agent_name=agent_name)

    @recorded
    def _finish_run(self, run: _OpenRun, error: BaseException | None, result: AgentRunResult[Any] | None) -> None:
        self._runs.take(run.block.run_id)
        attempt, run.attempt = run.attempt, None
        if attempt is not None and error is not None and _is_answer(error):
            # A stream that cannot be opened: the request was cancelled before the error was told.
            attempt.fail(error)
        run.block.finish(
            self._told(error),
            status=None if error is None else _status_of(error),
            output=self.shown(value_at(result, "output")),
        )

    def _told(self, error: BaseException | None) -> BaseException | str | None:
        """An error as it may be recorded: its text may hold content."""
        return None if error is None else self.shown_error(error)

    # Model calls

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Opens an attempt, and asks the budgets where the host wants that."""
        await self._begin_request(ctx, request_context)
        return request_context

    async def prepare_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Opens an attempt and asks, where another capability rejected the response of the one before."""
        await self._begin_request(ctx, request_context)
        return request_context

    async def after_model_request(
        self,
        ctx: RunContext[Any],
        *,
        request_context: ModelRequestContext,  # noqa: ARG002 - the runtime names it
        response: ModelResponse,
    ) -> ModelResponse:
        """Closes the attempt with the response."""
        self._answered(ctx, response)
        return response

    async def wrap_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, handler: WrapModelRequestHandler
    ) -> ModelResponse:
        """Closes the attempt with the error, where `handler` raises one."""
        try:
            return await handler(request_context)
        except Exception as error:
            self._failed(ctx, error)
            raise
        # A cancelled request stays open until its run ends: the run knows whether the provider refused the stream.

    async def _begin_request(self, ctx: RunContext[Any], request: ModelRequestContext) -> None:
        opened = self._open_attempt(ctx, request)
        if not self.asks_budgets or opened is False:
            return
        refusal = await self.refusal(opened, request)
        if refusal is not None:
            self._drop_attempt(ctx)
            raise BudgetRefusedError(refusal.budget_ids, str(refusal))

    @recorded
    def _open_attempt(self, ctx: RunContext[Any], request: ModelRequestContext) -> Attempt | Literal[False] | None:
        """The attempt; False where this request has one; None where nothing can be recorded."""
        run, place = self._run_of(ctx), _place.get()
        if run is None:
            is_of_another = place is not None and (place.quiet, place.run_id) == (self._quiet, ctx.run_id)
            return False if is_of_another else None
        if run.attempt is not None:
            if run.request_step == ctx.run_step:
                return False
            run.attempt.cancel()
        if run.request_step != ctx.run_step:
            run.request_step, run.told_attempts, run.rejected = ctx.run_step, 0, []
        run.requests += 1
        run.attempt = run.block.attempt(
            value_at(request, "model", "model_name"),
            value_at(request, "model", "system"),
            idempotency_key=f"{run.block.run_id}:{run.requests}",
        )
        return run.attempt

    @recorded
    def _drop_attempt(self, ctx: RunContext[Any]) -> None:
        """Forgets the attempt of a request that is not made."""
        if (run := self._run_of(ctx)) is not None:
            run.attempt = None

    @recorded
    def _answered(self, ctx: RunContext[Any], response: ModelResponse) -> None:
        run = self._run_of(ctx)
        if run is None or run.attempt is None:
            return
        attempt, run.attempt = run.attempt, None
        usage = response.usage
        is_cut = response.state in {"incomplete", "interrupted"}
        has_counts = bool(usage.input_tokens or usage.output_tokens)
        own_key = attempt.idempotency_key
        counts = _counts_of(usage)
        counts.update(tier_counts(value_at(response.provider_details, "service_tier")))
        attempt.usage(
            response.model_name,
            provider=response.provider_name,
            idempotency_key=run.key_of(response),
            partial=has_counts and bool(is_cut or usage.unmeasured_requests),
            **counts,
        )
        self._tell_attempts(run, response.failed_attempts or (), own_key)
        run.rejected.append((usage.input_tokens, usage.output_tokens))
        if self.content and (text := response.text):
            run.block.message("assistant", text, message_id=f"{attempt.idempotency_key}:reply")

    @recorded
    def _failed(self, ctx: RunContext[Any], error: Exception) -> None:
        run = self._run_of(ctx)
        if run is None or run.attempt is None:
            return
        attempt, run.attempt = run.attempt, None
        attempts: list[ModelRequestAttempt] = list(value_at(error, "attempts") or ())
        if len(attempts) > run.told_attempts:
            # The last of the attempts is the one that is open.
            self._tell_attempts(run, attempts[:-1], attempt.idempotency_key)
            _close_attempt(attempt, attempts[-1])
        elif _is_answer(error):
            attempt.fail(error)
        else:
            attempt.cancel()

    def _tell_attempts(self, run: _OpenRun, attempts: Sequence[ModelRequestAttempt], own_key: str) -> None:
        """Records the attempts at a request that another model answered: those that no hook was told of."""
        for number, attempt in enumerate(attempts):
            if number < run.told_attempts:
                continue
            run.told_attempts = number + 1
            counts = (0, 0) if attempt.usage is None else (attempt.usage.input_tokens, attempt.usage.output_tokens)
            if attempt.outcome == "rejected" and counts in run.rejected:
                run.rejected.remove(counts)
                continue
            opened = run.block.attempt(
                attempt.model_name,
                attempt.provider_name,
                idempotency_key=f"{own_key}:{number}",
                started_at=attempt.timestamp,
            )
            _close_attempt(opened, attempt)

    def _run_of(self, ctx: RunContext[Any]) -> _OpenRun | None:
        return None if ctx.run_id is None else self._runs.get(ctx.run_id)

    # Tool calls

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,  # noqa: ARG002 - the runtime names it
        args: ValidatedToolArgs,
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Records the tool call around `handler`."""
        step = self._begin_step(ctx, call, args)
        if step is None:
            return await handler(args)
        try:
            with step.active(), _within(_Place(self._quiet, step.run_id, call.tool_call_id)):
                result = await handler(args)
        except BaseException as error:
            self._finish_step(step, error, None)
            raise
        self._finish_step(step, None, result)
        return result

    @recorded
    def _begin_step(self, ctx: RunContext[Any], call: ToolCallPart, args: ValidatedToolArgs) -> StepBlock | None:
        run, place = self._run_of(ctx), _place.get()
        if run is None or (
            place is not None and (place.run_id, place.tool_call_id) == (run.block.run_id, call.tool_call_id)
        ):
            return None
        run.tool_calls[call.tool_call_id] += 1
        # A model that repeats an id makes another call all the same.
        again = run.tool_calls[call.tool_call_id]
        return run.block.step(
            "tool",
            call.tool_name,
            step_id=call.tool_call_id if again == 1 else f"{call.tool_call_id}:{again}",
            tool_call_id=call.tool_call_id,
            inputs=self.shown(args),
        ).begin()

    @recorded
    def _finish_step(self, step: StepBlock, error: BaseException | None, result: Any) -> None:
        if isinstance(error, exceptions.SkipToolExecution):
            step.finish(output=self.shown(error.result))
        elif isinstance(error, exceptions.CallDeferred | exceptions.ApprovalRequired):
            step.finish(metadata={"deferred": True})
        else:
            step.finish(self._told(error), output=self.shown(result))


def _is_answer(error: BaseException) -> bool:
    """Whether the error is the provider's answer to a request: it bills nothing for that."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_answer(one) for one in error.exceptions)
    return _names_answer(type(error)) and not value_at(error, "in_stream")


def _names_answer(kind: type[BaseException]) -> bool:
    # The class itself says nothing of whether the request reached the provider.
    is_of_provider = issubclass(kind, exceptions.ModelAPIError) and kind is not exceptions.ModelAPIError
    return is_of_provider and not issubclass(kind, exceptions.ModelConnectionError)


def _close_attempt(attempt: Attempt, told: ModelRequestAttempt) -> None:
    """Closes an attempt as the runtime tells it."""
    kind = getattr(exceptions, (told.error or "").partition(":")[0], Exception)
    attempt.usage(
        told.model_name,
        provider=told.provider_name,
        errored=told.usage is None and told.outcome == "error" and isinstance(kind, type) and _names_answer(kind),
        **(Counts() if told.usage is None else _counts_of(told.usage)),
    )


def _counts_of(usage: RequestUsage) -> Counts:
    return fitted(
        tokens_in=usage.input_tokens,
        tokens_out=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        audio_tokens_in=usage.input_audio_tokens,
        cache_read_audio_tokens=usage.cache_audio_read_tokens,
        reasoning_tokens=usage.output_reasoning_tokens,
        audio_tokens_out=usage.output_audio_tokens,
        web_searches=usage.details.get("web_search_requests"),
    )


def _status_of(error: BaseException) -> RunStatus:
    return RunStatus.CANCELLED if ends_as_cancelled(error) else RunStatus.FAILED


def _text_of(prompt: Any) -> str:
    """The texts of a prompt. Images, sounds and files are not recorded."""
    if isinstance(prompt, str):
        return prompt
    texts = (part if isinstance(part, str) else value_at(part, "content") for part in prompt)
    return "\n".join(text for text in texts if isinstance(text, str))
