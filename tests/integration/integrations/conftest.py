"""What the tests of adapters share: a recorder on the test's database, and a stand-in for the models' servers."""

from collections.abc import AsyncIterator

import pytest_asyncio

from session_lifecycle import SessionDatabase, SessionRecorder
from support.model_server import ModelServer


@pytest_asyncio.fixture
async def recorder(session_database: SessionDatabase) -> AsyncIterator[SessionRecorder]:
    async with session_database.recorder() as one:
        yield one


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as one:
        yield one
