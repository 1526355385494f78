"""Run telemetry and durations: the filters that go in, and the summaries, keys and durations that come out."""

from session_lifecycle.models.fields import OptionalModel, OptionalName, Value
from session_lifecycle.models.session_filters import Window
from session_lifecycle.models.sessions import EffectiveStatus


class TelemetryFilters(Window):
    """The arguments of `telemetry`, without the viewer. The window is on the end of the run."""

    provider: OptionalName = None
    model: OptionalModel = None
    client: OptionalName = None


class TelemetrySummary(Value):
    """Figures over the runs that a viewer sees and that ended in a window. `telemetry` returns it."""

    runs_count: int
    users_count: int
    """The number of users that own these runs."""
    duration_p50_ms: float | None
    """Milliseconds: a percentile of the runs' durations, interpolated, as are the next three. None without runs."""
    duration_p90_ms: float | None
    duration_p95_ms: float | None
    duration_p99_ms: float | None
    tokens_in: int
    """Tokens of the runs' events, of all models, as are `tokens_out`, `cache_read_tokens` and `cache_write_tokens`."""
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    tool_calls_injected: int
    """The number of tool calls whose tool a proxy put into the request."""
    tool_calls_failed: int
    """The number of injected tool calls with errors."""
    tool_calls_not_injected: int
    """The number of all other tool calls."""
    prompts_count: int
    """The number of user messages in these runs."""


class TelemetryKey(Value):
    """A provider, model and client that `telemetry` can be asked for. `list_telemetry_keys` returns a list of it."""

    provider: str | None
    model: str | None
    client: str
    """The client; `Unknown` for runs without a client."""


class Durations(Value):
    """The durations of sessions or runs. Part of `SessionDurations` and `RunDurations`."""

    count: int
    """The number of sessions or runs."""
    p50_s: float | None
    """Seconds: a percentile, interpolated, to the microsecond, as are the next three. None where `count` is 0."""
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None


class SessionDurations(Durations):
    """The durations of all sessions, and of each effective status. `session_durations` returns it."""

    by_status: dict[EffectiveStatus, Durations]
    """Has every status."""


class RunDurations(Durations):
    """The durations of all runs, and of each agent. `run_durations` returns it."""

    by_agent: dict[str, Durations]
    """Most runs first, ties by name. Runs without an agent are `unknown`."""
