"""The two ways of a read: the statement for few sessions, and the one for any number of them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import pytest

from session_lifecycle import repository
from session_lifecycle.statements.shared import few

Way = Literal["few", "many"]
WAYS: tuple[Way, ...] = ("few", "many")


@contextmanager
def reading(way: Way) -> Generator[None]:
    """Has every database read this way meanwhile. The tables of a test are within a high bound."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "PAGES_OF_A_STATEMENT", 1_000_000)
        patch.setattr(repository.KnownSize, "may_be_within", lambda *_: way == "few")
        yield
