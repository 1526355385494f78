"""The command line on an embedded server, which it starts and stops."""

import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path

from support.command_line import EVENTS, assert_agree, connected, until
from support.commands import running, succeed, without_database

OF_REPLAY = f"{EVENTS} WHERE session_id LIKE 'conv-%'"
# Root's own server has a fixed place on the machine; this moves it, as HOME moves other users' servers.
WITH_ANOTHER_HOME_OF_ROOT = """
import sys
from pathlib import Path
from session_lifecycle.postgres import data_directory
from session_lifecycle.cli import main
data_directory.HOME_OF_ROOT = Path(sys.argv.pop(1))
main()
"""


def servers_in(data_dir: Path) -> list[str]:
    """The processes that work in a data directory; without /proc, the process in the server's pid file."""
    if not Path("/proc/self").exists():
        return [path.name for path in data_dir.glob("postmaster.pid")]
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found += [process.name] if (process / "cwd").resolve() == data_dir else []
    return found


async def url_of_server_in(data_dir: Path) -> str:
    """The URL of the server in this directory, once the server is ready."""
    async with asyncio.timeout(30):
        while True:
            with suppress(FileNotFoundError):
                said = (data_dir / "postmaster.pid").read_text().splitlines()
                if said[7:] and said[7].strip() == "ready":
                    password = (data_dir.with_name(f"{data_dir.name}.control") / "password").read_text()
                    return f"postgresql://postgres:{password}@/postgres?host={data_dir}&port={said[3]}"
            await asyncio.sleep(0.01)


def data_dir_in(home: Path) -> Path:
    [version] = home.glob("**/embedded-*/PG_VERSION")
    return version.parent


async def test_embedded_it_brings_its_own_postgres_and_takes_it_away(
    home: Path, requests: tuple[str, dict[str, int]]
) -> None:
    program = (sys.executable, "-c", WITH_ANOTHER_HOME_OF_ROOT, str(home))
    assert_agree(succeed("demo", "--embedded", program=program, HOME=str(home), XDG_DATA_HOME=str(home)))
    data_dir = data_dir_in(home)
    assert servers_in(data_dir) == []

    # The named directory keeps the data for further runs; a signal ends the server as well.
    for ending, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with running("replay", requests[0], "--data-dir", str(data_dir), "--speed", "1") as process:
            async with connected(await url_of_server_in(data_dir)) as connection:
                await until(connection, OF_REPLAY, lambda counted: counted > 0)
            assert servers_in(data_dir) != []
            process.send_signal(ending)
            _, said = process.communicate(timeout=30)
            assert (process.returncode, without_database(said)) == (code, "")
        assert servers_in(data_dir) == []
