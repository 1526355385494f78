"""OpenTelemetry: a span processor and an exporter that record the spans of agents and of calls of models.

The processor sees spans begin, so it knows calls that never end, and which run each call belongs to. The exporter is
for a pipeline that the host has already, and sees spans that have ended. A host uses one of them.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from session_lifecycle.errors import ConfigurationError, InvalidValueError
from session_lifecycle.integrations.adapter import Adapter, OpenParts, TakesQuietly, recorded
from session_lifecycle.integrations.span_books import (
    Entry,
    Node,
    Place,
    SpanBatches,
    counted,
    end_of,
    event_of,
    messages,
    step_of,
    without_usage,
)
from session_lifecycle.integrations.span_reader import (
    INPUT_WITHOUT_CACHE,
    MODEL_CALLS,
    Kind,
    Span,
    agent_of,
    error_of,
    kind_of,
    model_of,
    moment,
    provider_of,
    session_of,
)
from session_lifecycle.models import Run, UsageEvent
from session_lifecycle.writing.attempt import Attempt
from session_lifecycle.writing.run_block import RunBlock, current_run
from session_lifecycle.writing.session_trace import SessionTrace, current_trace

try:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import SpanContext, StatusCode
except ImportError as error:
    raise ImportError(
        "the SDK of OpenTelemetry is missing: pip install 'session-lifecycle[otel]'", name=error.name
    ) from error

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span as SdkSpan

__all__ = ["SessionSpanExporter", "SessionSpanProcessor"]

Attributes = Mapping[str, Any]
UserOfSpan = Callable[[Attributes], UUID | str | None]


class _SpanAdapter(Adapter):
    def __init__(
        self,
        recorder: TakesQuietly,
        *,
        user_id: UUID | str | Callable[[], UUID | str | None] | None = None,
        user_of: UserOfSpan | None = None,
        session_id: str | None = None,
        content: bool = False,
        attempt_timeout: timedelta | float | None = None,
        input_without_cache: Collection[str] = INPUT_WITHOUT_CACHE,
    ) -> None:
        """Makes it. It needs no event loop.

        Args:
            recorder: What it hands its items to: `db.recorder()` or `db.synchronous_recorder()`.
            user_id: See `Adapter`.
            user_of: Finds the owner in the attributes of a span; it is asked for the span and the spans above it. None,
                or an answer of None: `user_id`.
            session_id: See `Adapter`: the session of spans that name none.
            content: See `Adapter`. Without it, no text of a prompt, an answer, a tool or an error is recorded.
            attempt_timeout: See `Adapter`.
            input_without_cache: The names of instrumentation scopes whose input tokens do not include the cache.
        """
        super().__init__(
            recorder, user_id=user_id, session_id=session_id, content=content, attempt_timeout=attempt_timeout
        )
        self._user_of = user_of
        self._input_without_cache = input_without_cache
        self._prepare()

    def _prepare(self) -> None:
        """What a subclass needs besides. Its `__init__` stays this one, with these arguments."""

    def _owner(self, spans: Sequence[Attributes], around: SessionTrace | None) -> UUID | str:
        found: UUID | str | None = None
        if self._user_of is not None:
            found = next((user for attributes in spans if (user := self._user_of(attributes)) is not None), None)
        if found is None:
            found = self._owner_set()
        if found is None and around is not None:
            found = around.user_id
        if found is None:
            raise ConfigurationError(
                "user_id: got None, expected the session's owner, a user_of that finds it, or a session block around"
            )
        return found

    def _write(self, entries: Sequence[Entry]) -> None:
        for kind, fields in entries:
            refusal = self._quiet.write(kind, **fields)
            if isinstance(refusal, InvalidValueError) and kind is UsageEvent and fields.get("measured"):
                # The call was made, so the books say at least that its usage is unknown.
                self._quiet.write(kind, **without_usage(fields))

    def shutdown(self) -> None:
        """Does nothing: the recorder, which the host closes, writes what is pending."""


class SessionSpanExporter(_SpanAdapter, SpanExporter):
    """An exporter of spans, for a `BatchSpanProcessor` of the host.

    A trace is a run; agents below its root are steps of it. Every span of a trace that names a session must name it
    itself where a trace may be exported in several batches: usage that comes before its session is named stays in a
    session with the trace's id. It does not know calls that never end, and spans that are not sampled.
    """

    def _prepare(self) -> None:
        self._batches = SpanBatches(
            key_scope="session",
            content=self.content,
            session_id=self._session_id,
            input_without_cache=self._input_without_cache,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hands the spans over at once. Raises nothing and always succeeds: losses are told to `on_lost`."""
        self._export(spans)
        return SpanExportResult.SUCCESS

    @recorded
    def _export(self, spans: Sequence[ReadableSpan]) -> None:
        for trace in self._batches.traces(_spans(spans)).values():
            self._export_trace(trace)

    @recorded
    def _export_trace(self, trace: list[Span]) -> None:
        attributes = [span.attributes for span in trace]
        self._write(self._batches.entries(trace, lambda: self._owner(attributes, None)))

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Does nothing: `export` has handed everything over."""
        del timeout_millis
        return True


class _Live(Node):
    """A span that has begun here."""

    __slots__ = ("attempt", "block", "inner", "parent", "run", "session", "span")

    def __init__(self, span: ReadableSpan, parent: "_Live | None", block: RunBlock | None) -> None:
        super().__init__()
        self.span = span
        self.parent = parent
        self.block = block
        """The run of the host around the code that began it."""
        self.session = current_trace()
        self.run: RunBlock | None = None
        """The run that the span is."""
        self.attempt: Attempt | None = None
        self.inner: list[_Live] = []
        """The calls of models inside it, where it is one."""

    def drop_attempt(self) -> None:
        """Closes the attempt of a call that another one stands for, unless it has been recorded."""
        if self.attempt is not None and self.attempt.discard():
            self.attempt = None

    @property
    def attributes(self) -> Attributes:
        """Those it has now: an instrumentation may set them after it has begun."""
        return self.span.attributes or {}

    def above(self) -> "list[_Live]":
        """The spans above it, the nearest first."""
        found: list[_Live] = []
        node = self.parent
        while node is not None:
            found.append(node)
            node = node.parent
        return found


class SessionSpanProcessor(_SpanAdapter, SpanProcessor):
    """A span processor. Add it to the provider of the host, which stays the host's.

    The topmost span of this process with anything of an agent below it is a run with the trace's id, and the span of an
    agent inside it a run below. Inside a run of the host (`session.run`, `traced`, another adapter) there is no run for
    the topmost span: calls are in that run.

    A call of a model is known when it begins. If it has not ended when the topmost span ends, or within
    `attempt_timeout`, it is recorded without usage.

    Example:
        recorder = db.synchronous_recorder()
        provider.add_span_processor(SessionSpanProcessor(recorder, user_id=user_id))
    """

    def _prepare(self) -> None:
        self._open: OpenParts[tuple[int, int], _Live] = OpenParts(_give_up)
        self._beginning = threading.Lock()

    @recorded
    def on_start(self, span: "SdkSpan", parent_context: "Context | None" = None) -> None:
        """Begins the run of an agent, or the attempt of a call of a model. Waits for nothing, raises nothing."""
        del parent_context  # the span has its parent
        node = self._open.put(_key(span.get_span_context()), self._node(span))
        kind = kind_of(node.attributes)
        try:
            if kind is Kind.AGENT:
                self._own_run(node)
            elif kind is not None and kind in MODEL_CALLS:
                self._open_attempt(node, kind)
        except ConfigurationError:
            return  # there is no owner yet; if there is none when the span ends, that is told

    def _open_attempt(self, node: _Live, kind: Kind) -> None:
        run = self._run_around(node)
        for outer in node.above():
            if kind_of(outer.attributes) in MODEL_CALLS:
                outer.inner.append(node)
                outer.drop_attempt()  # this call stands for it
        node.attempt = run.attempt(
            model_of(node.attributes),
            provider_of(node.attributes),
            kind="embedding" if kind is Kind.EMBEDDING else "llm",
            idempotency_key=_id(node.span.get_span_context()),
            started_at=moment(node.span.start_time or 0),
        )

    @recorded
    def on_end(self, span: ReadableSpan) -> None:
        """Records the span that ended. Waits for nothing, raises nothing."""
        node = self._open.take(_key(span.get_span_context())) or self._node(span)
        kind = kind_of(node.attributes)
        if kind is None and node.run is None:
            return
        node.span = span
        [ended] = _spans([span])
        try:
            if kind in MODEL_CALLS:
                self._end_call(node, ended)
            elif kind is Kind.AGENT:
                self._end_agent(node, ended)
            elif kind is not None and span.parent is not None:
                run = self._run_around(node)
                step = step_of(ended, kind, _place(run), parent_step_id=_step_above(node), content=self.content)
                self._write([step])
        finally:
            if node.run is not None:
                end = end_of(ended, kind, content=self.content)
                node.run.finish(end.get("error"), status=end["status"], at=ended.ended_at)

    def _end_call(self, node: _Live, span: Span) -> None:
        run = self._run_around(node)
        node.drop_attempt()
        recorded_key = None if node.attempt is None else node.attempt.idempotency_key
        event = event_of(
            span,
            _place(run),
            key_scope="session",
            recorded_key=recorded_key,
            input_without_cache=self._input_without_cache,
        )
        entries = counted(node, event, node.above())
        if entries:
            for inner in node.inner:
                inner.drop_attempt()  # a call that is open, or never ends, is in this event
        self._write(entries)
        if self.content:
            self._write(list(messages(span, _place(run))))

    def _end_agent(self, node: _Live, span: Span) -> None:
        run = self._own_run(node)
        agent_name = agent_of(span.attributes)
        if agent_name is not None and agent_name != run.agent_name:
            # An instrumentation may name the agent after the run has begun.
            fields = {"run_id": run.run_id, "user_id": run.user_id, "session_id": run.session_id}
            self._write([(Run, {**fields, "started_at": span.started_at, "agent_name": agent_name})])

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Does nothing: every span has been handed over."""
        del timeout_millis
        return True

    def _node(self, span: ReadableSpan) -> _Live:
        parent = span.parent
        above = None if parent is None or parent.is_remote else self._open.get(_key(parent))
        return _Live(span, above, current_run())

    def _run_around(self, node: _Live) -> RunBlock:
        """The run that a span is in: that of the host, of the nearest agent above it, or of the topmost span."""
        while True:
            if node.block is not None and (node.parent is None or node.parent.block is not node.block):
                return node.block
            if node.parent is None:
                return self._own_run(node)
            node = node.parent
            if kind_of(node.attributes) is Kind.AGENT:
                return self._own_run(node)

    def _own_run(self, node: _Live) -> RunBlock:
        """The run that a span is. It begins with the first call."""
        if node.run is not None:
            return node.run
        context, parent = node.span.get_span_context(), node.span.parent
        trace_id = _id(context).partition(":")[0]
        around = None if node.parent is None and node.block is None else self._run_around(node)
        # The agent of another process that this one is called by is in the run of the trace.
        is_below = around is None and parent is not None and kind_of(node.attributes) is Kind.AGENT
        run_id = trace_id if node.parent is None and not is_below else _id(context)
        spans = [node.attributes, *(outer.attributes for outer in node.above())]
        session_id = next((name for attributes in spans if (name := session_of(attributes))), None)
        if around is not None:
            session_id, user_id = session_id or around.session_id, around.user_id
        else:
            user_id = self._owner(spans, node.session)
            session_id = session_id or self._session_id or (None if node.session is None else node.session.session_id)
        made = SessionTrace(self._quiet, session_id or trace_id, user_id, attempt_timeout=self._attempt_timeout).run(
            # The process that has the root of the trace names its run.
            None if parent is not None and run_id == trace_id else node.span.name,
            run_id=run_id,
            agent_name=agent_of(node.attributes),
            parent_run_id=around.run_id if around is not None else trace_id if is_below else None,
        )
        with self._beginning:
            if node.run is None:
                node.run = made
        if node.run is made:
            made.begin(at=moment(node.span.start_time or 0))
        return node.run


def _give_up(node: _Live) -> None:
    if node.attempt is not None:
        node.attempt.cancel()


def _place(run: RunBlock) -> Place:
    return Place(run.user_id, run.session_id, run.run_id)


def _step_above(node: _Live) -> str | None:
    """The step of the same run above a span."""
    for outer in node.above():
        kind = kind_of(outer.attributes)
        if outer.block is not node.block or kind is Kind.AGENT or outer.parent is None:
            return None
        if kind in {Kind.TOOL, Kind.TASK}:
            return _id(outer.span.get_span_context()).partition(":")[2]
    return None


def _key(context: SpanContext | None) -> tuple[int, int]:
    return (0, 0) if context is None else (context.trace_id, context.span_id)


def _id(context: SpanContext | None) -> str:
    trace_id, span_id = _key(context)
    return f"{trace_id:032x}:{span_id:016x}"


def _spans(spans: Sequence[ReadableSpan]) -> list[Span]:
    return [_span(span) for span in spans]


def _span(span: ReadableSpan) -> Span:
    attributes = dict(span.attributes or {})
    trace_id, span_id = _id(span.get_span_context()).split(":")
    exceptions = [event.attributes or {} for event in span.events if event.name == "exception"]
    has_failed = span.status.status_code is StatusCode.ERROR
    error, error_text = error_of(attributes, exceptions, span.status.description, has_failed=has_failed)
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=None if span.parent is None else f"{span.parent.span_id:016x}",
        is_parent_remote=span.parent is not None and span.parent.is_remote,
        name=span.name,
        scope="" if span.instrumentation_scope is None else span.instrumentation_scope.name,
        started_at=moment(span.start_time or 0),
        ended_at=moment(span.end_time or span.start_time or 0),
        attributes=attributes,
        error=error,
        error_text=error_text,
    )
