"""The directory of a spool: where it is, who may use it, and its locks.

This module imports the standard library only: see `spool`.
"""

import errno
import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from session_lifecycle.errors import ConfigurationError, SpoolError

if sys.platform != "win32":
    import fcntl


def default_path() -> Path:
    """The directory of a spool for which none is named. It may begin with `~`."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # the specification has relative paths ignored
        state = Path("~/.local/state")
    return state / "session-lifecycle" / "spool"


def exists(path: Path) -> bool:
    """Whether there is anything of this name, a dangling link included."""
    return os.path.lexists(path)


def make(path: Path) -> None:
    """Makes the directory with the mode 0700, or checks the one that is there.

    Raises:
        ConfigurationError: It is not a directory of the current user, or others may enter it.
    """
    if not exists(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(0o700)
        sync(path.parent)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        fault = "is not a directory"
    elif sys.platform != "win32" and found.st_uid != os.geteuid():
        fault = f"belongs to the user {found.st_uid}"
    elif sys.platform != "win32" and found.st_mode & 0o077:
        fault = f"has the mode {stat.S_IMODE(found.st_mode):o}"
    else:
        return
    raise ConfigurationError(f"{path} {fault}, expected a directory of the current user with the mode 700")


def check_file(path: Path) -> None:
    """Raises ConfigurationError where the file is not a regular one that only the current user may use."""
    # Never opened here: closing any descriptor of SQLite's file drops the locks that this process has on it.
    found = path.lstat()
    is_private = sys.platform == "win32" or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)
    if not (stat.S_ISREG(found.st_mode) and is_private and found.st_nlink == 1):
        raise ConfigurationError(
            f"{path} is not a file that only the current user may read and write: use another directory"
        )


def locked(directory: Path, name: str, *, within_seconds: float = 0.0) -> int | None:
    """Locks a file of the directory. Returns its descriptor, which holds the lock; None where others have it."""
    make(directory)
    path = directory / name
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise SpoolError(f"{path} cannot be opened: {error}") from error
        raise ConfigurationError(f"{path} is not a regular file: use another directory") from error
    try:
        check_file(path)
        deadline = time.monotonic() + within_seconds
        while sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return None
            time.sleep(0.01)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync(path: Path) -> None:
    """Syncs the entries of the directory to the disk, so that a new file survives a power failure."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
