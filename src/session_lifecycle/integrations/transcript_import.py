"""Import of coding agents' files: finds them, reads them from where they were left, and records their items."""

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, Literal, NamedTuple, Protocol
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.integrations.claude_code import ClaudeCodeReader
from session_lifecycle.integrations.codex import CodexReader, Origin, origin_of, session_of
from session_lifecycle.integrations.positions import Positions
from session_lifecycle.integrations.row_files import files_below
from session_lifecycle.integrations.transcripts import LONGEST_CALL, BadLineError, Fields, Line, parsed, whole_lines
from session_lifecycle.models import Item, Touch, UsageOutcome, UsageReceipt
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.writing.spool import Records
from session_lifecycle.writing.spool_drain import item_of_fields

Program = Literal["claude-code", "codex"]
DEFAULT_BATCH = 500
LOOK_SECONDS = 1.0
"""How often a following import looks for new lines."""
_STEP_LINES = 200
_MOST_ORIGINS = 8
_MOST_META_BYTES = 1_000_000
# What tells the items of one kind apart, beside the session.
_IDS = {
    "touch": ("at",),
    "usage": ("idempotency_key",),
    "run": ("run_id",),
    "step": ("run_id", "step_id"),
    "message": ("message_id",),
}


class BadLine(NamedTuple):
    """Something that could not be recorded. It has no content of the line."""

    path: Path
    number: int
    """The number of the line, from 1; 0 where the file could not be read."""
    reason: str


@dataclass
class ImportReport:
    """What an import did so far."""

    files: int = 0
    """Files with lines that were not read before."""
    lines: int = 0
    items: int = 0
    """Items that were recorded, or were there already."""
    new_events: int = 0
    """Usage events that changed a total."""
    conflicts: int = 0
    """Usage events that the database has with other content, such as another `billing`. It stays as it is."""
    bad_lines: int = 0
    """Lines, or items of lines, that were refused."""
    missing_origins: set[str] = field(default_factory=set)
    """Sessions of Codex whose forks were read without their file."""


class Reader(Protocol):
    """Makes items of the lines of one transcript."""

    state: Fields

    @property
    def is_open(self) -> bool:
        """Whether time alone may make an item."""
        ...

    def read(self, line: Fields) -> list[Fields]:
        """The items of the next line."""
        ...

    def finish(self, now: datetime, *, is_whole: bool = True) -> list[Fields]:
        """The items that time alone makes."""
        ...


def default_places(program: Program) -> list[Path]:
    """The directories where the program keeps its files by default, whether or not they exist."""
    home = Path.home()
    if program == "codex":
        root = Path(os.environ.get("CODEX_HOME") or home / ".codex")
        return [root / "sessions", root / "archived_sessions"]
    if root_of_claude := os.environ.get("CLAUDE_CONFIG_DIR"):
        return [Path(root_of_claude) / "projects"]
    return [home / ".claude" / "projects", home / ".config" / "claude" / "projects"]


def transcripts_in(places: Iterable[Path]) -> list[Path]:
    """The files at these places: a file itself, and `*.jsonl` below a directory. The longest unchanged come first."""
    found: dict[Path, int] = {}
    for place in places:
        for path in files_below(place):
            if path != place and path.suffix != ".jsonl":
                continue
            try:
                status = path.stat()
            except OSError:  # it was removed meanwhile
                continue
            if S_ISREG(status.st_mode):  # else to open it may wait for ever, as for a writer of a named pipe
                found[path.absolute()] = status.st_mtime_ns
    return sorted(found, key=lambda path: (found[path], path))


class TranscriptImport:
    """Reads the files of one program, and records what is new in them. Everything may be repeated: it changes nothing.

    Attributes:
        report: What was done so far.
    """

    def __init__(
        self,
        program: Program,
        places: Sequence[Path],
        into: Records,
        positions: Positions | None,
        *,
        user_id: UUID | str,
        content: bool = True,
        billing: Literal["api", "plan"] = "api",
        batch: int = DEFAULT_BATCH,
        reads_again: bool = False,
        on_bad_line: Callable[[BadLine], object] = lambda _: None,
        on_progress: Callable[[int, int], object] = lambda _done, _all: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Reads nothing yet.

        Args:
            program: The program whose files they are.
            places: Files and directories.
            into: Records the items.
            positions: Where reading goes on; None: at the beginning.
            user_id: The owner of the sessions.
            content: Whether to record what people and models said, and what went into and out of tools.
            billing: `plan` where the use is under a subscription.
            batch: The most items of one transaction.
            reads_again: Whether to read every file from its beginning once.
            on_bad_line: Called with what could not be recorded.
            on_progress: Called with the bytes that were read, and with all bytes there are.
            clock: The time. Calls that have been open for long are recorded without usage.

        Raises:
            InvalidValueError: `user_id` is no UUID.
        """
        self.report = ImportReport()
        self._program: Program = program
        self._places = places
        self._into = into
        self._positions = positions
        self._user_id = str(Touch.of_call(session_id="any", user_id=user_id).user_id)
        self._content = content
        self._billing = billing
        self._batch = batch
        self._is_read_again: set[Path] | None = set() if reads_again else None
        self._on_bad_line = on_bad_line
        self._on_progress = on_progress
        self._clock = clock
        self._items: dict[tuple[object, ...], tuple[Fields, Path, int]] = {}
        self._to_save: list[Fields] = []
        self._recording: asyncio.Task[None] | None = None
        self._seen: dict[Path, tuple[int, int]] = {}
        self._files: dict[str, Path] = {}
        self._origins: dict[str, tuple[int, Origin]] = {}

    async def run(self) -> ImportReport:
        """Reads what is there.

        Raises:
            InvalidValueError: The user is refused: was erased, for example.
            SessionLifecycleError: The database cannot take the items. What was recorded before stays.
        """
        paths = transcripts_in(self._places)
        sizes = {path: _size(path) for path in paths}
        done, whole = 0, sum(size for size, _ in sizes.values())
        try:
            for path in paths:
                if self._seen.get(path) != sizes[path]:
                    for size in self._read(path):
                        self._on_progress(done + size, whole)
                        if len(self._items) >= self._batch:
                            await self._record()
                        await asyncio.sleep(0)
                done += sizes[path][0]
                self._on_progress(done, whole)
            await self._record()
            await self._recorded()
        except BaseException:
            self._seen.clear()  # what was read and not recorded is read again
            self._items, self._to_save = {}, []
            if self._recording is not None:
                self._recording.cancel()
                await asyncio.gather(self._recording, return_exceptions=True)
                self._recording = None
            raise
        return self.report

    async def follow(self) -> None:
        """Reads what is there and what is added, until the task is cancelled. Errors: see `run`."""
        while True:
            await self.run()
            await asyncio.sleep(LOOK_SECONDS)

    # Reading

    def _read(self, path: Path) -> Iterator[int]:
        """Reads a file from its position. Yields how many bytes of it are read, from time to time."""
        try:
            with path.open("rb") as file:
                yield from self._read_file(path, file)
        except OSError as error:
            self._refuse(path, 0, f"the file cannot be read: {error.strerror}")
            self._seen[path] = _size(path)  # named once, and tried again when it has changed

    def _read_file(self, path: Path, file: BinaryIO) -> Iterator[int]:
        status = os.fstat(file.fileno())
        position = self._position(path, file) or {"end": 0, "number": 0, "state": None}
        end, number, state = position["end"], position["number"], position["state"]
        reader = None if state is None or end < status.st_size else self._reader(path, state, None)
        if reader is not None and not reader.is_open:
            self._seen[path] = (status.st_size, status.st_mtime_ns)
            return
        begins_at = number
        file.seek(end)
        for line in whole_lines(file, number=number):
            if reader is None:
                reader = self._reader(path, state, line)
            self._read_line(path, reader, line)
            end, number = line.end, line.number
            if len(self._items) >= self._batch or not number % _STEP_LINES:
                self._remember(path, file, end, number, reader)
                yield end
        self.report.files += number > begins_at
        if reader is not None:  # else there is nothing but a line that is half written
            now, status = self._clock(), os.fstat(file.fileno())
            # A file of old lines that was written just now may be a copy that is half made.
            is_quiet = now.timestamp() - status.st_mtime > LONGEST_CALL.total_seconds()
            made = reader.finish(now, is_whole=is_quiet and end == status.st_size)
            for fields in made:
                self._take(path, number, fields)
            if made or number > begins_at:
                self._remember(path, file, end, number, reader)
            if not reader.is_open:
                self._seen[path] = (end, status.st_mtime_ns)

    def _position(self, path: Path, file: BinaryIO) -> Fields | None:
        if self._is_read_again is not None and path not in self._is_read_again:
            self._is_read_again.add(path)
            return None
        return self._positions.find(path, file) if self._positions is not None else None

    def _read_line(self, path: Path, reader: Reader, line: Line) -> None:
        self.report.lines += 1
        try:
            fields = parsed(line.text)
            for item in [] if fields is None else reader.read(fields):
                self._take(path, line.number, item)
        except BadLineError as error:
            self._refuse(path, line.number, str(error))
        except Exception as error:  # noqa: BLE001 - whatever is in one line must not stop the others
            self._refuse(path, line.number, f"this is not a line of {self._program} ({type(error).__name__})")

    def _take(self, path: Path, number: int, fields: Fields) -> None:
        """Adds an item to the batch. What it says later of the same run, step or response becomes one item with it."""
        ids = [fields.get(name) for name in ("kind", "session_id", *_IDS[fields["kind"]])]
        before = self._items.get(tuple(ids))
        earlier = before[0] if before is not None and _revision(before[0]) <= _revision(fields) else {}
        later = before[0] if before is not None and not earlier else {}
        self._items[tuple(ids)] = ({**earlier, **fields, **later}, path, number)

    def _checked(self, items: Iterable[tuple[Fields, Path, int]]) -> list[tuple[Item, Path, int]]:
        checked: list[tuple[Item, Path, int]] = []
        for fields, path, number in items:
            try:
                item = item_of_fields(fields)
            except InvalidValueError as error:
                self._refuse(path, number, f"{error.field}: expected {error.expected}")
                continue
            if not isinstance(item, Reopen):
                checked.append((item, path, number))
        return checked

    def _refuse(self, path: Path, number: int, reason: str) -> None:
        self.report.bad_lines += 1
        self._on_bad_line(BadLine(path, number, reason))

    def _remember(self, path: Path, file: BinaryIO, end: int, number: int, reader: Reader) -> None:
        if self._positions is not None:
            self._to_save.append(self._positions.keep(path, file, end=end, number=number, state=reader.state))

    def _reader(self, path: Path, state: Fields | None, first: Line | None) -> Reader:
        if self._program == "claude-code":
            return ClaudeCodeReader(
                self._user_id, state=state, content=self._content, billing=self._billing, meta=_meta(path)
            )
        origin = self._origin(path, state, first)
        return CodexReader(self._user_id, state=state, content=self._content, billing=self._billing, origin=origin)

    # Origins of Codex's forks

    def _origin(self, path: Path, state: Fields | None, first: Line | None) -> Origin | None:
        parent = None
        if state is None:
            parent = None if first is None else _parent(first.text)
        elif state.get("skips") or state.get("copies"):
            with path.open("rb") as file:
                parent = next((_parent(line.text) for line in whole_lines(file)), None)
        if parent is None:
            return None
        if parent not in self._files:
            self._files = self._files_by_session()
        if (found := self._files.get(parent)) is None:
            self.report.missing_origins.add(parent)
            return None
        size, _ = _size(found)  # an origin may grow before another fork is made of it
        if parent not in self._origins or self._origins[parent][0] != size:
            if len(self._origins) >= _MOST_ORIGINS:
                self._origins.pop(next(iter(self._origins)))
            with found.open("rb") as file:
                self._origins[parent] = size, origin_of(_objects(whole_lines(file)))
        return self._origins[parent][1]

    def _files_by_session(self) -> dict[str, Path]:
        beside = [place.parent for place in self._places if next(files_below(place), None) == place]
        found: dict[str, Path] = {}
        for path in transcripts_in([*default_places("codex"), *beside, *self._places]):
            try:
                with path.open("rb") as file:
                    first = next(_objects(whole_lines(file)), None)
            except OSError:
                continue
            session = None if first is None else session_of(first)
            if session is not None:
                found[session[0]] = path
        return found

    # Recording

    async def _record(self) -> None:
        """Records the batch while the next one is read. Positions are saved after the items are committed."""
        items, self._items = self._checked(self._items.values()), {}
        to_save, self._to_save = {one["path"]: one for one in self._to_save}, []
        await self._recorded()
        self._recording = asyncio.create_task(self._write(items, list(to_save.values())))

    async def _recorded(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            await recording

    async def _write(self, items: list[tuple[Item, Path, int]], to_save: list[Fields]) -> None:
        for start in range(0, len(items), self._batch):
            await self._write_some(items[start : start + self._batch])
        for position in to_save:
            if self._positions is not None:
                self._positions.save(position)

    async def _write_some(self, items: list[tuple[Item, Path, int]]) -> None:
        """Bisects where the database refuses the items, until only the guilty ones are left."""
        try:
            receipts = await self._into.record([item for item, _, _ in items])
        except InvalidValueError as error:
            if error.field.rpartition(".")[2] == "user_id":
                raise
            if len(items) == 1:
                [(_, path, number)] = items
                self._refuse(path, number, f"{error.field}: expected {error.expected}")
                return
            middle = len(items) // 2
            await self._write_some(items[:middle])
            await self._write_some(items[middle:])
            return
        self.report.items += len(items)
        changed = {UsageOutcome.APPLIED, UsageOutcome.REPLACED}
        outcomes = [receipt.outcome for receipt in receipts if isinstance(receipt, UsageReceipt)]
        self.report.new_events += sum(outcome in changed for outcome in outcomes)
        self.report.conflicts += outcomes.count(UsageOutcome.CONFLICT)


def _revision(fields: Fields) -> int:
    revision = fields.get("revision", 0)
    return revision if isinstance(revision, int) else 0


def _size(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _meta(path: Path) -> Fields | None:
    """What the file beside a sub-agent's transcript says; None where there is none."""
    try:
        with path.with_suffix(".meta.json").open("rb") as file:
            return parsed(file.read(_MOST_META_BYTES))
    except (OSError, BadLineError):
        return None


def _parent(text: bytes) -> str | None:
    try:
        session = session_of(json.loads(text))
    except (ValueError, RecursionError, AttributeError):
        return None
    return None if session is None else session[1]


def _objects(lines: Iterable[Line]) -> Iterator[Fields]:
    for line in lines:
        try:
            found = parsed(line.text)
        except BadLineError:
            continue
        if found is not None:
            yield found
