"""Databases that nothing was migrated in yet."""

from collections.abc import AsyncIterator
from itertools import count
from os import getpid

import pytest
import pytest_asyncio

from session_lifecycle.settings import DEFAULT_SCHEMA
from session_lifecycle.testing import TemplateServer

_numbers = count(1)


@pytest_asyncio.fixture
async def empty_url(session_template_server: TemplateServer) -> AsyncIterator[str]:
    """The URL of an empty database of this test's own."""
    name = f"session_lifecycle_empty_{getpid()}_{next(_numbers)}"
    await session_template_server.run(f'CREATE DATABASE "{name}"')
    try:
        yield session_template_server.url_of(name)
    finally:
        await session_template_server.drop(name)


@pytest.fixture(params=[DEFAULT_SCHEMA, 'we"ird: %s $body$ Schema'], ids=["default", "odd"])
def schema(request: pytest.FixtureRequest) -> str:
    """The name of our schema: the usual one, and one that every kind of quoting must survive."""
    name: str = request.param
    return name
