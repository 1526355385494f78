"""What the tests of the command line share."""

import csv
import os
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from session_lifecycle.testing import TemplateServer
from support.command_line import COLUMNS, REQUESTS, SESSIONS


@pytest_asyncio.fixture
async def empty_url(session_template_server: TemplateServer) -> AsyncIterator[str]:
    """The URL of a database without our schema."""
    name = f"command_line_{os.getpid()}"
    await session_template_server.run(f'CREATE DATABASE "{name}"')
    yield session_template_server.url_of(name)
    await session_template_server.drop(name)


@pytest.fixture
def requests(tmp_path: Path) -> tuple[str, dict[str, int]]:
    """A file of requests, one every ten milliseconds, and its sums."""
    chance = random.Random(1)
    rows = [
        (n * 10, f"conv-{n % SESSIONS}", n // SESSIONS + 1, chance.randint(1, 9000), chance.randint(1, 900))
        for n in range(REQUESTS)
    ]
    file = tmp_path / "requests.csv"
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([COLUMNS, *rows])
    totals = {"tokens in": sum(row[3] for row in rows), "tokens out": sum(row[4] for row in rows)}
    return str(file), {"sessions": SESSIONS, **totals}


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that the server can enter, also when root runs the tests and another user the server."""
    with tempfile.TemporaryDirectory(prefix="sl-") as name:
        path = Path(name).resolve()
        path.chmod(0o711)
        yield path
