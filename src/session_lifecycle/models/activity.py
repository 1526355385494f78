"""What is written of a session's activity: runs, their steps, and messages."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, Strict, model_validator

from session_lifecycle.models.fields import (
    Cost,
    ExternalId,
    FiniteFloat,
    Flag,
    Id,
    Moment,
    OptionalExternalId,
    OptionalModel,
    OptionalName,
    OptionalSessionId,
    SessionId,
    Tokens,
    Value,
    inconsistent,
)
from session_lifecycle.models.payloads import JsonPayload, MetadataPayload, SafeText


class RunStatus(StrEnum):
    """How a run is doing. All but `running` are final."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class MessageRole(StrEnum):
    """Who a message is from."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"
    THOUGHT = "thought"


class ActivityOutcome(StrEnum):
    """What recording a run, step or message did."""

    CREATED = "created"
    UPDATED = "updated"
    """It was there, and what it lacked was filled in."""
    UNCHANGED = "unchanged"
    """It was there, and had all of this."""
    ALREADY_ENDED = "already_ended"
    """The run had an end already, which stays; what it lacked otherwise was filled in."""


class Run(Value):
    """One unit of agent work in a session: a trace, a workflow run, a proxied request.

    Recorded again, it completes what is there: what was null is filled in, the first end and the session first named
    stay. A run that names no session is of the session of its thread's root, or of one named like its root; while the
    root is unknown it waits outside of any session.
    """

    run_id: ExternalId
    user_id: Id
    session_id: OptionalSessionId = None
    parent_run_id: OptionalExternalId = None
    root_run_id: OptionalExternalId = None
    parent_tool_call_id: OptionalExternalId = None
    """It began with the result of this tool call: its parent is the run that made the newest such call before it."""
    dataset_id: Id | None = None
    """Kept by the session, if that has none yet."""
    project: OptionalName = None
    agent_name: OptionalName = None
    client: OptionalName = None
    provider: OptionalName = None
    model: OptionalModel = None
    name: SafeText | None = None
    started_at: Moment
    ended_at: Moment | None = None
    status: RunStatus = RunStatus.RUNNING
    """With an end and no other status it is `completed`."""
    error: SafeText | None = None
    input: JsonPayload = None
    output: JsonPayload = None
    metadata: MetadataPayload | None = None
    quality_score: FiniteFloat | None = None
    reported_cost_usd: Cost | None = None
    """What it says it cost in all, USD; what its events do not account for is one adjustment in the ledger."""
    reported_tokens: Tokens | None = None
    """What it says it used in all, input and output together."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.parent_run_id == self.run_id:
            raise inconsistent("parent_run_id", "another run than the run itself")
        if self.ended_at is not None and self.status is RunStatus.RUNNING:
            if "status" in self.model_fields_set:
                raise inconsistent("status", "completed, failed or cancelled where ended_at is given")
            object.__setattr__(self, "status", RunStatus.COMPLETED)
        return self


class Step(Value):
    """A piece of a run: a task, a tool call, a span. Recorded again, it completes what is there."""

    step_id: ExternalId
    run_id: ExternalId
    user_id: Id
    parent_step_id: OptionalExternalId = None
    seq: Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)] | None = None
    kind: ExternalId
    """`task`, `tool`, `span`, or the caller's own word."""
    name: SafeText | None = None
    started_at: Moment
    ended_at: Moment | None = None
    inputs: JsonPayload = None
    output: JsonPayload = None
    prompt: JsonPayload = None
    errors: JsonPayload = None
    """It counts as one error where this is a non-empty array, or anything that is neither an array nor null."""
    tool_call_id: OptionalExternalId = None
    server_url: SafeText | None = None
    injected: Flag = False
    """The tool was put into the request by a proxy, not by the client."""
    metadata: MetadataPayload | None = None


class Message(Value):
    """A user's prompt, an assistant's reply, a model's thought. Recorded again, it completes what is there."""

    message_id: ExternalId
    user_id: Id
    session_id: SessionId
    run_id: OptionalExternalId = None
    role: MessageRole
    content: SafeText
    created_at: Moment
    metadata: MetadataPayload | None = None
