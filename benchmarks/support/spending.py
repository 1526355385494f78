"""What a server spends, in units that do not depend on what else the machine does. Needs Linux."""

import os
from pathlib import Path
from typing import NamedTuple

from session_lifecycle.postgres.embedded import EmbeddedPostgres

TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """The CPU seconds of a process, and those of its children that have ended."""

    parent: int
    seconds: float
    of_ended_children: float


def processes() -> dict[int, Process]:
    """The processes of this machine by their ids."""
    found: dict[int, Process] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        user, system, user_of_children, system_of_children = map(int, values[11:15])
        found[int(stat.parent.name)] = Process(
            int(values[1]), (user + system) / TICKS, (user_of_children + system_of_children) / TICKS
        )
    return found


def main_process(server: EmbeddedPostgres) -> int:
    """The id of the process that started all others of the server."""
    return int((server.data_dir / "postmaster.pid").read_text().split()[0])


def server_seconds(server: EmbeddedPostgres) -> float:
    """The CPU time of all processes of the server. Those that have ended count."""
    found, main = processes(), main_process(server)
    running = sum(one.seconds for number, one in found.items() if main in {number, one.parent})
    return running + found[main].of_ended_children


def replay_seconds(server: EmbeddedPostgres) -> float:
    """The CPU time that the server spent on replaying WAL as it started. Ask as soon as it is up.

    The process that replayed is the one child that has ended.
    """
    return processes()[main_process(server)].of_ended_children
