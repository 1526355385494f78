"""Codex's rollouts: lines in, items out.

A session is a file, and a turn is a run. A line has the total of the session so far. Most totals are written twice. So
a usage event is the difference of two totals. A fork or a sub-agent begins with a copy of its origin's lines, and its
total goes on from there. What the origin has already is left out.

This module imports the standard library only.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from session_lifecycle.integrations.transcripts import (
    LONGEST_CALL,
    BadLineError,
    Fields,
    count,
    field,
    given,
    mapping,
    moment,
    revision_of,
    text_of,
)

CLIENT = "codex"
_COPYING = timedelta(seconds=1)
"""Where the origin's file is not at hand, the lines of so long after the first one are its copies."""
_COUNTS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens")
_CALLS = {"function_call", "custom_tool_call", "local_shell_call"}
_OUTPUTS = {"function_call_output", "custom_tool_call_output", "local_shell_call_output"}
_ROLES = {"user_message": "user", "agent_message": "assistant", "agent_reasoning": "thought"}
_MOST_REMEMBERED = 64
Total = list[int]


class Origin(NamedTuple):
    """What a fork must know of the session that it was made from."""

    turns: frozenset[str]
    """The ids of its turns."""
    totals: list[Total]
    """Its totals, in order."""


def origin_of(lines: Iterable[Mapping[str, Any]]) -> Origin:
    """What forks of this rollout must know, from its lines. A line that is not what Codex writes tells nothing."""
    turns: set[str] = set()
    totals: list[Total] = []
    for line in lines:
        payload = mapping(line.get("payload"))
        match payload.get("type"):
            case "task_started" if isinstance(turn := payload.get("turn_id"), str):
                turns.add(turn)
            case "token_count":
                try:
                    total = _total(payload)
                except BadLineError:
                    continue
                if total is not None and total not in totals[-1:]:
                    totals.append(total)
            case _:
                pass
    return Origin(frozenset(turns), totals)


def session_of(line: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """The ids of the session and of its origin, from a `session_meta` line; None for another line."""
    payload = mapping(line.get("payload"))
    if line.get("type") != "session_meta" or not isinstance(session_id := payload.get("id"), str) or not session_id:
        return None
    spawn = mapping(mapping(mapping(payload.get("source")).get("subagent")).get("thread_spawn"))
    parents = (payload.get("forked_from_id"), payload.get("parent_thread_id"), spawn.get("parent_thread_id"))
    parent = next((parent for parent in parents if isinstance(parent, str) and parent not in {"", session_id}), None)
    return session_id, parent


class CodexReader:
    """Reads one rollout: takes its lines in order, and makes items of them.

    `state` is all that it remembers, as JSON. A reader with the state of another one goes on where that one stopped.
    """

    def __init__(
        self,
        user_id: str,
        *,
        state: Fields | None = None,
        content: bool = True,
        billing: str = "api",
        origin: Origin | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            user_id: The owner of the sessions.
            state: The state of the reader that has read the lines before.
            content: Whether to record what people and models said, and what went into and out of tools.
            billing: `api`, or `plan` where the use is under a subscription.
            origin: What the session was made from; None: there is none, or its file is not at hand.
        """
        self.state: Fields = state if state is not None else {"total": [0, 0, 0, 0], "tools": {}, "place": 0}
        self._user_id = user_id
        self._content = content
        self._billing = billing
        self._origin = origin

    @property
    def is_open(self) -> bool:
        """Whether time alone may make an item: see `finish`."""
        return bool(self.state.get("awaits") and not self.state.get("is_told"))

    def read(self, line: Mapping[str, Any]) -> list[Fields]:
        """The items of the next line.

        Raises:
            BadLineError: The line is not what Codex writes.
        """
        kind = line.get("type")
        if kind not in {"session_meta", "turn_context", "event_msg", "response_item"}:
            return []
        payload = line.get("payload")
        if not isinstance(payload, dict):
            raise BadLineError("payload is no JSON object")
        at = moment(line)
        if "session" not in self.state:
            return self._session(line, payload, at)
        if kind == "session_meta":  # a copy: of the origin, or of this one where it was resumed
            return []
        if kind == "turn_context":
            if isinstance(model := payload.get("model"), str):
                self.state["model"] = model
            return []
        return self._event_of(payload.get("type"), payload, at)

    def _event_of(self, kind: Any, payload: Mapping[str, Any], at: datetime) -> list[Fields]:
        if kind in {"task_started", "token_count"}:
            return self._start(payload, at) if kind == "task_started" else self._count(payload, at)
        if self._is_copy(at, None):
            return []
        if kind in {"task_complete", "turn_aborted"}:
            return self._leave(at, "completed" if kind == "task_complete" else "cancelled")
        if kind in _ROLES:
            return self._message(_ROLES[kind], payload, at)
        if kind in _CALLS or kind in _OUTPUTS:
            return self._call(payload, at) if kind in _CALLS else self._output(payload, at)
        return []

    def finish(self, now: datetime, *, is_whole: bool = True) -> list[Fields]:
        """The items that time alone makes, once there are no further lines: a call without an answer is unmeasured.

        Args:
            now: The time.
            is_whole: Whether the file ends with a whole line. Else somebody is writing.
        """
        if is_whole and self.is_open and now - datetime.fromisoformat(self.state["awaits"]) > LONGEST_CALL:
            return [self._attempt()]
        return []

    # Sessions and turns

    def _session(self, line: Mapping[str, Any], payload: Mapping[str, Any], at: datetime) -> list[Fields]:
        found = session_of(line)
        if found is None:
            raise BadLineError("a rollout begins with session_meta and an id")
        session_id, parent = found
        self.state |= {"session": session_id, "provider": payload.get("model_provider"), "began": at.isoformat()}
        # Copies of an origin's lines come first. `skips` is for its counts, `copies` for its turns.
        self.state |= {"skips": parent is not None, "copies": parent is not None}
        if not isinstance(self.state["provider"], str):
            self.state["provider"] = None
        said = (("cwd", "cwd"), ("client_version", "cli_version"))
        metadata = {name: payload[key] for name, key in said if isinstance(payload.get(key), str)}
        touch = {"kind": "touch", **self._ids(), "at": at.isoformat(), "metadata": metadata}
        return [touch | given(parent_session_id=parent)]

    def _is_copy(self, at: datetime, turn: str | None) -> bool:
        if not self.state["copies"]:
            return False
        if self._origin is not None:
            return turn is None or turn in self._origin.turns
        return at - datetime.fromisoformat(self.state["began"]) < _COPYING

    def _ids(self) -> Fields:
        return {"session_id": self.state["session"], "user_id": self._user_id}

    def _run(self, **fields: Any) -> Fields:
        run = {"kind": "run", **self._ids(), "run_id": self.state["turn"], "client": CLIENT}
        return run | {"started_at": self.state["started"], **fields}

    def _start(self, payload: Mapping[str, Any], at: datetime) -> list[Fields]:
        turn = payload.get("turn_id")
        turn = turn if isinstance(turn, str) and turn else f"{self.state['session']}:{at.isoformat()}"
        self.state["copies"] = self._is_copy(at, turn)
        return [] if self.state["copies"] else self._begin(turn, at)

    def _begin(self, turn: str, at: datetime) -> list[Fields]:
        if self.state.get("turn") == turn:
            return []
        items: list[Fields] = []
        if self.state.get("turn"):  # a turn may just stop
            items = self._leave(datetime.fromisoformat(self.state["last"]), "cancelled")
        time = at.isoformat()
        self.state |= {"turn": turn, "started": time, "last": time, "awaits": time, "is_told": False, "is_over": False}
        return [*items, self._run()]

    def _leave(self, at: datetime, status: str) -> list[Fields]:
        """Ends the turn. It has called a model, so without a count its usage is unknown."""
        if not self.state.get("turn") or self.state["is_over"]:
            return []
        self.state["is_over"] = True
        end = self._run(ended_at=at.isoformat(), status=status, revision=revision_of(at))
        return [*([self._attempt()] if self.is_open else []), end]

    def _in_turn(self, line_at: datetime) -> list[Fields]:
        """Begins a turn where the rollout names none."""
        self.state["last"] = line_at.isoformat()
        if self.state.get("turn"):
            return []
        return self._begin(f"{self.state['session']}:{line_at.isoformat()}", line_at)

    # Usage

    def _event(self, key: str, at: str) -> Fields:
        event = {"kind": "usage", **self._ids(), "run_id": self.state["turn"], "idempotency_key": key, "at": at}
        named = given(provider=self.state.get("provider"), model=self.state.get("model"))
        return event | named | {"billing": self._billing}

    def _attempt_key(self) -> str:
        return f"{self.state['session']}:attempt:{self.state['turn']}"

    def _attempt(self) -> Fields:
        """The call that has no count."""
        self.state["is_told"] = True
        return self._event(self._attempt_key(), self.state["awaits"]) | {"measured": False}

    def _count(self, payload: Mapping[str, Any], at: datetime) -> list[Fields]:
        state = self.state
        total = _total(payload)
        if total is None:
            return []
        if state["skips"]:
            if self._skip(total, at):
                state["total"] = total
                return []
            state["skips"] = state["copies"] = False
        used = [now - before for now, before in zip(total, state["total"], strict=True)]
        if min(used) < 0:  # the total has begun anew
            last = mapping(mapping(payload.get("info")).get("last_token_usage"))
            used = [count(last, name) for name in _COUNTS]
        state["total"] = total
        if not used[0] and not used[2]:  # the same count again, or an estimate after a compaction
            return []
        items = self._in_turn(at)
        event = self._event(f"{state['session']}:{total[0]}:{total[2]}", at.isoformat())
        awaits = state.get("awaits")
        if awaits and (state["is_told"] or at - datetime.fromisoformat(awaits) > LONGEST_CALL):
            # The call was recorded without usage, or an import may have done so. The count takes its place.
            event |= {"idempotency_key": self._attempt_key(), "revision": 1}
        state.pop("awaits", None)
        state["is_told"] = False
        counts = {
            "tokens_in": used[0],
            "cache_read_tokens": min(used[1], used[0]),
            "tokens_out": used[2],
            "reasoning_tokens": min(used[3], used[2]),
        }
        return [*items, event | counts]

    def _skip(self, total: Total, at: datetime) -> bool:
        """Whether the origin's file has this total, after those that were skipped before."""
        if self._origin is None:
            return at - datetime.fromisoformat(self.state["began"]) < _COPYING
        if total == self.state["total"]:
            return True
        try:
            self.state["place"] = self._origin.totals.index(total, self.state["place"]) + 1
        except ValueError:
            return False
        return True

    # Steps and messages

    def _message(self, role: str, payload: Mapping[str, Any], at: datetime) -> list[Fields]:
        items = self._in_turn(at)
        text = payload.get("message") or payload.get("text")
        if not self._content or not isinstance(text, str) or not text:
            return items
        digest = hashlib.sha256(f"{role}:{text}".encode(errors="replace")).hexdigest()[:16]
        message = {"kind": "message", **self._ids(), "message_id": f"{at.isoformat()}:{digest}", "role": role}
        return [*items, message | {"run_id": self.state["turn"], "content": text, "created_at": at.isoformat()}]

    def _call(self, payload: Mapping[str, Any], at: datetime) -> list[Fields]:
        items = self._in_turn(at)
        call_id = field(payload, "call_id")
        tools = dict(list(self.state["tools"].items())[-_MOST_REMEMBERED:])
        self.state["tools"] = tools | {call_id: (self.state["turn"], at.isoformat())}
        name = payload.get("name") or payload.get("type")
        inputs = payload.get("arguments") or payload.get("input") or payload.get("action")
        step = self._step(call_id, self.state["turn"], at.isoformat())
        return [*items, step | given(name=name, inputs=inputs if self._content else None)]

    def _output(self, payload: Mapping[str, Any], at: datetime) -> list[Fields]:
        items = self._in_turn(at)
        call_id = field(payload, "call_id")
        run_id, started = self.state["tools"].pop(call_id, (self.state["turn"], at.isoformat()))
        output = payload.get("output")
        output = output if isinstance(output, str) else text_of(output) or output
        step = self._step(call_id, run_id, started) | {"ended_at": at.isoformat()}
        return [*items, step | given(output=output if self._content else None)]

    def _step(self, call_id: str, run_id: str, started: str) -> Fields:
        ids = {"user_id": self._user_id, "run_id": run_id, "step_id": call_id, "tool_call_id": call_id}
        revision = 2 if self._content else 1  # content that is recorded after all takes the place of none
        return {"kind": "step", "step_kind": "tool", **ids, "started_at": started, "revision": revision}


def _total(payload: Mapping[str, Any]) -> Total | None:
    """The total of a `token_count`, as [in, read, out, reasoning]; None where it has none."""
    total = mapping(payload.get("info")).get("total_token_usage")
    return [count(total, name) for name in _COUNTS] if isinstance(total, dict) else None
