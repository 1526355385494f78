"""Fixtures of the acceptance tests."""

from collections.abc import Callable
from typing import Any

import pytest

from session_lifecycle import SessionDatabase
from support.world import World


@pytest.fixture
def world(session_database: SessionDatabase) -> World:
    """A world on an empty database."""
    return World(session_database)


@pytest.fixture
def refuses() -> Callable[..., Any]:
    """Expects an `InvalidValueError` about a field."""
    from session_lifecycle import InvalidValueError

    def expect(field_name: str) -> Any:
        return pytest.raises(InvalidValueError, match=rf"(^|\b){field_name}\b.*expected")

    return expect
