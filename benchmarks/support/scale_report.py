"""The tables of `scale.py`: what was measured, and what the simulation makes of it."""

import math
from collections.abc import Sequence
from dataclasses import replace

from simulation import (
    DAY_SECONDS,
    Kind,
    Measured,
    Move,
    Need,
    Queued,
    Recorders,
    Server,
    Stages,
    Workload,
    batch_cost,
    bucket_shares,
    most_servers,
    move_seconds,
    need,
    parts,
    queue,
    user_shares,
)
from support.tables import table

EXPONENTS = (0.0, 0.8, 1.0, 1.2)
BUCKETS = (16, 32, 64)
RECORDERS = (4, 16, 64)
DELAYS_MS = (0, 10)
LOADS = (0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)


def costs_table(measured: Measured) -> str:
    """What each part costs."""
    rows = []
    for kind in measured.kinds:
        costs = [(line.name, f"{line.batch:.0f}", line.cost) for line in kind.lines]
        costs += [("vacuum, an item written", "", kind.vacuum), ("prune and vacuum, an item pruned", "", kind.prune)]
        costs += [("roll up, a session", "", kind.roll_up)]
        for name, batch, cost in costs:
            seconds = [f"{one * 1e6:,.0f}" for one in (cost.server_seconds, cost.client_seconds)]
            rows.append([f"{kind.name}: {name}", batch, *seconds, f"{cost.wal_bytes:,.0f}"])
        rows.append([f"{kind.name}: replay on a replica, an item", "", f"{kind.replay_seconds * 1e6:,.0f}", "", ""])
        rows.append([f"{kind.name}: images of pages, a session", "", "", "", f"{kind.image_bytes:,.0f}"])
    return table("What each part costs", ["", "items a batch", "server µs", "caller µs", "WAL bytes"], rows)


def tables_table(measured: Measured) -> str:
    """What a row takes on the disk."""
    rows = []
    for kind in measured.kinds:
        whole = sum(one.table_bytes + one.index_bytes for one in kind.tables.values())
        for name, one in kind.tables.items():
            share = (one.table_bytes + one.index_bytes) / whole
            sizes = [f"{size / one.rows:,.0f}" for size in (one.table_bytes, one.index_bytes)]
            rows.append([f"{kind.name}: `{name}`", f"{one.rows:,}", *sizes, f"{share:.0%}"])
    columns = ["", "rows", "bytes of a row", "bytes of its indexes", "share of all"]
    return table("What a row takes on the disk", columns, rows)


def move_table(move: Move) -> str:
    """What moving a bucket costs."""
    rows = [
        [name, *(f"{getattr(stages, stage) * factor:,.1f}" for stage in Stages.model_fields)]
        for name, stages, factor in (
            ("a gigabyte of tables and indexes, CPU seconds", move.a_byte, 1e9),
            ("a change meanwhile, CPU microseconds", move.a_change, 1e6),
        )
    ]
    return table("What a move costs", ["", "old server", "the mover", "new server"], rows)


def one_server_table(measured: Measured, server: Server, workload: Workload) -> str:
    """What one server takes at most, by each of its resources."""
    rows = []
    for kind in measured.kinds:
        for line in kind.lines:
            cores = need(kind, line, workload).cores
            rate = workload.writes_per_second * server.cores * server.utilisation / cores
            rows.append([f"{kind.name}: writes a second by its cores, {line.name}", f"{rate:,.0f}"])
        replay = server.utilisation / kind.replay_seconds
        rows.append([f"{kind.name}: writes a second by the replay of a replica", f"{replay:,.0f}"])
        wanted = planned(kind, workload)
        for name, has, needs in (
            ("memory", server.memory_bytes, wanted.memory_bytes),
            ("disk", server.disk_bytes, wanted.disk_bytes),
        ):
            kept = workload.ledger_rows * has * server.utilisation / needs
            rows.append([f"{kind.name}: rows of the ledger by its {name}", f"{kept / 1e6:,.0f} million"])
    return table("What one server takes", ["", "at most"], rows)


def planned(kind: Kind, workload: Workload) -> Need:
    """What the workload needs by recorders whose batches have 16 items, which is little."""
    return need(kind, kind.lines[1], workload)


def servers_table(kind: Kind, workload: Workload, server: Server, shares: Sequence[float]) -> str:
    """How many servers there must be for one kind of items."""
    found = {line.name: parts(need(kind, line, workload), server, shares) for line in kind.lines}
    cores = [one[0]._replace(name=f"cores, {name}") for name, one in found.items()]
    rows = [
        [
            part.name,
            f"{part.wanted:,.1f}",
            f"{part.of_one * server.utilisation:,.1f}",
            str(math.ceil(part.wanted / (part.of_one * server.utilisation))),
            _servers(part.servers),
        ]
        for part in (*cores, *found[kind.lines[0].name][1:])
    ]
    rows.append(["all, with batches of 16", "", "", "", _servers(most_servers(found[kind.lines[1].name]))])
    return table(f"Servers, {kind.name}", ["", "needed", "of one server", "by the mean", "servers"], rows)


def _servers(number: int | None) -> str:
    return "none: a bucket is too much for one" if number is None else str(number)


def besides_table(measured: Measured, workload: Workload, shares: Sequence[float]) -> str:
    """What else follows from the workload."""
    columns: list[dict[str, str]] = []
    for kind in measured.kinds:
        wanted = planned(kind, workload)
        largest, usual = max(shares), 1 / len(shares)
        sizes = {"the fullest bucket": largest, "a bucket of the mean size": usual}
        rate = workload.writes_per_second
        cells = {f"busy cores, {job}": f"{cores:.2f}" for job, cores in wanted.cores_by_job.items()}
        cells["busy cores of the callers"] = f"{wanted.client_cores:.2f}"
        days = workload.ledger_rows / (rate * kind.ledger_rows_of_item) / DAY_SECONDS
        cells["days until as many rows are written as are kept"] = f"{days:.1f}"
        cells["WAL a day, GB"] = f"{wanted.wal_bytes_per_second * DAY_SECONDS / 1e9:,.0f}"
        cells["disk for a row of the ledger and all that belongs to it, bytes"] = (
            f"{wanted.disk_bytes / workload.ledger_rows:,.0f}"
        )
        for name, share in sizes.items():
            seconds = move_seconds(measured.move, share * wanted.disk_bytes, share * rate)
            cells[f"{name}, GB"] = f"{share * wanted.disk_bytes / 1e9:,.1f}"
            cells[f"{name}, writes a second"] = f"{share * rate:,.0f}"
            cells[f"{name}, minutes to move it"] = f"{seconds / 60:,.1f}" if seconds < math.inf else "never done"
        columns.append(cells)
    rows = [[name, *(cells[name] for cells in columns)] for name in columns[0]]
    return table("What else follows", ["", *(kind.name for kind in measured.kinds)], rows)


def spread_table(measured: Measured, workload: Workload, server: Server) -> str:
    """How much fuller than the mean the fullest bucket is, and what that does to the number of servers."""
    tenfold = replace(
        workload, writes_per_second=10 * workload.writes_per_second, ledger_rows=10 * workload.ledger_rows
    )
    rows = []
    for exponent in EXPONENTS:
        busiest = user_shares(workload.users, exponent)[0]
        cells = [f"{exponent:g}", f"{busiest:.2%}"]
        for buckets in BUCKETS:
            shares = bucket_shares(workload.users, buckets, exponent, workload.seed)
            cells.append(f"{max(shares):.1%} ({max(shares) * buckets:.1f}x)")
        shares = bucket_shares(workload.users, workload.buckets, exponent, workload.seed)
        needs = [planned(kind, asked) for asked in (workload, tenfold) for kind in measured.kinds]
        cells += [_servers(most_servers(parts(wanted, server, shares))) for wanted in needs]
        rows.append(cells)
    columns = ["exponent", "the busiest user", *(f"fullest of {number} buckets" for number in BUCKETS)]
    columns += [f"{kind.name}: servers{asked}" for asked in ("", ", tenfold") for kind in measured.kinds]
    return table(f"How {workload.users:,} users spread", columns, rows)


def rate_table(measured: Measured, workload: Workload, server: Server) -> str:
    """What callers wait for if all writes go to one server, by the number of recorders and by their delay."""
    rows = []
    for delay_ms in DELAYS_MS:
        for number in RECORDERS:
            recorders = Recorders(number, server.cores, delay_seconds=delay_ms / 1e3)
            found = [
                queue(recorders, batch_cost(*kind.lines[1:]), workload.writes_per_second, seconds=2, seed=workload.seed)
                for kind in measured.kinds
            ]
            rows.append([f"{number}", f"{delay_ms} ms", *_queued(found)])
    title = f"{workload.writes_per_second:,.0f} writes a second, one server of {server.cores} cores"
    return table(title, ["recorders", "`max_delay`", *_queued_columns(measured)], rows)


def load_table(measured: Measured, server: Server, limit_ms: float, seed: int) -> str:
    """What callers wait for as the load grows."""
    recorders = Recorders(number=2 * server.cores, cores=server.cores)
    costs = [batch_cost(*kind.lines[1:]) for kind in measured.kinds]
    rows, within = [], [0.0 for _ in costs]
    for load in LOADS:
        rates = [load * recorders.most_per_second(cost) for cost in costs]
        found = [queue(recorders, cost, rate, seconds=0.5, seed=seed) for cost, rate in zip(costs, rates, strict=True)]
        rows.append([f"{load:.0%}", *_queued(found)])
        within = [load if one.p99_ms <= limit_ms else before for one, before in zip(found, within, strict=True)]
    rows.append([f"p99 within {limit_ms:g} ms", *(cell for one in within for cell in (f"to {one:.0%}", "", "", ""))])
    title = f"{recorders.number} recorders, {server.cores} cores"
    return table(title, ["load", *_queued_columns(measured)], rows)


def _queued(found: Sequence[Queued]) -> list[str]:
    cells = [(f"{one.busy:.0%}", f"{one.batch:.0f}", f"{one.p50_ms:.0f}", f"{one.p99_ms:.0f}") for one in found]
    return [cell for one in cells for cell in one]


def _queued_columns(measured: Measured) -> list[str]:
    names = ("cores busy", "items a batch", "p50 ms", "p99 ms")
    return [f"{kind.name}: {name}" for kind in measured.kinds for name in names]


def report(measured: Measured, workload: Workload, server: Server, limit_ms: float) -> str:
    """All tables."""
    shares = bucket_shares(workload.users, workload.buckets, workload.exponent, workload.seed)
    return "\n".join(
        [
            f"{measured.machine}\n",
            costs_table(measured),
            tables_table(measured),
            move_table(measured.move),
            one_server_table(measured, server, workload),
            *(servers_table(kind, workload, server, shares) for kind in measured.kinds),
            besides_table(measured, workload, shares),
            spread_table(measured, workload, server),
            rate_table(measured, workload, server),
            load_table(measured, server, limit_ms, workload.seed),
        ]
    )
