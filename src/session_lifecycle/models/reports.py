"""What is asked of reports, and what they say. Money is USD, durations are milliseconds."""

from decimal import Decimal
from uuid import UUID

from session_lifecycle.models.fields import Moment, OptionalModel, OptionalName, Value

UNKNOWN_CLIENT = "Unknown"
"""How a run without a client reads."""


class TelemetryFilters(Value):
    """What `telemetry` is asked, beside who asks."""

    provider: OptionalName = None
    model: OptionalModel = None
    client: OptionalName = None
    since: Moment | None = None
    until: Moment | None = None


class TelemetrySummary(Value):
    """Figures over the runs a viewer sees that ended in a window."""

    runs_count: int
    users_count: int
    duration_p50_ms: float | None
    """Percentiles of the runs' durations, interpolated between two; None without runs."""
    duration_p90_ms: float | None
    duration_p95_ms: float | None
    duration_p99_ms: float | None
    tokens_in: int
    """What their events used, by any model."""
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    tool_calls_injected: int
    """Their tool calls whose tool a proxy put into the request."""
    tool_calls_failed: int
    """The injected ones that failed."""
    tool_calls_not_injected: int
    prompts_count: int
    """Messages of users that belong to one of them."""


class TelemetryKey(Value):
    """What runs can be told apart by."""

    provider: str | None
    model: str | None
    client: str
    """`Unknown` for a run that named none."""


class Spend(Value):
    """What was used and spent within a window, by the time of use."""

    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    events: int
    """As in cost by model: late ones are not among them, what runs report beyond their events is."""
    unpriced_events: int
    late_events: int
    """Events from after the end of their session, in no other figure."""
    late_cost_usd: Decimal


class CostByAgentRow(Value):
    """What the sessions of one agent cost, of all sessions a viewer sees in a window."""

    agent_name: str
    """`unknown` for sessions that named none."""
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int


class CostByUserRow(Value):
    """What the sessions of one user cost, of all sessions a viewer sees in a window."""

    user_id: UUID
    session_count: int
    cost_usd: Decimal
    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    unpriced_events: int
