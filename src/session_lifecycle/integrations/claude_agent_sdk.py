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
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Protocol
from uuid import UUID

from session_lifecycle.integrations.adapter import Adapter, TakesQuietly, recorded
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.claude_agent_sdk_conversations import LAG_SECONDS, Conversation
from session_lifecycle.integrations.claude_agent_sdk_messages import Billing
from session_lifecycle.integrations.counts import value_at
from session_lifecycle.writing.protocol import SessionReserver
from session_lifecycle.writing.session_trace import current_trace

try:
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, HookMatcher, Message, Transport
    from claude_agent_sdk import query as query_of_sdk
except ImportError as error:
    raise ImportError("Claude Agent SDK is not installed: pip install 'session-lifecycle[claude-agent-sdk]'") from error

MAIN_AGENT = "main"
_ASKING_HOOKS = {"UserPromptSubmit": None, "PreToolUse": "Agent|Task", "PostToolUse": None, "PostToolUseFailure": None}
"""What Claude Code calls before it calls a model, and for which tools: for a prompt, for a sub-agent that is about to
begin, and for what a tool has answered."""


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

    def with_hooks(self, options: ClaudeAgentOptions | None, conversation: Conversation) -> ClaudeAgentOptions | None:
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
        self, check: BudgetCheck, conversation: Conversation, told: Any, tool_use_id: str | None, _context: Any
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

    async def _let_go(self, conversation: Conversation, told: Any, _tool_use_id: str | None, _context: Any) -> Any:
        """A hook of Claude Code's: a sub-agent has ended."""
        session_id, agent = value_at(told, "session_id"), str(value_at(told, "agent_id"))
        holders = (agent, conversation.began.get(agent, agent))
        self._release(session_id, conversation.held.take(session_id, *holders), conversation)
        return {}

    @recorded
    def _release(self, session_id: str, keys: list[str], conversation: Conversation | None = None) -> None:
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

    def conversation(self, options: ClaudeAgentOptions | None, prompt: str | None = None) -> Conversation:
        """What is remembered of a process of Claude Code, for `take` and `close`."""
        conversation = Conversation(self._quiet, options, prompt, content=self.content, billing=self._billing)
        conversation.at_recorders_end = lambda: self.close(conversation)
        return conversation

    @recorded
    async def take(self, conversation: Conversation, message: Any) -> None:
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
    def close(self, conversation: Conversation) -> None:
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
