"""RunBlock: a run of an agent as a block of code, with its steps, messages, usage, attempts and nested runs."""

import sys
from contextvars import ContextVar
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal, Self, Unpack, cast
from uuid import uuid4

from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.models import Message, MessageRole, Run, RunStatus
from session_lifecycle.models.usage import UsageOptions
from session_lifecycle.writing.attempt import OpensAttempts, Scope, ends_as_cancelled, given, now
from session_lifecycle.writing.code_block import CodeBlock
from session_lifecycle.writing.step_block import StepBlock, error_fields


class RunBlock(CodeBlock, OpensAttempts):
    """A run of an agent. Made by `run` of a session block or of another run. A block for `with` and `async with`.

    Entering records its beginning, and leaving its end: `completed`, `failed` if an exception leaves the block, or
    `cancelled` if that exception is no `Exception`, as `asyncio.CancelledError` is none. The exception goes on to the
    caller as it is. A run that begins inside a run of the same session has that run as its parent. Attempts that are
    open when it ends are recorded without usage.

    Where the host uses OpenTelemetry, entering sets `gen_ai.conversation.id`, `gen_ai.agent.name` and
    `session_lifecycle.run.id` on the current span.

    Callbacks of a runtime call `begin` and `finish` instead of using a block. Every method may be called from any
    thread, returns at once, and raises nothing for trouble of this library: failures are counted, logged, and told to
    `on_lost`. Ids are made once, so nothing is recorded twice.

    Attributes:
        run_id: Its id.
        output: What is recorded as its output when it ends; any JSON, or None.
    """

    innermost: ClassVar[ContextVar["RunBlock | None"]] = ContextVar("session_lifecycle_run", default=None)

    def __init__(self, scope: Scope, fields: dict[str, Any]) -> None:
        """Use `SessionTrace.run` or `RunBlock.run` instead."""
        self.run_id: str = fields.pop("run_id") or str(uuid4())
        super().__init__(scope, self.run_id, fields["agent_name"])
        self.session_id, self.user_id = scope.session_id, scope.user_id
        self.output: Any = None
        ids = {"run_id": self.run_id, "user_id": scope.user_id, "session_id": scope.session_id}
        self._fields = {**fields, **ids}
        if self._fields["agent_name"] is None:
            self._fields["agent_name"] = scope.agent_name
        self._is_finished = False
        self._is_for_now = False
        """Whether a later `finish` replaces its end."""

    @property
    def agent_name(self) -> str | None:
        """Its agent; without one, that of its session."""
        return cast("str | None", self._fields["agent_name"])

    def begin(self, *, at: datetime | None = None) -> Self:
        """Records that the run began. The first call decides the time.

        Args:
            at: When it began; None: now.
        """
        if "started_at" not in self._fields:
            outer = self.innermost.get()
            if self._fields["parent_run_id"] is None and outer is not None and self._is_in_session_of(outer):
                self._fields["parent_run_id"] = outer.run_id
            self._fields["started_at"] = at or now()
            self._scope.quiet.write(Run, **given(self._fields))
        return self

    def finish(
        self,
        error: BaseException | str | None = None,
        *,
        status: RunStatus | Literal["completed", "failed", "cancelled"] | None = None,
        output: Any = None,
        metadata: dict[str, Any] | None = None,
        at: datetime | None = None,
        reported_cost_usd: Decimal | float | str | None = None,
        reported_tokens: int | None = None,
    ) -> None:
        """Records that the run ended, after it has closed the attempts that are open. The first call wins.

        It takes the place of a `cancel`, and of a `give_up`.

        Args:
            error: What went wrong; None: nothing.
            status: How it ended; None: `completed`, or by the error as the class says.
            output: Its output; None: the attribute `output`.
            metadata: Further keys.
            at: When it ended; None: now.
            reported_cost_usd: The cost of the whole run in USD, as its source reports it. See `Run`.
            reported_tokens: The tokens of the whole run, as its source reports them. See `Run`.
        """
        self.begin(at=at)
        self._cancel_attempts()
        if status is None and error is not None:
            is_cancelled = isinstance(error, BaseException) and ends_as_cancelled(error)
            status = RunStatus.CANCELLED if is_cancelled else RunStatus.FAILED
        status = status or RunStatus.COMPLETED
        if self._is_finished and not (self._is_for_now and status != RunStatus.CANCELLED):
            return
        fields: dict[str, Any] = {
            **self._fields,
            # `cancel` or `give_up` has recorded another end, with revision 0.
            "revision": int(self._is_for_now),
            "status": status,
            "ended_at": at or now(),
            "output": self.output if output is None else output,
        }
        fields |= {"reported_cost_usd": reported_cost_usd, "reported_tokens": reported_tokens}
        if error is not None:
            told = error_fields(error)
            fields["error"] = ": ".join(told[name] for name in ("type", "message") if told.get(name))
        if metadata is not None:
            fields["metadata"] = {**(fields["metadata"] or {}), **metadata}
        self._is_finished, self._is_for_now = True, False
        self._scope.quiet.write(Run, **given(fields))

    def cancel(self) -> None:
        """Records that nobody waits for the end of the run any more: it is cancelled. A later `finish` replaces that.

        Does nothing where the run has ended.
        """
        self._finish_for_now(None, RunStatus.CANCELLED)

    def give_up(self, error: BaseException | str | None = None) -> None:
        """Records that the run failed, as far as anybody knows. A later `finish` replaces that.

        Does nothing where the run has ended.

        Args:
            error: What went wrong.
        """
        self._finish_for_now(error, RunStatus.FAILED)

    def _finish_for_now(self, error: BaseException | str | None, status: RunStatus) -> None:
        if not self._is_finished:
            self.finish(error, status=status)
            self._is_for_now = True

    def run(
        self,
        name: str | None = None,
        *,
        run_id: str | None = None,
        agent_name: str | None = None,
        parent_tool_call_id: str | None = None,
        client: str | None = None,
        project: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        input: Any = None,  # noqa: A002 - the field is called so
        metadata: dict[str, Any] | None = None,
    ) -> "RunBlock":
        """A run below this one, in the same session. Nothing is recorded before it begins. Arguments: see `Run`."""
        return RunBlock(
            self._scope,
            {
                "name": name,
                "run_id": run_id,
                "agent_name": agent_name,
                "parent_run_id": self.run_id,
                "parent_tool_call_id": parent_tool_call_id,
                "client": client,
                "project": project,
                "provider": provider,
                "model": model,
                "input": input,
                "metadata": metadata,
            },
        )

    def step(
        self,
        kind: str,
        name: str | None = None,
        *,
        step_id: str | None = None,
        parent_step_id: str | None = None,
        tool_call_id: str | None = None,
        seq: int | None = None,
        inputs: Any = None,
        prompt: Any = None,
        server_url: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> StepBlock:
        """A step of this run. Nothing is recorded before it begins.

        Args:
            kind: `task`, `tool`, `span`, or the caller's own word.
            name: Its name, as that of the tool.
            step_id: Its id; None: a random one.
            parent_step_id: The step above it; None: the step of this run around this code, if any.
            tool_call_id: The id of the tool call.
            seq: Its place among the steps.
            inputs: Its inputs, any JSON.
            prompt: Its prompt, any JSON.
            server_url: The server that serves the tool.
            metadata: A JSON object.
        """
        fields = {
            "kind": kind,
            "name": name,
            "step_id": step_id,
            "parent_step_id": parent_step_id,
            "tool_call_id": tool_call_id,
            "seq": seq,
            "inputs": inputs,
            "prompt": prompt,
            "server_url": server_url,
            "metadata": metadata,
        }
        return StepBlock(self._scope, self.run_id, fields)

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
        """Records a message of this run. Returns its id.

        Args:
            role: Its author: see `MessageRole`; roles of other sources are mapped.
            content: Text, or blocks of text.
            message_id: Its id; None: a random one.
            at: When it was made; None: now.
            metadata: A JSON object.
            revision: A higher one replaces the content, as that of a reply that grows.
        """
        return write_message(self._scope, self.run_id, role, content, message_id, at, metadata, revision)

    def usage(
        self,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        errored: bool = False,
        **options: Unpack[UsageOptions],
    ) -> None:
        """Records the usage of a response of this run: an attempt that is opened and closed here. See `Attempt.usage`.

        Without any count it is recorded without usage (`measured=False`).
        """
        self.attempt(model, options.get("provider")).usage(
            model,
            tokens_in,
            tokens_out,
            cost_usd,
            errored,
            **options,
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self._tell_span()
        return self

    def _tell_span(self) -> None:
        """Tells the span of OpenTelemetry around the block what it is a span of."""
        # A host that has not imported OpenTelemetry has no span, and does not pay for the import.
        current = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
        if current is None:
            return
        try:
            span = current()
            if span.is_recording():
                span.set_attribute("gen_ai.conversation.id", self.session_id)
                span.set_attribute("session_lifecycle.run.id", self.run_id)
                if self._fields["agent_name"] is not None:
                    span.set_attribute("gen_ai.agent.name", self._fields["agent_name"])
        except Exception as error:  # noqa: BLE001 - a span of the host must not end the host's work
            failure = SessionLifecycleError(f"the current span took no attributes ({type(error).__name__})")
            failure.__cause__ = error
            self._scope.quiet.fail(failure)

    def _is_in_session_of(self, other: "RunBlock") -> bool:
        return (self.session_id, str(self.user_id)) == (other.session_id, str(other.user_id)) and other is not self


def current_run() -> "RunBlock | None":
    """The innermost run block around this code; None outside.

    Tasks that are started inside a run find it too, and so do threads that run in a copy of the context
    (`contextvars.copy_context().run`, `asyncio.to_thread`).
    """
    return RunBlock.innermost.get()


def write_message(
    scope: Scope,
    run_id: str | None,
    role: MessageRole | str,
    content: Any,
    message_id: str | None,
    at: datetime | None,
    metadata: dict[str, Any] | None,
    revision: int,
) -> str:
    """Records a message of the session. Returns its id."""
    message_id = message_id or str(uuid4())
    scope.quiet.write(
        Message,
        message_id=message_id,
        user_id=scope.user_id,
        session_id=scope.session_id,
        run_id=run_id,
        role=role,
        content=content,
        created_at=at or now(),
        metadata=metadata,
        revision=revision,
    )
    return message_id
