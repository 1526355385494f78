"""A pgbouncer in front of the tests' server."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from session_lifecycle.testing import TemplateServer

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PGBOUNCER_SETTINGS = """
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = 5
max_client_conn = 200
"""


@pytest.fixture(scope="module")
def pgbouncer(session_template_server: TemplateServer) -> Iterator[Callable[[str], str]]:
    """A pgbouncer in transaction mode in front of the tests' server; maps a database's URL to the URL through it."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    server = urlsplit(session_template_server.url_of("postgres"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # pgbouncer refuses to run as root, so another user reads the folder
        (folder / "users.txt").write_text(f'"{server.username}" "{server.password or ""}"\n')
        (folder / "pgbouncer.ini").write_text(
            PGBOUNCER_SETTINGS.format(host=server.hostname, server_port=server.port, port=port, folder=folder)
        )
        other_user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with subprocess.Popen([PGBOUNCER, "--quiet", *other_user, str(folder / "pgbouncer.ini")]) as process:
            try:
                _wait_until_it_listens(process, port)
                yield lambda url: url.replace(f":{server.port}/", f":{port}/")
            finally:
                process.terminate()


def _wait_until_it_listens(process: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "pgbouncer did not start"
            assert time.monotonic() < until, "pgbouncer does not listen"
            time.sleep(0.02)
        else:
            return
