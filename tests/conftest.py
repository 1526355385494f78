"""What all tests share: the fixtures the library gives its hosts, and that no example has a deadline."""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

pytest_plugins = ["session_lifecycle.testing"]

# How long an example takes says how busy the machine is.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


def pytest_collection_finish() -> None:
    """Keeps what was imported for all tests out of every later search for garbage, which would take a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _garbage_of_the_module() -> Iterator[None]:
    """Looks for garbage at the end of a module: what nobody has closed fails there, and not in a later module."""
    yield
    gc.collect()
    gc.freeze()  # what is left was imported; later searches skip it
