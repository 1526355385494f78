"""DataDirectory: where an embedded server keeps its data, with the programs and the user that serve it.

Next to the data directory `<dir>` lies `<dir>.control`, which holds

    lock        locked exclusively while a process starts or stops the server
    users       locked shared by every user of the server; a user who gets it exclusively is the last one
    password    of the superuser `postgres`, readable by its owner only
    server.log  the server's output, and `server.log.1` of the run before

The kernel drops the locks of a process that dies. If that process leaves a server behind, the next process to start
takes it over, and the last process to stop stops it. PostgreSQL refuses to run as root, so root runs it as `postgres`
or `nobody`.

The password is worth something to another user of the machine. So the control directory must belong to the current
user, nobody else may write in it, and no symbolic link in it is followed.
"""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError
from session_lifecycle.postgres.binaries import (
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

if sys.platform != "win32":
    import fcntl
    import pwd

LOCK_PATIENCE_SECONDS = 240


class DataDirectory:
    """A data directory. Making one finds the programs and checks that their user can reach the directory.

    Every method blocks.

    Attributes:
        path: The data directory; symbolic links are resolved.
        control: The control directory next to it.
        bin_dir: The directory of PostgreSQL's programs.
        version: PostgreSQL's major version.
        account: The user that runs the programs; None: the current user.
        password: The password of the superuser `postgres`; empty until `initialise_if_new`.
    """

    def __init__(self, wanted: Path | str | None) -> None:
        """Finds or makes the parent of the data directory.

        Args:
            wanted: The data directory; None: one of this user and PostgreSQL's major version.

        Raises:
            ConfigurationError: There are no programs, or their user cannot reach the directory.
        """
        self.bin_dir = find_binaries()
        self.version = major_version(self.bin_dir)
        directory = (Path(wanted) if wanted else _default_data_dir(self.version)).expanduser()
        if directory.is_symlink() and directory.lstat().st_uid not in {0, os.geteuid()}:
            raise ConfigurationError(f"{directory} is a symbolic link of another user: use another data directory")
        self.path = directory.resolve()
        self.control = self.path.with_name(f"{self.path.name}.control")
        self.account = _unprivileged_account(self.path) if os.geteuid() == 0 else None
        self.password = ""
        make_directory(self.path.parent)
        if self.account:
            _check_reachable(self.path.parent, self.account)
            self.bin_dir = runnable_binaries(self.bin_dir, self.version, self.account)
        if set('"$`\\') & set(str(self.bin_dir)):  # initdb and pg_ctl pass this path to a shell in double quotes
            raise ConfigurationError(f'PostgreSQL cannot run from {self.bin_dir}: the path contains one of " $ ` \\')

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Keeps every other process from starting or stopping the server.

        Raises:
            DatabaseUnavailableError: Another process holds the lock for too long.
        """
        self._make_control()
        descriptor = self.open_control("lock", os.O_RDWR | os.O_CREAT)
        try:
            deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        lock = self.control / "lock"
                        raise DatabaseUnavailableError(f"another process keeps {lock} locked") from None
                    time.sleep(0.01)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not unlock where a fork has a copy
            os.close(descriptor)

    def _make_control(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.control.mkdir(mode=0o700)
        found = self.control.lstat()
        if not stat.S_ISDIR(found.st_mode):
            fault = "is not a directory"
        elif found.st_uid != os.geteuid():
            fault = f"belongs to the user {found.st_uid}"
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            fault = f"has the mode {stat.S_IMODE(found.st_mode):o}, so that others may write in it"
        else:
            if self.account:
                self.control.chmod(0o711)  # the server's user makes a new cluster in here
            return
        raise ConfigurationError(
            f"{self.control} {fault}, expected a directory that only the current user may write in: "
            "remove it if it is not yours, or use another data directory"
        )

    def open_control(self, name: str, flags: int) -> int:
        """Opens a file of the control directory with mode 0600 and returns its descriptor.

        Raises:
            ConfigurationError: The file is not a regular file of the current user, or others may read or write it.
        """
        path = self.control / name
        try:
            # Without O_NONBLOCK a named pipe would keep us waiting for its other end.
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENXIO}:
                raise
            raise ConfigurationError(f"{path} is not a regular file: use another data directory") from error
        found = os.fstat(descriptor)
        is_private = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if is_private and found.st_nlink == 1:
            return descriptor
        os.close(descriptor)
        raise ConfigurationError(
            f"{path} is not a file that only the current user may read and write: use another data directory"
        )

    def initialise_if_new(self, *, durable: bool) -> None:
        """Makes a database cluster if the directory is empty or absent; else checks that this library made the cluster.

        Sets `password`. Call it inside `locked`.

        Args:
            durable: Whether a new cluster is synced to disk.

        Raises:
            ConfigurationError: The directory holds something else, or a cluster of another PostgreSQL version.
            DatabaseUnavailableError: `initdb` failed; the message ends with its output.
        """
        for leftover in self.control.glob("new-*"):  # of an initialisation that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        version_file, password_file = self.path / "PG_VERSION", self.control / "password"
        if version_file.exists():
            found = version_file.read_text().strip()
            if found != str(self.version):
                raise ConfigurationError(
                    f"{self.path} was made by PostgreSQL {found}, and {self.bin_dir} is PostgreSQL {self.version}: "
                    f"set {BINARIES_VARIABLE} to the binaries of PostgreSQL {found}, or use another data directory"
                )
            try:
                descriptor = self.open_control(password_file.name, os.O_RDONLY)
            except FileNotFoundError:
                raise ConfigurationError(
                    f"{self.path} was not made by this library, or {password_file} was lost: use another data directory"
                ) from None
            with os.fdopen(descriptor) as file:
                self.password = file.read()
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigurationError(f"{self.path} is neither empty nor a Postgres data directory: use another one")
        self.password = secrets.token_urlsafe(24)
        # A new file: whatever lies there under this name, or who has it open, is not trusted with the password.
        password_file.unlink(missing_ok=True)
        _write_secret(password_file, self.password)
        self._initialise(durable=durable)

    def _initialise(self, *, durable: bool) -> None:
        # Made elsewhere and moved into place when complete, so that a killed initdb leaves nothing that looks complete.
        aside = Path(tempfile.mkdtemp(prefix="new-", dir=self.control))
        try:
            _write_secret(aside / "password", self.password)
            if self.account:
                os.chown(aside / "password", self.account.uid, self.account.gid)
                os.chown(aside, self.account.uid, self.account.gid)
            options = ["--auth=scram-sha-256", f"--pwfile={aside / 'password'}", "--encoding=UTF8", "--locale=C"]
            options += ["-U", "postgres", "-D", str(aside / "data"), *([] if durable else ["--no-sync"])]
            made = run_program([self.bin_dir / "initdb", *options], self.account)
            if made.returncode != 0:
                raise DatabaseUnavailableError(f"initdb could not make {self.path}:\n{made.stdout.strip()}")
            (aside / "data").rename(self.path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _default_data_dir(major: int) -> Path:
    if os.geteuid() == 0:
        return HOME_OF_ROOT / f"embedded-{major}"
    try:
        import platformdirs
    except ModuleNotFoundError as error:
        if error.name != "platformdirs":
            raise
        raise ConfigurationError(
            f"the default data directory needs an extra: run `{INSTALL_EXTRA}`, or name a data directory"
        ) from error
    return platformdirs.user_data_path("session-lifecycle") / f"embedded-{major}"


def _unprivileged_account(data_dir: Path) -> Account:
    """The owner of the data directory, else the system's `postgres` or `nobody`."""
    if (data_dir / "PG_VERSION").exists() and (owner := data_dir.stat()).st_uid != 0:
        return Account(f"user {owner.st_uid}", owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(name, user.pw_uid, user.pw_gid)
    raise ConfigurationError("PostgreSQL does not run as root, and this machine has no user `postgres` or `nobody`")


def _check_reachable(directory: Path, account: Account) -> None:
    for place in [*reversed(directory.parents), directory]:
        if run_program(["test", "-x", place], account).returncode != 0:
            raise ConfigurationError(
                f"PostgreSQL does not run as root but as {account.name}, who cannot enter {place}: choose a data "
                f"directory elsewhere (the default is under {HOME_OF_ROOT}), or allow it with `chmod o+x {place}`"
            )


def _write_secret(path: Path, text: str) -> None:
    # Made with its final mode, so that others can read the file at no time.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
