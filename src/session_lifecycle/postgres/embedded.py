"""EmbeddedPostgres: a server that the processes of one user share. The first one starts it, the last one stops it."""

import asyncio
import atexit
import contextlib
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self
from urllib.parse import quote

from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError
from session_lifecycle.postgres.binaries import run_program
from session_lifecycle.postgres.data_directory import DataDirectory

if sys.platform != "win32":
    import fcntl

MAX_CONNECTIONS = 200

SOCKET_PORT = 5432
"""The port in the name of the socket. A server without TCP takes it in any case: each has a directory of its own."""
_MOST_SOCKET_PATH_BYTES = 103
"""macOS allows 103 bytes in the path of a socket, Linux 107."""
_PLAIN_PATH = re.compile(r"[\w./-]+", re.ASCII)
_PATIENCE_SECONDS = 120
_START_ATTEMPTS = 5
_NOT_DURABLE = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"


class _Running(NamedTuple):
    """What `postmaster.pid` says about a running server."""

    pid: int
    port: int | None
    listens_on_tcp: bool
    status: str


@contextlib.contextmanager
def temporary_data_dir(parent: Path | None = None) -> Generator[Path]:
    """A data directory that is deleted when the block ends. Stop its server before that.

    Args:
        parent: The folder in which it is made; None: the system's folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="session-lifecycle-", dir=parent, ignore_cleanup_errors=True) as folder:
        # Root's server runs as another user, who must be able to enter the folder.
        Path(folder).chmod(0o711)
        yield Path(folder) / "data"


class EmbeddedPostgres:
    """A Postgres server that the processes of one user share on one data directory. Made by `EmbeddedPostgres.start`.

    It listens on a Unix socket in the data directory, which no other user can enter. On a TCP port any process of the
    machine could listen in its place after a crash, and ask clients for the password. So it has one only where asked.

    Example:
        ```python
        async with await EmbeddedPostgres.start() as server:
            connection = await asyncpg.connect(server.url)
        ```

    Attributes:
        url: The URL of the database `postgres`, with the password. It names the directory of the socket, as
            `postgresql://…/postgres?host=/directory&port=…`, or the TCP port where one was asked for.
        data_dir: The data directory; symbolic links are resolved.
        bin_dir: The directory of the server's programs.
        version: The server's major version.
    """

    url: str
    data_dir: Path
    bin_dir: Path
    version: int

    def __init__(self, data_dir: Path | str | None, *, durable: bool, tcp: bool) -> None:
        """Starts nothing; call `EmbeddedPostgres.start` instead."""
        self._wanted_dir = data_dir
        self._durable = durable
        self._tcp = tcp
        self._alias: Path | None = None
        self._port = 0
        self._users_lock: int | None = None
        self._pid = os.getpid()
        self._stopping = threading.Lock()

    @classmethod
    async def start(cls, data_dir: Path | str | None = None, *, durable: bool = True, tcp: bool = False) -> Self:
        """Starts the server, or attaches to the one that already runs on this data directory.

        Args:
            data_dir: The data directory, made if absent; None: one of this user and PostgreSQL's major version.
            durable: False trades safety in a crash of the machine for speed, for tests. Only the process that starts
                the server decides; the others take the server as it runs.
            tcp: Whether the server also listens on a free TCP port of 127.0.0.1, which the URL then names.

        Raises:
            ConfigurationError: There are no Postgres programs, the data is of another version, the directory cannot be
                used or may belong to somebody else, or `tcp` is true and the server runs without.
            DatabaseUnavailableError: The server does not start; the message ends with its log.
        """
        if sys.platform == "win32":
            raise ConfigurationError("the embedded Postgres does not run on Windows: give a database URL")
        server = cls(data_dir, durable=durable, tcp=tcp)
        starting = asyncio.ensure_future(asyncio.to_thread(server._start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be interrupted: it must finish before the server can be stopped.
            with contextlib.suppress(Exception):
                await starting
            await server.stop()
            raise
        return server

    def url_for(self, database: str) -> str:
        """The URL of another database of this server, with the password."""
        password = quote(self._directory.password, safe="")
        name = quote(database, safe="")
        if self._tcp:
            return f"postgresql://postgres:{password}@127.0.0.1:{self._port}/{name}"
        return f"postgresql://postgres:{password}@/{name}?host={self._alias or self.data_dir}&port={self._port}"

    async def stop(self) -> None:
        """Detaches from the server; its last user stops it. A second call does nothing.

        Raises:
            DatabaseUnavailableError: The server could not be stopped.
        """
        await asyncio.to_thread(self._stop)

    async def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Restarts the server on the same port, for all its users.

        Args:
            mode: `fast` shuts the server down first; `immediate` is a crash.

        Raises:
            DatabaseUnavailableError: The server does not start again, or this object was stopped.
        """
        await asyncio.to_thread(self._restart, mode)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # The methods below block and run in a thread.

    def _start(self) -> None:
        try:
            self._directory = directory = DataDirectory(self._wanted_dir)
            self.data_dir, self.bin_dir, self.version = directory.path, directory.bin_dir, directory.version
            self._log = directory.control / "server.log"
            with directory.locked():
                directory.initialise_if_new(durable=self._durable)
                users_lock = directory.open_control("users", os.O_RDWR | os.O_CREAT)
                try:
                    fcntl.flock(users_lock, fcntl.LOCK_SH)
                    self._port = self._running_port() or self._launch()
                    self._find_socket()
                except BaseException:
                    os.close(users_lock)
                    raise
                self._users_lock = users_lock
        except OSError as error:
            raise ConfigurationError(f"the embedded Postgres cannot be started: {error}") from error
        self.url = self.url_for("postgres")
        atexit.register(self._stop)

    def _find_socket(self) -> None:
        if self._tcp:
            if not self._read_pid_file().listens_on_tcp:
                raise ConfigurationError(
                    f"the server on {self.data_dir} runs without TCP: stop the processes that use it, or start it "
                    "without tcp=True"
                )
            return
        path = str(self.data_dir / f".s.PGSQL.{self._port}")
        if len(os.fsencode(path)) > _MOST_SOCKET_PATH_BYTES or not _PLAIN_PATH.fullmatch(path):
            # Too long for the address of a socket, or with characters that a URL or a list of hosts gives a meaning.
            self._alias = Path(tempfile.mkdtemp(prefix="session-lifecycle-")) / "data"
            self._alias.symlink_to(self.data_dir)

    def _stop(self) -> None:
        with self._stopping:
            atexit.unregister(self._stop)
            users_lock, self._users_lock = self._users_lock, None
            if users_lock is None or self._pid != os.getpid():  # a forked copy is not a user of the server
                return
            if self._alias is not None:
                shutil.rmtree(self._alias.parent, ignore_errors=True)
            try:
                with self._directory.locked():
                    try:
                        fcntl.flock(users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return
                    if self._running() and self._pg_ctl("stop", "-m", "fast") and self._running():
                        self._pg_ctl("stop", "-m", "immediate")
            except FileNotFoundError:
                return  # the directory was removed: PostgreSQL notices that within a minute and ends
            except OSError as error:
                raise DatabaseUnavailableError(f"the server on {self.data_dir} was not stopped: {error}") from error
            finally:
                fcntl.flock(users_lock, fcntl.LOCK_UN)
                os.close(users_lock)

    def _restart(self, mode: str) -> None:
        with self._directory.locked():
            if self._users_lock is None:
                raise DatabaseUnavailableError("this server was stopped: start a new one")
            # Without options of its own, pg_ctl takes those of the last start, and with them the port.
            if self._pg_ctl("restart", "-m", mode) != 0:
                raise DatabaseUnavailableError(f"the server did not restart; its log ends with\n{self._log_tail()}")

    def _launch(self) -> int:
        """Starts the server and returns its port. Tries again if another program takes a free TCP port first."""
        if self._log.exists():
            self._log.replace(self._log.with_name("server.log.1"))
        for attempt in range(_START_ATTEMPTS):
            port = _free_port() if self._tcp else SOCKET_PORT
            # pg_ctl hands its options to a shell, so they contain no path; PGDATA names the directory. The server works
            # in its data directory: the path of the socket is relative, so it can be neither too long nor misread.
            options = f"-p {port} -c listen_addresses={'127.0.0.1' if self._tcp else chr(39) * 2} "
            options += "-c unix_socket_directories=. -c unix_socket_permissions=0700 "
            options += f"-c max_connections={MAX_CONNECTIONS} {'' if self._durable else _NOT_DURABLE}"
            # A killed server leaves the lock of its socket behind, and PostgreSQL believes it while any process has
            # that pid, a zombie too. `postmaster.pid` alone keeps two servers from one directory.
            for lock in self.data_dir.glob(".s.PGSQL.*.lock"):
                lock.unlink(missing_ok=True)
            if self._pg_ctl("start", "-o", options) == 0:
                return port
            # Another server may have come up: a process that is killed while it starts one leaves its pg_ctl running.
            if other := self._running_port():
                return other
            time.sleep(0.1 * (attempt + 1))  # the backends of a killed server may need a moment to end
        raise DatabaseUnavailableError(
            f"PostgreSQL {self.version} did not start on {self.data_dir}; its log ends with\n{self._log_tail()}"
        )

    def _running_port(self) -> int | None:
        """Waits until a running server is ready and returns its port; None when no server runs, or it ends."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while running := self._running():
            if running.status == "ready" and running.port:
                return running.port
            if time.monotonic() > deadline:
                raise DatabaseUnavailableError(f"the server on {self.data_dir} is {running.status or 'stuck'}")
            time.sleep(0.05)
        return None

    def _running(self) -> _Running | None:
        """Reads postmaster.pid; None when it is absent or no longer true."""
        pid_file = self.data_dir / "postmaster.pid"
        try:
            running = self._read_pid_file()
            os.kill(running.pid, 0)
        except PermissionError:
            return None  # the process belongs to another user
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        if _works_in(running.pid, self.data_dir):
            return running
        # Another process has the pid of the dead server, and its pid file would keep PostgreSQL from starting for ever.
        pid_file.unlink(missing_ok=True)
        return None

    def _read_pid_file(self) -> _Running:
        # https://www.postgresql.org/docs/current/storage-file-layout.html says what the file has in its lines.
        lines = [line.strip() for line in (self.data_dir / "postmaster.pid").read_text().splitlines()] + [""] * 8
        return _Running(int(lines[0]), int(lines[3] or 0) or None, listens_on_tcp=bool(lines[5]), status=lines[7])

    def _pg_ctl(self, action: str, *options: str) -> int:
        """Runs pg_ctl and returns its exit code."""
        # The server inherits the output of pg_ctl. A pipe would stay open as long as the server runs, so it is a file.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(self._directory.open_control(self._log.name, flags), "ab") as log:
            command: list[Path | str] = [self.bin_dir / "pg_ctl", action, "-w", "-t", str(_PATIENCE_SECONDS), *options]
            account, data_dir = self._directory.account, str(self.data_dir)
            return run_program(command, account, output=log.fileno(), PGDATA=data_dir).returncode

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def _works_in(pid: int, directory: Path) -> bool:
    """Whether a live process is the server of this data directory, which is the server's working directory."""
    process = Path("/proc") / str(pid)
    if not process.is_dir():
        return not Path("/proc/self").exists()  # without /proc, as on macOS, the pid is the only evidence
    try:
        return (process / "cwd").samefile(directory)
    except PermissionError:  # root in a container may lack CAP_SYS_PTRACE
        return b"postgres" in (process / "cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
