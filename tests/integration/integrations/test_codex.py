"""Codex's rollouts, recorded: the rows H of its files, each with a made file of its own."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from session_lifecycle import SessionDatabase
from support.transcripts import (
    BEGIN,
    bring,
    called,
    counted,
    event,
    events,
    everything,
    meta,
    rollout,
    rows,
    runs,
    steps,
    totals,
    turn,
    write,
)

ORIGIN = "019d1000-0000-7000-8000-0000000000a1"
Line = dict[str, Any]
FIRST, SECOND, THIRD = (21000, 0, 310, 120), (43400, 20800, 405, 120), (52500, 20800, 638, 184)


def origin() -> list[Line]:
    return [
        meta(0, ORIGIN),
        *turn(1, "t1", "gpt-5.3-codex"),
        event(2, "token_count", info=None),
        counted(3, FIRST),
        counted(4, FIRST),
        *called(5, "c1"),
        counted(6, SECOND),
        counted(7, SECOND),
        rollout(8, "compacted", message=""),
        counted(9, SECOND, last=(0, 0, 0, 0)),
        counted(10, THIRD),
        event(11, "task_complete", turn_id="t1"),
    ]


def copied(second: float, *, with_meta: bool) -> list[Line]:
    """The lines of the origin with new times, as a fork begins with them."""
    return [{**one, "timestamp": meta(second, "x")["timestamp"]} for one in origin()[0 if with_meta else 1 :]]


def own(second: float, turn_id: str, *, more: int) -> list[Line]:
    """A turn of a fork: its total goes on from the origin's."""
    total = (THIRD[0] + 11800, THIRD[1] + 9000, THIRD[2] + 150, THIRD[3] + 40)
    return [
        *turn(second, turn_id, "gpt-5.4", "Quinces."),
        counted(second + 1, total),
        counted(second + 2, total),
        *called(second + 3, "c9"),
        counted(second + 4, (total[0] + more, *total[1:])),
        event(second + 5, "task_complete", turn_id=turn_id),
    ]


async def test_H63_differences_of_totals_are_booked_once(session_database: SessionDatabase, tmp_path: Path) -> None:
    more = [
        *turn(20, "t3", "gpt-5.4"),
        counted(21, (62550, 29760, 709, 192)),
        event(22, "turn_aborted", turn_id="t3", reason="interrupted"),
        *turn(30, "t4", "gpt-5.4"),
    ]
    file = write(tmp_path / "rollout.jsonl", [*origin(), *more])
    report = await bring(session_database, "codex", file)
    assert (report.bad_lines, report.new_events) == (0, 5)
    columns = "tokens_in, tokens_out, cache_read_tokens, reasoning_tokens, model, provider, run_id, measured"
    assert await events(session_database, columns) == {
        f"{ORIGIN}:21000:310": (21000, 310, 0, 120, "gpt-5.3-codex", "openai", "t1", True),
        f"{ORIGIN}:43400:405": (22400, 95, 20800, 0, "gpt-5.3-codex", "openai", "t1", True),
        f"{ORIGIN}:52500:638": (9100, 233, 0, 64, "gpt-5.3-codex", "openai", "t1", True),
        f"{ORIGIN}:62550:709": (10050, 71, 8960, 8, "gpt-5.4", "openai", "t3", True),
        f"{ORIGIN}:attempt:t4": (0, 0, 0, 0, "gpt-5.4", "openai", "t4", False),
    }
    assert await runs(session_database, "status, client") == {
        "t1": ("completed", "codex"),
        "t3": ("cancelled", "codex"),
        "t4": ("running", "codex"),
    }
    assert await steps(session_database) == {("t1", "c1"): ("shell", "completed")}
    before = await everything(session_database)
    await bring(session_database, "codex", file)
    assert await everything(session_database) == before


async def test_H64_a_fork_leaves_out_what_its_origin_has(session_database: SessionDatabase, tmp_path: Path) -> None:
    fork = [meta(100, "fork", forked_from_id=ORIGIN), *copied(100, with_meta=True), *own(200, "t21", more=12100)]
    write(tmp_path / "origin.jsonl", origin())
    file = write(tmp_path / "fork.jsonl", fork)
    report = await bring(session_database, "codex", file, positions=tmp_path / "kept")  # its origin is beside it
    assert (report.new_events, report.missing_origins) == (2, set())
    await bring(session_database, "codex", tmp_path)
    assert await totals(session_database) == {ORIGIN: (52500, 638, 0, 0), "fork": (23900, 150, 0, 0)}
    assert await runs(session_database, "session_id") == {"t1": ORIGIN, "t21": "fork"}
    assert set(await steps(session_database)) == {("t1", "c1"), ("t21", "c9")}
    sql = "SELECT session_id, parent_session_id FROM session_lifecycle.session_records ORDER BY 1"
    assert await rows(session_database, sql) == [(ORIGIN, None), ("fork", ORIGIN)]
    said = await rows(session_database, "SELECT session_id, content FROM session_lifecycle.session_messages ORDER BY 1")
    assert said == [(ORIGIN, "Sort the pears."), ("fork", "Quinces.")]


async def test_H64_a_fork_that_grows_remembers_where_it_was(session_database: SessionDatabase, tmp_path: Path) -> None:
    write(tmp_path / "origin.jsonl", origin())
    fork = [meta(100, "fork", forked_from_id=ORIGIN), *copied(100, with_meta=True), *own(200, "t21", more=12100)]
    for lines in range(1, len(fork) + 1):
        write(tmp_path / "fork.jsonl", fork[:lines])
        await bring(session_database, "codex", tmp_path, positions=tmp_path / "kept")
    assert await totals(session_database) == {ORIGIN: (52500, 638, 0, 0), "fork": (23900, 150, 0, 0)}


async def test_H64_a_fork_of_a_version_that_names_no_turns(session_database: SessionDatabase, tmp_path: Path) -> None:
    def unnamed(lines: list[Line]) -> list[Line]:
        return [one for one in lines if one["payload"].get("type") not in {"task_started", "task_complete"}]

    write(tmp_path / "origin.jsonl", unnamed(origin()))
    fork = [*copied(100, with_meta=True), *own(200, "t21", more=12100)]
    write(tmp_path / "fork.jsonl", [meta(100, "fork", forked_from_id=ORIGIN), *unnamed(fork)])
    for _ in range(2):
        await bring(session_database, "codex", tmp_path)
        assert await totals(session_database) == {ORIGIN: (52500, 638, 0, 0), "fork": (23900, 150, 0, 0)}
        assert set((await runs(session_database, "session_id")).values()) == {ORIGIN, "fork"}
    assert {step for _, step in await steps(session_database)} == {"c1", "c9"}


async def test_H65_two_children_with_equal_counts_are_two(session_database: SessionDatabase, tmp_path: Path) -> None:
    spawned = {"subagent": {"thread_spawn": {"parent_thread_id": ORIGIN, "depth": 1}}}
    write(tmp_path / "origin.jsonl", origin())
    for name in ("kid1", "kid2"):
        lines = [meta(100, name, source=spawned), *copied(100, with_meta=False), *own(200, f"{name}-t", more=12400)]
        write(tmp_path / f"{name}.jsonl", lines)
    await bring(session_database, "codex", tmp_path)
    found = await totals(session_database)
    assert found == {ORIGIN: (52500, 638, 0, 0), "kid1": (24200, 150, 0, 0), "kid2": (24200, 150, 0, 0)}


async def test_H65_without_its_origin_the_first_second_is_a_copy(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    lines = [meta(100, "kid", parent_thread_id=ORIGIN), *copied(100, with_meta=False), *own(200, "t31", more=12400)]
    report = await bring(session_database, "codex", write(tmp_path / "kid.jsonl", lines))
    assert report.missing_origins == {ORIGIN}
    assert await totals(session_database) == {"kid": (24200, 150, 0, 0)}


async def test_H63_a_turn_without_a_count_is_one_response_of_unknown_usage(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    lines = [
        meta(0, "s"),
        *turn(1, "t1", "gpt-5.4"),
        event(2, "task_complete", turn_id="t1"),
        *turn(3, "t2", "gpt-5.4"),
    ]
    late = [counted(9000, (100, 0, 10, 0))]
    file = write(tmp_path / "rollout.jsonl", lines)
    for _ in range(2):
        await bring(session_database, "codex", file, positions=tmp_path / "kept")
        found = await events(session_database, "measured, run_id")
        assert found == {"s:attempt:t1": (False, "t1"), "s:attempt:t2": (False, "t2")}
    # The count comes after all, and takes the place of the call.
    write(file, [*lines, *late])
    for kept in (tmp_path / "kept", None):
        await bring(session_database, "codex", file, positions=kept)
        assert (await events(session_database, "measured, tokens_in"))["s:attempt:t2"] == (True, 100)
    assert await totals(session_database) == {"s": (100, 10, 1, 0)}


async def test_H63_a_total_that_begins_anew_is_counted_by_its_last_response(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    lines = [meta(0, "s"), *turn(1, "t1", "gpt-5.4"), counted(2, (100, 0, 10, 0)), counted(3, (30, 0, 5, 0))]
    await bring(session_database, "codex", write(tmp_path / "rollout.jsonl", lines), now=BEGIN + timedelta(seconds=9))
    assert await totals(session_database) == {"s": (130, 15, 0, 0)}
