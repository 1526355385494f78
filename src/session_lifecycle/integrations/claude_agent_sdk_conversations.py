"""A conversation with Claude Code: its transcripts where it writes them, else its messages; and what it reserves."""

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from glob import escape
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.integrations.claude_agent_sdk_messages import Billing, StreamReader
from session_lifecycle.integrations.claude_code import ClaudeCodeReader
from session_lifecycle.integrations.counts import value_at
from session_lifecycle.integrations.transcripts import (
    BadLineError,
    Fields,
    moment,
    parsed,
    whole_lines,
)
from session_lifecycle.models import Item
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.spool_drain import item_of_fields

if TYPE_CHECKING:
    from claude_agent_sdk import ClaudeAgentOptions

LOOK_SECONDS = 5.0
"""How often the transcripts are looked at while messages come. They are read where a result comes, and at the end."""
LAG_SECONDS = 0.5
"""Claude Code writes its transcripts up to so long after it calls a hook or sends a message."""
LOOKS = 10
_MARGIN = timedelta(minutes=1)
_MOST_META_BYTES = 1_000_000


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
        options: "ClaudeAgentOptions | None",
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
        self._stream: StreamReader | None = None
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
        self._stream = StreamReader(
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

        Claude Code writes them some time after it calls a hook. It writes the response before the call of the tool.
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
        """Records the rest of the session. Does nothing where no session is open."""
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


def _projects(options: "ClaudeAgentOptions | None") -> list[Path]:
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
