"""Claude Code's transcripts: lines in, items out.

A session is a file, and each of its sub-agents another one. A prompt is a run, and a sub-agent is a run below it. A
line holds one block of an answer, and each line of an answer repeats its usage. So a response is one usage event by the
id of its message, and what its lines say later takes the place of what they said earlier.

This module imports the standard library only: a hook command imports it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from session_lifecycle.integrations.counts import anthropic_counts, number
from session_lifecycle.integrations.transcripts import (
    LONGEST_CALL,
    BadLineError,
    Fields,
    field,
    given,
    mapping,
    moment,
    revision_of,
    text_of,
)

CLIENT = "claude-code"
_SYNTHETIC = "<synthetic>"
_INTERRUPTED = "[Request interrupted by user"
_REFUSED_TOOL = "[Request interrupted by user for tool use"
# What the program itself writes as a user: a command and its output. No model is called for it.
_NO_PROMPT = ("<command-name>", "<command-message>", "<local-command-", "<bash-input>", "<bash-stdout>", "Caveat: ")
_GOES_ON = {"tool_use", "pause_turn"}
_PROVIDERS = {"msg_bdrk_": "aws", "msg_vrtx_": "google"}
_MOST_REMEMBERED = 64


class ClaudeCodeReader:
    """Reads one transcript: takes its lines in order, and makes items of them.

    `state` is all that it remembers, as JSON. A reader with the state of another one goes on where that one stopped.
    """

    def __init__(
        self,
        user_id: str,
        *,
        state: Fields | None = None,
        content: bool = True,
        billing: str = "api",
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            user_id: The owner of the sessions.
            state: The state of the reader that has read the lines before.
            content: Whether to record what people and models said, and what went into and out of tools.
            billing: `api`, or `plan` where the use is under a subscription. The transcript does not tell.
            meta: What the `.meta.json` beside a sub-agent's transcript says.
        """
        self.state: Fields = state if state is not None else {"tools": {}, "calls": {}, "sessions": []}
        self._user_id = user_id
        self._content = content
        self._billing = billing
        self._meta = mapping(meta)

    @property
    def is_open(self) -> bool:
        """Whether time alone may make an item: see `finish`."""
        return bool(self.state.get("awaits") and not self.state.get("is_told")) or bool(self.state.get("may_be_over"))

    def read(self, line: Mapping[str, Any]) -> list[Fields]:
        """The items of the next line.

        Raises:
            BadLineError: The line is not what Claude Code writes.
        """
        kind = line.get("type")
        if kind not in {"user", "assistant"}:  # a `progress` line repeats what a sub-agent's own file has
            return []
        if (origin := line.get("forkedFrom")) is not None:
            # A copy of a line of another session, whose own file has it.
            self.state.setdefault("parent", mapping(origin).get("sessionId"))
            return []
        at = moment(line)
        session_id = field(line, "sessionId")
        message = mapping(line.get("message"))
        if not message:
            raise BadLineError("message is no JSON object")
        items = self._session(line, session_id, at)
        self.state["session"] = session_id
        items += self._user(line, message, at) if kind == "user" else self._assistant(line, message, at)
        return items

    def finish(self, now: datetime, *, is_whole: bool = True) -> list[Fields]:
        """The items that time alone makes, once there are no further lines.

        A call without an answer is recorded without usage. A run whose last answer has no reason to go on has ended.

        Args:
            now: The time.
            is_whole: Whether the file ends with a whole line. Else somebody is writing.
        """
        state = self.state
        if not is_whole or "last" not in state:
            return []
        if state.get("awaits") and not state.get("is_told"):
            if now - datetime.fromisoformat(state["awaits"][1]) <= LONGEST_CALL:
                return []
            return [self._attempt()]
        last = datetime.fromisoformat(state["last"])
        if state.get("may_be_over") and now - last > LONGEST_CALL:
            return [self._end(last, "completed")]
        return []

    def close(self, at: datetime) -> list[Fields]:
        """The items of the program's end: nothing more comes for the run that is open.

        A call without an answer is recorded without usage. The run is cancelled where something was under way.

        Args:
            at: When the program ended.
        """
        state = self.state
        if state.get("run") is None or state["is_ended"]:
            return []
        if not state["tools"]:
            return self._leave()
        cut = {"ended_at": at.isoformat(), "errors": given(type="cancelled")}
        steps = [self._step(call, run, started) | cut for call, (run, started) in state["tools"].items()]
        state["tools"] = {}
        return [*steps, self._end(at, "cancelled")]

    # Sessions and runs

    def _session(self, line: Mapping[str, Any], session_id: str, at: datetime) -> list[Fields]:
        if session_id in self.state["sessions"]:
            return []
        self.state["sessions"] = [*self.state["sessions"][-7:], session_id]
        said = (("cwd", "cwd"), ("git_branch", "gitBranch"), ("client_version", "version"))
        metadata = {name: line[key] for name, key in said if isinstance(line.get(key), str)}
        parent = self.state.get("parent")
        touch = {"kind": "touch", **self._ids(session_id), "at": at.isoformat(), "metadata": metadata}
        return [touch | given(parent_session_id=parent if parent != session_id else None)]

    def _ids(self, session_id: str | None = None) -> Fields:
        return {"session_id": session_id or self.state["session"], "user_id": self._user_id}

    def _run(self, **fields: Any) -> Fields:
        state = self.state
        told = given(agent_name=state.get("agent"), parent_run_id=state.get("parent_run"), **fields)
        return {
            "kind": "run",
            **self._ids(),
            "run_id": state["run"],
            "client": CLIENT,
            "started_at": state["started"],
            **told,
        }

    def _begin(self, run_id: str, at: datetime, prompt: str | None = None) -> list[Fields]:
        """Makes this the run of the lines that follow."""
        state = self.state
        if state.get("run") == run_id:
            return []
        items = self._leave()
        state |= {"run": run_id, "started": at.isoformat(), "last": at.isoformat(), "is_ended": False}
        items.append(self._run(input=prompt if self._content else None))
        return items

    def _leave(self) -> list[Fields]:
        """Ends the run before another one begins."""
        state = self.state
        if state.get("run") is None or state["is_ended"]:
            return []
        last = datetime.fromisoformat(state["last"])
        if state.get("awaits"):
            return [*([] if state.get("is_told") else [self._attempt()]), self._end(last, "cancelled")]
        return [self._end(last, "completed")]

    def _end(self, at: datetime, status: str, error: str | None = None) -> Fields:
        self.state |= {"is_ended": True, "may_be_over": False}
        self.state.pop("awaits", None)
        return self._run(ended_at=at.isoformat(), status=status, error=error, revision=revision_of(at))

    def _begin_child(self, line: Mapping[str, Any], agent_id: str, at: datetime) -> list[Fields]:
        state = self.state
        items: list[Fields] = []
        if state.get("run") != agent_id:
            state["agent"] = self._meta.get("agentType")
            parent = line.get("promptId")
            state["parent_run"] = parent if parent != agent_id else None
            items = self._begin(agent_id, at)
            items[-1] |= given(parent_tool_call_id=self._meta.get("toolUseId"))
        agent = line.get("attributionAgent")
        if state.get("agent") is None and isinstance(agent, str):
            state["agent"] = agent
            items.append(self._run())
        return items

    # Lines of users: prompts, and results of tools

    def _user(self, line: Mapping[str, Any], message: Mapping[str, Any], at: datetime) -> list[Fields]:
        state = self.state
        content = message.get("content")
        blocks = [mapping(block) for block in content] if isinstance(content, list) else []
        results = [block for block in blocks if block.get("type") == "tool_result"]
        text = text_of(content)
        agent_id = line.get("agentId")
        items: list[Fields] = []
        if isinstance(agent_id, str) and agent_id:
            items += self._begin_child(line, agent_id, at)
        elif results or line.get("isMeta") or line.get("isCompactSummary") or text.startswith(_NO_PROMPT):
            pass
        elif text.startswith(_INTERRUPTED):
            return self._interrupted(text, at)
        elif not line.get("isSidechain") or state.get("run") is None:
            run_id = line.get("promptId")
            items += self._begin(run_id if isinstance(run_id, str) else field(line, "uuid"), at, text)
        if state.get("run") is None or (line.get("isMeta") and not results):
            return items
        if text.startswith(_INTERRUPTED) and not results:
            return items + self._interrupted(text, at)
        if not results and (line.get("isCompactSummary") or text.startswith(_NO_PROMPT)):
            return items
        state |= {"last": at.isoformat(), "may_be_over": False, "is_told": False}
        for block in results:
            items += self._result(line, block, at)
        if not results:
            items += self._message("user", text, line, at)
        # The answer of a model is due now.
        state["awaits"] = [field(line, "uuid"), at.isoformat()]
        return items

    def _interrupted(self, text: str, at: datetime) -> list[Fields]:
        state = self.state
        if state.get("run") is None or state["is_ended"]:
            return []
        called = state.get("awaits") and not state.get("is_told") and not text.startswith(_REFUSED_TOOL)
        return [*([self._attempt()] if called else []), self._end(at, "cancelled")]

    def _result(self, line: Mapping[str, Any], block: Mapping[str, Any], at: datetime) -> list[Fields]:
        call_id = field(block, "tool_use_id")
        run_id, started = self.state["tools"].pop(call_id, (self.state["run"], at.isoformat()))
        step: Fields = {**self._step(call_id, run_id, started), "ended_at": at.isoformat()}
        output = block.get("content") if self._content else None
        if block.get("is_error") is True:
            step["errors"] = given(type="tool_error", message=text_of(output) or None)
        items = [step | given(output=output)]
        result = mapping(line.get("toolUseResult"))
        child = result.get("agentId")
        if isinstance(child, str) and child and child != run_id:
            run: Fields = {"kind": "run", **self._ids(), "run_id": child, "client": CLIENT, "started_at": started}
            run |= {"parent_run_id": run_id, "parent_tool_call_id": call_id}
            if result.get("status") == "completed":
                run |= {"ended_at": at.isoformat(), "status": "completed"}
            items.append(run)
        return items

    def _step(self, call_id: str, run_id: str, started: str) -> Fields:
        return {
            "kind": "step",
            "step_kind": "tool",
            "user_id": self._user_id,
            "run_id": run_id,
            "step_id": call_id,
            "tool_call_id": call_id,
            "started_at": started,
            # Above that of a hook; and content that is recorded after all takes the place of none.
            "revision": 2 if self._content else 1,
        }

    def _message(self, role: str, text: str, line: Mapping[str, Any], at: datetime) -> list[Fields]:
        if not self._content or not text:
            return []
        fields = {"kind": "message", **self._ids(), "run_id": self.state["run"], "message_id": field(line, "uuid")}
        return [fields | {"role": role, "content": text, "created_at": at.isoformat()}]

    # Lines of models

    def _assistant(self, line: Mapping[str, Any], message: Mapping[str, Any], at: datetime) -> list[Fields]:
        state = self.state
        model = message.get("model")
        is_error = line.get("isApiErrorMessage") is True
        if model == _SYNTHETIC and not is_error:
            return []
        agent_id = line.get("agentId")
        items: list[Fields] = []
        if isinstance(agent_id, str) and agent_id:
            items += self._begin_child(line, agent_id, at)
        elif state.get("run") is None:  # the prompt is in no file, or was copied
            items += self._begin(field(line, "uuid"), at)
        state |= {"last": at.isoformat(), "may_be_over": False}
        if is_error:
            return items + self._error(line, message, at)
        items += self._usage(line, message, at)
        state["is_told"] = False
        state.pop("awaits", None)
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            items += self._block(line, mapping(block), at)
        stop_reason = message.get("stop_reason")
        if stop_reason is None:
            state["may_be_over"] = not state["is_ended"] and not state["tools"]
        elif stop_reason not in _GOES_ON:
            items.append(self._end(at, "completed"))
        return items

    def _block(self, line: Mapping[str, Any], block: Mapping[str, Any], at: datetime) -> list[Fields]:
        match block.get("type"):
            case "text":
                return self._message("assistant", str(block.get("text") or ""), line, at)
            case "thinking":
                return self._message("thought", str(block.get("thinking") or ""), line, at)
            case "tool_use":
                call_id = field(block, "id")
                run_id = self.state["run"]
                self.state["tools"] = _latest(self.state["tools"]) | {call_id: (run_id, at.isoformat())}
                told = given(name=block.get("name"), inputs=block.get("input") if self._content else None)
                return [self._step(call_id, run_id, at.isoformat()) | told]
            case _:
                return []

    def _error(self, line: Mapping[str, Any], message: Mapping[str, Any], at: datetime) -> list[Fields]:
        event = self._event(field(message, "id"), at.isoformat()) | {"errored": True}
        error = line.get("error")
        return [event, self._end(at, "failed", error if isinstance(error, str) else None)]

    def _event(self, key: str, at: str) -> Fields:
        fields = {"kind": "usage", **self._ids(), "run_id": self.state["run"], "idempotency_key": key, "at": at}
        # A fork of a session copies its lines, ids and all.
        return fields | {"key_scope": "user", "provider": "anthropic", "billing": self._billing}

    def _attempt(self) -> Fields:
        """The call that has no answer."""
        uuid, at = self.state["awaits"]
        self.state["is_told"] = True
        return self._event(f"attempt:{uuid}", at) | {"measured": False}

    def _usage(self, line: Mapping[str, Any], message: Mapping[str, Any], at: datetime) -> list[Fields]:
        usage = mapping(message.get("usage"))
        tokens_out = number(usage.get("output_tokens"))
        is_final = message.get("stop_reason") is not None
        message_id = message.get("id")
        message_id = message_id if isinstance(message_id, str) and message_id else field(line, "uuid")
        calls = self.state["calls"]
        call: Fields | None = calls.get(message_id)
        if call is None:
            call = {"at": at.isoformat(), "key": message_id, "late": 0}
            awaits = self.state.get("awaits")
            if awaits and at - datetime.fromisoformat(awaits[1]) > LONGEST_CALL:
                # An import may have recorded this call without usage. The answer takes the place of that record.
                call |= {"key": f"attempt:{awaits[0]}", "late": 1}
            self.state["calls"] = calls = _latest(calls) | {message_id: call}
        elif tokens_out <= call["out"] and is_final <= call["final"]:
            return []  # a further block of the same answer
        tokens_out = max(tokens_out, call.get("out", 0))
        call |= {"out": tokens_out, "final": is_final or call.get("final", False)}
        event = self._event(call["key"], call["at"]) | given(model=message.get("model"))
        for beginning, provider in _PROVIDERS.items():
            if message_id.startswith(beginning):
                event["provider"] = provider
        counts = anthropic_counts(usage)
        if not counts.get("tokens_in") and not tokens_out:
            return [event | {"measured": False, "revision": call["late"]}]
        counts["tokens_out"] = tokens_out
        return [event | counts | {"partial": not call["final"], "revision": tokens_out + call["late"]}]


def _latest(remembered: Fields) -> Fields:
    """What is remembered, without the oldest: the state of a long session stays small."""
    return dict(list(remembered.items())[-_MOST_REMEMBERED:])
