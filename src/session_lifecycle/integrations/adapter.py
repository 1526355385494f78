"""What all adapters share: the session of a run, the parts that are open, and callbacks that never raise.

An adapter hands over what a runtime tells to a recorder, and waits for nothing. A *part* is a run, a step or an
attempt that the runtime has told the beginning of.
"""

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from datetime import timedelta
from functools import wraps
from typing import Any, Generic, ParamSpec, Protocol, TypedDict, TypeVar, cast
from uuid import UUID

from session_lifecycle.errors import (
    BudgetExceededError,
    ConfigurationError,
    InvalidValueError,
    SessionLifecycleError,
)
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.counts import value_at
from session_lifecycle.writing.attempt import Attempt, ends_as_cancelled
from session_lifecycle.writing.protocol import SessionReserver
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.run_block import RunBlock, current_run
from session_lifecycle.writing.session_trace import SessionTrace, current_trace

MOST_OPEN = 10_000
"""How many parts of one kind an adapter keeps open. A runtime that never tells an end must not fill the memory."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part")


class TakesQuietly(Protocol):
    """A recorder: that of an event loop (`db.recorder()`) or of threads (`db.synchronous_recorder()`)."""

    @property
    def quiet(self) -> QuietWriter:
        """Takes items from any thread, at once, and raises nothing."""
        ...


class AdapterOptions(TypedDict, total=False):
    """The keywords of every adapter. All may be left out."""

    user_id: UUID | str | Callable[[], UUID | str | None] | None
    """The owner of its sessions, or a function that finds the owner when a run begins, in the context of that run.
    None: the owner of the session block around the run."""
    session_id: str | None
    """The session of runs whose runtime names none. None: that of the session block around the run, else a session of
    its own for each run, with the run's id."""
    content: bool
    """Whether messages, and the inputs and outputs of runs and steps, are recorded; False where it is left out. The
    host's `redact` sees them first."""
    attempt_timeout: timedelta | float | None
    """How long a model call may be open before it is recorded without usage, a timedelta or seconds; None: 15
    minutes."""
    budgets: SessionReserver | BudgetCheck | None
    """`db.budgets`, or a `BudgetCheck`: what is asked before a model is called. None: nothing is asked, and no call is
    refused."""


class Adapter:
    """The base of adapters: whose sessions they record, and where a failure of theirs goes.

    Attributes:
        content: Whether messages, and the inputs and outputs of runs and steps, are recorded.
    """

    def __init__(
        self,
        recorder: TakesQuietly,
        *,
        user_id: UUID | str | Callable[[], UUID | str | None] | None = None,
        session_id: str | None = None,
        content: bool = False,
        attempt_timeout: timedelta | float | None = None,
        budgets: SessionReserver | BudgetCheck | None = None,
    ) -> None:
        """Makes an adapter. It needs no event loop.

        Args:
            recorder: What it hands its items to.
            user_id: See `AdapterOptions`, as for the others.
            session_id: The session of runs whose runtime names none.
            content: Whether content is recorded.
            attempt_timeout: How long a model call may be open.
            budgets: What is asked before a model is called.

        Raises:
            ConfigurationError: This is no recorder.
            InvalidValueError: This is no user id.
        """
        quiet = getattr(recorder, "quiet", None)
        if not isinstance(quiet, QuietWriter):
            raise ConfigurationError(
                f"recorder: got a {type(recorder).__name__}, expected db.recorder() or db.synchronous_recorder()"
            )
        self.content = content
        self._quiet = quiet
        self._user_id = _owner_or_finder(user_id)
        self._session_id = session_id
        self._attempt_timeout = attempt_timeout
        self._check = BudgetCheck.of(budgets)

    def session_of(
        self,
        session_id: str | None,
        run_id: str,
        *,
        user_id: UUID | str | None = None,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
    ) -> SessionTrace:
        """The session of a run.

        Args:
            session_id: The session that the runtime names; None: it names none.
            run_id: The run's id.
            user_id: The owner that the runtime names; None: it names none.
            agent_name: The agent of the session's runs.
            parent_session_id: The session above it.

        Raises:
            ConfigurationError: No owner is known. `recorded` turns it into a loss that is told.
        """
        around = current_trace()
        if user_id is None:
            user_id = self._owner_set()
        if user_id is None and around is not None:
            user_id = around.user_id
        if user_id is None:
            raise ConfigurationError(
                "user_id: got None, expected the session's owner, or a session block around the run"
            )
        found = session_id or self._session_id
        if found is None:
            found = run_id if around is None else around.session_id
        return SessionTrace(
            self._quiet,
            found,
            user_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            attempt_timeout=self._attempt_timeout,
        )

    def run_around(self, session_id: str | None = None, user_id: UUID | str | None = None) -> RunBlock | None:
        """The run block around this code, which a call belongs to; None where there is none.

        None too where the call belongs to another session, or to another owner, by what is named here or was set.
        """
        run = current_run()
        if run is None:
            return None
        around = current_trace() or run
        user_id = user_id or self._owner_set() or around.user_id
        named = (session_id or self._session_id or around.session_id, str(user_id))
        return run if named == (run.session_id, str(run.user_id)) else None

    def _owner_set(self) -> UUID | str | None:
        return self._user_id() if callable(self._user_id) else self._user_id

    def shown(self, content: Any) -> Any:
        """The content, where content is recorded; else None."""
        return content if self.content else None

    def shown_error(self, error: BaseException) -> BaseException | str:
        """The error, where content is recorded; else the name of its type, as its text may hold content."""
        return error if self.content else type(error).__name__

    @property
    def asks_budgets(self) -> bool:
        """Whether the host wants budgets to be asked before a model is called."""
        return self._check is not None

    async def refusal(self, attempt: Attempt | None, request: Any = None) -> BudgetExceededError | None:
        """Why the call of this attempt may not be made; None where it is admitted, and where the host asks for nothing.

        The attempt of a call that is refused is discarded. Raises nothing but a cancellation.
        """
        return None if self._check is None else await self._check.refusal(attempt, request, self.fail)

    def refusal_now(self, attempt: Attempt | None, request: Any = None) -> BudgetExceededError | None:
        """As `refusal`, for a caller without `await`."""
        return None if self._check is None else self._check.refusal_now(attempt, request, self.fail)

    def discard(self, attempt: Attempt) -> None:
        """Discards an attempt for which no model was called, and what was reserved for it."""
        if attempt.discard() and self._check is not None:
            self._check.release_attempt(attempt, self.fail)

    def fail(self, error: Exception) -> None:
        """Counts and tells a failure of the adapter itself: what it stood for is not recorded."""
        failure = error
        if not isinstance(failure, SessionLifecycleError):
            failure = SessionLifecycleError(f"{type(self).__name__} failed ({type(error).__name__})")
            failure.__cause__ = error
        self._quiet.fail(failure)


def _owner_or_finder(
    user_id: UUID | str | Callable[[], UUID | str | None] | None,
) -> UUID | str | Callable[[], UUID | str | None] | None:
    """The argument, where it can be an owner. Otherwise each run would be lost, one by one."""
    if user_id is None or isinstance(user_id, UUID) or callable(user_id):
        return user_id
    try:
        return UUID(user_id)
    except (ValueError, TypeError, AttributeError):
        raise InvalidValueError("user_id", user_id, "a UUID, its text, or a function that finds it") from None


def recorded(callback: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a callback of an adapter, with or without `async`: its failure is told, and never raised.

    The callback returns None then. A runtime whose callback returns a value that goes on is not decorated with this.
    """
    if inspect.iscoroutinefunction(callback):

        @wraps(callback)
        async def asynchronous(self: Adapter, *args: Any, **kwargs: Any) -> Any:
            try:
                return await cast(Any, callback)(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - a failure of the adapter must not end the host's work
                self.fail(error)

        return cast(Callable[Arguments, Result], asynchronous)

    @wraps(callback)
    def synchronous(self: Adapter, *args: Any, **kwargs: Any) -> Any:
        try:
            return cast(Any, callback)(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a failure of the adapter must not end the host's work
            self.fail(error)

    return cast(Callable[Arguments, Result], synchronous)


class OpenParts(Generic[Key, Part]):
    """The parts of one kind that are open, by the runtime's id. Beyond `MOST_OPEN`, the oldest is given up.

    May be used from any thread.
    """

    def __init__(self, give_up: Callable[[Part], object]) -> None:
        """Makes an empty collection.

        Args:
            give_up: Closes a part whose end is not waited for any more.
        """
        self._give_up = give_up
        self._parts: OrderedDict[Key, Part] = OrderedDict()
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._parts)

    def put(self, key: Key, part: Part) -> Part:
        """Keeps a part, and returns it."""
        oldest: list[Part] = []
        with self._changing:
            self._parts[key] = part
            while len(self._parts) > MOST_OPEN:
                oldest.append(self._parts.popitem(last=False)[1])
        for left in oldest:
            self._give_up(left)
        return part

    def get(self, key: Key) -> Part | None:
        """The part, which stays open; None where there is none."""
        return self._parts.get(key)

    def take(self, key: Key) -> Part | None:
        """The part, which is open no more; None where there is none."""
        with self._changing:
            return self._parts.pop(key, None)


_NO_ANSWER = {
    "APIConnectionError",  # OpenAI, Anthropic, LiteLLM; their timeouts too
    "ClientConnectionError",  # aiohttp
    "ConnectionError",
    "MidStreamFallbackError",  # LiteLLM, for a stream that broke
    "TimeoutError",
    "TransportError",  # httpx
}
_REFUSED_ANSWER = {
    "APIResponseValidationError",  # OpenAI, Anthropic, LiteLLM
    "ContentFilterFinishReasonError",  # OpenAI
    "JSONDecodeError",
    "LengthFinishReasonError",  # OpenAI
    "OutputParserException",  # LangChain
    "ValidationError",  # Pydantic
    # A bug, in the client or in the host.
    *("AssertionError", "AttributeError", "ImportError", "LookupError", "NameError", "TypeError"),
}


def is_answer(error: BaseException) -> bool:
    """Whether a model's error came from its provider, which bills nothing then.

    A cancellation, a time that ran out and a connection that broke are no answer: what was used is unknown. It is
    unknown too where the client could not use an answer, which was billed. The errors of clients are told by the names
    of their classes, as no client is imported here.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return not ends_as_cancelled(error) and not names & (_NO_ANSWER | _REFUSED_ANSWER)


def text_of(content: Any) -> str:
    """The text of a content, which is text or a list of texts and parts. Images, sounds and files are not recorded."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    texts = (part if isinstance(part, str) else value_at(part, "text") for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def text_or_none(value: Any) -> str | None:
    """The value, where it is text and not empty."""
    return value if isinstance(value, str) and value else None
