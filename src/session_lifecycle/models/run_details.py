"""The answers about runs: a run with its steps, messages and events; a page of runs; the lineage of a run."""

from decimal import Decimal
from typing import Self

from pydantic import model_validator

from session_lifecycle.models.fields import AwareTime, Value
from session_lifecycle.models.messages import Message
from session_lifecycle.models.pages import Page
from session_lifecycle.models.runs import Run, Step


class Lineage(Value):
    """The parent and the root of a run that began with the result of a tool call. `find_lineage` returns it."""

    parent_run_id: str
    """The run with the newest step that made the tool call."""
    root_run_id: str
    """The root of the parent's thread; the parent itself where it is a root."""


class RunEvent(Value):
    """One usage event of a run, as the ledger has it. Part of a `RunDetail`."""

    at: AwareTime
    """The time of use, UTC."""
    model: str | None
    provider: str | None
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal | None
    """USD; None where the event is unpriced or unmeasured."""
    errored: bool
    late: bool
    """Whether the event happened after the session's end. No total counts a late event."""


class RunDetail(Run):
    """A run as it was recorded, with its figures, steps, messages and events. `list_runs` and `get_session_detail`
    return it.

    `session_id`, `parent_run_id` and `root_run_id` are the stored ids, whether they were given or derived. `session_id`
    is None for a run outside a session. `parent_session_id` is the parent that the session has now.
    """

    reported_cost_usd: Decimal | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - a frozen value
    cost_usd: Decimal
    """USD: the greater of the cost that the run reported and the cost of its events."""
    tokens_in: int
    """Tokens of its events, as are `tokens_out`, `cache_read_tokens` and `cache_write_tokens`."""
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    tokens_total: int
    """The greater of the tokens that the run reported and the input and output tokens of its events."""
    duration_ms: float | None
    """Milliseconds from start to end, never negative; None for an open run."""
    errors_count: int
    """The number of its steps with errors; 1 for a failed run without such a step."""
    steps_count: int
    """The number of all its steps. `errors_count` covers all of them, too."""
    steps: list[Step]
    """Ordered by `started_at`, then `seq`; those of one moment without a `seq` in the order of recording. All steps, or
    those that `steps_limit` and `steps_offset` choose."""
    messages: list[Message]
    """The messages of the run in the run's session, oldest first. A run outside a session has all its messages."""
    events: list[RunEvent]
    """The usage events of the run in the run's session, oldest first, as `list_usage_events` orders them."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        # A row that a host's own SQL wrote is returned as it is, even where `Run` would refuse it.
        return self


class RunPage(Page):
    """A page of runs. `list_runs` returns it."""

    runs: list[RunDetail]
    has_payloads: bool
    """Whether runs and steps have their payloads. They are left out where those of the page are too large."""
