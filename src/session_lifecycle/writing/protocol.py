"""SessionWriter: the calls of an agent runtime from its hooks. SessionReserver: those before it calls a model."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, Protocol, Unpack, overload
from uuid import UUID

from session_lifecycle.models import (
    ActivityOutcome,
    BudgetUse,
    End,
    EndOutcome,
    Item,
    Message,
    Receipt,
    ReopenOutcome,
    Reservation,
    Run,
    SessionStatus,
    Step,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageReceipt,
)
from session_lifecycle.models.budgets import DEFAULT_LEASE
from session_lifecycle.models.usage import EstimatedUse, RareUse


class SessionWriter(Protocol):
    """The calls that an agent runtime makes from its hooks.

    Every call is written in one transaction, all of it or nothing. Inside a host's transaction it is part of that
    transaction, and is never retried. Otherwise a call that fails for a passing reason is retried if it certainly wrote
    nothing, or if it is idempotent. A retry may find what an earlier attempt wrote. It then answers as any repeated
    call does: `touched`, `already_ended`, `already_running` or `duplicate`, for example.

    Every call raises the errors below; a `SessionRecorder` also raises `RecorderFullError` and `RecorderClosedError`.

    - `InvalidValueError`: it refuses an argument, or would create a session or run of a user who was erased with a
      tombstone; nothing was written.
    - `SchemaError`: the schema is not migrated, or does not serve this version.
    - `DatabaseUnavailableError`: the database cannot be reached or did not answer, and a retry did not help or was not
      safe. Its `may_have_written` says whether the call may have been written.
    - `TransactionConflictError`: the call lost conflicts with concurrent transactions, also after the retries; nothing
      was written. Or the host's transaction is not READ COMMITTED.
    """

    async def ensure_and_touch_session(
        self,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
        at: datetime | None = None,
    ) -> TouchOutcome:
        """Creates the session, or records activity of a running one. A session that has ended is left as it is.

        Idempotent.

        Args:
            session_id: Any text of 1..512 characters that is not only whitespace.
            user_id: The owner. The same session id under two users is two sessions.
            dataset_id: The dataset through which the session may be shared; stored if the session has none yet.
            agent_name: The agent's name; stored if the session has none yet.
            at: The time of the activity: aware, and at most five minutes ahead of the database's clock. None: now, by
                that clock.

        Returns:
            `created`, `touched`, or `terminal` for a session that has ended.
        """
        ...

    async def accumulate_usage(
        self,
        session_id: str,
        user_id: UUID | str,
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
    ) -> UsageReceipt:
        """Counts the usage of one model response.

        The ledger, the session's totals and the totals of its model change together or not at all. Idempotent with an
        `idempotency_key` only.

        Args:
            session_id: The session's id. A session that does not exist is created, running.
            user_id: The owner.
            model: The model's name, as the response has it.
            tokens_in: All input tokens, cache reads and writes included.
            tokens_out: All output tokens, reasoning included.
            cost_usd: The cost in USD. A float counts as its shortest decimal form. None: priced from the catalogue.
            errored: Whether the model call failed. A failure adds one to the session's `error_count`.
            provider: The provider's name. Needed if the model's name does not identify the provider.
            cache_read_tokens: The part of `tokens_in` that was read from a cache.
            cache_write_tokens: The part of `tokens_in` that was written to a cache.
            reasoning_tokens: The part of `tokens_out` that was spent on reasoning.
            idempotency_key: Identifies this response within the session. With a key the call can safely be repeated,
                and is retried after a lost connection. Without a key it may count twice if the caller repeats it.
            at: The time of use: aware, and at most five minutes ahead of the database's clock. None: now, by that
                clock.
            **rare: What few responses have: the classes of use that are billed apart, the service tier, plan usage, and
                more. `RareUse` has their names; `UsageEvent` says what each means.

        Returns:
            The outcome, this event's cost in USD (None if unpriced), and the session's totals after it.
        """
        ...

    async def end_session(
        self,
        session_id: str,
        user_id: UUID | str,
        status: SessionStatus | Literal["completed", "failed"],
        *,
        at: datetime | None = None,
    ) -> EndOutcome:
        """Ends a running session as `completed` or `failed`. The first end wins. Idempotent.

        Args:
            session_id: The session's id.
            user_id: The owner.
            status: `completed` or `failed`.
            at: The time of the end: aware, and at most five minutes ahead of the database's clock. None: now, by that
                clock.

        Returns:
            `ended`, `already_ended`, or `unknown` for a session that does not exist.
        """
        ...

    async def reopen_session(
        self, session_id: str, user_id: UUID | str, *, at: datetime | None = None
    ) -> ReopenOutcome:
        """Makes an ended session running and active again. Its totals stay. Idempotent.

        Args:
            session_id: The session's id.
            user_id: The owner.
            at: The time of the reopening: aware, and at most five minutes ahead of the database's clock. None: now, by
                that clock.

        Returns:
            `reopened`, `already_running`, or `unknown` for a session that does not exist.
        """
        ...

    @overload
    async def record(self, items: Sequence[Touch]) -> list[TouchOutcome]: ...
    @overload
    async def record(self, items: Sequence[UsageEvent]) -> list[UsageReceipt]: ...
    @overload
    async def record(self, items: Sequence[End]) -> list[EndOutcome]: ...
    @overload
    async def record(self, items: Sequence[Run | Step | Message]) -> list[ActivityOutcome]: ...
    @overload
    async def record(self, items: Sequence[Item]) -> list[Receipt]: ...
    async def record(self, items: Sequence[Item]) -> Sequence[Receipt]:
        """Writes any mix of items of any sessions and users in one transaction, as if they came one after another.

        If one item is refused, none is written. The call is idempotent, and so retried after a lost connection, if
        every usage event has an idempotency key.

        Args:
            items: The items, in the order in which they apply. An empty sequence writes nothing.

        Returns:
            One receipt per item, in order: a `TouchOutcome`, `UsageReceipt` or `EndOutcome`, and an `ActivityOutcome`
            for a run, step or message.

        Raises:
            InvalidValueError: `items` is not a sequence of items, or an item is refused; nothing was written.
        """
        ...


class SessionReserver(Protocol):
    """The calls that an agent runtime makes before it calls a model. `SessionBudgetsDb` has them, and its errors.

    Every budget counts that names what the usage will have: the user, the session, and the session's agent and dataset.
    Where the session has no agent or dataset yet, or does not exist yet, `agent_name` and `dataset_id` stand for those
    that a touch will store.

    A call says how much it may use, in the arguments of `accumulate_usage`; without `cost_usd` the price is that of the
    catalogue, now. A call without figures is admitted as long as something is left.
    """

    async def would_exceed(
        self,
        session_id: str,
        user_id: UUID | str,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        *,
        dataset_id: UUID | str | None = None,
        agent_name: str | None = None,
        **more: Unpack[EstimatedUse],
    ) -> list[BudgetUse]:
        """The budgets that would refuse this call now, by their ids; empty if there are none.

        It reserves nothing and waits for nobody, so the answer may be out of date when it arrives. `reserve` asks and
        reserves at once.

        Args:
            session_id: The session that will use the model. It need not exist.
            user_id: The session's owner.
            model: The model.
            tokens_in: The most input tokens.
            tokens_out: The most output tokens.
            cost_usd: The most cost, USD; None: the price of the catalogue.
            dataset_id: The dataset of the session to come.
            agent_name: The agent of the session to come.
            **more: `EstimatedUse`: the provider, and parts of the tokens that have another price, as in `UsageEvent`.
        """
        ...

    async def reserve(
        self,
        session_id: str,
        user_id: UUID | str,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        *,
        idempotency_key: str,
        key_scope: Literal["session", "user"] = "session",
        lease: timedelta = DEFAULT_LEASE,
        dataset_id: UUID | str | None = None,
        agent_name: str | None = None,
        **more: Unpack[EstimatedUse],
    ) -> Reservation:
        """Reserves what this call may use, in every budget that counts it, or in none.

        The usage event with the same key settles the reservation, however it is recorded: from then on the budget
        counts what the ledger has. A reservation whose event never comes returns when its lease ends. So the lease must
        be longer than the call and the recording together take. Reserving again with the same key replaces the
        reservation, and its lease begins anew; so the call is idempotent, and is retried as such.

        Callers of one budget wait for each other, for as long as one of them adds up what is spent.

        Args:
            session_id: The session that will use the model: the one that the usage will be counted in.
            user_id: The session's owner.
            model: The model.
            tokens_in: The most input tokens.
            tokens_out: The most output tokens.
            cost_usd: The most cost, USD; None: the price of the catalogue.
            idempotency_key: The key of the usage event to come.
            key_scope: The scope of that key.
            lease: How long the reservation counts without its event: above 0, at most 7 days.
            dataset_id: The dataset of the session to come.
            agent_name: The agent of the session to come.
            **more: See `would_exceed`.
        """
        ...

    async def release(
        self,
        session_id: str,
        user_id: UUID | str,
        idempotency_key: str,
        *,
        key_scope: Literal["session", "user"] = "session",
    ) -> bool:
        """Ends a reservation whose event will not come: the model was not called. Returns whether one was there.

        A settled reservation need not be released. Releasing it changes nothing.
        """
        ...
