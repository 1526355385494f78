"""The commands of a spool."""

from pathlib import Path
from typing import Any

from session_lifecycle import Spool
from support.command_line import EVENTS, USER, connected
from support.commands import interrupt, run, running, succeed
from support.eventually import eventually


def usage_of(session_id: str, tokens: int) -> dict[str, Any]:
    return {"kind": "usage", "session_id": session_id, "user_id": str(USER), "tokens_in": tokens, "cost_usd": "1"}


async def test_the_spool_is_shown_delivered_and_its_poison_kept(session_database_url: str, tmp_path: Path) -> None:
    at = ("--path", str(tmp_path / "spool"))
    with Spool(tmp_path / "spool") as spool:
        spool.append([usage_of("s", 1), usage_of("s", -1), usage_of("s\x1b[31m", -1)])
        assert succeed("spool", "status", *at).startswith(f"{tmp_path / 'spool'}: 3 items, 0 set aside, ")
        to_database = ("--database-url", session_database_url)
        assert succeed("spool", "drain", *at, *to_database) == "Drained: 1 delivered, 2 set aside, 0 left\n"
        first, second = succeed("spool", "poison", *at).splitlines()
        assert "tokens_in: expected a whole number from 0" in first
        assert "\\u001b" in second
        assert "\x1b" not in second
        assert succeed("spool", "poison", "--retry", *at) == "Put back: 2 items\n"
        assert succeed("spool", "drain", *at, *to_database) == "Drained: 0 delivered, 2 set aside, 0 left\n"
        unasked = run("spool", "poison", "--drop", *at)
        assert (unasked.returncode, unasked.stdout) == (2, "")
        assert unasked.stderr == "error: there is no terminal to confirm on: give --yes\n"
        assert succeed("spool", "poison", "--drop", "--yes", *at) == "Deleted: 2 items\n"
        assert "0 items, 0 set aside" in succeed("spool", "status", *at)
    both = run("spool", "poison", "--retry", "--drop", *at)
    assert (both.returncode, both.stderr) == (2, "error: --retry and --drop exclude each other: give one\n")


async def test_a_spool_that_cannot_be_drained_is_told(session_database_url: str, tmp_path: Path) -> None:
    at = ("--path", str(tmp_path / "spool"))
    with Spool(tmp_path / "spool") as spool:
        spool.append([usage_of("s", 1)])
        away = run("spool", "drain", *at, "--database-url", "postgresql://me@127.0.0.1:1/x")
        assert (away.returncode, away.stdout) == (1, "")
        assert away.stderr.startswith("error: the database cannot be reached")
        assert spool.status().items == 1
        with spool.draining():
            refused = run("spool", "drain", *at, "--database-url", session_database_url)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: another drainer is at work on ")
    (tmp_path / "file").touch()
    refused = run("spool", "status", "--path", str(tmp_path / "file"))
    assert refused.returncode == 1
    assert "is not a directory" in refused.stderr


async def test_following_a_spool_ends_with_an_interrupt(session_database_url: str, tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        at = ("--path", str(tmp_path / "spool"), "--database-url", session_database_url)
        with running("spool", "drain", "--follow", *at) as process:
            for number in range(2):
                spool.append([usage_of(f"s{number}", 1)])
                await eventually(lambda: spool.status().items == 0)
            assert spool.status().is_draining
            code, said = interrupt(process)
            assert (code, said) == (0, "")
        assert not spool.status().is_draining
    async with connected(session_database_url) as connection:
        assert await connection.fetchval(EVENTS) == 2
