"""The runs of OpenAI Agents that are open: families of runs, and their runs, model calls and spans."""

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from session_lifecycle.integrations.counts import number, value_at
from session_lifecycle.writing.attempt import Attempt
from session_lifecycle.writing.run_block import RunBlock
from session_lifecycle.writing.session_trace import SessionTrace
from session_lifecycle.writing.step_block import StepBlock

if TYPE_CHECKING:
    from agents.tracing import Span, Trace

_COUNTS = {
    "tokens_in": ("input_tokens",),
    "tokens_out": ("output_tokens",),
    "cache_read_tokens": ("input_tokens_details", "cached_tokens"),
    "cache_write_tokens": ("input_tokens_details", "cache_write_tokens"),
    "reasoning_tokens": ("output_tokens_details", "reasoning_tokens"),
}


def totals_of(usage: Any) -> Counter[str]:
    """The counts of a usage; both kinds of the runtime's are inclusive."""
    return Counter({name: number(value_at(usage, *path)) for name, path in _COUNTS.items()})


class Call:
    """A call of a model that is open, and what spans have told of it."""

    def __init__(self, attempt: Attempt, span_id: str | None, context: object, *, is_hooked: bool) -> None:
        self.attempt = attempt
        self.span_id = span_id
        """The span around it."""
        self.own_key = attempt.idempotency_key
        self.context = context
        self.is_hooked = is_hooked
        self.model: str | None = None
        self.tier: Any = None
        self.usage: Any = None
        self.response_id: str | None = None
        self.error: str | None = None


class KnownSpan:
    """A span that has begun and not ended."""

    def __init__(self, span: "Span[Any]") -> None:
        self.span_id = span.span_id
        self.parent_id = span.parent_id
        self.kind = kind_of(span)
        self.name: str | None = value_at(span.span_data, "name")
        self.call: Call | None = None
        self.step: StepBlock | None = None
        self.tool_call_id: str | None = None
        self.is_paused = False
        """Whether an agent in this tool waits for an approval."""


class Place(NamedTuple):
    """The call of `Runner.run` that a span is in."""

    key: str | None
    run_id: str | None = None
    """None: it is an outermost one of its trace, and has the run of the trace."""
    above: str | None = None
    """The span of another run that it is below."""
    tool_call_id: str | None = None


class Unit:
    """One call of `Runner.run` that is open."""

    def __init__(
        self,
        family: "Family",
        place: Place,
        block: RunBlock,
        agent_name: str | None,
        caller: "Unit | None",
    ) -> None:
        self.family = family
        self.caller = caller
        self.place = place
        self.block = block
        self.agent_name = agent_name
        self.calls: list[Call] = []
        self.steps: dict[str, StepBlock] = {}
        self.keys: set[str] = set()
        self.handoffs = 0
        self.has_prompt = False
        self.has_ended = False
        self.has_output = False
        self.output: Any = None
        self.error: str | None = None


class Family:
    """The runs of a trace; without tracing, the runs that share a usage."""

    def __init__(self, trace: "Trace | None", usage: Any, *, is_told: bool, will_end: bool = False) -> None:
        self.trace_id = None if trace is None else trace.trace_id
        self.key: str | int = id(usage) if trace is None else trace.trace_id
        self.name: str | None = value_at(trace, "name")
        self.group_id: str | None = value_at(trace, "group_id")
        self.is_told = is_told
        """Whether spans of the trace are told to this adapter."""
        self.will_end = will_end
        """Whether the end of the trace is told."""
        self.knows_spans = False
        """Whether beginnings of its spans are told."""
        self.is_refused = False
        self.session: SessionTrace | None = None
        self.block: RunBlock | None = None
        self.units: dict[str | None, Unit] = {}
        self.units_of_tool_calls: dict[str, Unit] = {}
        self.times: Counter[str] = Counter()
        """How many calls each span, and each tool call, has had."""
        self.ending: dict[str, Any] | None = None
        self.usage = usage
        """What the runtime counts for all of them. Kept, so that no other family has its id meanwhile."""
        self.in_books = totals_of(usage)
        """What stands in the books of `usage`."""

    def latest(self, agent_name: str | None = None) -> Unit | None:
        """The unit that began last, of those that are open; of this agent, where one is."""
        left = [unit for unit in reversed(self.units.values()) if not unit.has_ended]
        return next((unit for unit in left if unit.agent_name == agent_name), left[0] if left else None)


def kind_of(span: "Span[Any]") -> str:
    """The kind of a span: `agent`, `generation`, `function` and so on."""
    data = span.span_data
    # What is exported has another form than what processors are given.
    return str(value_at(data, "data", "sdk_span_type") or value_at(data, "type"))
