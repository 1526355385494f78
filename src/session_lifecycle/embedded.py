"""A Postgres server of our own, for whoever has none: found or installed binaries, one data directory per user.

Beside the data directory `<dir>` lies `<dir>.control`, which holds

    lock        locked exclusively for as long as somebody starts or stops the server
    users       locked shared by everyone who uses the server; who gets it exclusively was the last one
    password    of the superuser `postgres`, readable by its owner only
    server.log  what the server says, and `server.log.1` of the run before

The kernel drops the locks of a process that dies, so a server left behind by one is taken over by the next to start,
and stopped by the last to stop. PostgreSQL refuses to run as root; there it runs as `postgres` or `nobody`.
"""

import asyncio
import atexit
import contextlib
import os
import secrets
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

from session_lifecycle.binaries import (
    BINARIES_VARIABLE,
    HOME_OF_ROOT,
    INSTALL_EXTRA,
    Account,
    find_binaries,
    major_version,
    make_directory,
    run_program,
    runnable_binaries,
)
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError

if sys.platform != "win32":
    import fcntl
    import pwd

MAX_CONNECTIONS = 200

_PATIENCE_SECONDS = 120
_START_ATTEMPTS = 5
_NOT_DURABLE = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"


class _Running(NamedTuple):
    pid: int
    port: int | None
    status: str


@contextlib.contextmanager
def temporary_data_dir(parent: Path | None = None) -> Generator[Path]:
    """A data directory for a server that is thrown away with it; stop the server before leaving.

    Args:
        parent: The folder it is made in; by default where temporary files go.
    """
    with tempfile.TemporaryDirectory(prefix="session-lifecycle-", dir=parent, ignore_cleanup_errors=True) as folder:
        # The server of root is another user's, who must be able to walk to its data.
        Path(folder).chmod(0o711)
        yield Path(folder) / "data"


class EmbeddedPostgres:
    """A Postgres server of our own, shared by the processes of one user on one data directory.

    Example:
        ```python
        async with await EmbeddedPostgres.start() as server:
            connection = await asyncpg.connect(server.url)
        ```

    Attributes:
        url: Of the database `postgres`, with the password.
        data_dir: Where the data is; symbolic links are resolved.
        bin_dir: Where the server's programs are.
        version: The server's major version.
    """

    url: str
    data_dir: Path
    bin_dir: Path
    version: int

    def __init__(self, data_dir: Path | str | None, *, durable: bool) -> None:
        """Only remembers; `start` is the way in."""
        self._wanted_dir = data_dir
        self._durable = durable
        self._account: Account | None = None
        self._password = ""
        self._port = 0
        self._users_lock: int | None = None
        self._pid = os.getpid()
        self._stopping = threading.Lock()

    @classmethod
    async def start(cls, data_dir: Path | str | None = None, *, durable: bool = True) -> Self:
        """Start the server, or attach to the one that already runs on this data directory.

        Args:
            data_dir: Made if it is not there. By default one of this user and PostgreSQL's major version.
            durable: False trades safety against a crash of the machine for speed, for tests. Whoever starts the server
                decides; those who attach take what runs.

        Raises:
            ConfigurationError: No binaries, a data directory of another version or one that cannot be used.
            DatabaseUnavailableError: The server does not come up; the message ends with its log.
        """
        if sys.platform == "win32":
            raise ConfigurationError("the embedded Postgres does not run on Windows: give a database URL")
        server = cls(data_dir, durable=durable)
        starting = asyncio.ensure_future(asyncio.to_thread(server._start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be interrupted: let it finish, so that it leaves no server behind.
            with contextlib.suppress(Exception):
                await starting
            await server.stop()
            raise
        return server

    def url_for(self, database: str) -> str:
        """The URL of another database of this server."""
        return (
            f"postgresql://postgres:{quote(self._password, safe='')}@127.0.0.1:{self._port}/{quote(database, safe='')}"
        )

    async def stop(self) -> None:
        """Let go of the server; the last one to do so stops it. Doing it again does nothing."""
        await asyncio.to_thread(self._stop)

    async def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start the server on the same port, for everybody who uses it; `immediate` is a crash.

        Raises:
            DatabaseUnavailableError: It does not come up again, or this object was stopped.
        """
        await asyncio.to_thread(self._restart, mode)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # Everything below blocks, and runs in a thread.

    def _start(self) -> None:
        try:
            self._locate()
            with self._locked():
                self._initialise_if_new()
                users_lock = os.open(self._control / "users", os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(users_lock, fcntl.LOCK_SH)
                    self._port = self._running_port() or self._launch()
                except BaseException:
                    os.close(users_lock)
                    raise
                self._users_lock = users_lock
        except OSError as error:
            raise ConfigurationError(f"the embedded Postgres cannot be started: {error}") from error
        self.url = self.url_for("postgres")
        atexit.register(self._stop)

    def _stop(self) -> None:
        with self._stopping:
            atexit.unregister(self._stop)
            users_lock, self._users_lock = self._users_lock, None
            if users_lock is None or self._pid != os.getpid():  # a fork's copy is not a user of its own
                return
            try:
                with self._locked():
                    try:
                        fcntl.flock(users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return
                    if self._running() and self._pg_ctl("stop", "-m", "fast") and self._running():
                        self._pg_ctl("stop", "-m", "immediate")
            except FileNotFoundError:
                return  # somebody removed the directory, which PostgreSQL notices within a minute and ends
            except OSError as error:
                raise DatabaseUnavailableError(f"the server on {self.data_dir} was not stopped: {error}") from error
            finally:
                fcntl.flock(users_lock, fcntl.LOCK_UN)
                os.close(users_lock)

    def _restart(self, mode: str) -> None:
        with self._locked():
            if self._users_lock is None:
                raise DatabaseUnavailableError("this server was stopped: start a new one")
            # Without options of its own pg_ctl takes those of the last start, and with them the port.
            if self._pg_ctl("restart", "-m", mode) != 0:
                raise DatabaseUnavailableError(f"the server did not restart; its log ends with\n{self._log_tail()}")

    def _locate(self) -> None:
        self.bin_dir = find_binaries()
        self.version = major_version(self.bin_dir)
        directory = Path(self._wanted_dir) if self._wanted_dir else _default_data_dir(self.version)
        self.data_dir = directory.expanduser().resolve()
        self._control = self.data_dir.with_name(f"{self.data_dir.name}.control")
        self._log = self._control / "server.log"
        self._account = _unprivileged_account(self.data_dir) if os.geteuid() == 0 else None
        make_directory(self.data_dir.parent)
        if self._account:
            _check_reachable(self.data_dir.parent, self._account)
            self.bin_dir = runnable_binaries(self.bin_dir, self.version, self._account)
        if set('"$`\\') & set(str(self.bin_dir)):  # initdb and pg_ctl hand this path to a shell, in double quotes only
            raise ConfigurationError(f'PostgreSQL cannot run from {self.bin_dir}: the path has one of " $ ` \\ in it')

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """Nobody else starts or stops this server meanwhile."""
        if not self._control.is_dir():
            self._control.mkdir(mode=0o700, exist_ok=True)
            if self._account:
                self._control.chmod(0o711)  # a new cluster is made in here by the server's user
        descriptor = os.open(self._control / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + 2 * _PATIENCE_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DatabaseUnavailableError(
                            f"another process keeps {self._control / 'lock'} locked"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a fork has a copy
            os.close(descriptor)

    def _initialise_if_new(self) -> None:
        for leftover in self._control.glob("new-*"):  # of an initialisation that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        version_file, password_file = self.data_dir / "PG_VERSION", self._control / "password"
        if version_file.exists():
            found = version_file.read_text().strip()
            if found != str(self.version):
                raise ConfigurationError(
                    f"{self.data_dir} was made by PostgreSQL {found}, and {self.bin_dir} is PostgreSQL {self.version}: "
                    f"set {BINARIES_VARIABLE} to the binaries of PostgreSQL {found}, or use another data directory"
                )
            if not password_file.exists():
                raise ConfigurationError(f"{self.data_dir} was not made by this library, or {password_file} was lost")
            self._password = password_file.read_text()
            return
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise ConfigurationError(f"{self.data_dir} is neither empty nor a Postgres data directory: use another one")
        self._password = secrets.token_urlsafe(24)
        _write_secret(password_file, self._password)
        self._initialise()

    def _initialise(self) -> None:
        # Made aside and moved into place when it is whole: a killed initdb leaves nothing that looks finished.
        aside = Path(tempfile.mkdtemp(prefix="new-", dir=self._control))
        try:
            _write_secret(aside / "password", self._password)
            if self._account:
                os.chown(aside / "password", self._account.uid, self._account.gid)
                os.chown(aside, self._account.uid, self._account.gid)
            options = ["--auth=scram-sha-256", f"--pwfile={aside / 'password'}", "--encoding=UTF8", "--locale=C"]
            options += ["-U", "postgres", "-D", str(aside / "data")]
            made = run_program(
                [self.bin_dir / "initdb", *options, *([] if self._durable else ["--no-sync"])], self._account
            )
            if made.returncode != 0:
                raise DatabaseUnavailableError(f"initdb could not make {self.data_dir}:\n{made.stdout.strip()}")
            (aside / "data").rename(self.data_dir)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _launch(self) -> int:
        """Start the server on a free port, and again if another program took the port meanwhile."""
        if self._log.exists():
            self._log.replace(self._log.with_name("server.log.1"))
        for attempt in range(_START_ATTEMPTS):
            port = _free_port()
            # pg_ctl hands its options to a shell, so there is no path among them; the directory travels in PGDATA.
            options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' "
            options += f"-c max_connections={MAX_CONNECTIONS} {'' if self._durable else _NOT_DURABLE}"
            if self._pg_ctl("start", "-o", options) == 0:
                return port
            # Another one may have come up: a killed process leaves a pg_ctl behind that goes on.
            if other := self._running_port():
                return other
            time.sleep(0.1 * (attempt + 1))  # the backends of a killed server may need a moment to go
        raise DatabaseUnavailableError(
            f"PostgreSQL {self.version} did not start on {self.data_dir}; its log ends with\n{self._log_tail()}"
        )

    def _running_port(self) -> int | None:
        """The port of the server that runs already, once it is ready; None when there is none, or no longer."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while running := self._running():
            if running.status == "ready" and running.port:
                return running.port
            if time.monotonic() > deadline:
                raise DatabaseUnavailableError(f"the server on {self.data_dir} is {running.status or 'stuck'}")
            time.sleep(0.05)
        return None

    def _running(self) -> _Running | None:
        """What postmaster.pid says, if it is true."""
        pid_file = self.data_dir / "postmaster.pid"
        try:
            lines = [line.strip() for line in pid_file.read_text().splitlines()] + [""] * 8
            running = _Running(pid=int(lines[0]), port=int(lines[3] or 0) or None, status=lines[7])
            os.kill(running.pid, 0)
        except PermissionError:
            return None  # somebody else's process
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        if _works_in(running.pid, self.data_dir):
            return running
        # The number was given to another process, which would keep PostgreSQL from starting for ever.
        pid_file.unlink(missing_ok=True)
        return None

    def _pg_ctl(self, action: str, *options: str) -> int:
        # The server inherits its output from pg_ctl: a file, as a pipe would never be closed.
        with self._log.open("ab") as log:
            self._log.chmod(0o600)
            command: list[Path | str] = [self.bin_dir / "pg_ctl", action, "-w", "-t", str(_PATIENCE_SECONDS), *options]
            return run_program(command, self._account, output=log.fileno(), PGDATA=str(self.data_dir)).returncode

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def _default_data_dir(major: int) -> Path:
    if os.geteuid() == 0:
        return HOME_OF_ROOT / f"embedded-{major}"
    try:
        import platformdirs
    except ModuleNotFoundError as error:
        if error.name != "platformdirs":
            raise
        raise ConfigurationError(
            f"the default data directory needs an extra: {INSTALL_EXTRA}, or name a directory"
        ) from error
    return platformdirs.user_data_path("session-lifecycle") / f"embedded-{major}"


def _unprivileged_account(data_dir: Path) -> Account:
    """Whose data directory it is, else the system's `postgres` or `nobody`."""
    if (data_dir / "PG_VERSION").exists() and (owner := data_dir.stat()).st_uid != 0:
        return Account(f"user {owner.st_uid}", owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(name, user.pw_uid, user.pw_gid)
    raise ConfigurationError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")


def _check_reachable(directory: Path, account: Account) -> None:
    for place in [*reversed(directory.parents), directory]:
        if run_program(["test", "-x", place], account).returncode != 0:
            raise ConfigurationError(
                f"PostgreSQL does not run as root but as {account.name}, who cannot enter {place}: choose a data "
                f"directory elsewhere (the default is under {HOME_OF_ROOT}), or allow it with `chmod o+x {place}`"
            )


def _works_in(pid: int, directory: Path) -> bool:
    """Whether a live process is the server of this data directory, which is then its working directory."""
    process = Path("/proc") / str(pid)
    if not process.is_dir():
        return not Path("/proc/self").exists()  # without /proc, as on macOS, its number has to do
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


def _write_secret(path: Path, text: str) -> None:
    # Never readable by others, not even between creating and restricting it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
