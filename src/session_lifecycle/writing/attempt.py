"""Attempt: one call of a model, opened before the call and closed by its response.

Most agent runtimes report nothing about a cancelled call or a broken stream, although the provider bills what it has
generated. So the call is known from its beginning, and an attempt that nothing closes is recorded without usage
(`measured=False`): the books then say that something is unknown.
"""

import heapq
import math
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, Unpack, cast
from uuid import UUID, uuid4
from weakref import ref

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import UsageEvent
from session_lifecycle.models.usage import RareUse
from session_lifecycle.postgres.processes import forget_in_child
from session_lifecycle.writing.quiet import QuietWriter

DEFAULT_ATTEMPT_TIMEOUT = timedelta(minutes=15)
FEW_ENTRIES = 256
"""So many attempts the watch remembers before it looks which of them are still open."""


class Scope(NamedTuple):
    """What all parts of one session block share."""

    quiet: QuietWriter
    session_id: str
    user_id: UUID | str
    agent_name: str | None
    attempt_timeout: float
    """Seconds."""
    dataset_id: UUID | str | None = None


def now() -> datetime:
    """The time by the clock of this process."""
    return datetime.now(UTC)


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not None: of an item, None says the same as no value, and each value costs a validation."""
    return {name: value for name, value in fields.items() if value is not None}


def ends_as_cancelled(error: BaseException) -> bool:
    """Whether the error means that the work was given up: a cancellation, an interrupt, a generator that was closed."""
    return not isinstance(error, Exception)


class Attempt:
    """One call of a model. Made by `attempt` of a run or a session block, before the model is called.

    It is recorded once, by what closes it first:

    - `usage`: the response came. Without any count it is recorded without usage, as no model answers from nothing.
    - `fail`: the provider answered with an error.
    - `cancel`, the end of its run or session block, the end of the recorder, or `attempt_timeout`: recorded without
      usage (`measured=False`). If `usage` or `fail` comes later all the same, it takes the place of that record.

    A further `usage` takes the place of the one before it.

    The key is made once, so no retry counts twice. Every method may be called from any thread, returns at once, and
    raises nothing: a value that is refused is counted and told to `on_lost`, and the attempt is recorded without usage.
    As `with` or `async with` block, an exception that leaves it calls `fail`, and leaving it open calls `cancel`.

    Attributes:
        idempotency_key: The key of its usage event: what `attempt` or the closing `usage` was given, else a random one.
        started_at: When it was opened.
        is_open: Whether nothing has closed it.
        scope: The session it belongs to.
        agent_name: The agent of its session; without one, that of its run.
    """

    def __init__(
        self,
        scope: Scope,
        run_id: str | None,
        on_closed: "Callable[[Attempt], object]",
        *,
        model: str | None,
        provider: str | None,
        kind: Literal["llm", "embedding"],
        agent_name: str | None,
        idempotency_key: str | None,
        started_at: datetime | None,
        on_cancelled: Callable[[], object] | None,
    ) -> None:
        """Use `RunBlock.attempt` or `SessionTrace.attempt` instead."""
        self.idempotency_key = idempotency_key or f"attempt-{uuid4()}"
        self.started_at = started_at or now()
        self.is_open = True
        self.scope = scope
        self.agent_name = agent_name if scope.agent_name is None else scope.agent_name
        self._keeps_key = False
        self._fields: dict[str, Any] = {"session_id": scope.session_id, "user_id": scope.user_id, "run_id": run_id}
        self._named: dict[str, Any] = {"model": model, "provider": provider, "kind": kind}
        self._on_closed = on_closed
        self._on_cancelled = on_cancelled
        self._is_unknown = False
        self._revision = 0
        self._recorded: dict[str, Any] | None = None
        self._closing = threading.Lock()
        scope.quiet.opened(self)
        _watch.until(time.monotonic() + scope.attempt_timeout, self)

    @property
    def model(self) -> str | None:
        """The model that is asked."""
        return cast("str | None", self._named["model"])

    @property
    def provider(self) -> str | None:
        """The provider that is asked."""
        return cast("str | None", self._named["provider"])

    def keep_key(self) -> None:
        """Keeps the key, whatever the closing call is given: something was reserved with it."""
        self._keeps_key = True

    def usage(
        self,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        errored: bool = False,
        *,
        provider: str | None = None,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        idempotency_key: str | None = None,
        at: datetime | None = None,
        **rare: Unpack[RareUse],
    ) -> None:
        """Closes the attempt with the usage of its response. Units: see `SessionWriter.accumulate_usage`.

        Args:
            model: The model that answered; None: the one that was asked.
            tokens_in: All input tokens, cache reads and writes included.
            tokens_out: All output tokens, reasoning included.
            cost_usd: The cost in USD; None: priced from the catalogue.
            errored: Whether the response is an error.
            provider: The provider; None: the one that was asked.
            cache_read_tokens: The part of `tokens_in` that was read from a cache.
            cache_write_tokens: The part of `tokens_in` that was written to a cache.
            reasoning_tokens: The part of `tokens_out` that was spent on reasoning.
            idempotency_key: The response's id, where it is one. It becomes the key, unless the attempt has been
                recorded already, or something was reserved with its key.
            at: The time of use; None: now, by the database's clock.
            **rare: See `RareUse`.
        """
        self._close(idempotency_key)
        counts = {
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "cost_usd": cost_usd,
            "errored": errored,
            "cache_read_tokens": cache_read_tokens,
            "cache_write_tokens": cache_write_tokens,
            "reasoning_tokens": reasoning_tokens,
            **rare,
        }
        measured = bool(errored or tokens_in or tokens_out or rare.get("web_searches") or cost_usd)
        named = {name: value for name, value in (("model", model), ("provider", provider)) if value is not None}
        refusal = self._write(**{**self._named, **named, **counts, "measured": measured, "at": at})
        if isinstance(refusal, InvalidValueError):
            # The call was made, so the books say at least that its usage is unknown.
            if refusal.field == "idempotency_key" and idempotency_key is not None and not self._keeps_key:
                self.idempotency_key = f"attempt-{uuid4()}"
            self._write(**self._named, measured=False, at=self.started_at)

    def fail(self, error: BaseException | None = None, *, idempotency_key: str | None = None) -> None:
        """Closes the attempt: the provider answered with an error, and bills nothing. A cancellation calls `cancel`.

        Does nothing after `usage`.

        Args:
            error: The error. Its text is not stored with the attempt.
            idempotency_key: See `usage`.
        """
        if error is not None and ends_as_cancelled(error):
            self.cancel()
            return
        if not self._close(idempotency_key):
            self._write(**self._named, errored=True)

    def cancel(self) -> None:
        """Closes the attempt without usage: nobody knows what it used. Does nothing where it is closed."""
        with self._closing:
            if not self.is_open:
                return
            self.is_open, self._is_unknown = False, True
        self._write(**self._named, measured=False, at=self.started_at)
        if self._on_cancelled is not None:
            self._on_cancelled()
        self._forget()  # last: this may be the watching thread, and who finds nothing open may flush

    def discard(self) -> bool:
        """Closes the attempt and records nothing: no model was called, or the caller records the call itself.

        Returns False where the attempt is closed already.
        """
        with self._closing:
            was_open, self.is_open = self.is_open, False
        if was_open:
            self._forget()
        return was_open

    def _close(self, idempotency_key: str | None) -> bool:
        """Closes the attempt for an answer. Returns whether an answer had closed it before."""
        with self._closing:
            was_answered = not self.is_open and not self._is_unknown
            if self.is_open and idempotency_key is not None and not self._keeps_key:
                self.idempotency_key = idempotency_key
            self.is_open = self._is_unknown = False
        self._forget()
        return was_answered

    def _forget(self) -> None:
        self.scope.quiet.closed(self)
        self._on_closed(self)

    def _write(self, **fields: Any) -> Exception | None:
        if self._recorded not in (None, fields):
            self._revision += 1  # it takes the place of what was recorded before
        key = {"idempotency_key": self.idempotency_key, "revision": self._revision}
        refusal = self.scope.quiet.write(UsageEvent, **self._fields, **key, **fields)
        if refusal is None:
            self._recorded = fields
        return refusal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.is_open:
            self.fail(error)
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class OpensAttempts:
    """A run or session block: it opens attempts, and closes those that are left open when it ends."""

    def __init__(self, scope: Scope, run_id: str | None, agent_name: str | None = None) -> None:
        self._scope = scope
        self._agent_name = agent_name
        self._run_id = run_id
        self._attempts: set[Attempt] = set()

    def attempt(
        self,
        model: str | None = None,
        provider: str | None = None,
        *,
        kind: Literal["llm", "embedding"] = "llm",
        idempotency_key: str | None = None,
        started_at: datetime | None = None,
        on_cancelled: Callable[[], object] | None = None,
    ) -> Attempt:
        """Opens an attempt: call this before the model is called, and close it with the response.

        Args:
            model: The model that is asked.
            provider: Its provider.
            kind: The kind of the model call.
            idempotency_key: The key of its usage event; None: a random one, or the one that its `usage` is given.
            started_at: When the call began; None: now.
            on_cancelled: Called when the attempt is recorded without usage, in any thread. It must not raise.
        """
        attempt = Attempt(
            self._scope,
            self._run_id,
            self._attempts.discard,
            model=model,
            provider=provider,
            kind=kind,
            agent_name=self._agent_name,
            idempotency_key=idempotency_key,
            started_at=started_at,
            on_cancelled=on_cancelled,
        )
        self._attempts.add(attempt)
        return attempt

    def _cancel_attempts(self) -> None:
        for attempt in list(self._attempts):
            attempt.cancel()


class _Watch:
    """Closes attempts that are open for too long. One daemon thread does it for the process; none while none is open.

    A timer of the event loop would not do: attempts are opened in threads too, and in code without an event loop.
    """

    def __init__(self) -> None:
        self._forget()
        forget_in_child(self)

    def _forget(self) -> None:
        self._entries: list[tuple[float, int, ref[Attempt]]] = []
        self._most_entries = FEW_ENTRIES
        self._changed = threading.Condition()
        self._numbers = count()
        self._wakes_at = math.inf
        """When the thread looks again, by the monotonic clock."""
        self._thread: threading.Thread | None = None

    def forget_parent(self) -> object:
        """See `HasParents`: the attempts are the parent's."""
        ours = (self._entries, self._thread)
        self._forget()
        return ours

    def until(self, deadline: float, attempt: Attempt) -> None:
        """Closes the attempt at the deadline, by the monotonic clock, where it is still open."""
        with self._changed:
            # Most attempts are closed long before their deadlines. One that stays open must not keep those after it.
            if len(self._entries) >= self._most_entries:
                self._entries = [entry for entry in self._entries if (one := entry[2]()) is not None and one.is_open]
                heapq.heapify(self._entries)
                self._most_entries = max(FEW_ENTRIES, 2 * len(self._entries))
            heapq.heappush(self._entries, (deadline, next(self._numbers), ref(attempt)))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="session-lifecycle attempts", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter ends; its run or recorder closes the attempt
                    return
                self._thread = thread
            elif deadline < self._wakes_at:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._entries:
                    self._wakes_at = math.inf
                    self._changed.wait()
                    continue
                deadline, _, attempt = self._entries[0]
                # Also where this attempt is closed. To look for the next one would end in sleep without an end where
                # there is none, and then each attempt that is opened would wake this thread.
                if (left := deadline - time.monotonic()) > 0:
                    self._wakes_at = deadline
                    self._changed.wait(left)
                    continue
                heapq.heappop(self._entries)
            if (found := attempt()) is not None:
                found.cancel()
            del found


_watch = _Watch()
