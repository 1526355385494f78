"""The commands for coding agents as users run them: import their files, and put the hook into their settings."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import SessionDatabase, Spool
from support.command_server import command_server
from support.eventually import eventually
from support.transcripts import answer, counted, meta, prompt, runs, totals, turn, write

PROGRAM = str(Path(sys.executable).with_name("session-lifecycle"))
USER = str(UUID(int=7))
OTHERS: dict[str, Any] = {
    "model": "opus",
    "hooks": {
        "Stop": [{"hooks": [{"type": "command", "command": "say größer"}]}],
        "Notification": [{"matcher": "x", "hooks": []}],
        "PreCompact": [],
    },
}


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SESSION_", "CLAUDE", "CODEX"))}
    return kept | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")}


def run(home: Path, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    ran = command_server().run(list(arguments), environment(home), within_seconds=120)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran


async def test_both_programs_are_imported_from_their_own_places(session_database_url: str, tmp_path: Path) -> None:
    to = ("--database-url", session_database_url, "--user", USER)
    write(
        tmp_path / ".claude/projects/-home/s1.jsonl",
        [prompt(0, "Go.", promptId="p"), answer(1, "m", (10, 0, 0, 3)), "bad"],
    )
    lines = [meta(0, "c1"), *turn(1, "t1", "gpt-5.4"), counted(2, (100, 0, 10, 0))]
    write(tmp_path / ".codex/sessions/2026/09/01/rollout-1-c1.jsonl", lines)
    ran = run(tmp_path, "import", "claude-code", *to)
    assert ran.stdout == "Imported: 1 files, 3 lines, 5 items, 1 new usage events, 1 bad lines\n"
    assert "s1.jsonl:3: this is no JSON" in ran.stderr
    assert f"user: {USER}" in ran.stderr
    again = run(tmp_path, "import", "claude-code", *to)
    assert again.stdout == "Imported: 0 files, 0 lines, 0 items, 0 new usage events, 0 bad lines\n"
    for other in ((), ("--billing", "plan")):
        again = run(tmp_path, "import", "claude-code", *to, "--again", *other)
        assert "0 new usage events" in again.stdout
        said = "1 usage events are in the database with other content, such as another billing, and stay as they are"
        assert (said in again.stderr) == bool(other)
    ran = run(tmp_path, "import", "codex", *to)
    assert ran.stdout == "Imported: 1 files, 5 lines, 4 items, 1 new usage events, 0 bad lines\n"
    async with SessionDatabase.connect(session_database_url) as db:
        assert await totals(db) == {"c1": (100, 10, 0, 0), "s1": (10, 3, 0, 0)}


def following_process(command: list[str], home: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, text=True)


async def test_following_ends_with_an_interrupt(session_database_url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "s1.jsonl", [prompt(0, "Go.", promptId="p")])
    command = [PROGRAM, "import", "claude-code", str(file), "--follow", "--database-url", session_database_url]
    with following_process(command, tmp_path) as following:
        try:
            async with SessionDatabase.connect(session_database_url) as db:
                await eventually(lambda: _has_begun(db))
                write(file, [prompt(0, "Go.", promptId="p"), answer(1, "m", (10, 0, 0, 3))])
                await eventually(lambda: _is_counted(db))
            following.send_signal(signal.SIGINT)
            said, _ = following.communicate(timeout=60)
        finally:
            following.kill()
    assert following.returncode == 0
    assert "1 new usage events" in said


async def _has_begun(db: SessionDatabase) -> bool:
    return bool(await runs(db))


async def _is_counted(db: SessionDatabase) -> bool:
    return (await totals(db)).get("s1") == (10, 3, 0, 0)


def test_a_place_that_is_not_there_is_misuse(tmp_path: Path) -> None:
    ran = run(tmp_path, "import", "codex", "--database-url", "postgresql://nowhere", code=2)
    assert f"there is nothing at {tmp_path / '.codex/sessions'}" in ran.stderr


def test_the_settings_are_printed_and_installed_beside_what_is_there(tmp_path: Path) -> None:
    printed = json.loads(run(tmp_path, "hook", "claude-code", "--user", USER).stdout)
    file = tmp_path / ".claude" / "settings.json"
    assert not file.exists()
    file.parent.mkdir()
    before = json.dumps(OTHERS, ensure_ascii=False)
    file.write_text(before)
    file.chmod(0o600)
    run(tmp_path, "hook", "claude-code", "--install", "--user", USER)
    installed = json.loads(file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    assert installed["model"] == "opus"
    assert "größer" in file.read_text()
    assert installed["hooks"]["Stop"] == [*OTHERS["hooks"]["Stop"], *printed["hooks"]["Stop"]]
    assert installed["hooks"]["Notification"] == OTHERS["hooks"]["Notification"]
    assert set(installed["hooks"]) == {*OTHERS["hooks"], *printed["hooks"]}
    assert (file.parent / "settings.json.backup-1").read_text() == before
    # Once more changes nothing; another user takes the place of the first one.
    assert run(tmp_path, "hook", "claude-code", "--install", "--user", USER).stdout == f"Up to date: {file}\n"
    assert len(list(file.parent.iterdir())) == 2
    run(tmp_path, "hook", "claude-code", "--install", "--user", str(UUID(int=8)), "--no-content")
    text = file.read_text()
    assert USER not in text
    assert json.loads(text)["hooks"]["Stop"][0] == OTHERS["hooks"]["Stop"][0]
    assert text.count("session-lifecycle-hook") == len(printed["hooks"])
    assert (file.parent / "settings.json.backup-2").exists()


def test_settings_that_are_new_or_a_link(tmp_path: Path) -> None:
    run(tmp_path, "hook", "claude-code", "--install", "--user", USER)
    file = tmp_path / ".claude" / "settings.json"
    assert [one.name for one in file.parent.iterdir()] == ["settings.json"]
    linked = tmp_path / "linked.json"
    linked.symlink_to(tmp_path / "real.json")
    (tmp_path / "real.json").write_text("")
    run(tmp_path, "hook", "claude-code", "--install", "--settings", str(linked))
    assert linked.is_symlink()
    assert "hooks" in json.loads((tmp_path / "real.json").read_text())


@pytest.mark.parametrize("text", ["{", "[]", '{"hooks": []}', '{"hooks": {"Stop": {}}}', "[" * 100_000])
def test_settings_that_are_not_understood_are_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    ran = run(tmp_path, "hook", "claude-code", "--install", "--settings", str(file), code=1)
    assert f"{file} was not changed" in ran.stderr
    assert file.read_text() == text
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["settings.json"]


def test_the_installed_command_runs_in_a_shell(tmp_path: Path) -> None:
    """As an agent runs it: by a shell, with the payload on standard input."""
    printed = json.loads(run(tmp_path, "hook", "claude-code", "--user", USER).stdout)
    [hook] = printed["hooks"]["SessionStart"][0]["hooks"]
    told = json.dumps({"session_id": "s1", "hook_event_name": "SessionStart", "source": "startup"})
    command = ["/bin/sh", "-c", hook["command"]]
    subprocess.run(command, input=told, text=True, env=environment(tmp_path), check=True, timeout=60)
    with Spool(tmp_path / "state/session-lifecycle/spool") as spool:
        [item] = spool.read(10)
    assert json.loads(item.item)["user_id"] == USER
