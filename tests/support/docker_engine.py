"""A Docker engine for one test, in its own network namespace, with an image of this machine's PostgreSQL.

For machines without a running engine. It needs root, Linux and Debian's docker.io and iproute2, and no registry.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from session_lifecycle.postgres.binaries import find_binaries

IMAGE = "session-lifecycle-postgres"
POSTGRES_UID = 70
STARTS_WITHIN_SECONDS = 60
PROGRAMS = ("bash", "sh", "cat", "id")
# Does with these three variables what the official image does, and no more.
ENTRYPOINT = """#!/bin/bash
set -euo pipefail
printf %s "$POSTGRES_PASSWORD" > /tmp/password
initdb --no-sync --no-locale --encoding=UTF8 --auth=scram-sha-256 --pwfile=/tmp/password -U "$POSTGRES_USER" > /dev/null
echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
echo "CREATE DATABASE \\"$POSTGRES_DB\\"" | postgres --single -j postgres > /dev/null
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off -c max_connections=200
"""


class Engine(NamedTuple):
    """How programs reach the engine: the prefix of their command and their environment."""

    prefix: tuple[str, ...]
    environment: dict[str, str]

    def run(
        self, *command: str, stdin: bytes | None = None, quiet: bool = False
    ) -> "subprocess.CompletedProcess[bytes]":
        """Runs a program that reaches the engine; `quiet` keeps its output from the terminal."""
        output = subprocess.PIPE if quiet else None
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            [*self.prefix, *command], env=environment, check=True, input=stdin, stdout=output, stderr=output
        )


def what_is_missing() -> str | None:
    """The reason why no engine can be started here; None when one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can start a Docker engine of its own"
    absent = [program for program in ("dockerd", "ip", "nsenter") if shutil.which(program) is None]
    return f"{', '.join(absent)} not installed (Debian: apt-get install docker.io iproute2)" if absent else None


@contextmanager
def running_engine() -> Generator[Engine]:
    """An engine that has `IMAGE`; the block removes it without a trace."""
    namespace = f"session-lifecycle-{os.getpid()}"
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "delete", namespace], check=True)
        socket = f"unix://{folder}/docker.sock"
        engine = Engine(
            ("nsenter", f"--net=/run/netns/{namespace}"),
            {
                "DOCKER_HOST": socket,
                "TESTCONTAINERS_RYUK_DISABLED": "true",
                "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
                "TESTCONTAINERS_CONNECTION_MODE": "docker_host",
                "TC_MAX_TRIES": "30",
            },
        )
        engine.run("ip", "link", "set", "lo", "up")
        options = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
        log = stack.enter_context((Path(folder) / "log").open("w+b"))
        daemon = subprocess.Popen(
            [*engine.prefix, "dockerd", *options, "-H", socket, "--storage-driver", "overlay2", "--ip", "127.0.0.1"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stack.callback(_stop, daemon)
        _wait_until_it_answers(engine, daemon, Path(log.name))
        _import_image(engine)
        yield engine


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _wait_until_it_answers(engine: Engine, daemon: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN_SECONDS
    while True:
        try:
            engine.run("docker", "version", quiet=True)
        except subprocess.CalledProcessError:
            if daemon.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the Docker engine did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)
        else:
            return


def _import_image(engine: Engine) -> None:
    binaries = find_binaries()
    changes = [
        'ENTRYPOINT ["/entrypoint"]',
        "USER postgres",
        f"ENV PATH={binaries}:/bin PGDATA=/var/lib/postgresql/data",
    ]
    options = [option for change in changes for option in ("--change", change)]
    engine.run("docker", "import", *options, "-", IMAGE, stdin=_file_system(binaries), quiet=True)


def _file_system(binaries: Path) -> bytes:
    """PostgreSQL at the same paths as here, the few programs that its start needs, and the libraries of both."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
        # Debian keeps architecture-independent files outside the installation.
        shared = Path("/usr/share/postgresql") / binaries.parent.name
        trees = [binaries.parent, *([shared] if shared.is_dir() else []), Path("/usr/share/zoneinfo")]
        for tree in trees:
            if tree.is_dir():
                tar.add(tree, filter=_without_compiler)
        programs = {name: Path(found) for name in PROGRAMS if (found := shutil.which(name))}
        for name, program in programs.items():
            tar.add(program, f"bin/{name}")
        for library in sorted(_libraries([*programs.values(), *binaries.iterdir()])):
            tar.add(library)
        for name, mode in (("tmp", 0o1777), ("var/lib/postgresql", 0o700)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, POSTGRES_UID, POSTGRES_UID
            tar.addfile(entry)
        for name, content in (
            ("etc/passwd", f"root:x:0:0::/:/bin/sh\npostgres:x:{POSTGRES_UID}:{POSTGRES_UID}::/tmp:/bin/sh\n"),
            ("etc/group", f"root:x:0:\npostgres:x:{POSTGRES_UID}:\n"),
            ("entrypoint", ENTRYPOINT),
        ):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return packed.getvalue()


def _without_compiler(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "bitcode" in entry.name or "llvmjit" in entry.name else entry


def _libraries(programs: list[Path]) -> set[Path]:
    libraries: set[Path] = set()
    for program in programs:
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
        libraries |= {Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}
    return libraries
