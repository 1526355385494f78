"""Spool: a local file that keeps items until a database takes them.

Short-lived processes, and hosts whose database is away, append items here and go on. A drainer delivers them later.

The file is a database of the standard library's SQLite. A log file of our own needs no less: a checksum for a torn end,
locks between writers, a second file for what was delivered, and a compaction that a crash may interrupt. SQLite has all
of these and is tested for power loss. `dbm` and `shelve` have neither locks nor transactions. LMDB and RocksDB are
extras, and a hook that starts in milliseconds has no extras.

`journal_mode=WAL` lets the drainer read while others append, and makes an append one write and one sync. With it,
`synchronous=NORMAL` loses the last commits at a power failure; `synchronous=FULL` syncs each commit before it is
acknowledged (https://www.sqlite.org/pragma.html#pragma_synchronous). WAL needs memory that all processes share, so the
directory must be on a local disk.

This module imports the standard library only, and `asyncio` not at all: a hook command imports it.
"""

import errno
import json
import os
import sqlite3
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self
from weakref import WeakSet

from session_lifecycle.errors import ConfigurationError, InvalidValueError, SpoolError, SpoolFullError, shortened
from session_lifecycle.writing import spool_directory as directory

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_lifecycle.writing.spool_session import OnLost, SpoolSession

DEFAULT_MAX_BYTES = 1_000_000_000
DEFAULT_BUSY_SECONDS = 10.0
DEFAULT_DRAIN_BATCH = 500
READ_BYTES = 16_000_000
"""A drainer reads at most so many characters of JSON at once, or one item."""
KINDS = ("touch", "usage", "end", "reopen", "run", "step", "message")
_PAGE_BYTES = 4096
_SHRINK_PAGES = 256  # 1 MB of free pages is worth the writes that give it back
_MOST_BUSY = 3600
_VERSION = 1
_HAS_TIME = ("touch", "usage", "end", "reopen")
_TABLES = (
    # AUTOINCREMENT: the position of a deleted item is never given again, so a drainer may delete up to a position.
    "CREATE TABLE items (position INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL)",
    "CREATE TABLE poison (position INTEGER PRIMARY KEY, item TEXT NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL)",
)


class Records(Protocol):
    """Takes items and returns when they are committed: a `SessionWriter`."""

    async def record(self, items: Sequence[Any]) -> Any:
        """See `SessionWriter.record`."""
        ...

    async def reopen_session(self, session_id: str, user_id: Any, *, at: Any = None) -> Any:
        """See `SessionWriter.reopen_session`."""
        ...


class HasWriter(Protocol):
    """A `SessionDatabase`."""

    @property
    def lifecycle(self) -> Records:
        """The role that writes."""
        ...


class SpooledItem(NamedTuple):
    """An item in the spool: its position, which grows with the order of the appends, and the item as JSON."""

    position: int
    item: str


class PoisonItem(NamedTuple):
    """An item that was refused and set aside. `item` is JSON and may hold content."""

    position: int
    item: str
    reason: str
    at: str
    """When it was set aside, ISO 8601 in UTC."""


class SpoolStatus(NamedTuple):
    """What is in a spool now."""

    path: Path
    """The directory."""
    items: int
    """Items that wait for delivery."""
    poison: int
    """Items that were set aside."""
    bytes: int
    """The size of the files on disk."""
    max_bytes: int
    is_draining: bool
    """Whether a process drains it."""


class DrainReport(NamedTuple):
    """What a drainer did."""

    drained: int
    """Items that the database has acknowledged."""
    set_aside: int
    """Items that were refused."""
    left: int
    """Items that wait for delivery."""
    stopped_by: str | None = None
    """Why the drainer stopped before the spool was empty; None where nothing stopped it."""


class Spool:
    """A local file that keeps items until a database takes them.

    Any number of processes and threads may append to one spool at once; one drainer at a time delivers. What `append`
    has acknowledged survives `kill -9` and power loss. Delivery is at least once, and keys make it exactly once.

    A spool is a directory of mode 0700 with files of mode 0600, as the items hold what people and models said. It must
    belong to the current user, and no symbolic link is followed. One object may be used from any thread, and in
    children of `os.fork` and `multiprocessing`. All methods but `drain` block, for at most `busy_seconds` on a lock and
    for the time of a disk sync.

    Example:
        with Spool() as spool:
            spool.append([{"kind": "usage", "session_id": "s-1", "user_id": str(user_id), "model": "gpt-4o",
                           "tokens_in": 120, "tokens_out": 40, "idempotency_key": "response-1"}])
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        busy_seconds: float = DEFAULT_BUSY_SECONDS,
    ) -> None:
        """Makes no file yet: the first call that needs one does.

        Args:
            path: The directory; None: `session-lifecycle/spool` in `$XDG_STATE_HOME`, or in `~/.local/state`.
            max_bytes: The size that `append` lets the file reach, at least 64 KiB. The write-ahead log comes on top,
                mostly 4 MB. Poison counts too.
            busy_seconds: How long a call waits while others write.

        Raises:
            ConfigurationError: An argument is out of range.
        """
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 16 * _PAGE_BYTES:
            expected = f"a whole number of bytes, at least {16 * _PAGE_BYTES}"
            raise ConfigurationError(f"max_bytes: got {shortened(max_bytes)}, expected {expected}")
        if (
            isinstance(busy_seconds, bool)
            or not isinstance(busy_seconds, int | float)
            or not 0 <= busy_seconds <= _MOST_BUSY
        ):
            raise ConfigurationError(
                f"busy_seconds: got {shortened(busy_seconds)}, expected seconds from 0 to {_MOST_BUSY}"
            )
        self.path = (Path(path) if path is not None else directory.default_path()).expanduser().absolute()
        """The directory of the spool."""
        self.max_bytes = max_bytes
        self.busy_seconds = float(busy_seconds)
        self._file = self.path / "spool.db"
        self._using = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._drain_lock: int | None = None
        _spools.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. What is in it stays. A later call opens it again."""
        with self._using:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def append(self, items: Iterable[Mapping[str, Any]]) -> int:
        """Keeps the items, all of them or none. After it returns, they survive a crash of the process and the machine.

        An item is a mapping that `json.dumps` takes: the fields of a `Touch`, `UsageEvent`, `End`, `Run`, `Step` or
        `Message` as `model_dump(mode="json")` writes them, and `kind`: `touch`, `usage`, `end`, `run`, `step` or
        `message`; or the arguments of `reopen_session`, and the kind `reopen`. The field `kind` of a usage event is
        called `usage_kind` here, and that of a step `step_kind`. Fields with a default may be left out. A drainer
        checks the fields; here only the kind is checked.

        A usage event without `idempotency_key` gets one, so that a second delivery counts nothing twice. A touch, usage
        event, end or reopening without `at` gets the time of this call.

        Args:
            items: The items, in the order in which they apply.

        Returns:
            The number of items.

        Raises:
            InvalidValueError: An item is not such a mapping; nothing was kept.
            SpoolFullError: The items do not fit into `max_bytes` or on the disk; nothing was kept.
            SpoolError: The file cannot be written, or others kept it locked for `busy_seconds`; nothing was kept.
            ConfigurationError: The directory or a file in it is not the current user's alone.
        """
        now = _now()
        rows = [(_as_json(item, now, position),) for position, item in enumerate(items)]
        if rows:
            with self._transaction() as connection:
                connection.executemany("INSERT INTO items (item) VALUES (?)", rows)
        return len(rows)

    def status(self) -> SpoolStatus:
        """What is in the spool now.

        Raises:
            SpoolError: The file cannot be read.
            ConfigurationError: The directory or a file in it is not the current user's alone.
        """
        with self._opened() as connection:
            [(items, poison)] = connection.execute(
                "SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM poison)"
            ).fetchall()
        size = 0
        for ending in ("", "-wal"):
            with suppress(FileNotFoundError):
                size += self._file.with_name(self._file.name + ending).stat().st_size
        return SpoolStatus(self.path, items, poison, size, self.max_bytes, self._is_draining())

    def poison(self, *, limit: int = 100, after: int = 0) -> list[PoisonItem]:
        """Returns items that were set aside, by position. Errors: see `status`.

        Args:
            limit: The most items that are returned.
            after: Only items with a greater position.
        """
        with self._opened() as connection:
            found = connection.execute(
                "SELECT position, item, reason, at FROM poison WHERE position > ? ORDER BY position LIMIT ?",
                (after, limit),
            ).fetchall()
        return [PoisonItem(*row) for row in found]

    def retry_poison(self) -> int:
        """Puts all items that were set aside at the end of the spool. Returns their number. Errors: see `status`."""
        with self._transaction(is_bounded=False) as connection:
            connection.execute("INSERT INTO items (item) SELECT item FROM poison ORDER BY position")
            return connection.execute("DELETE FROM poison").rowcount

    def drop_poison(self) -> int:
        """Deletes all items that were set aside. Returns their number. Errors: see `status`."""
        with self._transaction(is_bounded=False) as connection:
            return connection.execute("DELETE FROM poison").rowcount

    async def drain(
        self, into: Records | HasWriter, *, batch: int = DEFAULT_DRAIN_BATCH, follow: bool = False
    ) -> DrainReport:
        """Delivers the items in their order, and deletes each one after the database has acknowledged it.

        One process drains a spool at a time. The lock dies with its process. A refused item is found by bisecting its
        batch, and set aside with the reason (`poison`); the others go on. If the drainer dies between the commit and
        the deletion, the batch is delivered again, which changes nothing: every usage event in a spool has a key.

        Args:
            into: A `SessionDatabase`, or a `SessionWriter` such as a recorder.
            batch: The most items of one transaction.
            follow: Whether to wait for further items, until the task is cancelled. While the database is away, the
                drainer tries again after a pause.

        Returns:
            The report. Where the database went away, `stopped_by` says so, and the rest is left for the next drain.

        Raises:
            SpoolError: Another drainer is at work, or the file cannot be read.
            ConfigurationError: The directory or a file in it is not the current user's alone, `batch` is out of range,
                or, without `follow`, the database refuses the user or the access.
            SchemaError: Without `follow`: the schema is not migrated, or does not serve this version.
        """
        from session_lifecycle.writing.spool_drain import Drainer

        drainer = Drainer(self, into, batch=batch)
        with self.draining():
            return await drainer.run(follow=follow)

    def session(
        self,
        session_id: str,
        user_id: "UUID | str",
        dataset_id: "UUID | str | None" = None,
        *,
        agent_name: str | None = None,
        parent_session_id: str | None = None,
        on_lost: "OnLost | None" = None,
        attempt_timeout: "timedelta | float | None" = None,
    ) -> "SpoolSession":
        """A session block for `with` and `async with` that writes to this spool and needs no database.

        It never raises for trouble of the spool: see `SpoolSession`. Calling this loads the library's models.

        Args:
            session_id: The session's id.
            user_id: The session's owner.
            dataset_id: The dataset through which the session may be shared.
            agent_name: The agent's name.
            parent_session_id: The session that started this one.
            on_lost: Called with items that could not be kept, and with the error. There is no item where a value was
                refused. It runs on any thread; what it raises is logged.
            attempt_timeout: How long an attempt may be open, a timedelta or seconds; None: 15 minutes.

        Raises:
            ConfigurationError: `attempt_timeout` is no duration above 0, or `on_lost` is no function or is async.
        """
        from session_lifecycle.writing.spool_session import SpoolSession

        return SpoolSession(
            self,
            session_id,
            user_id,
            dataset_id,
            agent_name=agent_name,
            parent_session_id=parent_session_id,
            on_lost=on_lost,
            attempt_timeout=attempt_timeout,
        )

    # For drainers

    @contextmanager
    def draining(self) -> Generator[None]:
        """Keeps every other drainer away.

        Raises:
            SpoolError: Another drainer is at work.
            ConfigurationError: The directory or the lock is not the current user's alone.
        """
        if not self.begin_draining():
            raise SpoolError(f"another drainer is at work on {self.path}: it delivers what is there")
        try:
            yield
        finally:
            self.end_draining()

    def begin_draining(self) -> bool:
        """Like entering `draining`. Returns False where another drainer is at work."""
        with self._using, self._our_errors():
            if self._drain_lock is not None:
                return False
            self._drain_lock = directory.locked(self.path, "drain.lock")
            return self._drain_lock is not None

    def end_draining(self) -> None:
        """Lets another drainer work. Does nothing where this object does not drain."""
        with self._using:
            descriptor, self._drain_lock = self._drain_lock, None
            if descriptor is not None:
                os.close(descriptor)

    def read(self, limit: int) -> list[SpooledItem]:
        """Returns the next items, at most `limit` of them and about `READ_BYTES`; at least one if there is one."""
        found: list[SpooledItem] = []
        size = 0
        with self._opened() as connection:
            rows = connection.execute("SELECT position, item FROM items ORDER BY position LIMIT ?", (limit,))
            for row in rows:
                found.append(SpooledItem(*row))
                size += len(found[-1].item)
                if size >= READ_BYTES:
                    break
            rows.close()
        return found

    def settle(self, up_to: int, poison: Iterable[tuple[SpooledItem, str]]) -> None:
        """Deletes every item up to the position, and sets those aside that were refused, with their reasons."""
        now = _now()
        with self._transaction(is_bounded=False) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO poison VALUES (?, ?, ?, ?)",
                [(one.position, one.item, reason, now) for one, reason in poison],
            )
            connection.execute("DELETE FROM items WHERE position <= ?", (up_to,))

    def count(self) -> int:
        """The number of items that wait for delivery."""
        with self._opened() as connection:
            [(items,)] = connection.execute("SELECT count(*) FROM items").fetchall()
        return int(items)

    def shrink(self) -> None:
        """Gives free pages back to the disk where they are many. Does nothing while others use the file."""
        with self._opened() as connection:
            [(free,)] = connection.execute("PRAGMA freelist_count").fetchall()
            if free < _SHRINK_PAGES:
                return
            with suppress(sqlite3.OperationalError):
                # Not `execute`: it would take one step, which gives one page back.
                connection.executescript("PRAGMA incremental_vacuum")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # The file

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection]:
        """The connection, for one thread at a time; turns SQLite's errors into ours."""
        with self._using, self._our_errors():
            if self._connection is None:
                self._connection = self._open()
            yield self._connection

    @contextmanager
    def _transaction(self, *, is_bounded: bool = True) -> Generator[sqlite3.Connection]:
        """A write transaction, which is committed and synced where the block is left without an error."""
        with self._opened() as connection:
            most_pages = self.max_bytes // _PAGE_BYTES if is_bounded else 2**32 - 2
            connection.execute(f"PRAGMA max_page_count = {most_pages}").fetchall()
            try:
                # IMMEDIATE waits for other writers here; a lock that is upgraded later would fail at once.
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back where the disk is full
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _our_errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                limit = f"it may have {self.max_bytes:,} bytes (max_bytes), or the disk is full"
                raise SpoolFullError(f"{self.path} has no room: {limit}") from error
            if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise SpoolError(f"other processes kept {self.path} locked for {self.busy_seconds:g} s") from error
            if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise SpoolError(f"{self._file} is damaged ({error}): move the directory away") from error
            raise SpoolError(f"{self._file} cannot be used: {error}") from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise SpoolFullError(f"there is no room for {self.path}: {error.strerror}") from error
            raise SpoolError(f"{self.path} cannot be used: {error}") from error

    def _open(self) -> sqlite3.Connection:
        directory.make(self.path)
        if not directory.exists(self._file):
            self._make_file()
        directory.check_file(self._file)
        connection = _connect(self._file, self.busy_seconds)
        try:
            [(version,)] = connection.execute("PRAGMA user_version").fetchall()
        except BaseException:
            connection.close()
            raise
        if version != _VERSION:
            connection.close()
            raise SpoolError(f"{self._file} has version {version}, expected {_VERSION}: use another directory")
        return connection

    def _make_file(self) -> None:
        """Makes the file under another name and moves it into place when it is complete.

        So no process sees a file without tables, and the switch to WAL, which waits for no lock, has no rival.
        """
        descriptor = directory.locked(self.path, "make.lock", within_seconds=self.busy_seconds)
        if descriptor is None:
            raise SpoolError(f"another process keeps {self.path} locked")
        try:
            if directory.exists(self._file):
                return
            new = self.path / "new.db"
            for leftover in self.path.glob("new.db*"):  # of a process that was killed
                leftover.unlink()
            os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = _connect(new, self.busy_seconds)
            try:
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
                connection.execute("BEGIN IMMEDIATE")
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute("COMMIT")
            finally:
                connection.close()
            new.rename(self._file)
            directory.sync(self.path)
        finally:
            os.close(descriptor)

    def _is_draining(self) -> bool:
        if self.begin_draining():
            self.end_draining()
            return False
        return True

    # A fork

    def before_fork(self) -> None:
        """Closes the connection, and keeps other threads from opening one until `after_fork`.

        SQLite's record of the locks of its process would go to the child, which has none of them. The parent would then
        take itself for the last user, and delete the log in which the child writes.
        """
        self._using.acquire()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def after_fork(self, *, is_child: bool) -> None:
        """Lets threads use the spool again. In the child, leaves the lock of the drainer to the parent."""
        if is_child and self._drain_lock is not None:
            os.close(self._drain_lock)  # so that the lock dies with the parent
            self._drain_lock = None
        self._using.release()


_spools: "WeakSet[Spool]" = WeakSet()
_forking = threading.Lock()
_held: list[Spool] = []


def _before_fork() -> None:
    _forking.acquire()
    _held.extend(_spools)
    for spool in _held:
        spool.before_fork()


def _after_fork(*, is_child: bool) -> None:
    for spool in _held:
        spool.after_fork(is_child=is_child)
    _held.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, is_child=False),
        after_in_child=partial(_after_fork, is_child=True),
    )


def _connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")  # what was delivered does not stay readable in the file
    return connection


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _as_json(item: Any, now: str, position: int) -> str:
    if not isinstance(item, Mapping) or item.get("kind") not in KINDS:
        # The item may be content, so its text is not quoted.
        found = type(item).__name__ if not isinstance(item, Mapping) else item.get("kind")
        raise InvalidValueError(f"items.{position}.kind", found, f"a mapping with one of these: {', '.join(KINDS)}")
    fields = dict(item)
    if fields["kind"] in _HAS_TIME and fields.get("at") is None:
        fields["at"] = now
    if fields["kind"] == "usage" and fields.get("idempotency_key") is None:
        fields["idempotency_key"] = f"spool-{os.urandom(16).hex()}"
    try:
        return json.dumps(fields, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        name = next((name for name, value in fields.items() if not _fits_json(name, value)), "kind")
        # The value may be content, so its type is named.
        found = type(fields[name]).__name__
        expected = 'what JSON can hold, as `model_dump(mode="json")` makes it'
        raise InvalidValueError(f"items.{position}.{name}", found, expected) from error


def _fits_json(name: Any, value: Any) -> bool:
    try:
        json.dumps({name: value})
    except (TypeError, ValueError, RecursionError):
        return False
    return True
