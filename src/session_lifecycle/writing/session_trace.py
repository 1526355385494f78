"""SessionTrace: what every session block has for instrumentation. It opens runs and attempts, and takes messages."""

from contextvars import ContextVar
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, Literal, Self, TypedDict
from uuid import UUID

from session_lifecycle.errors import ConfigurationError, shortened
from session_lifecycle.models import End, MessageRole, SessionStatus, Touch
from session_lifecycle.writing.attempt import DEFAULT_ATTEMPT_TIMEOUT, OpensAttempts, Scope, given
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.run_block import RunBlock, write_message

_current: ContextVar["SessionTrace | None"] = ContextVar("session_lifecycle_trace", default=None)


def current_trace() -> "SessionTrace | None":
    """The innermost session block of any kind around this code; None outside."""
    return _current.get()


class BudgetNames(TypedDict):
    """What a budget may name, beside user and session."""

    dataset_id: UUID | str | None
    agent_name: str | None


class SessionTrace(OpensAttempts):
    """The part of a session block that never raises and never waits.

    Its methods, and those of its runs, steps and attempts, may be called from any thread. They hand items over and
    return at once. A value that is refused, and an item that cannot be written, is counted, logged, and told to
    `on_lost`; where a value was refused there is no item to tell. Times are those of this process's clock.

    Attributes:
        session_id: The session's id.
        user_id: The session's owner.
    """

    def __init__(
        self,
        quiet: QuietWriter,
        session_id: str,
        user_id: UUID | str,
        dataset_id: UUID | str | None = None,
        *,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
        attempt_timeout: timedelta | float | None = None,
    ) -> None:
        """Use `session` of a database, a recorder or a spool instead."""
        seconds = _seconds(DEFAULT_ATTEMPT_TIMEOUT if attempt_timeout is None else attempt_timeout)
        super().__init__(Scope(quiet, session_id, user_id, agent_name, seconds, dataset_id), None)
        self.session_id = session_id
        self.user_id = user_id
        self._touch_fields = {
            "session_id": session_id,
            "user_id": user_id,
            "dataset_id": dataset_id,
            "agent_name": agent_name,
            "parent_session_id": parent_session_id,
        }
        self._budget_names: BudgetNames = {"dataset_id": dataset_id, "agent_name": agent_name}
        self._outer: SessionTrace | None = None

    def _enter(self) -> None:
        """Makes this the block that `traced` finds."""
        self._outer = _current.get()
        _current.set(self)

    def _exit(self) -> None:
        # Not by a token: a generator may be closed in another context, and a token would raise there.
        _current.set(self._outer)

    def begin(
        self,
        *,
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        waiting: bool = False,
        at: datetime | None = None,
    ) -> Self:
        """Records a touch, which creates the session where it is new. May be called again. Arguments: see `Touch`."""
        more = {"title": title, "metadata": metadata, "tags": tags, "waiting": waiting, "at": at}
        self._scope.quiet.write(Touch, **given({**self._touch_fields, **more}))
        return self

    def finish(
        self,
        status: SessionStatus | Literal["completed", "failed"] = SessionStatus.COMPLETED,
        *,
        reason: str | None = None,
        at: datetime | None = None,
    ) -> None:
        """Records the end of the session, after it has closed its own open attempts. The first end wins.

        Args:
            status: `completed` or `failed`.
            reason: Why it ended.
            at: When it ended; None: now, by the database's clock.
        """
        self._cancel_attempts()
        ids = {"session_id": self.session_id, "user_id": self.user_id}
        self._scope.quiet.write(End, **ids, status=status, reason=reason, at=at)

    def run(
        self,
        name: str | None = None,
        *,
        run_id: str | None = None,
        agent_name: str | None = None,
        parent_run_id: str | None = None,
        parent_tool_call_id: str | None = None,
        client: str | None = None,
        project: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        input: Any = None,  # noqa: A002 - the field is called so
        metadata: dict[str, Any] | None = None,
    ) -> RunBlock:
        """A run of this session. Nothing is recorded before it begins. Arguments: see `Run`.

        Args:
            name: Its name.
            run_id: Its id; None: a random one.
            agent_name: Its agent; None: that of the session.
            parent_run_id: The run above it; None: the run of this session around the code where it begins, if any.
            parent_tool_call_id: The tool call that started it.
            client: The client that made the request.
            project: The project it belongs to.
            provider: Its model's provider.
            model: Its model.
            input: Its input, any JSON.
            metadata: A JSON object.
        """
        fields = {
            "name": name,
            "run_id": run_id,
            "agent_name": agent_name,
            "parent_run_id": parent_run_id,
            "parent_tool_call_id": parent_tool_call_id,
            "client": client,
            "project": project,
            "provider": provider,
            "model": model,
            "input": input,
            "metadata": metadata,
        }
        return RunBlock(self._scope, fields)

    def message(
        self,
        role: MessageRole | str,
        content: Any,
        *,
        message_id: str | None = None,
        at: datetime | None = None,
        metadata: dict[str, Any] | None = None,
        revision: int = 0,
    ) -> str:
        """Records a message of no run. Returns its id. Arguments: see `RunBlock.message`."""
        return write_message(self._scope, None, role, content, message_id, at, metadata, revision)


def _seconds(value: timedelta | float) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not isfinite(seconds) or seconds <= 0:
        raise ConfigurationError(f"attempt_timeout: got {shortened(value)}, expected a timedelta or seconds, above 0")
    return float(seconds)
