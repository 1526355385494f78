"""What the tests of the command line ask of the database beside a command, and read from what it shows."""

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from support.eventually import eventually

COLUMNS = ("offset_ms", "session_id", "turn", "tokens_in", "tokens_out")
HEADER = ",".join(COLUMNS)
ODD_SCHEMA = 'odd "name"; --'
USER = UUID(int=1)
REQUESTS, SESSIONS = 600, 60
EVENTS = "SELECT count(*) FROM session_lifecycle.session_usage_events"
WAITING_FOR_LOCKS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
OTHERS_CONNECTED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def ask(url: str, sql: str) -> Any:
    async with connected(url) as connection:
        return await connection.fetchval(sql)


async def until(connection: Any, sql: str, reached: int | Callable[[int], bool]) -> None:
    """Waits until the one value of the query is as wanted."""

    async def is_reached() -> bool:
        found: int = await connection.fetchval(sql)
        return found == reached if isinstance(reached, int) else reached(found)

    await eventually(is_reached)


def in_schema(schema: str | None) -> list[str]:
    return ["--schema", schema] if schema else []


def figures(shown: str) -> dict[str, str]:
    [table] = re.findall(r"Figures\s+┌.*?└", shown, re.DOTALL)
    return dict(re.findall(r"│ +(\S.*?) +│ +([\d.,]+)", table))


def costs(shown: str) -> list[list[Decimal]]:
    """Events, tokens in, tokens out and USD of each model; the last row is their sum."""
    [table] = re.findall(r"Cost by model\s+┏.*?└", shown, re.DOTALL)
    rows = re.findall(r"│ \S+ +│ +[\d,]* │ +([\d,]+) │ +([\d,]+) │ +([\d,]+) │ +([\d.,]+)", table)
    return [[Decimal(cell.replace(",", "")) for cell in row] for row in rows]


def assert_agree(shown: str) -> None:
    """The models add up to the sum row, and the sum equals the figures; money to six decimals."""
    *models, total = costs(shown)
    sums = [sum(column, Decimal(0)) for column in zip(*models, strict=True)]
    assert sums[:3] == total[:3]
    assert abs(sums[3] - total[3]) <= len(models) * Decimal("0.000001")
    said = [figures(shown)[name].replace(",", "") for name in ("tokens in", "tokens out", "spend USD")]
    assert [Decimal(figure) for figure in said] == total[1:]
    assert total[3] > 0


async def of_user(url: str) -> int:
    return int(await ask(url, "SELECT count(*) FROM session_lifecycle.session_messages"))
