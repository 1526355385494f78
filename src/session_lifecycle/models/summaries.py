"""Session summaries: the filters that go in, and the summary and the page that come out."""

from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, field_validator, model_validator

from session_lifecycle.models.fields import (
    AwareTime,
    Flag,
    Value,
)
from session_lifecycle.models.json_payloads import folded
from session_lifecycle.models.pages import Page
from session_lifecycle.models.refusals import refuse_empty_window, refused
from session_lifecycle.models.run_filters import OptionalText, RunChoice
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS, SessionFilters
from session_lifecycle.models.sessions import EffectiveStatus, SessionRecord

PREVIEW_CHARACTERS = 200
MOST_NAMES = 1_000
"""The most providers, and models, and agents, of one summary."""
LAST_PROMPT = "last_prompt_at"
SUMMARY_ORDERS = (*ALL_SESSION_ORDERS, LAST_PROMPT)
"""All fields that a page of summaries can be ordered by. No index has the order of `last_prompt_at`."""


def _nothing_as_none(search: str | None) -> str | None:
    return search if search is not None and folded(search) else None


class SummaryFilters(RunChoice, SessionFilters):
    """The argument of `list_session_summaries`.

    `since` and `until` are a window on the session's last activity, `started_since` and `started_until` on its start.

    A `project` is a scope: the list has only sessions with a run of the project, and every figure covers only runs of
    the project. With `provider`, `model` or `client`, the list has the sessions with one run that has all of them. The
    figures cover all runs that `project` and `include_open` choose; with `matching_only`, only the matching runs.
    """

    started_since: AwareTime | None = None
    started_until: AwareTime | None = None
    search: Annotated[OptionalText, AfterValidator(_nothing_as_none)] = None
    """A text that a message of the session contains. Case does not matter; `%` and `_` are ordinary characters.

    A text of characters that a search ignores, such as soft hyphens, is empty. An empty text filters nothing.
    """
    matching_only: Flag = False

    @field_validator("order_by")
    @classmethod
    def _is_a_column(cls, order_by: str) -> str:
        if order_by not in SUMMARY_ORDERS:
            raise refused("literal_error", expected=", ".join(SUMMARY_ORDERS))
        return order_by

    @model_validator(mode="after")
    def _has_no_empty_window(self) -> Self:
        refuse_empty_window(self.started_since, self.started_until, "started_")
        return self

    @cached_property
    def order_column(self) -> str:
        """The field that the page is ordered by."""
        return self.order_by

    @property
    def counted(self) -> RunChoice:
        """The choice of runs that the figures cover."""
        if not self.matching_only:
            return RunChoice(project=self.project, include_open=self.include_open)
        return RunChoice(**{name: getattr(self, name) for name in RunChoice.model_fields})


class SessionSummary(Value):
    """A session with figures over its runs, steps and messages. `list_session_summaries` returns it.

    Cost and tokens are the session's totals, so they include usage without a run. Where a project, or `matching_only`,
    narrows the runs, cost and tokens are sums over the counted runs. With `include_open=False` alone, they are the
    session's totals without the open runs.
    """

    record: SessionRecord
    effective_status: EffectiveStatus
    runs_count: int
    threads_count: int
    steps_count: int
    messages_count: int
    errors_count: int
    """The number of steps with errors, and of failed runs without such a step."""
    providers: tuple[str, ...]
    """Sorted, as are `models` and `agents`; of more than 1,000 the first 1,000."""
    models: tuple[str, ...]
    """Each in a spelling that was given: names that differ in case only are one model."""
    agents: tuple[str, ...]
    client: str | None
    """The client of the earliest run; `Unknown` where that run has no client. None without runs."""
    metadata: dict[str, Any]
    """The metadata of the earliest run; empty where that run has none, and without runs."""
    first_seen: datetime | None
    """The earliest start of the runs and their steps, UTC; None without runs."""
    last_seen: datetime | None
    """The latest start or end of the runs and their steps, UTC; None without runs."""
    total_duration_ms: float
    """Milliseconds: the sum of the durations of the runs. An open run counts as 0."""
    wall_duration_ms: float
    """Milliseconds from `first_seen` to `last_seen`; 0 without runs."""
    quality_score: float | None
    """The mean over the runs with a score; None where no run has a score."""
    cost_usd: Decimal
    """USD."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    tokens_total: int
    """`tokens_in + tokens_out + tokens_unattributed`."""
    tokens_unattributed: int
    """Tokens that runs reported beyond their events. Whether they are input or output is not known."""
    first_message: str | None
    """The first 200 characters of the first message; None without messages."""
    last_message: str | None
    """The first 200 characters of the last message; None without messages."""
    last_prompt: str | None
    """The first 200 characters of the user's last message; None where the user has no message."""
    last_prompt_at: datetime | None
    """When the user's last message was created, UTC; None where the user has no message."""
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
    """A page of session summaries. `list_session_summaries` returns it."""

    sessions: list[SessionSummary]
