"""The pure part of `scale.py`: from what one item costs to servers, buckets and latencies. It needs no database."""

import heapq
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from random import Random
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from session_lifecycle.buckets.places import hashed

ITEM_TABLES = ("session_usage_events", "session_runs", "session_steps", "session_messages")
"""The tables that grow with the items; all others grow with the sessions."""
DAY_SECONDS = 86_400


class Figures(BaseModel):
    """Measured figures, which a file keeps as JSON."""

    model_config = ConfigDict(frozen=True)


class Cost(Figures):
    """What an item or a session costs. The seconds are CPU time, of all processes of the server, and of the caller."""

    server_seconds: float
    client_seconds: float
    wal_bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        """The cost of both."""
        return Cost(
            server_seconds=self.server_seconds + other.server_seconds,
            client_seconds=self.client_seconds + other.client_seconds,
            wal_bytes=self.wal_bytes + other.wal_bytes,
        )

    def times(self, number: float) -> "Cost":
        """The cost of so many."""
        return Cost(
            server_seconds=self.server_seconds * number,
            client_seconds=self.client_seconds * number,
            wal_bytes=self.wal_bytes * number,
        )


class Line(Figures):
    """One way to write: how many items a transaction had, and what an item cost."""

    name: str
    batch: float
    cost: Cost


class Stored(Figures):
    """A table, with its TOAST table, and its indexes."""

    rows: int
    table_bytes: int
    index_bytes: int


class Kind(Figures):
    """What one kind of items costs.

    Attributes:
        name: The kind.
        items: How many items there were when the sizes and the jobs were measured.
        sessions: How many sessions these items were of.
        lines: The ways to write, by the size of their batches.
        image_bytes: WAL that the first write of a session after a checkpoint adds by images of whole pages.
        replay_seconds: CPU time that a replica's one process needs to replay an item.
        tables: The tables by name, after the roll-up.
        roll_up: The cost of `roll_up`, a session.
        prune: The cost of `prune_sessions` and of the vacuum after it, an item.
        vacuum: The cost of a vacuum of what was written, an item.
    """

    name: str
    items: int
    sessions: int
    lines: Sequence[Line]
    image_bytes: float
    replay_seconds: float
    tables: Mapping[str, Stored]
    roll_up: Cost
    prune: Cost
    vacuum: Cost

    @property
    def ledger_rows_of_item(self) -> float:
        """How many rows of the ledger an item makes."""
        return self.tables["session_usage_events"].rows / self.items


class Stages(Figures):
    """CPU seconds of the three processes that a moved row goes through. They work at the same time."""

    old_seconds: float
    client_seconds: float
    new_seconds: float

    @property
    def slowest(self) -> float:
        """The seconds of the process that the others wait for."""
        return max(self.old_seconds, self.client_seconds, self.new_seconds)


class Move(Figures):
    """What moving a bucket costs: copying a byte of tables and indexes, and carrying over a change noted meanwhile."""

    a_byte: Stages
    a_change: Stages
    changes_of_item: float


class Measured(Figures):
    """All that one run measured, and the machine it was measured on."""

    machine: str
    kinds: Sequence[Kind]
    move: Move


@dataclass(frozen=True)
class Workload:
    """The demand on the servers: writes, rows and users.

    Attributes:
        writes_per_second: Items a second, all day long.
        ledger_rows: Rows of the ledger that are kept. As many are pruned as are written.
        users: The users.
        buckets: The buckets.
        exponent: The user of rank r writes in proportion to r to the power of minus this. 0: all users are equal.
        items_of_session: The items of a session in its whole life.
        items_of_session_between_checkpoints: The items that share one image of each page.
        hot_share: The share of the kept rows whose indexes and sessions are in use, and should be in memory.
        seed: Decides the ids of the users, the arrivals and the times of commits.
    """

    writes_per_second: float = 10_000
    ledger_rows: float = 1e9
    users: int = 1_000_000
    buckets: int = 64
    exponent: float = 1.0
    items_of_session: float = 60
    items_of_session_between_checkpoints: float = 20
    hot_share: float = 0.1
    seed: int = 19


@dataclass(frozen=True)
class Server:
    """What one server has, how much of it may be used, and how many replicas follow it."""

    cores: int = 16
    memory_bytes: float = 128e9
    disk_bytes: float = 4e12
    network_bytes_per_second: float = 1.25e9
    utilisation: float = 0.6
    replicas: int = 1


@dataclass(frozen=True)
class Need:
    """What a workload needs of all servers together."""

    cores_by_job: Mapping[str, float]
    client_cores: float
    disk_bytes: float
    memory_bytes: float
    wal_bytes_per_second: float
    replay_cores: float

    @property
    def cores(self) -> float:
        """The busy cores of the servers."""
        return sum(self.cores_by_job.values())


def need(kind: Kind, line: Line, workload: Workload) -> Need:
    """What the workload needs, if all its items are of this kind and are written in this way."""
    rate, kept = workload.writes_per_second, workload.ledger_rows / kind.ledger_rows_of_item
    sessions = kept / workload.items_of_session
    images = kind.image_bytes / workload.items_of_session_between_checkpoints
    jobs = {
        "writing": line.cost,
        "rolling up": kind.roll_up.times(1 / workload.items_of_session),
        "pruning": kind.prune,
        "vacuum": kind.vacuum,
    }
    disk = hot = 0.0
    for name, table in kind.tables.items():
        is_of_items = name in ITEM_TABLES
        number = kept / kind.items if is_of_items else sessions / kind.sessions
        disk += number * (table.table_bytes + table.index_bytes)
        # New rows of items come at the end of their table; the row of a session is read and changed again and again.
        hot += number * (table.index_bytes + (0 if is_of_items else table.table_bytes))
    return Need(
        cores_by_job={job: rate * cost.server_seconds for job, cost in jobs.items()},
        client_cores=rate * sum(cost.client_seconds for cost in jobs.values()),
        disk_bytes=disk,
        memory_bytes=hot * workload.hot_share,
        wal_bytes_per_second=rate * (images + sum(cost.wal_bytes for cost in jobs.values())),
        replay_cores=rate * kind.replay_seconds,
    )


@cache
def user_shares(users: int, exponent: float) -> Sequence[float]:
    """The share of each user in all that is written, the largest first."""
    weights = [rank**-exponent for rank in range(1, users + 1)]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]


@cache
def buckets_of_users(users: int, buckets: int, seed: int) -> Sequence[int]:
    """The bucket of each user: random ids, and the hash of the library."""
    random, bucket_of = Random(seed), hashed(buckets)
    return [bucket_of(UUID(int=random.getrandbits(128))) for _ in range(users)]


def bucket_shares(users: int, buckets: int, exponent: float, seed: int) -> list[float]:
    """The share of each bucket in all that is written."""
    shares = [0.0] * buckets
    for bucket, share in zip(buckets_of_users(users, buckets, seed), user_shares(users, exponent), strict=True):
        shares[bucket] += share
    return shares


def place(shares: Sequence[float], servers: int) -> list[list[int]]:
    """The buckets of each server: the fullest bucket first, each to the server that has least."""
    placed: list[list[int]] = [[] for _ in range(servers)]
    free = [(0.0, server) for server in range(servers)]
    for bucket in sorted(range(len(shares)), key=lambda number: -shares[number]):
        load, server = free[0]
        placed[server].append(bucket)
        heapq.heapreplace(free, (load + shares[bucket], server))
    return placed


def fullest(shares: Sequence[float], servers: int) -> float:
    """The share of the fullest server."""
    return max(math.fsum(shares[bucket] for bucket in buckets) for buckets in place(shares, servers))


def servers_for(wanted: float, of_one: float, shares: Sequence[float]) -> int | None:
    """How many servers hold what is wanted. None: the fullest bucket alone is too much for one.

    Args:
        wanted: What all users want together.
        of_one: What one server has to give.
        shares: The shares of the buckets.
    """
    for servers in range(1, len(shares) + 1):
        if wanted * fullest(shares, servers) <= of_one:
            return servers
    return None


class Part(NamedTuple):
    """One resource: what all want of it, what a server has, and how many servers that makes."""

    name: str
    wanted: float
    of_one: float
    servers: int | None


def parts(wanted: Need, server: Server, shares: Sequence[float]) -> list[Part]:
    """The servers that each resource asks for; the largest number is how many there must be."""
    found = {
        "cores": (wanted.cores, server.cores),
        "memory, GB": (wanted.memory_bytes / 1e9, server.memory_bytes / 1e9),
        "disk, GB": (wanted.disk_bytes / 1e9, server.disk_bytes / 1e9),
    }
    if server.replicas:
        sent = wanted.wal_bytes_per_second * server.replicas
        found["WAL to replicas, MB/s"] = (sent / 1e6, server.network_bytes_per_second / 1e6)
        found["replay on a replica, cores"] = (wanted.replay_cores, 1)
    return [
        Part(name, all_of_it, of_one, servers_for(all_of_it, of_one * server.utilisation, shares))
        for name, (all_of_it, of_one) in found.items()
    ]


def most_servers(found: Sequence[Part]) -> int | None:
    """How many servers there must be. None: one of the resources has no number."""
    numbers = [part.servers for part in found]
    return None if None in numbers else max(number for number in numbers if number is not None)


def move_seconds(move: Move, bucket_bytes: float, items_per_second: float) -> float:
    """How long moving a bucket takes where nothing waits for disks or the network, changes of meanwhile included.

    Infinite where changes come faster than they are carried over.
    """
    busy = items_per_second * move.changes_of_item * move.a_change.slowest
    return bucket_bytes * move.a_byte.slowest / (1 - busy) if busy < 1 else math.inf


class BatchCost(NamedTuple):
    """CPU seconds of the server for a transaction, and for each item in it."""

    of_batch: float
    of_item: float

    def seconds(self, items: int) -> float:
        """The time of a batch on a core of its own."""
        return self.of_batch + items * self.of_item


def batch_cost(smaller: Line, larger: Line) -> BatchCost:
    """The two parts of the cost, from lines with small and with large batches."""
    difference = smaller.cost.server_seconds - larger.cost.server_seconds
    of_batch = max(difference / (1 / smaller.batch - 1 / larger.batch), 0.0)
    return BatchCost(of_batch, larger.cost.server_seconds - of_batch / larger.batch)


@dataclass(frozen=True)
class Recorders:
    """Recorders in front of one server.

    Attributes:
        number: How many there are. Each has one transaction at a time.
        cores: The cores of the server.
        most: The largest batch.
        delay_seconds: How long the first item of a batch waits for others, `max_delay` of the recorder.
        commit_seconds: The mean of the waits for a commit, which take no core. They are exponential.
    """

    number: int
    cores: int
    most: int = 500
    delay_seconds: float = 0.0
    commit_seconds: float = 0.002

    def most_per_second(self, cost: BatchCost) -> float:
        """The items a second that the cores can write in full batches."""
        return self.cores * self.most / cost.seconds(self.most)


class Queued(NamedTuple):
    """What callers of recorders wait for, and how busy the cores are meanwhile."""

    items: int
    busy: float
    batch: float
    p50_ms: float
    p99_ms: float


def queue(recorders: Recorders, cost: BatchCost, per_second: float, *, seconds: float, seed: int) -> Queued:
    """Simulates recorders in front of one server, whose callers do not wait for each other.

    A recorder chooses its batches as `SessionRecorder` does. The cores serve batches in the order in which they come.

    Args:
        recorders: The recorders.
        cost: What a batch costs.
        per_second: The items that come to all recorders, at random times.
        seconds: For how long they come. The first fifth is left out of the latencies.
        seed: Decides the arrivals and the commits.
    """
    random = Random(seed)
    rate = per_second / recorders.number
    arrivals = [_random_times(random, math.ceil(rate * seconds), rate) for _ in range(recorders.number)]
    # When a recorder is ready, its number, its first item that waits, and the items of its last batch.
    ready = [(times[0], number, 0, 0) for number, times in enumerate(arrivals)]
    heapq.heapify(ready)
    cores = [0.0] * recorders.cores
    waits: list[tuple[float, float]] = []
    batches, worked = 0, 0.0
    while ready:
        now, number, first, written = heapq.heappop(ready)
        times = arrivals[number]
        waiting = bisect_right(times, now, lo=first) - first
        half = waiting if recorders.delay_seconds else (waiting + written + 1) // 2
        taken = min(waiting, half, recorders.most)
        took = cost.seconds(taken)
        finished = max(now, cores[0]) + took
        heapq.heapreplace(cores, finished)
        done = finished + random.expovariate(1 / recorders.commit_seconds)
        end = first + taken
        waits += [(at, done - at) for at in times[first:end]]
        batches, worked = batches + 1, worked + took
        if end < len(times):
            delay = recorders.delay_seconds if taken > 1 else 0.0
            heapq.heappush(ready, (max(done, times[end] + delay), number, end, taken))
    waits.sort()
    settled = sorted(wait for _, wait in waits[len(waits) // 5 :])
    return Queued(
        items=len(waits),
        busy=worked / (max(cores) * recorders.cores),
        batch=len(waits) / batches,
        p50_ms=settled[len(settled) // 2] * 1e3,
        p99_ms=settled[len(settled) * 99 // 100] * 1e3,
    )


def _random_times(random: Random, number: int, per_second: float) -> list[float]:
    return list(accumulate(random.expovariate(per_second) for _ in range(number)))
