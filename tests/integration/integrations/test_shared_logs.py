"""The logs that are kept beside the project, recorded: the rows H of Claude Code's and Codex's files.

These tests run where the logs are. Each row has a made file of its own in the other tests.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from session_lifecycle import SessionDatabase
from support.transcripts import SHARED, bring, events, rows, runs, steps, totals

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
MADE = SHARED / "transcripts"
COUNTS = (
    "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, coalesce((parts->>'cache_write_1h_tokens')::int, 0)"
)


def whole_ids(name: str, folder: Path) -> Path:
    """A captured transcript, with the session's and the prompt's whole ids in place of their beginnings."""
    text = (SHARED / "payloads" / f"{name}.jsonl").read_text("utf-8")
    known = "".join(file.read_text("utf-8") for file in (SHARED / "payloads").glob("claude-code-*.jsonl"))
    for short in set(re.findall(r'"(?:sessionId|promptId)":"([0-9a-f]{8})"', text)):
        found = re.search(rf"{short}-[0-9a-f]{{4}}-[0-9a-f-]+", known)
        if found is not None:
            text = text.replace(f'"{short}"', f'"{found[0]}"')
    file = folder / f"{name}.jsonl"
    file.write_text(text, "utf-8")
    return file


async def test_H49_H50_captured_transcripts_of_a_sub_agent(session_database: SessionDatabase, tmp_path: Path) -> None:
    for part in ("child", "parent"):
        whole_ids(f"claude-code-transcript-subagent-{part}", tmp_path)
    await bring(session_database, "claude-code", tmp_path)
    session, prompt, child = (
        "b2bc3ec8-5303-49d4-8e14-034c841911b4",
        "ca183f1d-be1c-4984-8e45-841b9e7e7bad",
        "ae17c5ef20dbfb7e2",
    )
    parts = (5000, 2000, 500)
    assert await events(session_database, f"run_id, {COUNTS}") == {
        "msg_local0001": (prompt, 7120, 64, *parts),
        "msg_local0002": (child, 7120, 64, *parts),
        "msg_local0003": (child, 7121, 65, *parts),
        "msg_local0004": (prompt, 7121, 65, *parts),
        "msg_local0005": (prompt, 7122, 66, *parts),
    }
    assert await runs(session_database, "status, parent_run_id, parent_tool_call_id, agent_name, session_id") == {
        prompt: ("completed", None, None, None, session),
        child: ("completed", prompt, "toolu_local0001", "general-purpose", session),
    }
    assert await steps(session_database) == {
        (prompt, "toolu_local0001"): ("Agent", "completed"),
        (prompt, "toolu_local0004"): ("Agent", "failed"),
        (child, "toolu_local0002"): ("Bash", "completed"),
    }


async def test_H51_captured_zeros_and_a_resume(session_database: SessionDatabase, tmp_path: Path) -> None:
    await bring(session_database, "claude-code", whole_ids("claude-code-transcript-nousage-resume", tmp_path))
    found = await events(session_database, "run_id, measured, errored")
    assert found == {"msg_local0006": ("9ba5e1ef", False, False), "msg_local0007": ("29fcb659", False, False)}
    assert set((await runs(session_database)).values()) == {"completed"}


async def test_H52_a_captured_prompt_that_was_cancelled(session_database: SessionDatabase, tmp_path: Path) -> None:
    await bring(session_database, "claude-code", whole_ids("claude-code-transcript-cancel", tmp_path))
    assert list((await events(session_database, "run_id, measured")).values()) == [("3d7859a8", False)]
    assert await runs(session_database) == {"3d7859a8": "running"}


Place = tuple[Literal["claude-code", "codex"], str]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        pytest.param([("claude-code", "claude-blocks.jsonl")], {"0b10c000": (23812, 767, 0, 0)}, id="H56"),
        pytest.param([("claude-code", "claude-growing.jsonl")], {"6c070000": (49684, 1459, 0, 0)}, id="H57"),
        pytest.param([("claude-code", "claude-subagents")], {"5ab00000": (40104, 963, 0, 0)}, id="H58"),
        pytest.param(
            [("claude-code", "claude-resume/first-reading.jsonl")], {"4e500000": (10393, 213, 0, 0)}, id="H59"
        ),
        pytest.param(
            [
                ("claude-code", "claude-resume/first-reading.jsonl"),
                ("claude-code", "claude-resume/second-reading.jsonl"),
            ],
            {"4e500000": (14118, 368, 0, 0)},
            id="H59-twice",
        ),
        pytest.param(
            [("claude-code", "claude-resume"), ("claude-code", "claude-fork.jsonl")],
            {"4e500000": (14118, 368, 0, 0), "f02c0000": (7949, 129, 0, 0)},
            id="H60",
        ),
        pytest.param(
            [("claude-code", "claude-fork-marked.jsonl"), ("claude-code", "claude-blocks.jsonl")],
            {"0b10c000": (23812, 767, 0, 0), "f02cb000": (6139, 83, 0, 0)},
            id="H61",
        ),
        pytest.param([("claude-code", "claude-errors.jsonl")], {"e2202000": (7013, 301, 1, 2)}, id="H62"),
        pytest.param([("codex", "codex-twice.jsonl")], {"019d1000": (86450, 1349, 1, 0)}, id="H63"),
        pytest.param([("codex", "codex-fork.jsonl")], {"019d1a00": (23900, 238, 0, 0)}, id="H64"),
        pytest.param([("codex", "codex-subagent.jsonl")], {"019d1b00": (24200, 211, 0, 0)}, id="H65"),
    ],
)
async def test_H56_to_H65_totals_of_the_made_files(
    session_database: SessionDatabase, places: Sequence[Place], expected: dict[str, tuple[int, ...]]
) -> None:
    for _ in range(2):
        for program, place in places:
            assert (await bring(session_database, program, MADE / place)).bad_lines == 0
        assert {name[:8]: found for name, found in (await totals(session_database)).items()} == expected


async def test_H56_to_H62_events_of_the_made_files(session_database: SessionDatabase) -> None:
    for place in ("claude-blocks.jsonl", "claude-growing.jsonl", "claude-subagents", "claude-errors.jsonl"):
        await bring(session_database, "claude-code", MADE / place)
    found = {key.removeprefix("msg_made"): value for key, value in (await events(session_database, COUNTS)).items()}
    assert {key: value for key, value in found.items() if any(value)} == {
        "0101": (5311, 212, 4100, 1200, 300),
        "0102": (5757, 96, 5300, 450, 450),
        "0103": (6365, 401, 5750, 610, 0),
        "0104": (6379, 58, 6360, 0, 0),
        "0201": (20450, 437, 12410, 8037, 8037),
        "0202": (21905, 2, 20447, 1457, 1457),
        "0203": (2208, 780, 0, 2200, 0),
        "0204": (2514, 166, 2200, 310, 0),
        "0205": (2607, 74, 2510, 95, 0),
        "0301": (11114, 133, 9000, 2100, 2100),
        "0302": (11432, 45, 11100, 310, 310),
        "0311": (1706, 88, 0, 1700, 0),
        "0312": (1949, 57, 1700, 240, 0),
        "0321": (13903, 640, 11410, 2490, 2490),
        "0601": (7013, 301, 7000, 0, 0),
    }
    searches = "SELECT sum((parts->>'web_searches')::int) FROM session_lifecycle.session_usage_events"
    assert await rows(session_database, searches) == [(2,)]
    found_runs = await runs(session_database, "status, parent_run_id, parent_tool_call_id, agent_name")
    statuses = {run[:8]: values[0] for run, values in found_runs.items() if run.startswith("9a")}
    assert statuses == {
        "9a000001": "completed",
        "9a000002": "completed",
        "9a000031": "completed",
        "9a000061": "failed",
        "9a000062": "completed",
        "9a000063": "completed",
        "9a000064": "failed",
    }
    parent = "9a000031-0000-4000-8000-000000000031"
    assert found_runs["a5c41e0"] == ("completed", parent, "toolu_made0301", "weigher")
    assert found_runs["acompact-77aa01"] == ("completed", None, None, None)
    ended = {step.removeprefix("toolu_made"): how for (_, step), how in (await steps(session_database)).items()}
    assert ended["0101"] == ("Read", "completed")
    assert ended["0102"] == ("Grep", "failed")
    assert {how for _, (_, how) in ended.items()} == {"completed", "failed"}
    assert len(ended) == 10


async def test_H59_the_run_that_is_half_written_runs(session_database: SessionDatabase) -> None:
    await bring(session_database, "claude-code", MADE / "claude-resume" / "first-reading.jsonl")
    found = {run[:8]: status for run, status in (await runs(session_database)).items()}
    assert found == {"9a000041": "completed", "9a000042": "running"}
    await bring(session_database, "claude-code", MADE / "claude-resume" / "second-reading.jsonl")
    assert set((await runs(session_database)).values()) == {"completed"}


async def test_H63_to_H65_turns_and_parents(session_database: SessionDatabase, tmp_path: Path) -> None:
    for file in MADE.glob("codex-*.jsonl"):
        shutil.copy(file, tmp_path)
    await bring(session_database, "codex", tmp_path)
    found = {run.split("-")[0]: status for run, status in (await runs(session_database)).items()}
    assert found == {
        "019d1001": "completed",
        "019d1002": "completed",
        "019d1003": "cancelled",
        "019d1004": "running",
        "019d1021": "completed",
        "019d1031": "completed",
    }
    sql = "SELECT session_id, parent_session_id FROM session_lifecycle.session_records ORDER BY 1"
    origin = "019d1000-0000-7000-8000-0000000000a1"
    assert [parent for _, parent in await rows(session_database, sql)] == [None, origin, origin]


async def test_H56_to_H65_all_ten_sum_to_one_user(session_database: SessionDatabase) -> None:
    for _ in range(2):
        await bring(session_database, "claude-code", MADE)
        await bring(session_database, "codex", *sorted(MADE.glob("codex-*.jsonl")))
    sql = "SELECT sum(tokens_in), sum(tokens_out) FROM session_lifecycle.session_usage_events"
    assert await rows(session_database, sql) == [(283369, 5868)]
