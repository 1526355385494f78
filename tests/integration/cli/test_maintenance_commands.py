"""Pruning, erasing, reconciling and rolling up by the command line."""

import asyncio
import re
import signal
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from session_lifecycle import Message, SessionDatabase, SessionStatus, Touch
from support.command_line import OTHERS_CONNECTED, USER, ask, connected, until
from support.commands import interrupt, run, running, succeed, without_database

UTC_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
ROLLED_UP = "SELECT count(*) FROM session_lifecycle.rolled_up_sessions"


@pytest.mark.parametrize("command", ["prune-sessions", "prune-payloads"])
async def test_X17_an_operator_narrows_pruning(session_database_url: str, command: str) -> None:
    users, datasets = [UUID(int=number) for number in (1, 2)], [UUID(int=number) for number in (11, 12)]
    long_ago = datetime.now(UTC) - timedelta(days=40)
    names = [(user, agent, dataset) for user in users for agent in ("a", "b", "c") for dataset in datasets]
    async with SessionDatabase.connect(session_database_url) as db:
        for user, agent, dataset in names:
            key = {"session_id": f"{agent} {dataset.int}", "user_id": user}
            touch = Touch(**key, at=long_ago, agent_name=agent, dataset_id=dataset)
            await db.lifecycle.record(
                [touch, Message(**key, message_id=key["session_id"], role="user", content="c", created_at=long_ago)]
            )

    def report(*options: str) -> str:
        return succeed(command, "--older-than-days", "30", "--yes", *options, "--database-url", session_database_url)

    assert ", sessions 0, " in report("--user", str(UUID(int=3)))
    assert ", sessions 12, " in report("--dry-run")
    one_agent = report("--user", str(users[0]), "--agent", "a", "--dry-run")
    assert ", sessions 2, " in one_agent
    two_agents = ("--agent", "a", "--agent", "b", "--dataset", str(datasets[0]))
    assert ", sessions 4, " in report(*two_agents)
    left = "SELECT count(*) FROM session_lifecycle.session_messages"
    assert await ask(session_database_url, left) == 8
    of_user = f"{left} WHERE user_id = '{users[1]}'"
    assert await ask(session_database_url, of_user) == 4
    assert ", sessions 8, " in report("--user", str(users[0]), "--user", str(users[1]))
    assert await ask(session_database_url, left) == 0


def test_X17_a_user_that_is_no_id_is_refused() -> None:
    ran = run("prune-sessions", "--older-than-days", "30", "--yes", "--user", "me", "--data-dir", "/nowhere")
    assert ran.returncode == 2
    assert "--user" in ran.stderr


async def test_an_operator_prunes_erases_and_reconciles(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    user = "00000000-0000-0000-0000-000000000001"
    long_ago = datetime.now(UTC) - timedelta(days=40)
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.record([Touch(session_id=name, user_id=UUID(user), at=long_ago) for name in ("s", "t")])
        await db.lifecycle.accumulate_usage("young", UUID(user), "m", 1, cost_usd=1)
    would_be = succeed("prune-sessions", "--older-than-days", "30", "--dry-run", *at)
    assert re.match(rf"Would delete: cut_at {UTC_TIME}, ", would_be)
    assert ", sessions 2, runs 0," in would_be
    assert "Emptied: " in succeed("prune-payloads", "--older-than-days", "30", "--yes", *at)
    pruned = succeed("prune-sessions", "--older-than-days", "30", "--batch", "1", "--yes", *at)
    assert ", sessions 2, runs 0," in pruned

    assert succeed("reconcile", *at) == "1 sessions, 0 mismatches, 0 repaired\n"
    await ask(session_database_url, "UPDATE session_lifecycle.session_records SET tokens_in = 9 RETURNING 1")
    differing = run("reconcile", *at)
    assert (differing.returncode, differing.stderr) == (1, "")
    found = f"Differs: table session_records, user_id {user}, session_id young, field tokens_in, found 9, expected 1\n"
    assert differing.stdout == f"{found}1 sessions, 1 mismatches, 0 repaired\n"
    assert succeed("reconcile", "--repair", *at) == f"{found}1 sessions, 1 mismatches, 1 repaired\n"

    assert "sessions 1, runs 0" in succeed("erase-user", user, "--anonymise", "--tombstone", "--yes", *at)
    assert await ask(session_database_url, "SELECT sum(cost_usd) FROM session_lifecycle.session_records") == 1
    assert await ask(session_database_url, "SELECT count(*) FROM session_lifecycle.session_tombstones") == 1


async def test_an_operator_rolls_up(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
        await db.lifecycle.accumulate_usage("still running", USER, "m", 1, cost_usd=1)
        await db.lifecycle.end_session("s", USER, SessionStatus.COMPLETED)
    for sessions in (1, 0):
        rolled_up = run("roll-up", *at)
        assert rolled_up.returncode == 0
        # The first call makes the buckets from the sessions, so nothing has changed them yet.
        assert re.fullmatch(rf"Rolled up: idle_before {UTC_TIME}, sessions {sessions}, changes 0\n", rolled_up.stdout)
        assert re.fullmatch(rf"({sessions} sessions so far\n)+", rolled_up.stderr)
    refused = run("roll-up", "--every", "0", *at)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: --every: got 0.0, expected")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_roll_up_repeats_until_a_signal_ends_it(session_database_url: str, ending: signal.Signals) -> None:
    async with connected(session_database_url) as connection, SessionDatabase.connect(session_database_url) as db:
        with running("roll-up", "--every", "0.01", "--database-url", session_database_url) as process:
            for number in range(1, 3):
                await db.lifecycle.accumulate_usage(f"s{number}", USER, "m", 1, cost_usd=1)
                await db.lifecycle.end_session(f"s{number}", USER, SessionStatus.COMPLETED)
                await until(connection, ROLLED_UP, number)
            process.send_signal(ending)
            _, said = process.communicate(timeout=30)
            assert process.returncode == 0
            assert re.fullmatch(r"(\d+ sessions so far\n)+", without_database(said))
        await db.close()
        await until(connection, OTHERS_CONNECTED, lambda others: others == 0)


async def test_roll_up_goes_on_once_the_database_is_migrated(empty_url: str) -> None:
    with running("roll-up", "--every", "0.01", "--database-url", empty_url) as process:
        assert process.stderr is not None
        assert (await asyncio.to_thread(process.stderr.readline)).startswith("database: ")
        said = await asyncio.to_thread(process.stderr.readline)
        assert said.startswith(
            "the roll-up failed; the next attempt is in about 0.01 s: schema 'session_lifecycle' is not"
        )
        async with SessionDatabase.connect(empty_url) as db:
            await db.migrate()
            await db.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
            await db.lifecycle.end_session("s", USER, SessionStatus.COMPLETED)
        async with connected(empty_url) as connection:
            await until(connection, ROLLED_UP, lambda sessions: sessions == 1)
        assert interrupt(process)[0] == 0
