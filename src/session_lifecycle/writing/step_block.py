"""StepBlock: a step of a run as a block of code."""

from contextvars import ContextVar
from datetime import datetime
from typing import Any, ClassVar, Self
from uuid import uuid4

from session_lifecycle.models import Step
from session_lifecycle.writing.attempt import Scope, ends_as_cancelled, given, now
from session_lifecycle.writing.code_block import CodeBlock


class StepBlock(CodeBlock):
    """A step of a run: a tool call, a task. Made by `RunBlock.step`. A block for `with` and `async with`.

    Entering records its beginning, and leaving its end, with the exception that leaves it, if any. Callbacks call
    `begin` and `finish` instead. Every method may be called from any thread, returns at once, and raises nothing.

    Attributes:
        step_id: Its id.
        output: What is recorded as its output when it ends; any JSON, or None.
    """

    innermost: ClassVar[ContextVar["StepBlock | None"]] = ContextVar("session_lifecycle_step", default=None)

    def __init__(self, scope: Scope, run_id: str, fields: dict[str, Any]) -> None:
        """Use `RunBlock.step` instead."""
        self.step_id: str = fields.pop("step_id") or str(uuid4())
        self.run_id = run_id
        self.output: Any = None
        self._scope = scope
        self._fields = {**fields, "step_id": self.step_id, "run_id": run_id, "user_id": scope.user_id}
        self._is_finished = False

    def begin(self, *, at: datetime | None = None) -> Self:
        """Records that the step began. The first call decides the time.

        Args:
            at: When it began; None: now.
        """
        if "started_at" not in self._fields:
            outer = self.innermost.get()
            if self._fields["parent_step_id"] is None and outer is not None and outer.run_id == self.run_id:
                self._fields["parent_step_id"] = outer.step_id
            self._fields["started_at"] = at or now()
            self._scope.quiet.write(Step, **given(self._fields))
        return self

    def finish(
        self,
        error: BaseException | str | None = None,
        *,
        output: Any = None,
        metadata: dict[str, Any] | None = None,
        at: datetime | None = None,
    ) -> None:
        """Records that the step ended. The first call wins.

        Args:
            error: What went wrong; the step counts as one error then. A cancellation is named, and counts as one too.
            output: Its output; None: the attribute `output`.
            metadata: Further keys.
            at: When it ended; None: now.
        """
        self.begin(at=at)
        if self._is_finished:
            return
        self._is_finished = True
        fields: dict[str, Any] = {
            **self._fields,
            "ended_at": at or now(),
            "output": self.output if output is None else output,
        }
        if error is not None:
            fields["errors"] = [error_fields(error)]
        if metadata is not None:
            fields["metadata"] = {**(fields["metadata"] or {}), **metadata}
        self._scope.quiet.write(Step, **given(fields))


def error_fields(error: BaseException | str) -> dict[str, Any]:
    """An error as JSON. Its text may hold content; the host's `redact` sees it."""
    if isinstance(error, str):
        return {"message": error}
    kind = "cancelled" if ends_as_cancelled(error) else type(error).__name__
    try:
        return {"type": kind, "message": str(error)}
    except Exception as broken:  # noqa: BLE001 - the text of the host's error must not end the host's work
        return {"type": kind, "message": f"its text raises {type(broken).__name__}"}
