"""Claude Code's transcripts, recorded: the rows H of its files, each with a made file of its own."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.claude_code import ClaudeCodeReader
from support.transcripts import (
    BEGIN,
    MODEL,
    answer,
    at,
    bring,
    events,
    everything,
    prompt,
    result,
    rows,
    runs,
    steps,
    synthetic,
    totals,
    write,
)
from support.usage import A


def delegating() -> list[dict[str, Any]]:
    """A session that delegates, and whose second call of a tool is refused."""
    done = {
        "agentId": "kid",
        "agentType": "weigher",
        "status": "completed",
        "usage": {"input_tokens": 9, "output_tokens": 5},
    }
    return [
        prompt(0, "Have them weighed.", promptId="p1"),
        answer(1, "m1", (10, 200, 30, 7), stop="tool_use"),
        answer(2, "m1", (10, 200, 30, 7), stop="tool_use", tool=("t1", "Agent")),
        result(9, "t1", "7 kg", toolUseResult=done, promptId="p1"),
        answer(10, "m2", (11, 0, 230, 8), stop="tool_use", tool=("t2", "Agent")),
        result(11, "t2", "<tool_use_error>", failed=True, toolUseResult="InputValidationError"),
        answer(12, "m3", (12, 0, 240, 9)),
    ]


def delegated() -> list[dict[str, Any]]:
    of: dict[str, Any] = {"isSidechain": True, "agentId": "kid"}
    return [
        prompt(3, "Weigh them.", promptId="p1", **of),
        answer(4, "k1", (6, 100, 0, 4), stop="tool_use", tool=("t9", "Bash"), attributionAgent="weigher", **of),
        result(5, "t9", **of),
        answer(6, "k2", (9, 0, 100, 5), attributionAgent="weigher", **of),
    ]


async def test_H49_a_response_is_one_event_and_a_result_of_an_agent_is_none(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    report = await bring(session_database, "claude-code", write(tmp_path / "s1.jsonl", delegating()))
    assert (report.new_events, report.bad_lines) == (3, 0)
    found = await events(session_database, "session_id, run_id, tokens_in, tokens_out, cache_read_tokens, key_scope")
    assert found == {
        "m1": ("s1", "p1", 240, 7, 30, "user"),
        "m2": ("s1", "p1", 241, 8, 230, "user"),
        "m3": ("s1", "p1", 252, 9, 240, "user"),
    }
    assert await steps(session_database) == {("p1", "t1"): ("Agent", "completed"), ("p1", "t2"): ("Agent", "failed")}
    # The sub-agent's own file is gone: the parent's line knows of it.
    found_runs = await runs(session_database, "status, parent_run_id, parent_tool_call_id")
    assert found_runs == {"p1": ("completed", None, None), "kid": ("completed", "p1", "t1")}


async def test_H50_a_sub_agent_is_a_run_below_the_prompt(session_database: SessionDatabase, tmp_path: Path) -> None:
    write(tmp_path / "s1.jsonl", delegating())
    write(tmp_path / "s1" / "subagents" / "agent-kid.jsonl", delegated())
    (tmp_path / "s1/subagents/agent-kid.meta.json").write_text('{"agentType": "weigher", "toolUseId": "t1"}')
    await bring(session_database, "claude-code", tmp_path)
    found = await runs(session_database, "status, parent_run_id, parent_tool_call_id, agent_name, session_id")
    assert found["kid"] == ("completed", "p1", "t1", "weigher", "s1")
    assert (await steps(session_database))["kid", "t9"] == ("Bash", "completed")
    assert {key: run for key, (run,) in (await events(session_database, "run_id")).items()} == {
        "m1": "p1",
        "m2": "p1",
        "m3": "p1",
        "k1": "kid",
        "k2": "kid",
    }
    assert await totals(session_database) == {"s1": (240 + 241 + 252 + 106 + 109, 33, 0, 0)}
    # The sub-agent's own file says when it ended.
    [(ended,)] = await rows(
        session_database, "SELECT ended_at FROM session_lifecycle.session_runs WHERE run_id = 'kid'"
    )
    assert ended == BEGIN + timedelta(seconds=6)


async def test_H51_zeros_are_no_usage_and_a_resume_books_nothing_twice(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    first = [prompt(0, "Hello.", promptId="p1"), answer(1, "m1", (0, 0, 0, 0))]
    file = write(tmp_path / "s1.jsonl", first)
    await bring(session_database, "claude-code", file, positions=tmp_path / "kept")
    second = [
        prompt(9000, "More.", promptId="p2"),
        answer(9001, "m2", (0, 0, 0, 0)),
        {"type": "mode", "mode": "normal"},
    ]
    write(file, [*first, *second])
    report = await bring(session_database, "claude-code", file, positions=tmp_path / "kept")
    assert (report.lines, report.new_events) == (3, 1)
    found = await events(session_database, "run_id, measured, errored, model")
    assert found == {"m1": ("p1", False, False, MODEL), "m2": ("p2", False, False, MODEL)}
    assert await runs(session_database) == {"p1": "completed", "p2": "completed"}
    assert await totals(session_database) == {"s1": (0, 0, 2, 0)}


async def test_H52_a_prompt_without_an_answer_is_one_call_of_unknown_usage(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    asked = prompt(0, "Hello.", promptId="p1")
    file = write(tmp_path / "s1.jsonl", [asked])
    # Neither soon after the prompt, nor soon after the file was written: it may be a copy that is half made.
    for soon in (BEGIN + timedelta(minutes=50), datetime.now(UTC)):
        await bring(session_database, "claude-code", file, positions=tmp_path / "kept", now=soon)
        assert await events(session_database) == {}
    for _ in range(2):
        await bring(session_database, "claude-code", file, positions=tmp_path / "kept")
        assert await events(session_database, "run_id, measured") == {f"attempt:{asked['uuid']}": ("p1", False)}
    assert await runs(session_database) == {"p1": "running"}
    # The answer comes after all: it takes the place of the call, whoever reads it.
    write(file, [asked, answer(7200, "m1", (10, 0, 0, 3), stop=None), answer(7201, "m1", (10, 0, 0, 5))])
    for kept in (tmp_path / "kept", None):
        await bring(session_database, "claude-code", file, positions=kept)
        assert await events(session_database, "tokens_out, measured") == {f"attempt:{asked['uuid']}": (5, True)}
    assert await totals(session_database) == {"s1": (10, 5, 0, 0)}


async def test_H52_an_interrupted_prompt_is_cancelled(session_database: SessionDatabase, tmp_path: Path) -> None:
    stopped = "[Request interrupted by user]"
    refused = "[Request interrupted by user for tool use]"
    file = write(
        tmp_path / "s1.jsonl",
        [
            prompt(0, "First.", promptId="p1"),
            prompt(1, stopped),
            prompt(2, "Second.", promptId="p2"),
            answer(3, "m2", (1, 0, 0, 1), stop="tool_use", tool=("t2", "Bash")),
            result(4, "t2", "The user refused.", failed=True),
            prompt(5, refused),
            prompt(6, "<command-name>/model</command-name>", promptId="p3"),
            prompt(7, "Third.", promptId="p4"),
            prompt(8, "Fourth.", promptId="p5"),
            answer(9, "m5", (1, 0, 0, 1)),
        ],
    )
    await bring(session_database, "claude-code", file)
    assert await runs(session_database) == {"p1": "cancelled", "p2": "cancelled", "p4": "cancelled", "p5": "completed"}
    assert await events(session_database, "measured") == {
        "attempt:s1-0": (False,),
        "m2": (True,),
        "attempt:s1-7": (False,),
        "m5": (True,),
    }


async def test_H56_a_line_for_each_block_is_one_response(session_database: SessionDatabase, tmp_path: Path) -> None:
    file = write(
        tmp_path / "s1.jsonl",
        [
            prompt(0, "Which rows?", promptId="p1"),
            answer(1, "m1", (11, 1200, 4100, 212), stop="tool_use", hour=300),
            answer(2, "m1", (11, 1200, 4100, 212), stop="tool_use", hour=300, tool=("t1", "Read")),
            answer(3, "m1", (11, 1200, 4100, 212), stop="tool_use", hour=300, tool=("t2", "Grep")),
            result(4, "t1"),
            result(5, "t2", "no such file", failed=True),
            answer(6, "m2", (7, 450, 5300, 96), stop="end_turn", searches=2),
            answer(7, "m2", (7, 450, 5300, 96), stop="end_turn", searches=2),
            prompt(8, "And row 9?", promptId="p2"),
            answer(9, "msg_bdrk_1", (19, 0, 6000, 58)),
        ],
    )
    await bring(session_database, "claude-code", file)
    columns = "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, parts, provider, partial, at"
    assert await events(session_database, columns) == {
        "m1": (5311, 212, 4100, 1200, {"cache_write_1h_tokens": 300}, "anthropic", False, BEGIN + timedelta(seconds=1)),
        "m2": (5757, 96, 5300, 450, {"web_searches": 2}, "anthropic", False, BEGIN + timedelta(seconds=6)),
        "msg_bdrk_1": (6019, 58, 6000, 0, None, "aws", False, BEGIN + timedelta(seconds=9)),
    }
    assert await steps(session_database) == {("p1", "t1"): ("Read", "completed"), ("p1", "t2"): ("Grep", "failed")}
    assert await runs(session_database, "status, client") == {
        "p1": ("completed", "claude-code"),
        "p2": ("completed", "claude-code"),
    }


async def test_H57_growing_output_counts_once_and_its_largest(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    lines = [
        prompt(0, "Count the crates."),
        answer(1, "m1", (3, 8000, 12000, 9), stop=None),
        answer(2, "m1", (3, 8000, 12000, 9), stop=None),
        answer(3, "m1", (3, 8000, 12000, 437), stop=None, tool=("t1", "Bash")),
        result(4, "t1", "41 crates"),
        answer(5, "m2", (1, 1457, 20447, 2), stop=None),
        {"type": "progress", "sessionId": "s1", "timestamp": at(5), "data": {"type": "hook_progress"}},
        answer(6, "m3", (2, 95, 2510, 74), stop=None),
    ]
    # The large count is recorded before the small one: another reader has begun in the middle.
    late = ClaudeCodeReader(str(A))
    late.read(lines[0])
    assert [item["tokens_out"] for item in late.read(lines[3]) if item["kind"] == "usage"] == [437]
    whole = write(tmp_path / "s1.jsonl", lines)
    part = write(tmp_path / "part" / "s1.jsonl", [lines[0], lines[3]])
    await bring(session_database, "claude-code", part)
    for _ in range(2):
        await bring(session_database, "claude-code", whole)
        assert await events(session_database, "tokens_in, tokens_out, partial, run_id") == {
            "m1": (20003, 437, True, "s1-0"),
            "m2": (21905, 2, True, "s1-0"),
            "m3": (2607, 74, True, "s1-0"),
        }
    assert await runs(session_database) == {"s1-0": "completed"}
    # A line with a reason to stop is no lower bound any more.
    write(whole, [*lines, answer(7, "m3", (2, 95, 2510, 74))])
    await bring(session_database, "claude-code", whole)
    assert (await events(session_database, "tokens_out, partial"))["m3"] == (74, False)


async def test_H58_lines_of_progress_are_none_and_a_compaction_is_paid(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    child = delegated()
    progress = [
        {
            "type": "progress",
            "sessionId": "s1",
            "timestamp": one["timestamp"],
            "data": {"agentId": "kid", "message": one},
        }
        for one in child
    ]
    write(tmp_path / "s1.jsonl", [*delegating()[:3], *progress, *delegating()[3:]])
    write(tmp_path / "s1" / "subagents" / "agent-kid.jsonl", child)
    of: dict[str, Any] = {"isSidechain": True, "agentId": "acompact-77"}
    summary = [prompt(20, "Summarise.", **of), answer(21, "c1", (3, 2490, 11410, 640), **of)]
    write(tmp_path / "s1" / "subagents" / "agent-acompact-77.jsonl", summary)
    await bring(session_database, "claude-code", tmp_path)
    assert set(await events(session_database)) == {"m1", "m2", "m3", "k1", "k2", "c1"}
    found = await runs(session_database, "status, parent_run_id")
    assert found == {"p1": ("completed", None), "kid": ("completed", "p1"), "acompact-77": ("completed", None)}


async def test_H59_a_line_that_is_half_written_waits(session_database: SessionDatabase, tmp_path: Path) -> None:
    first = [
        prompt(0, "One line\u2028another\u0085a third: water them.", promptId="p1"),
        answer(1, "m1", (10, 3300, 0, 3), stop=None),
        answer(2, "m1", (10, 3300, 0, 148), stop=None, tool=("t1", "Bash")),
        result(3, "t1"),
        answer(4, "m2", (6, 205, 3300, 61)),
        prompt(50_000, "Again.", promptId="p2"),
        answer(50_001, "m3", (12, 3560, 0, 4), stop=None),
    ]
    grown = [answer(50_002, "m3", (12, 3560, 0, 120), stop="tool_use", tool=("t2", "Bash")), result(50_003, "t2")]
    last = [*grown, answer(50_004, "m4", (5, 160, 3560, 39))]
    file = write(tmp_path / "s1.jsonl", first)
    with file.open("ab") as end:
        end.write(b'{"type": "assistant", "sessionId": "s1", "messa')
    kept = tmp_path / "kept"
    report = await bring(session_database, "claude-code", file, positions=kept)
    assert (report.lines, report.bad_lines) == (len(first), 0)
    assert await totals(session_database) == {"s1": (3310 + 3511 + 3572, 213, 0, 0)}
    assert await runs(session_database) == {"p1": "completed", "p2": "running"}
    [(content,)] = await rows(
        session_database, "SELECT content FROM session_lifecycle.session_messages WHERE message_id = 's1-0'"
    )
    assert content == "One line\u2028another\u0085a third: water them."
    write(file, [*first, *last])
    report = await bring(session_database, "claude-code", file, positions=kept)
    assert (report.lines, report.bad_lines) == (len(last), 0)
    assert await totals(session_database) == {"s1": (3310 + 3511 + 3572 + 3725, 368, 0, 0)}
    assert await runs(session_database) == {"p1": "completed", "p2": "completed"}
    assert await steps(session_database) == {("p1", "t1"): ("Bash", "completed"), ("p2", "t2"): ("Bash", "completed")}
    before = await everything(session_database)
    report = await bring(session_database, "claude-code", file, positions=kept)
    assert (report.lines, report.items) == (0, 0)
    await bring(session_database, "claude-code", file)
    assert await everything(session_database) == before


def forked() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of a session, and of a copy of it that goes on."""
    origin = [
        prompt(0, "Water them.", promptId="p1"),
        answer(1, "m1", (10, 300, 0, 48)),
        answer(2, "m2", (6, 5, 300, 61)),
    ]
    copies: list[dict[str, Any]] = [{**one, "sessionId": "s2"} for one in origin]
    own = [prompt(100, "If it rains?", session="s2", promptId="p2"), answer(101, "m3", (15, 390, 0, 7), session="s2")]
    return origin, [*copies, *own]


@pytest.mark.parametrize("is_first", [False, True], ids=["after its origin", "before its origin"])
async def test_H60_a_fork_that_copies_ids_counts_what_is_new(
    session_database: SessionDatabase, tmp_path: Path, *, is_first: bool
) -> None:
    origin, fork = forked()
    files = [write(tmp_path / "s1.jsonl", origin), write(tmp_path / "s2.jsonl", fork)]
    for file in [*files[::-1], *files] if is_first else files:
        await bring(session_database, "claude-code", file)
    copied, own = (310 + 311, 109), (405, 7)
    if is_first:  # the copies stay where they came first
        assert await totals(session_database) == {"s2": (copied[0] + own[0], copied[1] + own[1], 0, 0)}
    else:
        assert await totals(session_database) == {"s1": (*copied, 0, 0), "s2": (*own, 0, 0)}
    assert len(await events(session_database)) == 3


async def test_H60_a_fork_that_copies_from_the_middle_counts_nothing_twice(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    """No prompt is before the copies, so nothing but the ids of their messages says what they are."""
    origin, fork = forked()
    await bring(session_database, "claude-code", write(tmp_path / "s1.jsonl", origin))
    await bring(session_database, "claude-code", write(tmp_path / "s2.jsonl", fork[1:]))
    found = await totals(session_database)
    assert [sum(counts) for counts in zip(*found.values(), strict=True)] == [621 + 405, 109 + 7, 0, 0]
    assert len(await events(session_database)) == 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["after its origin", "before its origin"])
async def test_H61_marked_copies_are_skipped(
    session_database: SessionDatabase, tmp_path: Path, order: tuple[int, int]
) -> None:
    origin, fork = forked()
    marked = [
        {**one, "uuid": f"new-{number}", "forkedFrom": {"sessionId": "s1", "messageUuid": origin[number]["uuid"]}}
        if number < len(origin)
        else one
        for number, one in enumerate(fork)
    ]
    files = [write(tmp_path / "s1.jsonl", origin), write(tmp_path / "s2.jsonl", marked)]
    for number in order:
        await bring(session_database, "claude-code", files[number])
    assert await totals(session_database) == {"s1": (621, 109, 0, 0), "s2": (405, 7, 0, 0)}
    assert await runs(session_database, "status, session_id") == {"p1": ("completed", "s1"), "p2": ("completed", "s2")}
    [(parent,)] = await rows(
        session_database, "SELECT parent_session_id FROM session_lifecycle.session_records WHERE session_id = 's2'"
    )
    assert parent == "s1"


async def test_H62_synthetic_errors_are_errors_and_bookkeeping_is_nothing(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "s1.jsonl",
        [
            prompt(0, "Plan.", promptId="p1"),
            synthetic(1, "e1", "API Error: 529 (made)", is_error=True, error="overloaded_error", apiErrorStatus=529),
            prompt(2, "Again.", promptId="p2"),
            answer(3, "m1", (13, 0, 7000, 301)),
            prompt(4, "Labels?", promptId="p3"),
            answer(5, "m2", (0, 0, 0, 0)),
            prompt(6, "Continue from where you left off.", isMeta=True),
            synthetic(7, "e2", "No response requested.", is_error=False),
            prompt(8, "Ten.", promptId="p4"),
            synthetic(9, "e3", "API Error: closed (made)", is_error=True),
            prompt(10, "[Request interrupted by user]"),
        ],
    )
    await bring(session_database, "claude-code", file)
    assert await events(session_database, "tokens_in, tokens_out, measured, errored, model") == {
        "e1": (0, 0, True, True, None),
        "m1": (7013, 301, True, False, MODEL),
        "m2": (0, 0, False, False, MODEL),
        "e3": (0, 0, True, True, None),
    }
    assert await runs(session_database, "status, error") == {
        "p1": ("failed", "overloaded_error"),
        "p2": ("completed", None),
        "p3": ("completed", None),
        "p4": ("failed", None),
    }
    assert await totals(session_database) == {"s1": (7013, 301, 1, 2)}
