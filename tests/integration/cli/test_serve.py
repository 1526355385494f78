"""`serve` and `tail` as users run them: a process, a browser's requests, a signal."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from session_lifecycle import SessionDatabase, SessionStatus, Viewer
from session_lifecycle.cli import demo_fleet
from session_lifecycle.postgres.embedded import temporary_data_dir
from session_lifecycle.web.framework import PlainTextResponse
from session_lifecycle.web.serving import Door
from support.command_line import OTHERS_CONNECTED
from support.command_server import RunningCommand, command_server
from support.commands import environment, run, without_database
from support.eventually import eventually
from support.live import Stream
from support.usage import A

B = UUID(int=2)
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the commands refuse it, or are told who may look
API = "api/v1"
AUTH = """
from typing import Annotated
from uuid import UUID
from fastapi import Header, HTTPException
from session_lifecycle import Viewer

def current_viewer(authorization: Annotated[str | None, Header()] = None) -> Viewer:
    if authorization != "Bearer of-a":
        raise HTTPException(401, "sign in")
    return Viewer(UUID(int=1))
"""


class Running:
    """A command that runs, and what it says."""

    def __init__(self, process: RunningCommand) -> None:
        self.process = process

    async def line(self, within_seconds: float = 60) -> str:
        """The next line of its standard output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_seconds):
            line = await asyncio.to_thread(self.process.stdout.readline)
        assert line, self.process.communicate(timeout=10)[1]
        return line.strip()

    async def ended_by(self, number: int) -> tuple[int, str]:
        """Sends the signal; the exit code and the errors. It must end within seconds."""
        self.process.send_signal(number)
        _, said = await asyncio.to_thread(self.process.communicate, timeout=20)
        assert self.process.returncode is not None
        return self.process.returncode, without_database(said)


@asynccontextmanager
async def running(*arguments: str, cwd: Path | None = None) -> AsyncGenerator[Running]:
    with command_server().running(arguments, environment(), folder=cwd) as command:
        yield Running(command)


@asynccontextmanager
async def browsing(url: str) -> AsyncGenerator[httpx.AsyncClient]:
    """A browser that has opened the link."""
    async with httpx.AsyncClient(base_url=url.partition("?")[0], timeout=20) as client:
        assert (await client.get(url)).status_code == 303
        yield client


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_the_link_opens_the_pages_and_a_signal_ends_the_server(
    session_database: SessionDatabase, session_database_url: str, number: int
) -> None:
    await session_database.lifecycle.accumulate_usage("of-a", A, "gpt-4o", 1, 1)
    async with running("serve", "--database-url", session_database_url, "--port", "0") as server:
        link = await server.line()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", link)
        async with browsing(link) as client:
            assert (await client.get("")).status_code == 200
            listed = (await client.get(f"{API}/sessions")).json()["sessions"]
            assert [row["session_id"] for row in listed] == ["of-a"]
            document = (await client.get(f"{API}/openapi.json")).json()
            assert {method for methods in document["paths"].values() for method in methods} == {"get"}
            async with client.stream("GET", f"{API}/events", params={"recent": 0}) as response:
                stream = Stream(response)
                await stream.block()
                await session_database.lifecycle.accumulate_usage("new", B, "gpt-4o", 1, 1)
                assert (await stream.next()).session_id == "new"
                ending = asyncio.create_task(server.ended_by(number))
                assert await stream.ended(), "a stream does not keep the server from ending"
            assert await ending == (0, "")
            with pytest.raises(httpx.ConnectError):
                await client.get("")

    async def nobody_is_connected() -> bool:
        async with session_database.engine.connect() as connection:
            return bool((await connection.exec_driver_sql(OTHERS_CONNECTED)).scalar_one() == 0)

    await eventually(nobody_is_connected)


async def test_the_token_works_once_and_becomes_a_cookie(session_database_url: str) -> None:
    async with running("serve", "--database-url", session_database_url, "--port", "0") as server:
        link = await server.line()
        root = link.partition("?")[0]
        async with httpx.AsyncClient(timeout=20) as stranger:
            for path in (
                "",
                "?token=",
                "?token=wrong",
                f"{API}/sessions",
                f"{API}/health",
                f"{API}/events",
                "odd/path",
            ):
                assert (await stranger.get(root + path)).status_code == 401, path
            assert (await stranger.post(link)).status_code == 401, "a form of another site sends no token"
            elsewhere = await stranger.get(link, headers={"Host": "evil.example"})
            assert (elsewhere.status_code, "set-cookie" in elsewhere.headers) == (421, False)
            opened = await stranger.get(link)
            assert (opened.status_code, opened.headers["location"], opened.text) == (303, "/", "")
            cookie = opened.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert link.partition("token=")[2] not in cookie
            assert (await stranger.get(root)).status_code == 200
            for path in ("", f"{API}/ready", f"{API}/sessions"):
                head = await stranger.head(root + path)
                assert (head.status_code, head.content) == (200, b""), path
            for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.", "10.0.0.1:80"):
                assert (await stranger.get(root, headers={"Host": host})).status_code in {400, 421}, host
            for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80"):
                assert (await stranger.get(root, headers={"Host": host})).status_code == 200, host
        async with httpx.AsyncClient(timeout=20) as late:
            assert (await late.get(link)).status_code == 401
            assert (await late.get(await server.line())).status_code == 303, "the terminal shows the next link"


def door(names: frozenset[str] = frozenset({"localhost"})) -> tuple[httpx.AsyncClient, list[str]]:
    """A client before a door."""
    tokens: list[str] = []
    behind = Door(PlainTextResponse("behind"), names=names, port=1, needs_token=True, on_token=tokens.append)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=behind), base_url="http://localhost"), tokens


async def test_the_door_leads_to_the_root_of_this_server_only() -> None:
    client, tokens = door()
    async with client:
        opened = await client.get(
            "http://localhost//evil.example/%2e%2e", params={"token": tokens[-1], "next": "//evil"}
        )
        assert opened.headers["location"] == "/"
        for cookie in ("session_lifecycle_1=é", "a=b; session_lifecycle_1", "session_lifecycle_1=;;=", "x" * 9000):
            answer = await client.get("/", headers={b"Cookie": cookie.encode("utf-8")})
            assert answer.status_code == 401
        assert (await client.get("/")).text == "behind", "the client's own cookie"


BAD = {
    "all addresses": (["--host", EVERYWHERE], 2, "--auth must say"),
    "all addresses of IPv6": (["--host", "::"], 2, "--auth must say"),
    "another address": (["--host", "192.0.2.1"], 2, "--auth must say"),
    "a name": (["--host", "example.com"], 2, "--auth must say"),
    "without a token elsewhere": (["--host", EVERYWHERE, "--no-token"], 2, "--auth must say"),
    "two ways in": (["--auth", "os:getcwd", "--no-token"], 2, "without --no-token"),
    "two viewers": (["--auth", "os:getcwd", "--user", str(A)], 2, "--user"),
    "no dependency": (["--auth", "plain"], 2, "expected MODULE:NAME"),
    "no module": (["--auth", "not_there:viewer"], 2, "cannot be imported"),
    "no function": (["--auth", "os:not_there"], 2, "has no function"),
    "no callable": (["--auth", "os:sep"], 2, "has no function"),
    "a port": (["--port", "70000"], 2, "65535"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_address_that_others_reach_needs_auth(name: str) -> None:
    arguments, code, message = BAD[name]
    ran = run("serve", "--database-url", "postgresql://nobody@127.0.0.1:1/nothing", *arguments)
    assert ran.returncode == code
    assert message in ran.stderr.replace("\n", " ")
    assert ran.stdout == ""


def test_a_port_that_is_taken_and_a_database_that_is_away_fail() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = ("--database-url", "postgresql://nobody@127.0.0.1:1/nothing", "--port", str(taken.getsockname()[1]))
        ran = run("serve", *at)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "cannot listen on 127.0.0.1" in ran.stderr
    ran = run("serve", "--database-url", "postgresql://nobody@127.0.0.1:1/nothing", "--port", "0")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert run("serve").returncode == 2


async def test_no_token_lets_this_machine_in_and_user_narrows(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    for user in (A, B):
        await session_database.lifecycle.accumulate_usage(f"of-{user.int}", user, "gpt-4o", 1, 1)
    at = ("--database-url", session_database_url, "--port", "0")
    async with (
        running("serve", *at, "--no-token", "--user", str(A), "--host", "localhost") as server,
        httpx.AsyncClient(timeout=20) as client,
    ):
        root = await server.line()
        assert re.fullmatch(r"http://localhost:\d+/", root)
        root = root.replace("localhost", "127.0.0.1")
        listed = (await client.get(f"{root}{API}/sessions")).json()["sessions"]
        assert [row["session_id"] for row in listed] == ["of-1"]
        assert (await client.get(root, headers={"Host": "evil.example"})).status_code == 421
        assert (await client.get(f"{root}metrics")).status_code == 403, "a user is not everybody"
    async with running("serve", *at, "--no-token") as server, httpx.AsyncClient(timeout=20) as client:
        told = await client.get(f"{await server.line()}metrics")
        assert (told.status_code, told.headers["content-type"].partition(";")[0]) == (200, "text/plain")
        assert "\nsession_lifecycle_database_up 1\n" in f"{told.text}\n"


async def test_auth_is_the_hosts_dependency_at_any_address(
    session_database: SessionDatabase, session_database_url: str, tmp_path: Path
) -> None:
    for user in (A, B):
        await session_database.lifecycle.accumulate_usage(f"of-{user.int}", user, "gpt-4o", 1, 1)
    (tmp_path / "own_auth.py").write_text(AUTH)
    at = (
        "--database-url",
        session_database_url,
        "--port",
        "0",
        "--host",
        EVERYWHERE,
        "--auth",
        "own_auth:current_viewer",
    )
    async with running("serve", *at, cwd=tmp_path) as server, httpx.AsyncClient(timeout=20) as client:
        root = (await server.line()).replace(EVERYWHERE, "127.0.0.1")
        assert (await client.get(f"{root}{API}/sessions")).status_code == 401
        assert (await client.get(f"{root}{API}/events")).status_code == 401
        headers = {"Authorization": "Bearer of-a", "Host": "sessions.example"}
        listed = (await client.get(f"{root}{API}/sessions", headers=headers)).json()["sessions"]
        assert [row["session_id"] for row in listed] == ["of-1"]


async def test_a_killed_server_leaves_nothing_behind(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    """Its port is free at once, and the next one serves there."""
    await session_database.migrate(notes=True)
    at = ("--database-url", session_database_url, "--port")
    async with running("serve", *at, "0") as server:
        link = await server.line()
        async with browsing(link) as client, client.stream("GET", f"{API}/events") as response:
            stream = Stream(response)
            await stream.block()
            await server.ended_by(signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                await stream.ended()
    port = re.findall(r":(\d+)/", link)[0]
    async with running("serve", *at, port) as server, browsing(await server.line()) as client:
        assert (await client.get(f"{API}/ready")).status_code == 200
        await server.ended_by(signal.SIGTERM)

    async def nobody_is_connected() -> bool:
        async with session_database.engine.connect() as connection:
            return bool((await connection.exec_driver_sql(OTHERS_CONNECTED)).scalar_one() == 0)

    await eventually(nobody_is_connected)


@pytest.fixture
def data() -> Iterator[Path]:
    with temporary_data_dir() as found:
        yield found


async def test_the_demo_is_lived_in_and_moves(data: Path) -> None:
    async with running("serve", "--demo", "--data-dir", str(data), "--port", "0") as server:
        async with browsing(await server.line(within_seconds=240)) as client:
            page = (await client.get(f"{API}/sessions", params={"range": "all", "limit": 500})).json()
            rows = page["sessions"]
            assert page["total"] > 80
            for name, least in {
                "user_id": 4,
                "agent_name": 3,
                "last_model": 5,
                "effective_status": 3,
                "dataset_id": 2,
            }.items():
                assert len({row[name] for row in rows}) >= least, name
            assert len({row["started_at"][:10] for row in rows}) > 10, "days"
            assert all(row["tags"] for row in rows)
            stats = (await client.get(f"{API}/sessions/stats", params={"range": "all"})).json()
            assert stats["unpriced_events"] > 0
            assert stats["failed"] > 0
            async with client.stream("GET", f"{API}/events", params={"recent": 0}) as response:
                stream = Stream(response)
                await stream.block()
                moved = {(await stream.next()).session_id for _ in range(8)}
            assert len(moved) > 1
        code, said = await server.ended_by(signal.SIGTERM)
        assert code == 0, said
        assert "Traceback" not in said
    assert not (data / "postmaster.pid").exists(), "its Postgres has ended"


async def test_the_history_goes_on_where_it_stopped(session_database: SessionDatabase) -> None:
    db = session_database
    count = await demo_fleet.record_history(db)
    assert await demo_fleet.record_history(db) < count / 4
    everybody = Viewer.auditor()
    stats = await db.lifecycle.aggregate_stats(everybody)
    assert min(stats.completed, stats.failed, stats.abandoned, stats.unpriced_events, stats.unmeasured_events) > 0
    assert not (await db.maintenance.reconcile()).mismatches
    uses = [await db.budgets.get_budget(one.budget_id, everybody) for one in await db.budgets.list_budgets(everybody)]
    assert any(use is not None and use.over_usd is not None for use in uses)


async def test_tail_prints_what_changes(session_database: SessionDatabase, session_database_url: str) -> None:
    db = session_database
    await db.lifecycle.accumulate_usage("before", A, "gpt-4o", 1, 1)
    at = ("--database-url", session_database_url)
    async with running("tail", *at, "--json") as command:
        first = json.loads(await command.line())
        assert (first["event"], first["session_id"]) == ("session", "before")
        await db.lifecycle.accumulate_usage("new", A, "gpt-4o", 100, 1, "0.1000000000000000000001")
        event = json.loads(await command.line())
        assert (event["event"], event["user_id"], event["session_id"]) == ("session", str(A), "new")
        assert event["session"]["record"]["cost_usd"] == "0.1000000000000000000001"
        await db.maintenance.delete_session("new", A)
        assert json.loads(await command.line()) == {
            "event": "gone", "user_id": str(A), "session_id": "new", "session": None
        }  # fmt: skip
        assert await command.ended_by(signal.SIGINT) == (0, "")
    async with running("tail", *at, "--user", str(A), "--status", "running", "--recent", "0") as command:
        # It says nothing when it is ready.
        async def is_told() -> bool:
            await db.lifecycle.accumulate_usage("odd\x1b[31m\n", A, "gpt-4o", 1200, 40)
            await asyncio.sleep(0.5)
            return told.done()

        told = asyncio.create_task(command.line())
        await eventually(is_told)
        line = await told
        assert re.match(r"\d\d:\d\d:\d\dZ  running    odd\\x1b\[31m\\n  of " + str(A), line), line
        await db.lifecycle.end_session("odd\x1b[31m\n", A, SessionStatus.COMPLETED)
        while "gone" not in line:
            line = await command.line()
        assert await command.ended_by(signal.SIGTERM) == (0, "")


def test_serving_without_its_extra_names_it() -> None:
    without: Any = [sys.executable, "-c", WITHOUT_UVICORN]
    ran = subprocess.run(
        [*without, "serve", "--embedded"], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert "session-lifecycle[serve]" in ran.stderr
    assert "Traceback" not in ran.stderr


WITHOUT_UVICORN = """
import sys
sys.modules["fastapi"] = None
from session_lifecycle.cli import main
main()
"""
