"""`session-lifecycle import`: what it remembers, what it survives, and how it follows files that grow."""

import asyncio
import errno
import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import DatabaseUnavailableError, InvalidValueError, SessionDatabase
from session_lifecycle.integrations.positions import Positions
from session_lifecycle.integrations.transcript_import import BadLine, Program, TranscriptImport, transcripts_in
from support.eventually import eventually
from support.transcripts import answer, bring, events, everything, line, prompt, result, totals, write
from support.usage import A


def session(name: str, answers: int = 3) -> list[dict[str, Any]]:
    lines = [prompt(0, "Go.", session=name, promptId=f"{name}-p")]
    for number in range(answers):
        lines += [
            answer(
                2 * number + 1,
                f"{name}-m{number}",
                (10, 0, 0, 1),
                session=name,
                stop="tool_use",
                tool=(f"t{number}", "Bash"),
            ),
            result(2 * number + 2, f"t{number}", session=name),
        ]
    return [*lines, answer(99, f"{name}-last", (10, 0, 0, 1), session=name)]


async def test_a_second_import_changes_nothing(session_database: SessionDatabase, tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        write(tmp_path / f"{name}.jsonl", session(name))
    kept = tmp_path / "kept"
    first = await bring(session_database, "claude-code", tmp_path, positions=kept, batch=4)
    assert (first.files, first.lines, first.new_events) == (2, 16, 8)
    before = await everything(session_database)
    second = await bring(session_database, "claude-code", tmp_path, positions=kept)
    assert (second.files, second.lines, second.items, second.new_events) == (0, 0, 0, 0)
    again = await bring(session_database, "claude-code", tmp_path, positions=kept, reads_again=True)
    assert (again.lines, again.new_events) == (16, 0)
    assert await everything(session_database) == before


async def test_positions_are_private_and_for_one_reading(session_database: SessionDatabase, tmp_path: Path) -> None:
    file = write(tmp_path / "s1.jsonl", session("s1"))
    kept = tmp_path / "kept"
    await bring(session_database, "claude-code", file, positions=kept)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    [position] = kept.iterdir()
    assert "Go." not in position.read_text()
    with file.open("rb") as opened:
        assert Positions(kept, "tests").find(file, opened) is not None
        assert Positions(kept, "another database").find(file, opened) is None
        position.write_text("{")
        assert Positions(kept, "tests").find(file, opened) is None


async def test_a_file_that_was_replaced_is_read_from_its_beginning(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    file = write(tmp_path / "s.jsonl", session("s1"))
    await bring(session_database, "claude-code", file, positions=tmp_path / "kept")
    write(file, session("s2", answers=8))
    report = await bring(session_database, "claude-code", file, positions=tmp_path / "kept")
    assert report.lines == 18
    assert set(await totals(session_database)) == {"s1", "s2"}


async def test_bad_lines_are_counted_and_named_and_stop_nothing(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    good = session("s1", answers=1)
    bad: list[Any] = [
        "secret words that are no JSON",
        '["secret"]',
        {**good[1], "timestamp": "secret"},
        {**good[1], "sessionId": 7},
        {**good[1], "message": "secret"},
        answer(51, "m" * 4000, (1, 0, 0, 1)),
        line("user", 52, "s1", {"role": "user", "content": [{"type": "tool_result"}]}),
        "[" * 100_000,
    ]
    named: list[BadLine] = []
    file = write(tmp_path / "s1.jsonl", [good[0], *bad, *good[1:]])
    report = await bring(session_database, "claude-code", file, positions=tmp_path / "kept", on_bad_line=named.append)
    assert sorted(one.number for one in named) == list(range(2, 10))
    assert {one.path for one in named} == {file}
    assert "secret" not in str([one.reason for one in named])
    assert (report.bad_lines, report.lines) == (len(bad), len(bad) + len(good))
    assert set(await events(session_database)) == {"s1-m0", "s1-last"}


@pytest.mark.parametrize("program", ["claude-code", "codex"])
async def test_a_file_of_nothing_but_brackets_stops_nothing(
    session_database: SessionDatabase, tmp_path: Path, program: Program
) -> None:
    for name in ("brackets.jsonl", "agent-1.jsonl", "s1/subagents/agent-2.jsonl", "rollout-1.jsonl"):
        for end in ("", "\n"):
            write(tmp_path / f"folder{len(end)}" / name, ["[" * 100_000], end=end)
    report = await bring(session_database, program, tmp_path, positions=tmp_path / "kept")
    assert (report.lines, report.new_events) == (report.bad_lines, 0)


async def test_a_count_that_is_none_counts_as_not_told_and_loses_nothing_else(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    begin, *_ = session("s1", answers=1)
    file = write(tmp_path / "s1.jsonl", [begin, answer(50, "m-odd", (-1, 0, 0, 5))])
    report = await bring(session_database, "claude-code", file, positions=tmp_path / "kept")
    assert report.bad_lines == 0
    assert await events(session_database, "tokens_in, tokens_out, measured") == {"m-odd": (0, 5, True)}


async def test_a_file_that_cannot_be_read_is_named_once_and_stops_nothing(
    session_database: SessionDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = write(tmp_path / "closed.jsonl", session("s1"))
    write(tmp_path / "open.jsonl", session("s2"))
    opens = Path.open

    def refusing(path: Path, *arguments: Any, **named: Any) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opens(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refusing)
    named: list[BadLine] = []
    kept = Positions(tmp_path / "kept", "tests")
    job = TranscriptImport(
        "claude-code", [tmp_path], session_database.lifecycle, kept, user_id=A, on_bad_line=named.append
    )
    for _ in range(2):
        await job.run()
        assert named == [BadLine(closed, 0, "the file cannot be read: Permission denied")]
    assert set(await totals(session_database)) == {"s2"}


async def test_what_the_database_refuses_is_named_and_stops_nothing(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    # A session of the far future: only the database's clock can refuse it.
    future = {**answer(1, "m-future", (1, 0, 0, 1)), "timestamp": "2190-01-01T00:00:00Z"}
    file = write(tmp_path / "s1.jsonl", [*session("s1"), future, *session("s2")])
    named: list[BadLine] = []
    report = await bring(session_database, "claude-code", file, on_bad_line=named.append)
    assert report.bad_lines > 0
    assert {one.number for one in named} == {9}
    assert set(await totals(session_database)) == {"s1", "s2"}


async def test_a_user_who_is_refused_stops_the_import(session_database: SessionDatabase, tmp_path: Path) -> None:
    file = write(tmp_path / "s1.jsonl", session("s1"))
    with pytest.raises(InvalidValueError, match="user_id"):
        TranscriptImport("claude-code", [file], session_database.lifecycle, None, user_id="nobody")
    await bring(session_database, "claude-code", file)
    await session_database.maintenance.erase_user(A, tombstone=True)
    with pytest.raises(InvalidValueError, match="user_id"):
        await bring(session_database, "claude-code", file)


class Failing:
    """Records in the database, and fails from a number of calls on."""

    def __init__(self, db: SessionDatabase, calls: int) -> None:
        self._db = db
        self.calls = calls
        self.most = 0

    async def record(self, items: Sequence[Any]) -> Any:
        self.calls -= 1
        self.most = max(self.most, len(items))
        if self.calls < 0:
            raise DatabaseUnavailableError("away")
        return await self._db.lifecycle.record(items)

    async def reopen_session(self, session_id: str, user_id: UUID | str, *, at: Any = None) -> Any:
        return await self._db.lifecycle.reopen_session(session_id, user_id, at=at)


async def test_a_position_is_saved_after_its_items_are_committed(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    for name in ("s1", "s2", "s3"):
        write(tmp_path / "files" / f"{name}.jsonl", session(name, answers=6))
    lines = 0
    for calls in (0, 1, 2, 3, 100):
        into = Failing(session_database, calls)
        kept = Positions(tmp_path / "kept", "tests")
        job = TranscriptImport("claude-code", [tmp_path / "files"], into, kept, user_id=A, batch=10)
        with suppress(DatabaseUnavailableError):
            await job.run()
        assert into.most <= 10 + 5  # one line more than a batch
        lines += job.report.lines
    assert await totals(session_database) == dict.fromkeys(("s1", "s2", "s3"), (70, 7, 0, 0))
    assert lines < 5 * 3 * 14  # it went on where the last commit was


async def test_files_that_grow_and_files_that_come_are_followed(
    session_database: SessionDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_lifecycle.integrations.transcript_import.LOOK_SECONDS", 0.01)
    files = tmp_path / "files"
    first = write(files / "s1.jsonl", session("s1")[:3])
    into = Failing(session_database, 10**9)
    job = TranscriptImport("claude-code", [files], into, Positions(tmp_path / "kept", "tests"), user_id=A)
    following = asyncio.create_task(job.follow())

    async def counted(session_id: str, answers: int) -> bool:
        return (await totals(session_database)).get(session_id, (0, 0))[1] == answers

    await eventually(lambda: counted("s1", 1))
    write(first, session("s1")[:-1])
    await eventually(lambda: counted("s1", 3))
    with first.open("ab") as end:
        text = json.dumps(session("s1")[-1]).encode()
        end.write(text[:200])
        end.flush()
        await asyncio.sleep(0.1)
        assert await counted("s1", 3)
        end.write(text[200:])
    await eventually(lambda: counted("s1", 4))
    write(files / "sub" / "s2.jsonl", session("s2"))
    await eventually(lambda: counted("s2", 4))
    calls = into.calls
    await asyncio.sleep(0.1)
    assert into.calls == calls  # nothing is new, so nothing is recorded
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


async def test_without_content_nothing_that_was_said_is_recorded(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    words = [prompt(0, "zebra", promptId="p"), answer(1, "m", (1, 0, 0, 1), stop="tool_use", tool=("t", "Bash"))]
    words += [result(2, "t", "zebra", failed=True), answer(3, "m2", (1, 0, 0, 1))]
    words[1]["message"]["content"][0]["input"] = {"command": "zebra"}
    file = write(tmp_path / "s1.jsonl", words)
    await bring(session_database, "claude-code", file, content=False)
    assert "zebra" not in str(await everything(session_database))
    await bring(session_database, "claude-code", file)
    assert str(await everything(session_database)).count("zebra") >= 4


async def test_use_under_a_plan_is_in_no_cost(session_database: SessionDatabase, tmp_path: Path) -> None:
    await bring(session_database, "claude-code", write(tmp_path / "s1.jsonl", session("s1")), billing="plan")
    found = await session_database.lifecycle.get_session_row("s1", A)
    assert found is not None
    assert (found.record.plan_events, found.record.plan_cost_usd > 0) == (4, True)
    assert found.record.cost_usd == 0


def test_a_named_pipe_holds_up_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "directory.jsonl").mkdir()
    (tmp_path / "nothing.jsonl").symlink_to(tmp_path / "left")
    (tmp_path / "file.jsonl").touch()
    assert transcripts_in([tmp_path]) == [tmp_path / "file.jsonl"]


def test_the_longest_unchanged_file_comes_first(tmp_path: Path) -> None:
    files = [write(tmp_path / name / "x.jsonl", []) for name in "abc"]
    for place, file in enumerate([files[1], files[2], files[0]]):
        os.utime(file, (place, place))
    (tmp_path / "notes.txt").write_text("")
    assert transcripts_in([tmp_path, files[0]]) == [files[1], files[2], files[0]]
