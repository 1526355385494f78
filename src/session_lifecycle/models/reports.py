"""The figures that reports return: stats, spend, cost rows, usage. `report_questions.py` has what they answer."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from pydantic import Field

from session_lifecycle.models.fields import Value
from session_lifecycle.models.sessions import EffectiveStatus


class SessionStats(Value):
    """Figures over the sessions that a viewer sees, last active in a window (rule R16).

    `aggregate_stats` returns it. Money is USD. `completed`, `failed`, `abandoned`, `running` and `waiting` count
    sessions by their effective status.
    """

    sessions: int
    total_spend_usd: Decimal
    avg_spend_per_session_usd: Decimal
    """USD, rounded half-even to 10 decimals; 0 without sessions."""
    tokens_in: int
    tokens_out: int
    tokens_total: int
    """`tokens_in + tokens_out`."""
    agent_time_s: float
    """Seconds: the sum of the durations of all sessions, each `max(0, (ended_at or last_activity_at) - started_at)`."""
    avg_session_s: float
    """Seconds; 0 without sessions."""
    success_rate: float
    """`completed / (completed + failed + abandoned)`; 1.0 where all three are 0."""
    completed: int
    failed: int
    abandoned: int
    running: int
    """Those that wait are among them."""
    waiting: int
    unpriced_events: int
    unmeasured_events: int
    late_events: int
    late_cost_usd: Decimal
    partial_events: int = 0
    """The number of events whose counts are a lower bound."""
    plan_events: int = 0
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int = 0
    plan_tokens_out: int = 0
    plan_cost_usd: Decimal = Decimal(0)
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int = 0


class CostByModelRow(Value):
    """What one model cost in the sessions that a viewer sees, last active in a window.

    `cost_by_model` returns a list of it. Money is USD.
    """

    model: str
    """The model, in a spelling that was given; `unknown` for usage without a model.

    Names that differ in case or in outer spaces only are one model.
    """
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    unpriced_events: int
    partial_events: int = 0
    """The number of events whose counts are a lower bound."""
    plan_events: int = 0
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int = 0
    plan_tokens_out: int = 0
    plan_cost_usd: Decimal = Decimal(0)
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int = 0
    cache_write_1h_tokens: int = 0
    audio_tokens_in: int = 0
    cache_read_audio_tokens: int = 0
    image_tokens_in: int = 0
    cache_read_image_tokens: int = 0
    video_tokens_in: int = 0
    audio_tokens_out: int = 0
    image_tokens_out: int = 0
    web_searches: int = 0


class UsagePoint(Value):
    """Tokens and cost of one bucket of a series, by the time of use. `usage_timeseries` returns a list of it."""

    starts_at: datetime
    """The beginning, UTC. The first bucket may begin before the window; usage from before the window is not counted."""
    ends_at: datetime
    """The end, UTC. The last bucket may end after the window; usage from after the window is not counted."""
    group: str | None
    """The model, agent, user or dataset; `unknown` for usage without one. None without `group_by`."""
    cost_usd: Decimal
    """USD."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    unpriced_events: int


class UsageFigures(Value):
    """Figures over usage events, by the time of use. Part of a `UsageReport`. Money is USD."""

    cost_usd: Decimal
    """USD; without the price of usage under a plan."""
    events: int
    """The number of events that used something, without late events, with the adjustments for what runs reported beyond
    their events."""
    sessions: int
    """The number of sessions with such an event. A session may be in several groups, and counts once in the total."""
    runs: int
    """The number of runs with such an event. A run may be in several groups, and counts once in the total."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cache_write_1h_tokens: int
    audio_tokens_in: int
    cache_read_audio_tokens: int
    image_tokens_in: int
    cache_read_image_tokens: int
    video_tokens_in: int
    audio_tokens_out: int
    image_tokens_out: int
    web_searches: int
    """The number of searches; they are no tokens."""
    unpriced_events: int
    unmeasured_events: int
    partial_events: int
    """The number of events whose counts are a lower bound."""
    late_events: int
    """The number of events from after the end of their session. No other figure but `late_cost_usd` counts them."""
    late_cost_usd: Decimal
    """USD."""
    plan_events: int
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int
    plan_tokens_out: int
    plan_cost_usd: Decimal
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int
    details: dict[str, int] = Field(default_factory=dict)
    """The sum of each detail that was asked for, without late events; 0 where no event has it."""


FIGURES = tuple(name for name in UsageFigures.model_fields if name != "details")
"""The figures that a report can be ordered by."""


class UsageRow(UsageFigures):
    """The figures of one group of a report. Part of a `UsageReport`.

    The fields of the dimensions in `group_by` say which group; all other fields that say so are None, and tags that
    are not in `group_by` are left out.
    """

    model: str | None = None
    """In a spelling that was given: names that differ in case or in outer spaces only are one model. `unknown` for
    usage without a model."""
    provider: str | None = None
    """As it was given; `unknown` for usage without a provider."""
    agent_name: str | None = None
    """The agent of the session; `unknown` for a session without an agent."""
    user_id: UUID | None = None
    """The owner of the session; grouped by user, session or run."""
    dataset_id: UUID | None = None
    """The dataset of the session; None also for sessions in no dataset."""
    client: str | None = None
    """The client of the event's run; `Unknown` for usage without a run, or of a run without a client."""
    kind: str | None = None
    billing: str | None = None
    service_tier: str | None = None
    session_id: str | None = None
    run_id: str | None = None
    """The event's run; None also for usage without a run."""
    status: EffectiveStatus | None = None
    """The effective status of the session."""
    tags: dict[str, str | None] = Field(default_factory=dict)
    """The tags of the session that `group_by` names, by name; None for a session without the tag."""
    starts_at: datetime | None = None
    """The beginning of the hour, day, week or month, UTC. It may lie before the window; usage from before the window is
    not counted."""
    ends_at: datetime | None = None
    """The end, UTC. It may lie after the window."""


class UsageReport(Value):
    """Usage in groups, by the time of use. `usage` returns it."""

    rows: list[UsageRow]
    """One row per group with usage, in the order that was asked for; without `group_by` one row with all usage."""
    total: UsageFigures
    """The figures over all groups, also over those beyond the limit, from the same snapshot. The rows of all groups add
    up to it; sessions and runs may not, because one can be in several groups."""
    has_more: bool
    """Whether there are more groups than the limit."""


class Spend(Value):
    """Tokens and cost of a window, by the time of use. `spend` returns it."""

    cost_usd: Decimal
    """USD."""
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    """The number of events, as `cost_by_model` counts them: without late events, with the adjustments for what runs
    reported beyond their events."""
    unpriced_events: int
    late_events: int
    """The number of events from after the end of their session. No other figure but `late_cost_usd` counts them."""
    late_cost_usd: Decimal
    """USD."""
    partial_events: int = 0
    """The number of events whose counts are a lower bound."""
    plan_events: int = 0
    """The number of events under a plan. The other figures count their tokens, and no cost counts their price."""
    plan_tokens_in: int = 0
    plan_tokens_out: int = 0
    plan_cost_usd: Decimal = Decimal(0)
    """USD: the price of the events under a plan. It is in no other figure."""
    plan_unpriced_events: int = 0


class TokenClasses(Value):
    """Tokens by class. Part of `TokensByClass`.

    The first three classes add up to `tokens_in`, the next two to `tokens_out`.
    """

    uncached_input_tokens: int
    """Input tokens that were neither read from a cache nor written to one."""
    cache_read_tokens: int
    cache_write_tokens: int
    visible_output_tokens: int
    """Output tokens that are not reasoning."""
    reasoning_tokens: int
    tokens_in: int
    tokens_out: int


class TokensByClass(TokenClasses):
    """Tokens used in a window by class: of all models together, and of each model. `tokens_by_class` returns it."""

    by_model: dict[str, TokenClasses]
    """Most tokens first, ties by name. Usage without a model is `unknown`. A model without tokens is left out."""


class CostByAgentRow(Value):
    """What the sessions of one agent cost, of the sessions that a viewer sees, last active in a window.

    `cost_by_agent` returns a list of it. Money is USD.
    """

    agent_name: str
    """The agent; `unknown` for sessions without an agent."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int


class CostByUserRow(Value):
    """What the sessions of one user cost, of the sessions that a viewer sees, last active in a window.

    `cost_by_user` returns a list of it. Money is USD.
    """

    user_id: UUID
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int


class CostByUserAgentRow(Value):
    """What the sessions of one user with one type of agent cost, of the sessions that a viewer sees, last active in a
    window.

    `cost_by_user_agent` returns a list of it. Money is USD.
    """

    user_id: UUID
    agent_type: str | None
    """See `SessionRecord.agent_type`."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int
