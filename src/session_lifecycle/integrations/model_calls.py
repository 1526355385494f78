"""What the adapters of model clients share: a call of a model, from its beginning to what is known of its answer.

A client tells neither sessions nor runs. A call inside a run block belongs to that run. Any other call is a run of its
own, in the session that `Adapter.session_of` finds.
"""

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, Unpack
from uuid import uuid4

from session_lifecycle.errors import ConfigurationError
from session_lifecycle.integrations.adapter import Adapter, AdapterOptions, TakesQuietly, recorded, text_of
from session_lifecycle.integrations.counts import Counts, value_at
from session_lifecycle.models import RunStatus
from session_lifecycle.writing.attempt import Attempt, ends_as_cancelled
from session_lifecycle.writing.run_block import RunBlock

_NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ClientConnectorError"}
# Some servers of OpenAI's API draw their ids from a few hundred, or make none.
_NO_ID = re.compile(r"(?:.*[-_])?\d{0,6}|__fake_id__|no-op")
_MOST_IDS = 10_000


class CallOptions(AdapterOptions, total=False):
    """The keywords of every adapter of a client: those of `AdapterOptions`, where the runs are calls, and these.

    A call that `budgets` refuse raises `BudgetExceededError`, and no request is sent.
    """

    agent_name: str | None
    """The agent of runs that a call makes."""
    provider: str | None
    """Who answers and bills. None: as the function says."""


@dataclass
class Answer:
    """What is known of the answer of a call. It grows while a stream is heard."""

    model: str | None = None
    """The model that answers."""
    response_id: str | None = None
    counts: Counts = field(default_factory=Counts)
    usage: dict[str, Any] = field(default_factory=dict)
    """The provider's usage so far, where a stream tells it in pieces."""
    text: str = ""
    pending: str | None = None
    """The id under which the provider goes on to make the answer, also where nobody hears it."""
    is_whole: bool = False
    """Whether the answer has come to its end."""
    is_error: bool = False
    """Whether the provider told an error in it."""


class ModelCall:
    """A call that has begun: its attempt, and the run it belongs to."""

    def __init__(self, run: RunBlock, own_run: RunBlock | None, **named: Any) -> None:
        """Use `ModelCalls.begin` instead."""
        self.attempt = run.attempt(**named, on_cancelled=self._cancelled)
        self.run = run
        self.own_run = own_run
        self.is_over = False

    def _cancelled(self) -> None:
        """The time limit, or the end of the recorder, closed the attempt."""
        if not self.is_over and self.own_run is not None:
            self.own_run.cancel()  # the answer may come all the same


def check_client(client: Any, package: str, expected: str) -> None:
    """Refuses what is no client of a package: of a client of another one, nothing would be recorded.

    Raises:
        ConfigurationError: No class of the client is of the package.
    """
    if not any(kind.__module__.startswith(package) for kind in client.__class__.__mro__):
        raise ConfigurationError(f"client: got a {type(client).__name__}, expected {expected}")


class ModelCalls(Adapter):
    """Records the calls of one client. None of its methods but `ask` and `ask_now` raises or waits."""

    def __init__(
        self,
        recorder: TakesQuietly,
        *,
        agent_name: str | None = None,
        provider: str | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        """Makes an adapter. It needs no event loop. Arguments: see `CallOptions`."""
        super().__init__(recorder, **options)
        self.provider = provider
        self._agent_name = agent_name
        self._ids: dict[str, None] = {}

    @recorded
    def begin(
        self, name: str, model: Any, kind: Literal["llm", "embedding"] = "llm", prompt: str | None = None
    ) -> ModelCall | None:
        """Opens an attempt. Call this before the model is called. None: nothing can be recorded, and that is told.

        Args:
            name: The name of the run, where the call is one.
            model: The model that is asked for.
            kind: The kind of the model call.
            prompt: The last prompt.
        """
        model = model if isinstance(model, str) else None
        run, own_run = self.run_around(), None
        if run is None:
            run_id = str(uuid4())
            session = self.session_of(None, run_id, agent_name=self._agent_name)
            run = own_run = session.run(name, run_id=run_id, provider=self.provider, model=model).begin()
        if self.content and prompt:
            run.message("user", prompt)
        return ModelCall(run, own_run, model=model, provider=self.provider, kind=kind)

    async def ask(self, call: ModelCall | None, request: Any) -> None:
        """Asks the budgets, where the host wants that.

        Raises:
            BudgetExceededError: The model may not be called. The caller gives the error to `failed`.
        """
        if (refusal := await self.refusal(_attempt_of(call), request)) is not None:
            raise refusal

    def ask_now(self, call: ModelCall | None, request: Any) -> None:
        """As `ask`, for a caller without `await`."""
        if (refusal := self.refusal_now(_attempt_of(call), request)) is not None:
            raise refusal

    @recorded
    def finish(self, call: ModelCall | None, answer: Answer) -> None:
        """Closes the call with its whole answer."""
        if call is None:
            return
        call.is_over = True
        self._use(call, answer, is_partial=False)
        if self.content and answer.text:
            call.run.message("assistant", answer.text)
        if call.own_run is not None:
            call.own_run.finish(status=RunStatus.FAILED if answer.is_error else RunStatus.COMPLETED)

    @recorded
    def cut(self, call: ModelCall | None, answer: Answer, error: BaseException | None) -> None:
        """Closes the call of a stream that ended before its answer did. What is known of its usage is a lower bound."""
        if call is None:
            return
        call.is_over = True
        if answer.is_error and not answer.counts:
            call.attempt.fail()
        elif answer.counts:
            self._use(call, answer, is_partial=True)
        else:
            call.attempt.cancel()
        self._end(call, error, is_failed=answer.is_error)

    @recorded
    def failed(self, call: ModelCall | None, error: BaseException) -> None:
        """Closes a call that got no answer.

        The provider bills nothing for an answer with a status of error, nor for a request that was never sent. Of any
        other call nobody knows what it used.
        """
        if call is None:
            return
        call.is_over = True
        if has_error_status(error) or _was_never_sent(error):
            call.attempt.fail(error)
        else:
            call.attempt.cancel()
        self._end(call, error, is_failed=False)

    def _end(self, call: ModelCall, error: BaseException | None, *, is_failed: bool) -> None:
        if call.own_run is None:
            return
        is_failed = is_failed or (error is not None and not ends_as_cancelled(error))
        status = RunStatus.FAILED if is_failed else RunStatus.CANCELLED
        told = self.shown_error(error) if is_failed and error is not None else None
        call.own_run.finish(told, status=status)

    def _use(self, call: ModelCall, answer: Answer, *, is_partial: bool) -> None:
        call.attempt.usage(
            answer.model,
            errored=answer.is_error,
            idempotency_key=self._key(answer.response_id),
            partial=is_partial,
            **answer.counts,
        )

    def _key(self, response_id: str | None) -> str | None:
        """The response's id, where it is one; None: the attempt has a key of its own."""
        if not isinstance(response_id, str) or _NO_ID.fullmatch(response_id) or response_id in self._ids:
            return None
        self._ids[response_id] = None
        if len(self._ids) > _MOST_IDS:
            self._ids.pop(next(iter(self._ids)), None)
        return response_id


def _attempt_of(call: ModelCall | None) -> Attempt | None:
    return None if call is None else call.attempt


def has_error_status(error: BaseException) -> bool:
    """Whether the provider answered with a status of error.

    The status of an error may be 200, where the client refuses an answer, which was billed.
    """
    told = (getattr(error, name, None) for name in ("status_code", "code"))
    return any(isinstance(status, int) and status >= HTTPStatus.BAD_REQUEST for status in told)


def _was_never_sent(error: BaseException | None) -> bool:
    """Whether no connection was made. The names are those of httpx, its successors, and aiohttp."""
    while error is not None:
        if type(error).__name__ in _NEVER_SENT:
            return True
        error = error.__cause__
    return False


def last_prompt(messages: Any) -> str:
    """The text of the last message, where the user wrote it."""
    if isinstance(messages, str):
        return messages
    last = messages[-1] if isinstance(messages, list) and messages else None
    return text_of(value_at(last, "content")) if value_at(last, "role") == "user" else ""
