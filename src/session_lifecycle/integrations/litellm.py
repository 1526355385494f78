"""LiteLLM's calls, recorded by a callback: one event for each call, those of a Router's fallbacks too.

    litellm.callbacks = [SessionLogger(recorder, user_id=user_id)]

Needs the extra `litellm`. LiteLLM tells the success of a call up to a third of a second after its answer, and nothing
about a call that was cancelled: that call is recorded without usage, at the latest after `attempt_timeout`.
"""
# ruff: noqa: ARG002 - LiteLLM decides what a callback is given

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Unpack
from uuid import UUID

from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.adapter import (
    Adapter,
    AdapterOptions,
    OpenParts,
    TakesQuietly,
    is_answer,
    recorded,
    text_of,
)
from session_lifecycle.integrations.counts import (
    Counts,
    anthropic_counts,
    fitted,
    openai_chat_counts,
    openai_responses_counts,
    tier_counts,
    value_at,
)
from session_lifecycle.integrations.model_calls import last_prompt
from session_lifecycle.models import RunStatus
from session_lifecycle.writing.attempt import Attempt, ends_as_cancelled
from session_lifecycle.writing.run_block import RunBlock

try:
    from litellm import get_llm_provider
    from litellm.exceptions import BudgetExceededError as LiteLlmBudgetExceededError
    from litellm.integrations.custom_logger import CustomLogger
except ImportError as error:
    raise ImportError(
        "session_lifecycle.integrations.litellm needs litellm: pip install 'session-lifecycle[litellm]'"
    ) from error

_MODEL_CALLS = {
    *("completion", "acompletion", "text_completion", "atext_completion", "embedding", "aembedding"),
    *("decisions", "adecisions", "compact_responses", "acompact_responses"),
    *("responses", "aresponses", "anthropic_messages", "generate_content", "agenerate_content"),
    *("generate_content_stream", "agenerate_content_stream", "image_generation", "aimage_generation"),
    *("image_edit", "aimage_edit", "transcription", "atranscription", "pass_through_endpoint"),
}
Owner = UUID | str | None
_NAMES = ("metadata", "litellm_metadata", "litellm_session_id", "litellm_trace_id")
"""The arguments of a call that say where it belongs."""


class BudgetRefusedError(BudgetExceededError, LiteLlmBudgetExceededError):
    """A budget refuses a call of a model. LiteLLM raises it from the call, and its proxy answers with its status.

    Its message says what would be exceeded. `current_cost` and `max_budget` are 0, as several budgets may refuse.
    """

    def __init__(self, budget_ids: Sequence[str], message: str) -> None:
        LiteLlmBudgetExceededError.__init__(self, 0.0, 0.0, message)
        self.budget_ids = tuple(budget_ids)


class _Run:
    """A run, which several calls may belong to, and how many of them are open."""

    def __init__(self, block: RunBlock, *, is_own: bool) -> None:
        self.block = block
        self.is_own = is_own
        """Whether this adapter began it."""
        self.open = 0


class _Call(NamedTuple):
    attempt: Attempt
    run: _Run


class _Ended(NamedTuple):
    """What is known of the calls with one id that have ended: a retry or a fallback may have the id of the first."""

    asked_at: datetime | None
    """When LiteLLM sent the last of these calls to the provider."""
    calls: int


class SessionLogger(Adapter, CustomLogger):
    """The callback. One serves all calls of a process, with and without `async`.

    The session is `litellm_session_id` or `metadata["session_id"]` of the call, the run `metadata["trace_id"]`, its
    agent `metadata["agent"]`, and the run above it `metadata["parent_run_id"]`. A call that names none belongs to the
    run block around it. Without one, calls with LiteLLM's own trace id are a run: a call with its fallbacks.

    Attributes:
        ended: The ids of the latest calls whose end LiteLLM has told.
    """

    def __init__(
        self,
        recorder: TakesQuietly,
        *,
        owner_of: Callable[[Mapping[str, Any]], Owner] | None = None,
        provider: str | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        """Makes a callback. It needs no event loop.

        Args:
            recorder: Takes the items: `db.recorder()`, or `db.synchronous_recorder()` where the callback is made before
                there is an event loop, as in a module that the proxy loads.
            owner_of: Finds the owner from the metadata of a call, as on the proxy, which tells the user of a key by
                `user_api_key_user_id`. None, and where it finds none: `user_id`.
            provider: Who answers and bills, where LiteLLM does not tell.
            **options: See `AdapterOptions`. A call that `budgets` refuse raises `BudgetRefusedError`. Nothing is asked
                for calls without `async`, as no callback of LiteLLM's can end them.
        """
        Adapter.__init__(self, recorder, **options)
        CustomLogger.__init__(self)
        self._owner_of = owner_of
        self._provider = provider
        self._calls: OpenParts[str, _Call] = OpenParts(lambda call: call.attempt.cancel())
        self._runs: OpenParts[tuple[str, str, str], _Run] = OpenParts(lambda _: None)
        self.ended: OpenParts[str, _Ended] = OpenParts(lambda _: None)
        self._changing = threading.RLock()

    # What LiteLLM calls. It gives the arguments by these names.

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> None:
        """A call with `async` begins; LiteLLM has not looked into its cache yet. Asks the budgets.

        Raises:
            BudgetRefusedError: A budget refuses the call.
        """
        if not self.asks_budgets:
            return
        begun = self._begin_to_ask(kwargs)
        if begun is False:
            return
        refusal = await self.refusal(None if begun is None else begun.attempt, kwargs)
        if refusal is not None:
            error = BudgetRefusedError(refusal.budget_ids, str(refusal))
            self._refused(begun, kwargs, error)
            raise error

    @recorded
    def log_pre_api_call(self, model: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        """A call begins."""
        call_id = value_at(kwargs, "litellm_call_id")
        if not isinstance(call_id, str) or not self._is_model_call(kwargs):
            return
        if self._calls.get(call_id) is None and not self._has_ended(call_id, kwargs):  # some tell it again
            self._begin(call_id, model, messages, kwargs)

    @recorded
    def log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,
        start_time: datetime,
        end_time: datetime,
    ) -> None:
        """A call without `async` has its answer."""
        self._succeed(kwargs, response_obj)

    @recorded
    async def async_log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,
        start_time: datetime,
        end_time: datetime,
    ) -> None:
        """A call has its answer."""
        self._succeed(kwargs, response_obj)

    @recorded
    def log_failure_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,
        start_time: datetime,
        end_time: datetime,
    ) -> None:
        """A call without `async` failed."""
        self._fail(kwargs)

    @recorded
    async def async_log_failure_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,
        start_time: datetime,
        end_time: datetime,
    ) -> None:
        """A call failed."""
        self._fail(kwargs)

    # Budgets

    @recorded
    def _begin_to_ask(self, kwargs: dict[str, Any]) -> "_Call | Literal[False] | None":
        """The call; False where no model is called, or it has begun; None where nothing can be recorded."""
        details = _details_of(kwargs)
        call_id = _id_asked(kwargs)
        if not isinstance(call_id, str) or not self._is_model_call(details):
            return False
        if self._calls.get(call_id) is not None:
            return False
        named = {name: kwargs[name] for name in _NAMES if kwargs.get(name)}
        model, provider, *_ = get_llm_provider(
            str(kwargs.get("model")), kwargs.get("custom_llm_provider"), kwargs.get("api_base"), kwargs.get("api_key")
        )
        params = {**(details.get("litellm_params") or {}), **named}
        messages = kwargs.get("messages")
        return self._begin(
            call_id, model, messages, {**details, "litellm_params": params, "custom_llm_provider": provider}
        )

    @recorded
    def _refused(self, call: "_Call | None", kwargs: dict[str, Any], error: BudgetRefusedError) -> None:
        """Ends a call that is not made. LiteLLM tells its failure as well."""
        call_id = _id_asked(kwargs)
        if call is None or not isinstance(call_id, str):
            return
        self._note_end(call_id, _details_of(kwargs))
        self._calls.take(call_id)
        self._end(call.run, RunStatus.FAILED, self.shown_error(error))

    # Runs and attempts

    def _is_model_call(self, kwargs: Mapping[str, Any]) -> bool:
        logged = value_at(kwargs, "standard_logging_object")
        if value_at(kwargs, "cache_hit") is True or value_at(logged, "cache_hit") is True:
            return False  # LiteLLM answers from a cache of its own, and nothing is billed
        call_type = value_at(kwargs, "call_type") or value_at(logged, "call_type")
        return not isinstance(call_type, str) or call_type in _MODEL_CALLS

    def _begin(self, call_id: str, model: Any, messages: Any, kwargs: Mapping[str, Any]) -> _Call:
        run = self._run_of(call_id, kwargs)
        before = self.ended.get(call_id)
        call_type = value_at(kwargs, "call_type") or value_at(kwargs, "standard_logging_object", "call_type") or ""
        attempt = run.block.attempt(
            model if isinstance(model, str) else value_at(kwargs, "model"),
            self._provider_of(kwargs),
            kind="embedding" if str(call_type).endswith("embedding") else "llm",
            idempotency_key=call_id if before is None else f"{call_id}:{before.calls + 1}",
            on_cancelled=lambda: self._cancelled(call_id),
        )
        with self._changing:
            run.open += 1
        if self.content and (prompt := last_prompt(messages or value_at(kwargs, "messages"))):
            run.block.message("user", prompt, message_id=f"{call_id}-prompt")
        return self._calls.put(call_id, _Call(attempt, run))

    def _run_of(self, call_id: str, kwargs: Mapping[str, Any]) -> _Run:
        params = value_at(kwargs, "litellm_params")
        metadata: dict[str, Any] = {}
        for found in (
            value_at(kwargs, "litellm_metadata"),
            value_at(params, "litellm_metadata"),
            value_at(params, "metadata"),
        ):
            metadata |= {name: value for name, value in found.items() if value} if isinstance(found, Mapping) else {}
        session_id = (
            value_at(params, "litellm_session_id")
            or value_at(kwargs, "litellm_session_id")
            or metadata.get("session_id")
        )
        run_id = metadata.get("trace_id")
        owner = None if self._owner_of is None else self._owner_of(metadata)
        if not run_id and (around := self.run_around(session_id, owner)) is not None:
            return _Run(around, is_own=False)
        if not run_id:
            traces = (
                value_at(params, "litellm_trace_id"),
                value_at(kwargs, "litellm_trace_id"),
                value_at(kwargs, "standard_logging_object", "trace_id"),
            )
            # With a session, LiteLLM's trace id is the session's id.
            run_id = next((trace for trace in traces if trace and trace != session_id), call_id)
        session = self.session_of(session_id, run_id, user_id=owner, agent_name=metadata.get("agent"))
        key = (str(session.user_id), session.session_id, run_id)
        with self._changing:
            found_run = self._runs.get(key)
            if found_run is None:
                block = session.run(
                    run_id=run_id, agent_name=metadata.get("agent"), parent_run_id=metadata.get("parent_run_id")
                ).begin()
                found_run = self._runs.put(key, _Run(block, is_own=True))
        return found_run

    def _provider_of(self, kwargs: Mapping[str, Any]) -> str | None:
        for place in ("standard_logging_object", "litellm_params"):
            if provider := value_at(kwargs, place, "custom_llm_provider"):
                return str(provider)
        return value_at(kwargs, "custom_llm_provider") or self._provider

    def _take(self, kwargs: Mapping[str, Any]) -> _Call | None:
        """The call that ends; None where it is no call of a model, or has ended."""
        call_id = value_at(kwargs, "litellm_call_id") or value_at(kwargs, "standard_logging_object", "litellm_call_id")
        if not isinstance(call_id, str):
            return None
        if not self._is_model_call(kwargs):
            if (begun := self._calls.take(call_id)) is not None:  # it was asked for, and the cache had its answer
                self.discard(begun.attempt)
                self._end(begun.run, RunStatus.COMPLETED)
            return None
        with self._changing:
            if self._has_ended(call_id, kwargs):
                return None
            if self._calls.get(call_id) is None:
                self._begin(call_id, value_at(kwargs, "model"), None, kwargs)
            self._note_end(call_id, kwargs)
            return self._calls.take(call_id)

    def _has_ended(self, call_id: str, kwargs: Mapping[str, Any]) -> bool:
        """Whether the end of this very call is known: no later call with its id has asked the provider."""
        last = self.ended.get(call_id)
        return last is not None and last.asked_at == kwargs.get("api_call_start_time")

    def _note_end(self, call_id: str, kwargs: Mapping[str, Any]) -> None:
        with self._changing:
            last = self.ended.get(call_id)
            calls = 1 if last is None else last.calls + 1
            self.ended.put(call_id, _Ended(kwargs.get("api_call_start_time"), calls))

    def _succeed(self, kwargs: Mapping[str, Any], response: Any) -> None:
        call = self._take(kwargs)
        if call is None:
            return
        logged = value_at(kwargs, "standard_logging_object")
        hidden = value_at(kwargs, "litellm_params", "metadata", "hidden_params", "provider_response_model")
        model = hidden or value_at(response, "model")
        call.attempt.usage(
            model if isinstance(model, str) else None,
            provider=self._provider_of(kwargs),
            **counts_of(response, logged),
        )
        if self.content and (answer := _answer(response)):
            call.run.block.message("assistant", answer, message_id=f"{call.attempt.idempotency_key}-answer")
        self._end(call.run, RunStatus.COMPLETED)

    def _fail(self, kwargs: Mapping[str, Any]) -> None:
        call = self._take(kwargs)
        if call is None:
            return
        error = value_at(kwargs, "exception")
        is_error = isinstance(error, BaseException)
        if is_error and ends_as_cancelled(error):
            call.attempt.cancel()
            self._end(call.run, RunStatus.CANCELLED)
            return
        if is_error and not is_answer(error):
            call.attempt.cancel()
        else:
            call.attempt.fail()
        self._end(call.run, RunStatus.FAILED, self.shown_error(error) if is_error else None)

    def _cancelled(self, call_id: str) -> None:
        """The time limit, or the end of the recorder, closed the attempt."""
        call = self._calls.take(call_id)
        if call is not None:  # else `_fail` has taken it, and ends the run
            self._calls.put(call_id, call)  # its answer may come all the same
            if call.run.is_own and call.run.open <= 1:
                call.run.block.finish(status=RunStatus.CANCELLED)

    def _end(self, run: _Run, status: RunStatus, error: BaseException | str | None = None) -> None:
        with self._changing:
            run.open -= 1
            is_over = run.is_own and run.open <= 0
        if not is_over:
            return
        if status is RunStatus.FAILED:
            run.block.give_up(error)  # a retry or a fallback may answer all the same
        else:
            run.block.finish(error, status=status)


def _details_of(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    return value_at(kwargs, "litellm_logging_obj", "model_call_details") or {}


def _id_asked(kwargs: Mapping[str, Any]) -> Any:
    """The id under which LiteLLM reports the call when it ends. LiteLLM never reports the id of a fallback."""
    return _details_of(kwargs).get("litellm_call_id") or value_at(kwargs, "litellm_call_id")


def counts_of(response: Any, logged: Any = None) -> Counts:
    """The counts of LiteLLM's response, whose usage has the names of Chat Completions and some of its own.

    Args:
        response: The response: an object of LiteLLM's, or a dict.
        logged: The call's `standard_logging_object`, for a response without usage.
    """
    usage = value_at(response, "usage")
    if value_at(usage, "prompt_tokens") is None:
        if value_at(usage, "input_tokens") is not None:
            is_anthropic = value_at(response, "type") == "message"
            return anthropic_counts(usage) if is_anthropic else openai_responses_counts(usage)
        usage = logged
    counts = openai_chat_counts(usage)
    details = value_at(usage, "prompt_tokens_details")
    searches = value_at(usage, "server_tool_use", "web_search_requests") or value_at(details, "web_search_requests")
    parts: dict[str, Any] = {name: count for name, count in counts.items() if name != "service_tier"}
    parts["cache_write_tokens"] = counts.get("cache_write_tokens") or value_at(details, "cache_creation_tokens")
    parts["cache_write_1h_tokens"] = value_at(details, "cache_creation_token_details", "ephemeral_1h_input_tokens")
    parts["web_searches"] = searches
    counts = fitted(**parts)
    counts.update(tier_counts(value_at(response, "service_tier") or value_at(usage, "service_tier")))
    return counts


def _answer(response: Any) -> str:
    choices = value_at(response, "choices")
    if isinstance(choices, list) and choices:
        return text_of(value_at(choices[0], "message", "content"))
    output = value_at(response, "output")
    items = output if isinstance(output, list) else []
    return "\n".join(text for item in items if (text := text_of(value_at(item, "content"))))
