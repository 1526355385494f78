"""The arguments and the answers of the reads about one session: its detail, its threads, its chat history."""

from decimal import Decimal
from typing import Annotated, Self

from pydantic import Field, Strict, model_validator

from session_lifecycle.models.fields import AwareTime, Flag, Id, OptionalExternalId, SessionId, Value
from session_lifecycle.models.messages import Message
from session_lifecycle.models.pages import DEFAULT_LIMIT, Limit, Offset, StepsLimit
from session_lifecycle.models.refusals import inconsistent
from session_lifecycle.models.run_details import RunDetail
from session_lifecycle.models.run_filters import OptionalProject
from session_lifecycle.models.runs import Step
from session_lifecycle.models.sessions import SessionRowWithStatus
from session_lifecycle.models.summaries import SessionSummary

MOST_RUNS = 1_000
"""The most runs, and the most messages, of one `SessionDetail`."""
MOST_MESSAGES = 10_000
"""The most messages of one chat history."""
LABEL_CHARACTERS = 120
"""The most characters of the label of a session."""
MOST_RECENT = 500
"""The most messages, and the most tool calls, of one `RecentActivity`."""


class OneDetail(Value):
    """The arguments of `get_session_detail`, without the viewer."""

    session_id: SessionId
    owner_id: Id | None = None
    project: OptionalProject = None
    limit: Annotated[int, Strict(), Field(ge=1, le=MOST_RUNS)] = MOST_RUNS
    offset: Offset = 0
    payloads: Flag = True
    steps_limit: StepsLimit | None = None


class ThreadsOfSession(Value):
    """The arguments of `list_threads`, without the viewer."""

    session_id: SessionId
    owner_id: Id | None = None
    limit: Limit = DEFAULT_LIMIT
    after: OptionalExternalId = None
    before: OptionalExternalId = None

    @model_validator(mode="after")
    def _goes_one_way(self) -> Self:
        if self.after is not None and self.before is not None:
            raise inconsistent("before", "either after or before, not both")
        return self


class ChatHistory(Value):
    """The arguments of `chat_history`, without the viewer."""

    session_id: SessionId
    owner_id: Id | None = None
    limit: Annotated[int, Strict(), Field(ge=1, le=MOST_MESSAGES)] | None = None
    max_characters: Annotated[int, Strict(), Field(ge=0)] | None = None
    exclude_run_id: OptionalExternalId = None


class RecentlyOfSession(Value):
    """The arguments of `get_recent_activity`, without the viewer."""

    session_id: SessionId
    owner_id: Id | None = None
    limit: Annotated[int, Strict(), Field(ge=1, le=MOST_RECENT)] = 20


class RecentActivity(Value):
    """A session with its label, and what was said and called in it last. `get_recent_activity` returns it."""

    session: SessionRowWithStatus
    label: str | None
    """The first 120 characters of the user's first message, else of the name of the first run; None without both."""
    messages_count: int
    """The number of all messages of the session."""
    tool_calls_count: int
    """The number of all tool calls in the runs of the session."""
    messages: list[Message]
    """The newest messages, oldest first."""
    tool_calls: list[Step]
    """The newest tool calls, oldest first."""
    has_payloads: bool
    """Whether the tool calls have their payloads. They are left out where they are too large."""


class SessionDetail(Value):
    """A session with its summary, runs and messages. `get_session_detail` returns it.

    With a `project`, it has only what belongs to runs of the project.
    """

    summary: SessionSummary
    runs: list[RunDetail]
    """Oldest first."""
    messages: list[Message]
    """Whole messages, oldest first. Without a `project`, messages without a run are there too."""
    has_more_runs: bool
    """Whether more runs follow: ask again with a larger `offset`. `summary.runs_count` is the number of all runs."""
    has_more_messages: bool
    """Whether more messages follow. `summary.messages_count` is the number of all messages."""
    has_payloads: bool
    """Whether runs and steps have their payloads. They are left out on demand, and where they are too large."""


class Action(Value):
    """The tool calls and the thoughts of one run. Part of a `Thread`."""

    run_id: str
    model: str | None
    started_at: AwareTime
    tools: list[Step]
    thoughts: list[Message]


class Thread(Value):
    """A root run and the runs of the session that descend from it, with sums over them. Part of a `ThreadPage`."""

    thread_id: str
    """The run id of the root."""
    started_at: AwareTime
    """The earliest start of its runs, UTC."""
    ended_at: AwareTime | None
    """The latest end of its runs, UTC; None while a run is open."""
    runs_count: int
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: Decimal
    """USD."""
    prompt: str | None
    """The last message of the user in the root run, whole; None where there is none."""
    actions: list[Action]
    """One action for each run that called tools or had thoughts, oldest first."""


class ThreadPage(Value):
    """A page of a session's threads. `list_threads` returns it."""

    threads: list[Thread]
    """Oldest first."""
    session: SessionSummary
    """The summary of the whole session, the same on every page."""
    has_more: bool
    """Whether more threads follow the page; with `before`, whether more threads come before the page."""
    has_payloads: bool
    """Whether the tool calls have their payloads. They are left out where those of the page are too large."""
