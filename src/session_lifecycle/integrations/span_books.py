"""What is recorded of the spans of OpenTelemetry: which count, and the items that they become.

A trace is a run, a span of an agent's work a step of it, and a call of a model a usage event. Only calls of models
count, and of calls inside each other the innermost that has usage: the others give its sum again.
"""

import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal, NamedTuple
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.integrations.adapter import OpenParts
from session_lifecycle.integrations.span_reader import (
    INPUT_WITHOUT_CACHE,
    MODEL_CALLS,
    Kind,
    Span,
    agent_of,
    counts_of,
    is_answer,
    is_given_up,
    kind_of,
    messages_of,
    model_of,
    provider_of,
    response_id,
    session_of,
    tool_content,
    tool_of,
)
from session_lifecycle.models import Item, Message, Run, RunStatus, Step, UsageEvent

# Revisions of a usage event. With them it does not matter in which order, or how often, spans with one key come.
_UNMEASURED, _TOLD, _TAKEN_BACK = 0, 1, 2
_RUNS_COUNT_FROM = datetime(2020, 1, 1, tzinfo=UTC)

Fields = dict[str, Any]
Entry = tuple[type[Item], Fields]
"""The kind of an item, and its fields."""


@dataclass(slots=True, eq=False)
class Node:
    """A span among others: what is known of the calls of models below it."""

    event: Fields | None = None
    """Its usage event, where it has one that counts."""
    taken_back: Fields | None = None
    """What took the place of its event. It is recorded again with each call below, as recording it may have failed."""
    has_events_below: bool = False
    has_usage_below: bool = False
    unmeasured_below: list[Fields] = field(default_factory=list[Fields])


class Place(NamedTuple):
    """Whose item it is, and where it goes."""

    user_id: UUID | str
    session_id: str
    run_id: str


def event_of(
    span: Span,
    place: Place,
    *,
    key_scope: Literal["session", "user"],
    recorded_key: str | None = None,
    input_without_cache: Collection[str] = INPUT_WITHOUT_CACHE,
) -> Fields:
    """The usage event of a call of a model that has ended.

    Args:
        span: The call.
        place: Where it belongs.
        key_scope: Where its key is unique.
        recorded_key: The key under which the call is recorded without usage already; None: it is not.
        input_without_cache: See `counts_of`.
    """
    counts = counts_of(span, input_without_cache)
    errored = not counts and span.error is not None and is_answer(span.error)
    fields: Fields = {
        **place._asdict(),
        "idempotency_key": recorded_key or response_id(span.attributes) or span.key,
        "key_scope": key_scope,
        "revision": _TOLD if counts or errored else _UNMEASURED,
        "model": model_of(span.attributes),
        "provider": provider_of(span.attributes),
        "kind": "embedding" if kind_of(span.attributes) is Kind.EMBEDDING else "llm",
        "at": span.ended_at,
        "errored": errored,
        "measured": bool(counts) or errored,
        **counts,
    }
    if counts and is_given_up(span.error):
        fields["partial"] = True
    return fields


def without_usage(event: Fields) -> Fields:
    """The event of the same call, for counts that are refused: the books say that its usage is unknown."""
    kept = {name: value for name, value in event.items() if name in _NAMES}
    return {**kept, "revision": _UNMEASURED, "measured": False}


def _taken_back(event: Fields) -> Fields:
    """Takes the place of an event that counted what another one counts: it has no use."""
    return {name: value for name, value in event.items() if name in _NAMES} | {"revision": _TAKEN_BACK}


_NAMES = {*Place._fields, "idempotency_key", "key_scope", "model", "provider", "kind", "at"}


def counted(node: Node, event: Fields, above: Iterable[Node]) -> list[Entry]:
    """The usage events to record when a call of a model has ended.

    Args:
        node: The call.
        event: Its event.
        above: The spans above it that are known, the nearest first.
    """
    has_usage = _has_usage(event)
    if node.has_usage_below or (node.has_events_below and not has_usage):
        return []
    above = list(above)
    if not has_usage and any(_counts(outer) for outer in above):
        return []  # the call around it has ended before it, and has counted it
    node.event = event
    taken_back = [inner for inner in node.unmeasured_below if has_usage and not _is_same(inner, event)]
    return [*_events([event]), *_events(map(_taken_back, taken_back)), *told_above(event, above)]


def told_above(event: Fields, above: Iterable[Node]) -> list[Entry]:
    """Tells the spans above a call what it counted. Returns what takes the place of events that counted it too."""
    above = list(above)
    has_usage = _has_usage(event)
    if not has_usage and any(_counts(outer) and not _is_same(outer.event, event) for outer in above):
        return _events([_taken_back(event)])
    entries: list[Entry] = []
    for outer in above:
        outer.has_events_below = True
        if has_usage:
            outer.has_usage_below = True
        is_same = _is_same(outer.event, event)
        if outer.event is not None and not is_same:
            # It gives the usage of this call again; or like this call it has none, and the two are one.
            outer.taken_back = _taken_back(outer.event)
        if has_usage or not is_same:
            outer.event = None
        if outer.taken_back is not None:
            entries += _events([outer.taken_back])
        if not has_usage and not event["errored"]:
            outer.unmeasured_below.append(event)
    return entries


def _events(events: Iterable[Fields]) -> list[Entry]:
    return [(UsageEvent, event) for event in events]


def _has_usage(event: Fields) -> bool:
    return bool(event["measured"] and not event["errored"])


def _counts(node: Node) -> bool:
    return node.event is not None and _has_usage(node.event)


def _is_same(one: Fields | None, other: Fields) -> bool:
    return one is not None and all(one[name] == other[name] for name in ("user_id", "idempotency_key", "key_scope"))


def messages(span: Span, place: Place) -> Iterator[Entry]:
    """The messages that a call of a model ends with."""
    for role, text in messages_of(span.attributes):
        yield (
            Message,
            {
                **place._asdict(),
                "message_id": f"{span.key}:{role}",
                "role": role,
                "content": text,
                "created_at": span.started_at if role == "user" else span.ended_at,
            },
        )


def step_of(span: Span, kind: Kind, place: Place, *, parent_step_id: str | None, content: bool) -> Entry:
    """The step that a span is."""
    tool, call_id = tool_of(span.attributes) if kind is Kind.TOOL else (None, None)
    fields: Fields = {
        "step_id": span.span_id,
        "run_id": place.run_id,
        "user_id": place.user_id,
        "parent_step_id": parent_step_id,
        "kind": kind.value,
        "name": tool or (agent_of(span.attributes) if kind is Kind.AGENT else None) or span.name,
        "tool_call_id": call_id,
        "started_at": span.started_at,
        "ended_at": span.ended_at,
    }
    if content and kind is Kind.TOOL:
        fields["inputs"], fields["output"] = tool_content(span.attributes)
    if span.error is not None:
        error = {"type": span.error}
        fields["errors"] = [error | {"message": span.error_text} if content and span.error_text else error]
    return (Step, fields)


def end_of(span: Span, kind: Kind | None, *, content: bool) -> Fields:
    """How a run ends with this span: its status and its error."""
    if span.error is None or (kind in {Kind.TOOL, Kind.TASK} and not span.is_local_root):
        return {"status": RunStatus.COMPLETED}
    error = f"{span.error}: {span.error_text}" if content and span.error_text else span.error
    return {"status": RunStatus.CANCELLED if is_given_up(span.error) else RunStatus.FAILED, "error": error}


class SpanBatches:
    """The items of spans that come in batches, when they have ended: in any order, and more than once.

    All spans of a trace are in one run, which has the trace's id, since the span of an agent comes after the spans
    below it, often in a later batch. What is decided from spans that came before, in this process, is only which calls
    of models are inside others.
    """

    def __init__(
        self,
        *,
        key_scope: Literal["session", "user"],
        content: bool = False,
        session_id: str | None = None,
        input_without_cache: Collection[str] = INPUT_WITHOUT_CACHE,
    ) -> None:
        """Makes a reader of batches that has seen no span.

        Args:
            key_scope: Where the keys of usage events are unique.
            content: Whether messages, and the inputs and outputs of steps, are recorded.
            session_id: The session of traces that name none; None: one of its own for each trace, with its id.
            input_without_cache: See `counts_of`.
        """
        self._key_scope: Literal["session", "user"] = key_scope
        self._content = content
        self._session_id = session_id
        self._input_without_cache = input_without_cache
        self._known: OpenParts[Hashable, tuple[str | None, Node]] = OpenParts(lambda _: None)
        self._others: OpenParts[Hashable, tuple[str | None, Node]] = OpenParts(lambda _: None)
        self._traces: OpenParts[Hashable, bool] = OpenParts(lambda _: None)
        self._waiting: OpenParts[Hashable, list[Fields]] = OpenParts(lambda _: None)
        """The events of calls by the first span above them that has not come."""
        self._reading = threading.Lock()

    def traces(self, spans: Iterable[Span]) -> dict[str, list[Span]]:
        """The spans by trace."""
        found: dict[str, list[Span]] = {}
        for span in spans:
            found.setdefault(span.trace_id, []).append(span)
        return found

    def entries(self, trace: Sequence[Span], user_of: Callable[[], UUID | str], sender: str = "") -> list[Entry]:
        """The items of spans of one trace. Empty: none of them is of an agent.

        Args:
            trace: Spans of one trace that have ended, in any order.
            user_of: Finds the owner. It is called if there may be items.
            sender: Who sent them. Traces of different senders have nothing to do with each other.
        """
        kinds = {span.span_id: kind_of(span.attributes) for span in trace}
        of_agents = [span for span in trace if kinds[span.span_id] is not None]
        roots = [span for span in trace if span.is_local_root]
        whose = (sender, trace[0].trace_id)
        # Of other traces, which are far more, only the latest spans are remembered, each with the span above it: a span
        # between two calls of models may come before both.
        if not of_agents and self._traces.get(whose) is None:
            for span in trace:
                self._others.put((*whose, span.span_id), (span.parent_id, Node()))
            return []
        user_id = user_of()
        with self._reading:
            return self._entries(trace, kinds, of_agents, roots, user_id, whose)

    def _entries(
        self,
        trace: Sequence[Span],
        kinds: Mapping[str, Kind | None],
        of_agents: Sequence[Span],
        roots: Sequence[Span],
        user_id: UUID | str,
        whose: tuple[str, str],
    ) -> list[Entry]:
        trace_id = whose[1]
        self._traces.put(whose, True)
        by_start = sorted(trace, key=lambda span: span.started_at)
        named = next((name for span in by_start if (name := session_of(span.attributes))), self._session_id)
        place = Place(user_id, named or trace_id, trace_id)
        nodes = self._nodes(whose, trace)
        entries: list[Entry] = []
        for span in trace:
            # They wait on: a sender whose request has failed sends the span again.
            for event in self._waiting.get((*whose, span.span_id)) or ():
                above = [nodes[span.span_id], *self._above(whose, span, event)]
                entries += told_above(event, above)
        # Inner spans end before outer ones, or with them.
        for span in sorted(
            of_agents, key=lambda span: (span.ended_at or span.started_at, -span.started_at.timestamp())
        ):
            kind = kinds[span.span_id]
            if kind in MODEL_CALLS:
                event = event_of(span, place, key_scope=self._key_scope, input_without_cache=self._input_without_cache)
                entries += counted(nodes[span.span_id], event, self._above(whose, span, event))
                entries += messages(span, place) if self._content else ()
            elif kind is not None and span.parent_id is not None:
                parent = span.parent_id if kinds.get(span.parent_id) in {Kind.AGENT, Kind.TOOL, Kind.TASK} else None
                if parent is not None and any(root.span_id == parent and root.parent_id is None for root in roots):
                    parent = None  # that span is the run
                entries.append(step_of(span, kind, place, parent_step_id=parent, content=self._content))
        run = self._run(by_start, of_agents, roots, kinds, place, named) if of_agents or roots else ()
        return [*run, *entries]

    def _nodes(self, whose: tuple[str, str], trace: Sequence[Span]) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for span in trace:
            known = self._known.get((*whose, span.span_id))
            nodes[span.span_id] = Node() if known is None else known[1]
            self._known.put((*whose, span.span_id), (span.parent_id, nodes[span.span_id]))
        return nodes

    def _above(self, whose: tuple[str, str], span: Span, event: Fields) -> Iterator[Node]:
        """The spans above a span that have come, the nearest first. The event waits for the next one, which has not."""
        parent_id, seen = span.parent_id, {span.span_id}
        while parent_id is not None and parent_id not in seen:
            seen.add(parent_id)
            known = self._known.get((*whose, parent_id)) or self._others.get((*whose, parent_id))
            if known is None:
                waiting = self._waiting.get((*whose, parent_id)) or []
                if event not in waiting:
                    self._waiting.put((*whose, parent_id), [*waiting, event])
                return
            parent_id, node = known
            yield node

    def _run(
        self,
        by_start: Sequence[Span],
        of_agents: Sequence[Span],
        roots: Sequence[Span],
        kinds: Mapping[str, Kind | None],
        place: Place,
        session_id: str | None,
    ) -> Iterator[Entry]:
        """The run, with its latest end. Until its root comes, it ends with the last span of an agent that has come."""
        last = max(chain(roots or of_agents), key=_end)
        kind = kinds[last.span_id]
        ended_at = _end(last)
        fields: Fields = {
            "run_id": place.run_id,
            "user_id": place.user_id,
            # Without a name the run has a session with its own id, until one is named.
            "session_id": session_id,
            "started_at": by_start[0].started_at,
            "ended_at": ended_at,
            # A later end takes the place of an earlier one, and a root's that of another span at the same second.
            "revision": 2 * max(0, min(int((ended_at - _RUNS_COUNT_FROM).total_seconds()), 2**30 - 1)) + bool(roots),
            **end_of(last, kind, content=self._content),
        }
        # The outermost agent ends last.
        agents = [span for span in of_agents if kinds[span.span_id] is Kind.AGENT]
        outermost = max(agents, key=_end, default=last)
        fields["agent_name"] = agent_of(outermost.attributes)
        if last.parent_id is None:
            fields["name"] = last.name
        yield (Run, fields)


def _end(span: Span) -> datetime:
    return span.ended_at or span.started_at


def item_of(entry: Entry) -> tuple[Item, InvalidValueError | None]:
    """The item of an entry, and why its counts were refused, if they were: then it is an event without usage.

    Raises:
        InvalidValueError: Something else of it is refused.
    """
    kind, fields = entry
    try:
        return kind.of_call(**fields), None
    except InvalidValueError as refusal:
        if kind is not UsageEvent or not fields["measured"]:
            raise
        return kind.of_call(**without_usage(fields)), refusal
