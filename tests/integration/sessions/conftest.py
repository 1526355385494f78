"""Both ways of a read, for tests of reads."""

from collections.abc import Iterator

import pytest

from support.ways_of_reading import WAYS, reading


@pytest.fixture(params=WAYS)
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reads as of few sessions, and then as of many."""
    with reading(request.param):
        yield


@pytest.fixture
def as_of_many() -> Iterator[None]:
    """Reads as of many sessions, however few there are."""
    with reading("many"):
        yield
