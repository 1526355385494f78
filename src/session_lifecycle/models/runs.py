"""`Run` and `Step`, items that go in and come out; the status of a run; `ActivityOutcome`, the receipt."""

import hashlib
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from session_lifecycle.models.fields import (
    CUT,
    SESSION_ID_CHARACTERS,
    AwareTime,
    Cost,
    ExternalId,
    FiniteFloat,
    Flag,
    Id,
    OptionalExternalId,
    OptionalModel,
    OptionalName,
    OptionalSessionId,
    RequiredLabel,
    Revision,
    Tokens,
    Value,
    one_of,
    refuse_long_key,
)
from session_lifecycle.models.json_payloads import JsonPayload, LongLabel, MetadataPayload, OptionalSafeText
from session_lifecycle.models.refusals import inconsistent
from session_lifecycle.models.sessions import refuse_own_parent


class RunStatus(StrEnum):
    """The status of a run. All but `running` are final."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ActivityOutcome(StrEnum):
    """What recording a run, step or message did. `record` returns it."""

    CREATED = "created"
    UPDATED = "updated"
    """The item existed. Fields and keys of `metadata` that it lacked were filled, or its start became earlier."""
    REPLACED = "replaced"
    """The item existed with a lower revision. The values that were given took the place of its own."""
    UNCHANGED = "unchanged"
    """The item existed with this content."""
    CONFLICT = "conflict"
    """The item existed with this revision and with another value. Nothing of the item changed."""
    SUPERSEDED = "superseded"
    """The item existed with a higher revision, and lacked nothing. Nothing changed."""
    ALREADY_ENDED = "already_ended"
    """The run had another end already. The first end stays; other fields that the run lacked were filled."""


class Run(Value):
    """One unit of agent work in a session: a trace, a workflow run, a proxied request. `record` takes it.

    A run that is recorded again fills the fields that are null and adds new keys to `metadata`; the start can become
    earlier. Another value is a `conflict`, or replaces with a higher `revision`. The session first named always stays,
    and the first end stays unless a higher `revision` replaces it.

    A run that names no session belongs to the session of its thread's root. Where the root has no session either, the
    session has the id of the root. While the root is unknown, the run is outside a session.
    """

    run_id: ExternalId
    user_id: Id
    session_id: OptionalSessionId = None
    parent_session_id: OptionalSessionId = None
    """The session that started the run's session, as in `Touch`: it is filled where the session has no parent yet.

    A run names it only together with its session.
    """
    parent_run_id: OptionalExternalId = None
    root_run_id: OptionalExternalId = None
    parent_tool_call_id: OptionalExternalId = None
    """The tool call whose result the run began with. The parent is the run that made the newest such call before it."""
    dataset_id: Id | None = None
    """The dataset of the session, where the session has none yet."""
    project: OptionalName = None
    agent_name: OptionalName = None
    client: OptionalName = None
    provider: OptionalName = None
    model: OptionalModel = None
    name: LongLabel | None = None
    started_at: AwareTime
    ended_at: AwareTime | None = None
    status: Annotated[RunStatus | Literal["running", "completed", "failed", "cancelled"], one_of(list(RunStatus))] = (
        RunStatus.RUNNING
    )
    """A run with `ended_at` and without a status is `completed`."""
    error: OptionalSafeText = None
    input: JsonPayload = None
    output: JsonPayload = None
    metadata: MetadataPayload | None = None
    quality_score: FiniteFloat | None = None
    reported_cost_usd: Cost | None = None
    """The cost of the whole run as its source reports it, USD. The ledger has one adjustment for the cost beyond the
    run's events."""
    reported_tokens: Tokens | None = None
    """The tokens of the whole run as its source reports them, input and output together."""
    revision: Revision = 0
    """A recording with a higher revision replaces the values of a lower one; values that it leaves out stay."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.parent_run_id == self.run_id:
            raise inconsistent("parent_run_id", "the id of another run, not the run's own run_id")
        if self.parent_session_id is not None and self.session_id is None:
            raise inconsistent("parent_session_id", "a session_id beside it: the session that has this parent")
        if self.session_id is not None:
            refuse_own_parent(self.session_id, self.parent_session_id)
        if self.ended_at is not None and self.status is RunStatus.RUNNING:
            if "status" in self.model_fields_set:
                raise inconsistent("status", "completed, failed or cancelled, because ended_at is given")
            object.__setattr__(self, "status", RunStatus.COMPLETED)
        if len(self.run_id) > SESSION_ID_CHARACTERS and self.session_id is None and self._is_root:
            # Its session would have its id, and no session has an id that long.
            digest = hashlib.sha256(self.run_id.encode()).hexdigest()
            session_id = self.run_id[: SESSION_ID_CHARACTERS - len(CUT) - len(digest)] + CUT + digest
            object.__setattr__(self, "session_id", session_id)
        return self

    @property
    def _is_root(self) -> bool:
        has_parent = self.parent_run_id is not None or self.parent_tool_call_id is not None
        return not has_parent and self.root_run_id in {None, self.run_id}


class Step(Value):
    """A piece of a run: a task, a tool call, a span. `record` takes it, and reads return it.

    A step that is recorded again fills the fields that are null and adds new keys to `metadata`; the start can become
    earlier, and `injected` can become true. Another value is a `conflict`, or replaces with a higher `revision`.
    """

    step_id: ExternalId
    run_id: ExternalId
    user_id: Id
    parent_step_id: OptionalExternalId = None
    seq: Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)] | None = None
    kind: RequiredLabel
    """`task`, `tool`, `span`, or the caller's own word."""
    name: LongLabel | None = None
    started_at: AwareTime
    ended_at: AwareTime | None = None
    inputs: JsonPayload = None
    output: JsonPayload = None
    prompt: JsonPayload = None
    errors: JsonPayload = None
    """The step counts as one error, unless this is null or an empty array."""
    tool_call_id: OptionalExternalId = None
    server_url: LongLabel | None = None
    injected: Flag = False
    """Whether a proxy, not the client, put the tool into the request."""
    metadata: MetadataPayload | None = None
    revision: Revision = 0
    """A recording with a higher revision replaces the values of a lower one; values that it leaves out stay."""

    @model_validator(mode="after")
    def _fits_a_key(self) -> Self:
        refuse_long_key("step_id", self.step_id, "run_id", self.run_id)
        return self
