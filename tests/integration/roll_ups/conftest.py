"""Tests of the roll-ups have few sessions, and read them as if they were many."""

from collections.abc import Iterator

import pytest

from support.ways_of_reading import reading


@pytest.fixture(autouse=True)
def _as_of_many() -> Iterator[None]:
    with reading("many"):
        yield
