"""The simulation of `benchmarks/scale.py`: its parts add up to the whole, and the page shows what it computes."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulation
from session_lifecycle.buckets.places import hashed
from simulation import BatchCost, Cost, Kind, Line, Move, Recorders, Server, Stages, Stored, Workload

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "docs" / "discussion" / "scale.json"

weights = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=64)
costs = st.builds(
    Cost, server_seconds=st.floats(0, 1e-3), client_seconds=st.floats(0, 1e-3), wal_bytes=st.floats(0, 1e4)
)
lines = st.builds(Line, name=st.just("a line"), batch=st.floats(1, 500), cost=costs)
tables = st.builds(Stored, rows=st.just(100), table_bytes=st.integers(1, 10**6), index_bytes=st.integers(0, 10**6))
kinds = st.builds(
    Kind,
    name=st.just("a kind"),
    items=st.integers(100, 1_000),
    sessions=st.integers(1, 100),
    lines=st.lists(lines, min_size=1, max_size=1),
    image_bytes=st.floats(0, 1e5),
    replay_seconds=st.floats(0, 1e-3),
    tables=st.fixed_dictionaries({"session_usage_events": tables, "session_runs": tables, "session_records": tables}),
    roll_up=costs,
    prune=costs,
    vacuum=costs,
)


def shares_of(given_weights: list[float]) -> list[float]:
    return [weight / math.fsum(given_weights) for weight in given_weights]


@given(weights, st.integers(1, 80))
def test_every_bucket_is_placed_on_one_server(given_weights: list[float], servers: int) -> None:
    placed = simulation.place(given_weights, servers)
    assert len(placed) == servers
    assert sorted(bucket for buckets in placed for bucket in buckets) == list(range(len(given_weights)))
    # Each bucket came to the server that had least, so no server is fuller than the mean by more than one bucket.
    mean = math.fsum(given_weights) / servers
    assert simulation.fullest(given_weights, servers) <= (mean + max(given_weights)) * (1 + 1e-12)


def test_the_fullest_bucket_is_placed_first() -> None:
    assert simulation.place([0.25, 0.25, 0.5], 2) == [[2], [0, 1]]
    assert simulation.place([0.4, 0.3, 0.2, 0.1], 2) == [[0, 3], [1, 2]]


@given(weights, st.integers(1, 80))
def test_more_servers_never_make_the_fullest_fuller(given_weights: list[float], servers: int) -> None:
    shares = shares_of(given_weights)
    fewer, more = simulation.fullest(shares, servers), simulation.fullest(shares, servers + 1)
    assert more <= fewer * (1 + 1e-12)
    assert max(1 / servers, *shares) <= fewer * (1 + 1e-12)


@given(weights, st.floats(0.01, 1_000), st.floats(0.01, 1_000))
def test_servers_are_the_fewest_that_hold_it(given_weights: list[float], wanted: float, of_one: float) -> None:
    shares = shares_of(given_weights)
    servers = simulation.servers_for(wanted, of_one, shares)
    if servers is None:
        assert wanted * max(shares) > of_one * (1 - 1e-12)
    else:
        assert wanted * simulation.fullest(shares, servers) <= of_one
        assert servers == 1 or wanted * simulation.fullest(shares, servers - 1) > of_one
        assert servers >= math.ceil(wanted / of_one * (1 - 1e-12))


@given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 2), st.integers(0, 2**32))
def test_the_buckets_have_all_that_the_users_have(users: int, buckets: int, exponent: float, seed: int) -> None:
    of_users = simulation.user_shares(users, exponent)
    assert list(of_users) == sorted(of_users, reverse=True)
    assert math.isclose(math.fsum(of_users), 1)
    shares = simulation.bucket_shares(users, buckets, exponent, seed)
    assert len(shares) == buckets
    assert math.isclose(math.fsum(shares), 1)
    assert max(shares) >= of_users[0]


def test_users_are_spread_by_the_hash_of_the_library() -> None:
    class Counting:
        """Gives the ids 1, 2, 3, … in the place of random ones."""

        def __init__(self, seed: int) -> None:
            self.number = seed

        def getrandbits(self, bits: int) -> int:
            self.number += 1
            return self.number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "Random", Counting)
        found = simulation.buckets_of_users(1_000, 16, seed=0)
    assert list(found) == [hashed(16)(UUID(int=number)) for number in range(1, 1_001)]


@given(kinds)
def test_what_was_measured_takes_the_space_that_was_measured(kind: Kind) -> None:
    workload = Workload(
        ledger_rows=kind.tables["session_usage_events"].rows, items_of_session=kind.items / kind.sessions, hot_share=1
    )
    found = simulation.need(kind, kind.lines[0], workload)
    sizes = kind.tables.values()
    assert math.isclose(found.disk_bytes, sum(one.table_bytes + one.index_bytes for one in sizes))
    in_memory = sum(one.index_bytes for one in sizes) + kind.tables["session_records"].table_bytes
    assert math.isclose(found.memory_bytes, in_memory)


@given(kinds, st.floats(1, 10))
def test_needs_grow_with_what_is_asked(kind: Kind, times: float) -> None:
    workload = Workload()
    asked = replace(workload, writes_per_second=workload.writes_per_second * times)
    one, more = (simulation.need(kind, kind.lines[0], given_one) for given_one in (workload, asked))
    assert math.isclose(one.cores, math.fsum(one.cores_by_job.values()))
    for name in ("cores", "client_cores", "wal_bytes_per_second", "replay_cores"):
        assert math.isclose(getattr(more, name), getattr(one, name) * times)
    assert (more.disk_bytes, more.memory_bytes) == (one.disk_bytes, one.memory_bytes)
    kept = simulation.need(kind, kind.lines[0], replace(workload, ledger_rows=workload.ledger_rows * times))
    assert math.isclose(kept.disk_bytes, one.disk_bytes * times)
    assert kept.cores == one.cores


@given(kinds, weights, st.integers(0, 2), st.integers(1, 64))
def test_a_larger_server_never_asks_for_more_servers(
    kind: Kind, given_weights: list[float], replicas: int, cores: int
) -> None:
    shares, wanted = shares_of(given_weights), simulation.need(kind, kind.lines[0], Workload())
    small = Server(cores=cores, replicas=replicas)
    large = Server(cores=2 * cores, memory_bytes=2 * small.memory_bytes, disk_bytes=2 * small.disk_bytes, replicas=0)
    found = [simulation.most_servers(simulation.parts(wanted, server, shares)) for server in (small, large)]
    assert (found[1] or math.inf) <= (found[0] or math.inf)


stages = st.builds(
    Stages, old_seconds=st.floats(0, 1e-4), client_seconds=st.floats(0, 1e-4), new_seconds=st.floats(1e-9, 1e-4)
)


@given(stages, stages, st.floats(1, 1e12), st.floats(0, 1e5))
def test_a_move_takes_the_copy_and_the_changes_of_its_time(
    a_byte: Stages, a_change: Stages, size: float, rate: float
) -> None:
    move = Move(a_byte=a_byte, a_change=a_change, changes_of_item=3)
    took = simulation.move_seconds(move, size, rate)
    copy = size * a_byte.slowest
    if rate * 3 * a_change.slowest >= 1:
        assert took == math.inf
    else:
        assert math.isclose(took, copy + took * rate * 3 * a_change.slowest)


@given(st.floats(0, 1e-2), st.floats(1e-7, 1e-4))
def test_two_lines_give_back_the_cost_of_their_batches(of_batch: float, of_item: float) -> None:
    cost = BatchCost(of_batch, of_item)
    two = [
        Line(
            name="a line",
            batch=size,
            cost=Cost(server_seconds=cost.seconds(size) / size, client_seconds=0, wal_bytes=0),
        )
        for size in (16, 256)
    ]
    found = simulation.batch_cost(*two)
    assert math.isclose(found.of_batch, of_batch, abs_tol=1e-9)
    assert math.isclose(found.of_item, of_item, abs_tol=1e-9)


@given(
    st.builds(
        Recorders,
        number=st.integers(1, 20),
        cores=st.integers(1, 8),
        most=st.integers(1, 500),
        delay_seconds=st.sampled_from([0, 0.01]),
    ),
    st.floats(0.05, 1.5),
    st.integers(0, 2**32),
)
def test_every_item_that_comes_is_written_once(recorders: Recorders, load: float, seed: int) -> None:
    cost = BatchCost(0.0005, 0.00005)
    rate = load * recorders.most_per_second(cost)
    seconds = 1_000 / rate
    found = simulation.queue(recorders, cost, rate, seconds=seconds, seed=seed)
    assert found.items == recorders.number * math.ceil(rate / recorders.number * seconds)
    assert 1 <= found.batch <= recorders.most
    assert 0 < found.busy <= 1
    assert cost.seconds(1) * 1e3 < found.p50_ms <= found.p99_ms
    assert found == simulation.queue(recorders, cost, rate, seconds=seconds, seed=seed)


def test_the_queue_is_the_one_of_the_textbook() -> None:
    # Batches of one item by one recorder on one core, and commits that take no time. The core is busy for the share of
    # the time that the load is, and so large a share of the items waits for another one.
    cost, alone = BatchCost(0.001, 0.0), Recorders(number=1, cores=1, most=1, commit_seconds=1e-9)
    found = {load: simulation.queue(alone, cost, load * 1_000, seconds=100, seed=1) for load in (0.2, 0.5, 0.8)}
    for load, one in found.items():
        assert one.busy == pytest.approx(load, rel=0.03)
    assert found[0.2].p50_ms == pytest.approx(1, rel=0.01)
    assert found[0.2].p99_ms < found[0.5].p99_ms < found[0.8].p99_ms


def test_the_page_shows_what_the_simulation_makes_of_the_measured_figures() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "scale.py", "--measured", MEASURED],
        capture_output=True,
        text=True,
        check=True,
    )
    printed = set(ran.stdout.splitlines())
    page = (MEASURED.with_suffix(".md")).read_text().splitlines()
    rows = [line for line in page if line.startswith("| ")]
    assert len(rows) > 40
    assert [line for line in rows if line not in printed] == []
