"""BudgetCheck: what an adapter asks the budgets before a model is called, where the host wants that.

    recorded_openai(client, recorder, user_id=user_id, budgets=db.budgets)
    recorded_openai(client, recorder, user_id=user_id, budgets=BudgetCheck(db.budgets, needs={"tokens_out": 4_000}))

A check reserves with the key that the usage event of the call will have. An attempt is recorded once, however its call
ends, so recording settles the reservation of calls that were answered, failed, or cancelled.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, TypeVar, cast
from uuid import UUID

from session_lifecycle.errors import BudgetExceededError, ConfigurationError, SessionLifecycleError, shortened
from session_lifecycle.models import ReservationOutcome
from session_lifecycle.models.budgets import LONGEST_LEASE
from session_lifecycle.models.usage import EstimatedUse
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.writing.attempt import Attempt
from session_lifecycle.writing.protocol import SessionReserver

WITHIN_SECONDS = 5.0
"""How long a check may take. Then the budgets count as unavailable."""
_MARGIN = timedelta(minutes=1)
"""How much longer a reservation lasts than its attempt may be open: for the recording of the event."""

Result = TypeVar("Result")
Fail = Callable[[Exception], object]


class Needs(EstimatedUse, total=False):
    """The most that a call of a model may use, in the arguments of `SessionReserver.reserve`. All may be left out."""

    tokens_in: int
    tokens_out: int
    cost_usd: Decimal | float | str | None


class BudgetCheck:
    """What an adapter asks before it lets a model be called. An adapter takes it as `budgets`.

    `db.budgets` in its place stands for `BudgetCheck(db.budgets)`. Calls without an event loop ask in a thread that all
    checks of the process share, so `db` is one of `SessionDatabase.connect`.

    Attributes:
        on_unavailable: What happens to a call where the check itself fails.
    """

    def __init__(
        self,
        budgets: SessionReserver,
        *,
        needs: Needs | Callable[[str | None, Any], Needs] | None = None,
        on_unavailable: Literal["admit", "refuse"] = "admit",
        within: timedelta | float = WITHIN_SECONDS,
    ) -> None:
        """Makes a check. One may serve many adapters.

        Args:
            budgets: `db.budgets`.
            needs: The most that a call may use, or a function that finds it from the name of the model, where it is
                known, and from the request as the runtime has it. None: a call says nothing, and is admitted as long as
                something is left.
            on_unavailable: Whether a call is admitted or refused where the database is away, or the check fails for
                another reason. The failure is counted and told to `on_lost` in both cases.
            within: How long a check may take, a timedelta or seconds.

        Raises:
            ConfigurationError: It refuses an argument.
        """
        seconds = within.total_seconds() if isinstance(within, timedelta) else within
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ConfigurationError(f"within: got {shortened(within)}, expected a timedelta or seconds, above 0")
        if on_unavailable not in {"admit", "refuse"}:
            raise ConfigurationError(f"on_unavailable: got {shortened(on_unavailable)}, expected 'admit' or 'refuse'")
        if not callable(getattr(budgets, "reserve", None)):
            raise ConfigurationError(f"budgets: got a {type(budgets).__name__}, expected db.budgets, or a BudgetCheck")
        self.on_unavailable = on_unavailable
        self._budgets = budgets
        self._needs = needs
        self._within = seconds
        self._releasing: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, budgets: "SessionReserver | BudgetCheck | None") -> "BudgetCheck | None":
        """The check that the host's argument stands for; None where the host wants none."""
        return budgets if budgets is None or isinstance(budgets, BudgetCheck) else cls(budgets)

    async def refusal(self, attempt: Attempt | None, request: Any, fail: Fail) -> BudgetExceededError | None:
        """Why the call may not be made; None where it is admitted. An attempt whose call is refused is discarded.

        Args:
            attempt: The attempt of the call; None: nothing can be recorded, which has been told already.
            request: The request, as the runtime has it.
            fail: Counts and tells a failure of the check.
        """
        if attempt is None:
            return self._without_answer()
        try:
            return await self._ask(attempt, self._needs_of(attempt.model, request), fail)
        except Exception as error:  # noqa: BLE001 - a check that fails must not end the host's work
            return self._failed(attempt, error, fail)

    def refusal_now(self, attempt: Attempt | None, request: Any, fail: Fail) -> BudgetExceededError | None:
        """As `refusal`, for a caller without `await`: it blocks the thread."""
        if attempt is None:
            return self._without_answer()
        try:
            return in_background(self._ask(attempt, self._needs_of(attempt.model, request), fail))
        except Exception as error:  # noqa: BLE001 - a check that fails must not end the host's work
            return self._failed(attempt, error, fail)

    async def hold(
        self,
        session_id: str,
        user_id: UUID | str | None,
        request: Any,
        fail: Fail,
        *,
        keys: Callable[[], Awaitable[tuple[str, Iterable[str]]]],
    ) -> BudgetExceededError | None:
        """Why the next call of a model may not be made; None where it may. For calls whose key nobody knows before.

        Reserves under a key of the caller's, in place of what was reserved under it, until `release`.

        Args:
            session_id: The session.
            user_id: Its owner; None: nobody knows it, which has been told already.
            request: What the runtime tells.
            fail: Counts and tells a failure of the check.
            keys: Records the calls before, and gives the key, which no usage event has, and the keys to release first.
        """
        if user_id is None:
            return self._without_answer()
        try:
            needs = self._needs_of(None, request)
            async with asyncio.timeout(self._within):
                key, others = await keys()
                for other in others:
                    await self._budgets.release(session_id, user_id, other)
                answer = await self._budgets.reserve(session_id, user_id, idempotency_key=key, **needs)
            answer.raise_if_refused()
        except BudgetExceededError as refusal:
            return refusal
        except Exception as error:  # noqa: BLE001 - a check that fails must not end the host's work
            fail(error)
            return self._without_answer()
        return None

    def release(
        self,
        session_id: str,
        user_id: UUID | str,
        keys: Iterable[str],
        fail: Fail,
        *,
        when: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Ends reservations whose events will not come, and waits for nothing.

        Args:
            session_id: The session.
            user_id: Its owner.
            keys: The keys of the reservations.
            fail: Counts and tells a failure.
            when: What is awaited first.
        """
        released = self._release(session_id, user_id, keys, fail, when)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no event loop runs in this thread
            _background.start(released)
            return
        task = loop.create_task(released)
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def released(self) -> None:
        """Waits for what `release` has begun. It raises nothing but a cancellation."""
        if self._releasing:
            await asyncio.wait(set(self._releasing))

    def release_attempt(self, attempt: Attempt, fail: Fail) -> None:
        """Ends the reservation of an attempt that was discarded, and waits for nothing."""
        self.release(attempt.scope.session_id, attempt.scope.user_id, [attempt.idempotency_key], fail)

    def _needs_of(self, model: str | None, request: Any) -> Needs:
        found = self._needs(model, request) if callable(self._needs) else self._needs
        return cast(Needs, {}) if found is None else found

    async def _ask(self, attempt: Attempt, needs: Needs, fail: Fail) -> BudgetExceededError | None:
        scope = attempt.scope
        lease = min(timedelta(seconds=scope.attempt_timeout) + _MARGIN, LONGEST_LEASE)
        asked = cast(Needs, {"provider": attempt.provider, **needs})
        try:
            async with asyncio.timeout(self._within):
                answer = await self._budgets.reserve(
                    scope.session_id,
                    scope.user_id,
                    attempt.model,
                    idempotency_key=attempt.idempotency_key,
                    lease=lease,
                    dataset_id=scope.dataset_id,
                    agent_name=attempt.agent_name,
                    **asked,
                )
        except asyncio.CancelledError:
            attempt.discard()
            self.release_attempt(attempt, fail)
            raise
        if answer.outcome is ReservationOutcome.RESERVED:
            attempt.keep_key()
        try:
            answer.raise_if_refused()
        except BudgetExceededError as refusal:
            attempt.discard()
            return refusal
        return None

    def _failed(self, attempt: Attempt, error: Exception, fail: Fail) -> BudgetExceededError | None:
        fail(error)
        is_uncertain = not isinstance(error, SessionLifecycleError) or getattr(error, "may_have_written", False)
        refusal = self._without_answer()
        if refusal is not None:
            attempt.discard()
            if is_uncertain:
                self.release_attempt(attempt, fail)
        elif is_uncertain:
            attempt.keep_key()  # the event settles what may have been reserved
        return refusal

    def _without_answer(self) -> BudgetExceededError | None:
        if self.on_unavailable == "admit":
            return None
        return BudgetExceededError((), "the budgets cannot be asked, and calls are refused then")

    async def _release(
        self,
        session_id: str,
        user_id: UUID | str,
        keys: Iterable[str],
        fail: Fail,
        when: Callable[[], Awaitable[object]] | None,
    ) -> None:
        try:
            async with asyncio.timeout(self._within):
                if when is not None:
                    await when()
                for key in keys:
                    await self._budgets.release(session_id, user_id, key)
        except Exception as error:  # noqa: BLE001 - the lease ends by itself, and the host goes on
            fail(error)


class _Background:
    """An event loop in a daemon thread, for callers that have none. One for the process; none before it is needed."""

    def __init__(self) -> None:
        self._forget()
        forget_in_child(self)

    def _forget(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    def forget_parent(self) -> object:
        """See `HasParents`: the thread did not come along."""
        ours = self._loop
        self._forget()
        return ours

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Runs a coroutine there, and returns its future."""
        with self._starting:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="session-lifecycle budgets", daemon=True).start()
                self._loop = loop
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


_background = _Background()


def in_background(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine in the event loop of another thread, and waits for its result. An interrupt cancels it."""
    running = _background.start(coroutine)
    try:
        return running.result()
    except BaseException:
        running.cancel()
        raise
