"""The Claude Agent SDK: its `query` and its `ClaudeSDKClient`, recorded.

    sdk = SessionSdk(recorder, user_id=user_id)
    async for message in sdk.query(prompt="…", options=options): ...
    async with sdk.client(options) as client: ...

The SDK runs Claude Code, whose messages tell little: the output of a response as it began, and not every response of a
sub-agent. So what is recorded comes from the transcripts that Claude Code writes, with the same keys as an import of
them. Where there is none, the messages are taken, and what the totals of a result have beyond them is one further
usage event for each model.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from glob import escape
from inspect import iscoroutinefunction
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol, cast
from uuid import UUID, uuid4

from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.integrations.adapter import Adapter, TakesQuietly, recorded
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.claude_code import CLIENT, ClaudeCodeReader
from session_lifecycle.integrations.counts import anthropic_counts, number, value_at
from session_lifecycle.integrations.transcripts import (
    BadLineError,
    Fields,
    given,
    mapping,
    moment,
    parsed,
    text_of,
    whole_lines,
)
from session_lifecycle.models import Item
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.writing.protocol import SessionReserver
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.session_trace import current_trace
from session_lifecycle.writing.spool_drain import item_of_fields

try:
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, HookMatcher, Message, Transport
    from claude_agent_sdk import query as query_of_sdk
except ImportError as error:
    raise ImportError("Claude Agent SDK is not installed: pip install 'session-lifecycle[claude-agent-sdk]'") from error

LOOK_SECONDS = 5.0
"""How often the transcripts are looked at while messages come. They are read where a result comes, and at the end."""
LAG_SECONDS = 0.5
"""How long what Claude Code has told may be on its way into its transcripts."""
LOOKS = 10
MAIN_AGENT = "main"
_MARGIN = timedelta(minutes=1)
_MOST_META_BYTES = 1_000_000
_SYNTHETIC = "<synthetic>"
_ENDS = {"completed": "completed", "failed": "failed", "stopped": "cancelled", "killed": "cancelled"}
_ASKING_HOOKS = {"UserPromptSubmit": None, "PreToolUse": "Agent|Task", "PostToolUse": None, "PostToolUseFailure": None}
"""What Claude Code calls before it calls a model, and for which tools: for a prompt, for a sub-agent that is about to
begin, and for what a tool has answered."""
Billing = Literal["api", "plan"]


class TakesAndFlushes(TakesQuietly, Protocol):
    """A recorder, as the other adapters take it. What is reserved is released when its calls are written."""

    def flush(self) -> Awaitable[None] | None:
        """Waits until what was taken is written; with `await` where it is of an event loop."""
        ...


class SessionSdk(Adapter):
    """Records what the SDK runs. One serves any number of queries and clients at once.

    It raises nothing into them, and never waits for the database: a failure of its own is counted and told to the
    recorder's `on_lost`. The session is Claude Code's; its parent is the session block around the query, if any.
    """

    def __init__(
        self,
        recorder: TakesAndFlushes,
        *,
        user_id: UUID | str | Callable[[], UUID | str | None] | None = None,
        content: bool = False,
        billing: Billing = "api",
        budgets: SessionReserver | BudgetCheck | None = None,
    ) -> None:
        """Makes it. Arguments: see `Adapter`.

        Args:
            recorder: What it hands its items to.
            user_id: The owner of the sessions.
            content: Whether messages, and what goes into and out of tools, are recorded.
            billing: `plan` where the use is under a subscription. The SDK does not tell.
            budgets: `db.budgets`, or a `BudgetCheck`: what is asked before a prompt is sent, before a sub-agent begins,
                and before the answer of a tool is sent. Where a budget would be exceeded, Claude Code is told to stop.
                None: nothing is asked.
        """
        super().__init__(recorder, user_id=user_id, content=content, budgets=budgets)
        self._recorder = recorder
        self._billing: Billing = billing

    async def query(
        self,
        *,
        prompt: str | AsyncIterable[dict[str, Any]],
        options: ClaudeAgentOptions | None = None,
        transport: Transport | None = None,
    ) -> AsyncIterator[Message]:
        """The messages of the SDK's `query`, recorded. Arguments and errors: see there."""
        conversation = self.conversation(options, prompt if isinstance(prompt, str) else None)
        messages: Any = query_of_sdk(prompt=prompt, options=self.with_hooks(options, conversation), transport=transport)
        try:
            async for message in messages:
                await self.take(conversation, message)
                yield message
        finally:
            try:
                await messages.aclose()  # the program has ended before its transcripts are read to the end
            finally:
                self.close(conversation)
                await self.settled()

    def client(self, options: ClaudeAgentOptions | None = None, transport: Transport | None = None) -> ClaudeSDKClient:
        """A client of the SDK whose messages are recorded as they are received."""
        return _RecordedClient(self, options, transport)

    def with_hooks(self, options: ClaudeAgentOptions | None, conversation: "Conversation") -> ClaudeAgentOptions | None:
        """The options with hooks that ask the budgets, behind the host's own; as they are where nothing is asked."""
        if self._check is None:
            return options
        options = options or ClaudeAgentOptions()
        hooks: dict[Any, list[HookMatcher]] = {name: list(some) for name, some in (options.hooks or {}).items()}
        for name, tools in _ASKING_HOOKS.items():
            hooks.setdefault(name, []).append(HookMatcher(tools, hooks=[partial(self._ask, self._check, conversation)]))
        hooks.setdefault("SubagentStop", []).append(HookMatcher(hooks=[partial(self._let_go, conversation)]))
        return replace(options, hooks=hooks)

    async def _ask(
        self, check: BudgetCheck, conversation: "Conversation", told: Any, tool_use_id: str | None, _context: Any
    ) -> Any:
        """A hook of Claude Code's: whether it may call a model.

        An agent has one call at a time, so that is what it reserves: for its next call, in place of the call before,
        which is in the books by then. The call of a tool reserves the first call of the sub-agent that it begins.
        """
        session_id, agent = value_at(told, "session_id"), value_at(told, "agent_id") or MAIN_AGENT
        hook, tool_call, held = value_at(told, "hook_event_name"), str(tool_use_id), conversation.held

        async def keys() -> tuple[str, list[str]]:
            is_told = await conversation.look_for(None if hook == "UserPromptSubmit" else tool_call)
            await self._flush()
            over = held.take(session_id, tool_call) if hook == "PostToolUseFailure" else []
            if hook == "PreToolUse":  # the agent's call is over
                over += held.take(session_id, agent) if is_told else []
                return held.key(session_id, tool_call), over
            if is_told and (began := conversation.began.get(agent)) is not None:
                over += held.take(session_id, began)
            # A call that is not in the books yet keeps what it has reserved.
            return held.key(session_id, agent, is_new=not is_told), over

        refusal = await check.hold(session_id, self._owner_of(session_id), told, self.fail, keys=keys)
        if refusal is None:
            return {}
        stop: dict[str, Any] = {"continue_": False, "stopReason": str(refusal)}
        if hook == "PreToolUse":  # else the tool is called all the same, and Claude Code stops after it
            denial = {"permissionDecision": "deny", "permissionDecisionReason": str(refusal)}
            stop["hookSpecificOutput"] = {"hookEventName": hook, **denial}
        return stop

    async def _let_go(self, conversation: "Conversation", told: Any, _tool_use_id: str | None, _context: Any) -> Any:
        """A hook of Claude Code's: a sub-agent has ended."""
        session_id, agent = value_at(told, "session_id"), str(value_at(told, "agent_id"))
        holders = (agent, conversation.began.get(agent, agent))
        self._release(session_id, conversation.held.take(session_id, *holders), conversation)
        return {}

    @recorded
    def _release(self, session_id: str, keys: list[str], conversation: "Conversation | None" = None) -> None:
        """Ends what was reserved, once the calls are in the books. Waits for the transcripts of a conversation."""

        async def when() -> None:
            if conversation is not None:
                await asyncio.sleep(LAG_SECONDS)
                await conversation.look()
            await self._flush()

        if keys and self._check is not None and (owner := self._owner_of(session_id)) is not None:
            self._check.release(session_id, owner, keys, self.fail, when=when)

    async def _flush(self) -> None:
        """Waits until what the recorder has is in the books."""
        flush: Any = self._recorder.flush
        await (flush() if iscoroutinefunction(flush) else asyncio.to_thread(flush))

    async def settled(self) -> None:
        """Waits until nothing is reserved any more for what has ended. Does nothing where nothing is asked."""
        if self._check is not None:
            await self._check.released()

    @recorded
    def _owner_of(self, session_id: str) -> UUID | str | None:
        return self.session_of(session_id, session_id).user_id

    def conversation(self, options: ClaudeAgentOptions | None, prompt: str | None = None) -> "Conversation":
        """What is remembered of a process of Claude Code, for `take` and `close`."""
        conversation = Conversation(self._quiet, options, prompt, content=self.content, billing=self._billing)
        conversation.at_recorders_end = lambda: self.close(conversation)
        return conversation

    @recorded
    async def take(self, conversation: "Conversation", message: Any) -> None:
        """Takes the next message."""
        session_id = value_at(message, "session_id") or value_at(message, "data", "session_id")
        if isinstance(session_id, str) and session_id and session_id != conversation.session_id:
            before = conversation.session_id
            conversation.close()  # a conversation that was reset has another session
            if before is not None:
                self._release(before, conversation.held.take_all(before))
            around = current_trace()
            parent = None if around is None or around.session_id == session_id else around.session_id
            trace = self.session_of(session_id, session_id, parent_session_id=parent)
            trace.begin()
            conversation.open(session_id, str(trace.user_id))
        await conversation.take(message)
        if type(message).__name__ == "ResultMessage" and isinstance(session_id, str):
            self._release(session_id, conversation.held.take(session_id, MAIN_AGENT), conversation)

    @recorded
    def close(self, conversation: "Conversation") -> None:
        """Records what is left, when the process of Claude Code has ended."""
        conversation.close()
        for session_id in conversation.held.sessions():
            self._release(session_id, conversation.held.take_all(session_id))


class _RecordedClient(ClaudeSDKClient):
    def __init__(self, sdk: SessionSdk, options: ClaudeAgentOptions | None, transport: Transport | None) -> None:
        self._sdk = sdk
        self._conversation = sdk.conversation(options)
        super().__init__(sdk.with_hooks(options, self._conversation), transport)

    async def receive_messages(self) -> AsyncIterator[Message]:
        async for message in super().receive_messages():
            await self._sdk.take(self._conversation, message)
            yield message

    async def disconnect(self) -> None:
        try:
            await super().disconnect()
        finally:
            self._sdk.close(self._conversation)
            await self._sdk.settled()


class _AnyItem:
    """Makes items of fields in the shape that readers give, for `QuietWriter.write`."""

    @classmethod
    def of_call(cls, **fields: Any) -> Item | Reopen:
        return item_of_fields(fields)


class _Held:
    """The keys of what a conversation has reserved, by session and holder.

    A holder is an agent, whose last key is for its next call, or the call of a tool that begins a sub-agent. No other
    process has these keys, though it may have the session.
    """

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], list[str]] = {}

    def key(self, session_id: str, holder: str, *, is_new: bool = False) -> str:
        """The key of the holder's next call: a new one, or the one it has."""
        keys = self._keys.setdefault((session_id, holder), [])
        if is_new or not keys:
            keys.append(f"next-call:{uuid4()}")
        return keys[-1]

    def take(self, session_id: str, *holders: str) -> list[str]:
        """The keys of these holders, which hold nothing any more."""
        return [key for holder in holders for key in self._keys.pop((session_id, holder), ())]

    def take_all(self, session_id: str) -> list[str]:
        """The keys of all holders of the session."""
        return self.take(session_id, *[holder for session, holder in self._keys if session == session_id])

    def sessions(self) -> set[str]:
        """The sessions in which something is held."""
        return {session_id for session_id, _ in self._keys}


class Conversation:
    """A process of Claude Code: its transcripts where it writes them, else its messages.

    Attributes:
        session_id: The session of the messages; None before the first.
    """

    def __init__(
        self,
        quiet: QuietWriter,
        options: ClaudeAgentOptions | None,
        prompt: str | None,
        *,
        content: bool,
        billing: Billing,
    ) -> None:
        """Nothing is recorded before a session is opened."""
        self.session_id: str | None = None
        self.held = _Held()
        self.began: dict[str, str] = {}
        """The calls of tools that began sub-agents, by the agent."""
        self.at_recorders_end: Callable[[], object] = self.close
        self._quiet = quiet
        self._options = options
        self._prompt = prompt
        self._content = content
        self._billing: Billing = billing
        self._transcripts: _Transcripts | None = None
        self._stream: _StreamReader | None = None
        self._waiting: list[tuple[Any, datetime]] = []
        self._look_at = 0.0
        self._looking = asyncio.Lock()
        self._expects_transcripts = True
        """Whether there may be transcripts, though none has been found yet."""
        self._tool_calls: set[str] = set()
        """The calls of tools that the transcripts tell of."""

    def open(self, session_id: str, user_id: str) -> None:
        """Begins a session."""
        self.session_id = session_id
        self._transcripts = _Transcripts(
            _projects(self._options), session_id, user_id, content=self._content, billing=self._billing
        )
        resumes = bool(value_at(self._options, "resume") or value_at(self._options, "continue_conversation"))
        self._stream = _StreamReader(
            session_id, user_id, self._prompt, content=self._content, billing=self._billing, adjusts=not resumes
        )
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._quiet.opened(self)

    async def take(self, message: Any) -> None:
        """Takes the next message."""
        if self._transcripts is None:
            return
        if not self._transcripts.is_there and type(message).__name__ != "StreamEvent":
            self._waiting.append((message, datetime.now(UTC)))
        is_result = type(message).__name__ == "ResultMessage"
        if is_result or time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            await self.look()
            if is_result:
                self._take_waiting()

    async def look(self) -> None:
        """Takes what the transcripts have by now."""
        transcripts = self._transcripts
        if transcripts is None:
            return
        async with self._looking:  # what is read first is written first
            self._write(await asyncio.to_thread(transcripts.read))
        if transcripts.is_there:
            self._waiting.clear()

    async def look_for(self, tool_call: str | None) -> bool:
        """Takes what the transcripts have, until they tell of this call of a tool. Whether they do, or there are none.

        Claude Code writes them some time after it calls a hook. The response that made the call is told before it.
        """
        is_there = False
        for _ in range(LOOKS):
            await self.look()
            is_there = self._transcripts is not None and self._transcripts.is_there
            if tool_call is None or tool_call in self._tool_calls or not (is_there or self._expects_transcripts):
                return True
            await asyncio.sleep(LAG_SECONDS / LOOKS)
        self._expects_transcripts = is_there
        return not is_there

    def cancel(self) -> None:
        """Called when the recorder closes."""
        self.at_recorders_end()

    def close(self) -> None:
        """Records what is left of the session. Does nothing where none is open."""
        self._quiet.closed(self)
        transcripts, stream = self._transcripts, self._stream
        if transcripts is None or stream is None:
            return
        at = datetime.now(UTC)
        self._write(transcripts.read())
        if transcripts.is_there:
            self._waiting.clear()
            self._write(transcripts.close(at))
        else:
            self._take_waiting()
            self._write(stream.close(at))
        self.session_id = self._transcripts = self._stream = None

    def _take_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._stream is not None:
            for message, at in waiting:
                self._write(self._stream.read(message, at))

    def _write(self, items: list[Fields | BadLineError]) -> None:
        for fields in items:
            if isinstance(fields, BadLineError):
                self._quiet.fail(SessionLifecycleError(f"a line of a transcript is refused: {fields}"))
            else:
                self._quiet.write(cast("type[Item]", _AnyItem), **fields)
                if fields["kind"] == "step":
                    self._tool_calls.add(fields["tool_call_id"])
                elif fields["kind"] == "run" and (call := fields.get("parent_tool_call_id")) is not None:
                    self.began[fields["run_id"]] = call


def _projects(options: ClaudeAgentOptions | None) -> list[Path]:
    """Where Claude Code keeps its transcripts with these options."""
    environment = {**os.environ, **(value_at(options, "env") or {})}
    if root := environment.get("CLAUDE_CONFIG_DIR"):
        return [Path(root) / "projects"]
    home = Path(environment.get("HOME") or Path.home())
    return [home / ".claude" / "projects", home / ".config" / "claude" / "projects"]


class _Transcripts:
    """The transcripts of one session: its own, and those of its sub-agents. May be read from any thread.

    What they had before the process began was another process's, and is not recorded again.
    """

    def __init__(self, projects: list[Path], session_id: str, user_id: str, *, content: bool, billing: Billing) -> None:
        self.is_there = False
        self._projects = projects
        self._session_id = session_id
        self._user_id = user_id
        self._content = content
        self._billing = billing
        self._since = datetime.now(UTC) - _MARGIN
        self._files: dict[Path, tuple[ClaudeCodeReader, int, int]] = {}
        self._reading = Lock()

    def read(self) -> list[Fields | BadLineError]:
        """The items of the lines that were added."""
        with self._reading:
            items: list[Fields | BadLineError] = []
            for path in self._paths():
                items += self._read_file(path)
            return items

    def close(self, at: datetime) -> list[Fields | BadLineError]:
        """The items of the end of the program."""
        with self._reading:
            return [item for reader, _, _ in self._files.values() for item in reader.close(at)]

    def _paths(self) -> list[Path]:
        found: list[Path] = []
        for projects in self._projects:
            for path in projects.glob(f"*/{escape(self._session_id)}.jsonl"):
                found += [path, *sorted(path.with_suffix("").rglob("*.jsonl"))]
        self.is_there = self.is_there or bool(found)
        return found

    def _read_file(self, path: Path) -> list[Fields | BadLineError]:
        reader, end, count = self._files.get(path) or (self._reader(path), 0, 0)
        items: list[Fields | BadLineError] = []
        with path.open("rb") as file:
            file.seek(end)
            for line in whole_lines(file, number=count):
                end, count = line.end, line.number
                try:
                    fields = parsed(line.text)
                    made = [] if fields is None else reader.read(fields)
                    if fields is not None and made and moment(fields) >= self._since:
                        items += made
                except BadLineError as error:
                    items.append(error)
        self._files[path] = (reader, end, count)
        return items

    def _reader(self, path: Path) -> ClaudeCodeReader:
        meta: Fields | None = None
        if (beside := path.with_suffix(".meta.json")).exists():
            with beside.open("rb") as file:
                meta = parsed(file.read(_MOST_META_BYTES))
        return ClaudeCodeReader(self._user_id, content=self._content, billing=self._billing, meta=meta)


class _StreamReader:
    """Makes items of messages, for a session without a transcript."""

    def __init__(
        self,
        session_id: str,
        user_id: str,
        prompt: str | None,
        *,
        content: bool,
        billing: Billing,
        adjusts: bool,
    ) -> None:
        self._ids = {"session_id": session_id, "user_id": user_id}
        self._prompt = prompt
        self._content = content
        self._billing = billing
        self._adjusts = adjusts
        self._run: str | None = None
        self._started = ""
        self._awaits = False
        self._fails: str | None = None
        self._children: dict[str, tuple[str, str]] = {}
        """The run of a sub-agent and its start, by the tool call that started it."""
        self._tools: dict[str, tuple[str, str]] = {}
        self._told: dict[str, dict[str, tuple[int, ...]]] = {}
        """The counts of the responses of each model, and of its adjustment."""

    def read(self, message: Any, at: datetime) -> list[Fields | BadLineError]:
        """The items of the next message."""
        match type(message).__name__:
            case "UserMessage":
                return [*self._begin(message, at), *self._user(message, at)]
            case "AssistantMessage":
                return [*self._begin(message, at), *self._assistant(message, at)]
            case "ResultMessage":
                return [*self._begin(message, at), *self._result(message, at)]
            case "ConversationResetMessage":
                self._told.clear()  # the program begins its totals anew
                return []
            case _:
                return [*self._system(message, at)]

    def close(self, at: datetime) -> list[Fields | BadLineError]:
        """The items of the end of the program."""
        if self._run is None:
            return []
        items: list[Fields | BadLineError] = []
        if self._awaits:
            items.append(self._event(f"attempt:{self._run}", self._run, at) | {"measured": False})
        for call, (run, started) in self._tools.items():
            items.append(self._step(call, run, started) | self._ended(at) | {"errors": given(type="cancelled")})
        return [*items, *self._end(at, "cancelled")]

    def _begin(self, message: Any, at: datetime) -> list[Fields]:
        if self._run is not None:
            return []
        told = value_at(message, "uuid") or value_at(message, "data", "uuid")
        self._run, self._started = str(told or self._ids["session_id"]), at.isoformat()
        self._awaits, self._fails = True, None
        prompt, self._prompt = self._prompt, None
        return [self._run_of(self._run) | given(input=prompt if self._content else None)]

    def _run_of(self, run_id: str, started: str | None = None) -> Fields:
        return {"kind": "run", **self._ids, "run_id": run_id, "client": CLIENT, "started_at": started or self._started}

    def _ended(self, at: datetime) -> Fields:
        return {"ended_at": at.isoformat()}

    def _end(self, at: datetime, status: str, error: str | None = None) -> list[Fields]:
        run, self._run, self._tools = self._run_of(self._run or ""), None, {}
        children = [
            self._run_of(child, started) | {"status": status} | self._ended(at)
            for child, started in self._children.values()
        ]
        self._children.clear()
        return [*children, run | {"status": status} | self._ended(at) | given(error=error)]

    def _system(self, message: Any, at: datetime) -> list[Fields]:
        data = mapping(value_at(message, "data"))
        subtype = value_at(message, "subtype")
        if subtype == "init":
            return self._begin(message, at)
        call, task = data.get("tool_use_id"), data.get("task_id")
        if subtype == "task_started" and isinstance(call, str) and isinstance(task, str) and _is_agent(data):
            self._children[call] = (task, at.isoformat())
            above = {"parent_run_id": self._run, "parent_tool_call_id": call}
            return [self._run_of(task, at.isoformat()) | above | given(agent_name=data.get("subagent_type"))]
        if subtype in {"task_notification", "task_updated"}:
            status = _ENDS.get(str(data.get("status") or mapping(data.get("patch")).get("status")))
            call = next((call for call, (child, _) in self._children.items() if child == task), None)
            if status is not None and call is not None:
                return self._end_child(call, at, status)
        return []

    def _end_child(self, call: str, at: datetime, status: str) -> list[Fields]:
        child, started = self._children.pop(call)
        return [self._run_of(child, started) | {"status": status} | self._ended(at)]

    def _run_at(self, message: Any) -> str:
        child = self._children.get(str(value_at(message, "parent_tool_use_id")))
        return child[0] if child is not None else self._run or ""

    def _user(self, message: Any, at: datetime) -> list[Fields]:
        items: list[Fields] = []
        content = value_at(message, "content")
        self._awaits = True
        for block in content if isinstance(content, list) else []:
            call = value_at(block, "tool_use_id")
            if not isinstance(call, str):
                continue
            run, started = self._tools.pop(call, (self._run_at(message), at.isoformat()))
            output = value_at(block, "content") if self._content else None
            step = self._step(call, run, started) | self._ended(at) | given(output=output)
            if value_at(block, "is_error") is True:
                step["errors"] = given(type="tool_error", message=text_of(output) or None)
            items.append(step)
            status = value_at(message, "tool_use_result", "status")
            if call in self._children and status == "completed":
                items += self._end_child(call, at, "completed")
        return items

    def _assistant(self, message: Any, at: datetime) -> list[Fields]:
        run, model = self._run_at(message), value_at(message, "model")
        message_id = str(value_at(message, "message_id") or value_at(message, "uuid"))
        error = value_at(message, "error")
        if model == _SYNTHETIC:
            if error is None:
                return []
            self._fails, self._awaits = str(error), False
            return [self._event(message_id, run, at) | {"errored": True}]
        self._awaits = False
        items = [self._usage(message, message_id, run, model, at)]
        for block in value_at(message, "content") or []:
            text, name = value_at(block, "text"), value_at(block, "name")
            if isinstance(text, str) and text and self._content:
                told = {"message_id": str(value_at(message, "uuid") or message_id), "run_id": run}
                told |= {"role": "assistant", "content": text, "created_at": at.isoformat()}
                items.append({"kind": "message", **self._ids} | told)
            elif isinstance(name, str) and isinstance(call := value_at(block, "id"), str):
                self._tools[call] = (run, at.isoformat())
                inputs = value_at(block, "input") if self._content else None
                items.append(self._step(call, run, at.isoformat()) | given(name=name, inputs=inputs))
        return items

    def _usage(self, message: Any, message_id: str, run: str, model: Any, at: datetime) -> Fields:
        counts = dict(anthropic_counts(value_at(message, "usage")))
        told = self._told.setdefault(_plain_model(model), {})
        told[message_id] = tuple(number(counts.get(name)) for name in _ADJUSTED)
        event = self._event(message_id, run, at) | given(model=model)
        if not counts.get("tokens_in") and not counts.get("tokens_out"):
            return event | {"measured": False}
        # What a message tells of the output is what the response began with.
        is_partial = value_at(message, "stop_reason") is None
        return event | counts | {"partial": is_partial, "revision": counts.get("tokens_out", 0)}

    def _result(self, message: Any, at: datetime) -> list[Fields]:
        run = self._run or ""
        items: list[Fields] = []
        for model, usage in (mapping(value_at(message, "model_usage")) if self._adjusts else {}).items():
            items += self._adjustment(run, model, usage, at)
        is_cut = str(value_at(message, "terminal_reason") or "").startswith("aborted")
        if is_cut and self._awaits:
            items.append(self._event(f"attempt:{run}", run, at) | {"measured": False})
        error = self._fails or value_at(message, "api_error_status") or value_at(message, "subtype")
        if is_cut:
            return items + self._end(at, "cancelled")
        if value_at(message, "is_error") is True:
            return items + self._end(at, "failed", str(error))
        return items + self._end(at, "completed")

    def _adjustment(self, run: str, model: str, usage: Any, at: datetime) -> list[Fields]:
        """What the running total of a model has beyond its responses."""
        names = ("outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "webSearchRequests")
        out, read, written, searches = (number(mapping(usage).get(name)) for name in names)
        total = (number(mapping(usage).get("inputTokens")) + read + written, out, read, written, searches)
        told = self._told.setdefault(_plain_model(model), {})
        sums = [sum(counts[place] for counts in told.values()) for place in range(len(_ADJUSTED))]
        more = tuple(max(0, whole - known) for whole, known in zip(total, sums, strict=True))
        if not any(more):
            return []
        key = f"{run}:{model}"
        told[key] = more
        fields = dict(zip(_ADJUSTED, more, strict=True))
        fields["tokens_in"] = max(fields["tokens_in"], fields["cache_read_tokens"] + fields["cache_write_tokens"])
        return [self._event(key, run, at) | {"model": _plain_model(model), **fields}]

    def _event(self, key: str, run: str, at: datetime) -> Fields:
        fields = {"kind": "usage", **self._ids, "run_id": run, "idempotency_key": key, "at": at.isoformat()}
        return fields | {"key_scope": "user", "provider": "anthropic", "billing": self._billing}

    def _step(self, call: str, run: str, started: str) -> Fields:
        ids = {"kind": "step", "step_kind": "tool", "user_id": self._ids["user_id"], "run_id": run}
        return ids | {"step_id": call, "tool_call_id": call, "started_at": started}


_ADJUSTED = ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "web_searches")


def _is_agent(data: Any) -> bool:
    return bool(data.get("subagent_type")) or data.get("task_type") == "local_agent"


def _plain_model(model: Any) -> str:
    """The model without what Claude Code adds for itself, as the size of its context."""
    return str(model).partition("[")[0]
