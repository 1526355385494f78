"""Bounds of answers that a test lowers."""

from collections.abc import Callable, Iterator

import pytest

from support.kept import forget_kept


@pytest.fixture
def set_bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """Sets a bound, also in the statements that are built once."""

    def set_bound(name: str, most: int) -> None:
        forget_kept()
        monkeypatch.setattr(name, most)

    yield set_bound
    forget_kept()
