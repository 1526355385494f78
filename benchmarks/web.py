"""What do the HTTP routes cost beside their bare calls, while many clients follow what changes?"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import httpx
import uvicorn
from fastapi import FastAPI, Header

from session_lifecycle import SessionDatabase, SessionListFilters, Settings, Viewer
from session_lifecycle.web.feed import LiveFeed
from session_lifecycle.web.reading import session_router
from support.databases import database, machine, scalar, seed, settle, use
from support.measuring import percentile
from support.tables import table

USERS = 40
FIRST_USER = 1
SESSIONS = 4_000
WRITES_PER_SECOND = 20
BARE_SECONDS = 2.0
OPENED_AT_ONCE = 20
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
SERVER_SETTINGS = Settings(pool_size=10, max_overflow=10)

Ask = Callable[[int], Coroutine[Any, Any, Any]]
PathOf = Callable[[int], str]


def user_of(number: int) -> UUID:
    """One of the users, in turns."""
    return UUID(int=FIRST_USER + number % USERS)


def app_of(url: str) -> FastAPI:
    """The app that is measured. Its users name themselves."""
    db = SessionDatabase.connect(url, settings=SERVER_SETTINGS)

    def viewer(x_user: Annotated[UUID, Header()]) -> Viewer:
        return Viewer(x_user)

    app = FastAPI()
    app.include_router(session_router(db, viewer=viewer, feed=LiveFeed(db, stream_seconds=None)))
    return app


@asynccontextmanager
async def serving(url: str) -> AsyncGenerator[tuple[str, int]]:
    """The app in a process of its own; its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", url, str(port))
    try:
        root = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"{root}/ready")).status_code == httpx.codes.OK:
                        break
                except httpx.ConnectError:
                    await asyncio.sleep(0.1)
        yield root, process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


def memory_mb(pid: int) -> float:
    """The resident memory of a process."""
    [line] = [one for one in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def at_rate(per_second: float, seconds: float, ask: Ask) -> None:
    """Begins so many calls a second, however long they take."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_second - time.perf_counter()))
            group.create_task(ask(number))


async def follow(client: httpx.AsyncClient, number: int, events: Counter[str], opened: asyncio.Event) -> None:
    """One stream, until it is cancelled."""
    headers = {"X-User": str(user_of(number))}
    async with client.stream("GET", "/events", params={"recent": 0}, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            opened.set()
            if line.startswith("event: "):
                events[line] += 1
    events["ended"] += 1


class Load(NamedTuple):
    """What happened while the routes were asked."""

    events: Counter[str]
    listening: int
    before_mb: float
    after_mb: float
    processor_seconds: float
    seconds: float


def calls_of(db: SessionDatabase, viewers: Sequence[Viewer], sessions: Sequence[str]) -> dict[str, tuple[Ask, PathOf]]:
    """Each route by its name: the bare call, and the path."""
    lifecycle, activity = db.lifecycle, db.activity
    return {
        "list": (
            lambda n: lifecycle.list_session_rows(SessionListFilters(viewer=viewers[n % USERS])),
            lambda _: "/sessions?range=all",
        ),
        "stats": (lambda n: lifecycle.aggregate_stats(viewers[n % USERS]), lambda _: "/sessions/stats?range=all"),
        "session": (
            lambda n: activity.get_session_detail(sessions[n % USERS], viewers[n % USERS], payloads=False),
            lambda n: f"/sessions/{sessions[n % USERS]}",
        ),
    }


async def time_calls(call: Ask) -> list[float]:
    """The times of bare calls, one after another."""
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() < began + BARE_SECONDS:
        called = time.perf_counter()
        await call(len(times))
        times.append(time.perf_counter() - called)
    return times


async def load(
    url: str, db: SessionDatabase, paths: Mapping[str, PathOf], arguments: argparse.Namespace
) -> tuple[Load, dict[str, list[float]]]:
    """Asks the routes while streams are open and sessions change."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    events: Counter[str] = Counter()
    following = []
    limits = httpx.Limits(max_connections=None)
    async with serving(url) as (root, pid), httpx.AsyncClient(base_url=root, timeout=60, limits=limits) as client:
        for first in range(0, arguments.streams, OPENED_AT_ONCE):
            opened = [asyncio.Event() for _ in range(min(OPENED_AT_ONCE, arguments.streams - first))]
            following += [
                asyncio.create_task(follow(client, first + place, events, one)) for place, one in enumerate(opened)
            ]
            await asyncio.gather(*(one.wait() for one in opened))

        async def ask(number: int) -> None:
            name = [*paths][number % len(paths)]
            called = time.perf_counter()
            answer = await client.get(paths[name](number), headers={"X-User": str(user_of(number))})
            times[name].append(time.perf_counter() - called)
            events[f"answer {answer.status_code}"] += 1

        async def write(number: int) -> None:
            await use(db.lifecycle, user_of(number), f"live-{number % USERS}")

        before, processor, began = memory_mb(pid), processor_seconds(pid), time.perf_counter()
        try:
            await asyncio.gather(
                at_rate(arguments.rate, arguments.seconds, ask),
                at_rate(WRITES_PER_SECOND, arguments.seconds, write),
            )
            processor, seconds = processor_seconds(pid) - processor, time.perf_counter() - began
            found = Load(events, await scalar(db, LISTENING), before, memory_mb(pid), processor, seconds)
        finally:
            for one in following:
                one.cancel()
            await asyncio.gather(*following, return_exceptions=True)
    return found, times


async def main() -> None:
    """One run: the bare calls, then the routes with the streams open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long the routes are asked")
    parser.add_argument("--streams", type=int, default=200, help="how many event streams are open")
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--polling", action="store_true", help="the database sends no notes, so the feed polls")
    arguments = parser.parse_args()
    async with database(Settings(statement_timeout_seconds=None)) as (server, db):
        await seed(db, FIRST_USER, SESSIONS, users=USERS)
        await db.maintenance.roll_up()
        await db.migrate(notes=not arguments.polling)
        await settle(db)
        viewers = [Viewer(user_of(number)) for number in range(USERS)]
        newest = [await db.lifecycle.list_session_rows(SessionListFilters(viewer=one, limit=1)) for one in viewers]
        calls = calls_of(db, viewers, [page.sessions[0].record.session_id for page in newest])
        bare = {name: await time_calls(call) for name, (call, _) in calls.items()}
        paths = {name: path for name, (_, path) in calls.items()}
        found, routes = await load(server.url, db, paths, arguments)
        if any(name.startswith("answer") and name != "answer 200" for name in found.events) or found.events["ended"]:
            raise SystemExit(f"not every answer and stream was right: {dict(found.events)}")
        print(
            f"{machine(server)}; {arguments.streams} streams of {USERS} users with {SESSIONS:,} sessions, "
            f"{arguments.rate:g} requests and {WRITES_PER_SECOND} writes a second for {arguments.seconds:g} s\n"
        )
        rows = []
        for name in calls:
            sides = [sorted(side[name]) for side in (bare, routes)]
            rows.append([name, *(f"{percentile(side, part):.1f}" for side in sides for part in (50, 99))])
        print(table("", ["", "call p50 ms", "p99 ms", "route p50 ms", "p99 ms"], rows))
        sent, missed = found.events["event: session"], found.events["event: look_again"]
        print(f"{sent:,} events, {missed} times `look_again`; connections that listen: {found.listening}")
        print(f"the server used {found.processor_seconds:.1f} s of a processor in {found.seconds:.1f} s")
        print(
            f"memory of the server: {found.before_mb:.0f} MB with the streams open, {found.after_mb:.0f} MB at the end"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        # A connection that the server closes for its idleness, as a client sends on it, is no failure of the app.
        app, port = app_of(sys.argv[2]), int(sys.argv[3])
        uvicorn.run(app, port=port, log_level="warning", access_log=False, timeout_keep_alive=600)
    else:
        asyncio.run(main())
