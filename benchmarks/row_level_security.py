"""What does row-level security add to a read of a reader and to a write of a worker?"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from secrets import token_hex
from typing import Any
from uuid import UUID

from sqlalchemy.engine import make_url

from session_lifecycle import SessionDatabase, SessionListFilters, Settings, SummaryFilters, Viewer
from session_lifecycle.postgres.permissions import DatabaseRole, role_sql
from support.databases import database, machine, run, seed, settle, use
from support.measuring import in_turns
from support.tables import table

USER = UUID(int=1)
DATASETS = [UUID(int=number) for number in range(1, 6)]
VIEWERS = {"own": Viewer(USER), "own and 5 datasets": Viewer(USER, DATASETS)}
SETTINGS = Settings(row_level_security=True, row_level_security_key="k" * 32, statement_timeout_seconds=None)
PASSWORD = token_hex()
USERS = 20

Call = Callable[[], Awaitable[Any]]


def questions(db: SessionDatabase, viewer: Viewer) -> dict[str, Call]:
    """The reads of one viewer."""
    filters, summaries = SessionListFilters(viewer=viewer), SummaryFilters(viewer=viewer, limit=50)
    return {
        "one session": lambda: db.lifecycle.get_session_row("session-20", viewer),
        "list, 50": lambda: db.lifecycle.list_session_rows(filters),
        "stats": lambda: db.lifecycle.aggregate_stats(viewer),
        "cost by model": lambda: db.lifecycle.cost_by_model(viewer),
        "summaries, 50": lambda: db.activity.list_session_summaries(summaries),
        "usage by model": lambda: db.reports.usage(viewer, group_by=("model",)),
    }


async def main(sessions: int, seconds: float) -> None:
    async with database(SETTINGS) as (server, owner):
        print(machine(server), f"{sessions:,} sessions of {USERS} users", sep=", ")
        for role in (DatabaseRole.READER, DatabaseRole.WORKER):
            await run(owner, f"CREATE ROLE bench_{role} LOGIN PASSWORD '{PASSWORD}'")
            await run(owner, *role_sql("session_lifecycle", role, f"bench_{role}").split(";\n"))
        await seed(owner, 1, sessions, users=USERS)
        await settle(owner)
        await owner.maintenance.roll_up()
        await settle(owner)
        await owner.administration.enable_row_level_security()
        reader_url, worker_url = (
            make_url(server.url).set(username=f"bench_{role}", password=PASSWORD) for role in ("reader", "worker")
        )
        plain = Settings()
        rows: list[list[str]] = []
        async with (
            SessionDatabase.connect(server.url, settings=plain) as without,
            SessionDatabase.connect(reader_url, settings=SETTINGS) as walled,
            SessionDatabase.connect(worker_url, settings=plain) as worker,
        ):
            for name, viewer in VIEWERS.items():
                ours, theirs = questions(walled, viewer), questions(without, viewer)
                for question in ours:
                    if _without_cursor(await ours[question]()) != _without_cursor(await theirs[question]()):
                        raise SystemExit(f"{question}, {name}: the answers differ")
                    found = await in_turns({"without": theirs[question], "with": ours[question]}, seconds)
                    rows.append([f"{question}, {name}", *_figures(found)])
            writes = {
                "without": lambda: use(without.lifecycle, USER, "written"),
                "with": lambda: use(worker.lifecycle, USER, "written"),
            }
            rows.append(["one usage of a trusted role", *_figures(await in_turns(writes, seconds))])
        print(table("", ["call", "without ms", "with ms", "ratio"], rows))


def _without_cursor(answer: Any) -> Any:
    """The answer without the moment of asking, which a cursor holds."""
    return answer.model_copy(update={"next_cursor": None}) if hasattr(answer, "next_cursor") else answer


def _figures(found: Mapping[str, float]) -> list[str]:
    without, with_ = found["without"], found["with"]
    return [f"{without:.2f}", f"{with_:.2f}", f"{with_ / without:.2f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=6_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.sessions, arguments.seconds))
