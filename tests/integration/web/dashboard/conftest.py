"""What the tests of the pages share."""

from collections.abc import AsyncIterator

import pytest_asyncio

from session_lifecycle import SessionDatabase
from support.dashboard import Browser


@pytest_asyncio.fixture
async def browser(session_database: SessionDatabase) -> AsyncIterator[Browser]:
    async with Browser(session_database) as found:
        yield found
