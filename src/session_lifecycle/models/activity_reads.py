"""What is asked about runs, threads and messages, and what comes back. Money is USD, times are UTC."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BeforeValidator, Field, Strict, field_validator, model_validator

from session_lifecycle.models.activity import Message, Run, Step
from session_lifecycle.models.fields import (
    ExternalId,
    Flag,
    Id,
    Moment,
    OptionalExternalId,
    OptionalModel,
    OptionalName,
    OptionalSessionId,
    SessionId,
    Text,
    Value,
    inconsistent,
)
from session_lifecycle.models.pages import DEFAULT_LIMIT, Limit, Page, PageFilters
from session_lifecycle.models.reads import SESSION_ORDERS, EffectiveStatus, SessionFilters, SessionRecord

DEFAULT_PROJECT = "default"
"""What a run without a project is of."""
UNKNOWN_CLIENT = "Unknown"
"""How a run without a client reads."""
PREVIEW_CHARACTERS = 200


def _blank_as_default_project(value: Any) -> Any:
    return DEFAULT_PROJECT if value == "" else value


def _refuse_empty_window(since: datetime | None, until: datetime | None, field: str) -> None:
    if since is not None and until is not None and until < since:
        raise inconsistent(field, "a time that is not before the window's beginning")


OptionalText = Annotated[Text | None, BeforeValidator(lambda value: None if value == "" else value)]
OptionalProject = Annotated[Annotated[Text, Field(max_length=200)] | None, BeforeValidator(_blank_as_default_project)]


class RunChoice(Value):
    """Which runs are meant: those of which everything given here holds."""

    project: OptionalProject = None
    """Case matters. `default`, or the empty text: of no project."""
    provider: OptionalName = None
    model: OptionalModel = None
    client: OptionalName = None
    """`Unknown`: of no client, too."""
    session_id: OptionalSessionId = None
    include_open: Flag = True
    """Whether runs that have not ended are counted."""

    @property
    def narrows(self) -> bool:
        """Whether runs are left out by what they are, and not for being open."""
        return any(given is not None for given in (self.project, self.provider, self.model, self.client))


class SummaryFilters(RunChoice, SessionFilters):
    """What `list_session_summaries` is asked.

    `since, until` are about the session's last activity, `started_since, started_until` about its start.

    A `project` is a scope: only sessions with a run of it are found, and every figure covers its runs only. A
    `provider`, `model` or `client` finds the sessions with a run that has all of them; their figures cover all runs,
    or with `matching_only` those runs only.
    """

    started_since: Moment | None = None
    started_until: Moment | None = None
    search: OptionalText = None
    """What a message of the session contains, whatever the case; `%` and `_` mean themselves."""
    matching_only: Flag = False

    @field_validator("order_by")
    @classmethod
    def _is_a_column(cls, order_by: str) -> str:
        if order_by not in SESSION_ORDERS:
            raise ValueError(f"one of {', '.join(SESSION_ORDERS)}")
        return order_by

    @model_validator(mode="after")
    def _has_no_empty_window(self) -> Self:
        _refuse_empty_window(self.since, self.until, "until")
        _refuse_empty_window(self.started_since, self.started_until, "started_until")
        return self

    @property
    def counted(self) -> RunChoice:
        """The runs that figures cover."""
        if not self.matching_only:
            return RunChoice(project=self.project, include_open=self.include_open)
        return RunChoice(**{name: getattr(self, name) for name in RunChoice.model_fields})


class RunFilters(RunChoice, PageFilters):
    """What `list_runs` is asked. `since, until` are about the run's start, `agent_name` about its agent.

    `dataset_id` is that of the run's session.
    """

    include_open: Flag = False

    @model_validator(mode="after")
    def _has_no_empty_window(self) -> Self:
        _refuse_empty_window(self.since, self.until, "until")
        return self


class OneDetail(Value):
    """What `get_session_detail` is asked, beside who asks."""

    session_id: SessionId
    owner_id: Id | None = None
    project: OptionalProject = None


class ThreadsOfSession(Value):
    """What `list_threads` is asked, beside who asks."""

    session_id: SessionId
    owner_id: Id | None = None
    limit: Limit = DEFAULT_LIMIT
    after: OptionalExternalId = None
    before: OptionalExternalId = None

    @model_validator(mode="after")
    def _goes_one_way(self) -> Self:
        if self.after is not None and self.before is not None:
            raise inconsistent("before", "none beside after")
        return self


class ChatHistory(Value):
    """What `chat_history` is asked, beside who asks."""

    session_id: SessionId
    owner_id: Id | None = None
    limit: Annotated[int, Strict(), Field(ge=1)] | None = None
    max_characters: Annotated[int, Strict(), Field(ge=0)] | None = None


class ModelPrefix(Value):
    """What `list_models` is asked, beside who asks."""

    prefix: Text = ""


class ToolCall(Value):
    """What `find_lineage` is asked."""

    user_id: Id
    tool_call_id: ExternalId


class Lineage(Value):
    """Where a run that began with the result of a tool call hangs."""

    parent_run_id: str
    """The run that made the newest such call."""
    root_run_id: str
    """The root of that run's thread."""


class SessionSummary(Value):
    """A session, and figures over its runs, steps and messages.

    Cost and tokens are the session's own totals, usage outside of any run included; where a scope or a filter leaves
    runs out, they are sums over the runs that are counted.
    """

    record: SessionRecord
    effective_status: EffectiveStatus
    runs_count: int
    threads_count: int
    steps_count: int
    messages_count: int
    errors_count: int
    """Steps with errors, and runs that failed without one."""
    providers: tuple[str, ...]
    """Sorted, as are `models` and `agents`."""
    models: tuple[str, ...]
    agents: tuple[str, ...]
    client: str | None
    """Of the earliest run; `Unknown` where it has none, None without runs."""
    metadata: dict[str, Any]
    """Of the earliest run; empty where it has none."""
    first_seen: datetime | None
    """The earliest start of its runs and their steps; None without runs."""
    last_seen: datetime | None
    """The latest start or end of those; None without runs."""
    total_duration_ms: float
    """The durations of its runs together, an open one counting 0."""
    wall_duration_ms: float
    """From `first_seen` to `last_seen`."""
    quality_score: float | None
    """The mean of those given; None where there are none."""
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    tokens_total: int
    """Input, output, and what is unattributed."""
    tokens_unattributed: int
    """What runs report to have used beyond their events: input or output, nobody knows."""
    first_message: str | None
    """Its first 200 characters, as of `last_message` and `last_prompt`; None without messages."""
    last_message: str | None
    last_prompt: str | None
    """The latest message of the user."""
    flags: tuple[str, ...]
    """`negative_duration`: a run ended before it started."""

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.record.session_id

    @property
    def user_id(self) -> UUID:
        """The session's owner."""
        return self.record.user_id


class SummaryPage(Page):
    """A page of session summaries."""

    sessions: list[SessionSummary]


class RunEvent(Value):
    """One usage event of a run, as the ledger has it."""

    at: Moment
    model: str | None
    provider: str | None
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal | None
    """None: unpriced or unmeasured."""
    errored: bool
    late: bool
    """It happened after the session's end, and is in no total."""


class RunDetail(Run):
    """A run as it was recorded, its figures, and what belongs to it.

    `root_run_id` and `session_id` are what they turned out to be, given or derived; `session_id` is None while the run
    waits outside of any session.
    """

    reported_cost_usd: Decimal | None = None
    cost_usd: Decimal
    """What it reported or what its events cost, whichever is more."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    tokens_total: int
    """What it reported or what its events used, whichever is more."""
    duration_ms: float | None
    """Never negative; None while it is open."""
    errors_count: int
    steps: list[Step]
    """By start, place and id."""
    messages: list[Message]
    """Those of its session, oldest first."""
    events: list[RunEvent]
    """Its usage in its session, oldest first."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        # What was imported by SQL is told as it is.
        return self


class RunPage(Page):
    """A page of runs."""

    runs: list[RunDetail]


class SessionDetail(Value):
    """A session with all that belongs to it."""

    summary: SessionSummary
    runs: list[RunDetail]
    """Oldest first."""
    messages: list[Message]
    """Oldest first, whole; those outside of any run as well."""


class Action(Value):
    """What a run did beside answering: the tools it called, the thoughts it had."""

    run_id: str
    model: str | None
    started_at: Moment
    tools: list[Step]
    thoughts: list[Message]


class Thread(Value):
    """A root run and the runs of the session that descend from it, with their figures together."""

    thread_id: str
    """The root's run id."""
    started_at: Moment
    ended_at: Moment | None
    """None while one of its runs is open."""
    runs_count: int
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: Decimal
    prompt: str | None
    """The last message of the user in the root run."""
    actions: list[Action]
    """One per run that called tools or had thoughts, oldest first."""


class ThreadPage(Value):
    """A page of a session's threads, oldest first."""

    threads: list[Thread]
    session: SessionSummary
    """The whole session, whatever the page."""
    has_more: bool
    """In the direction of the walk."""
