"""The ways of a read: the statements for few sessions, and the one for any number of them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import pytest

from session_lifecycle import repository
from session_lifecycle.models import SessionListFilters
from session_lifecycle.statements.sessions import few_listing
from session_lifecycle.statements.shared import few

Way = Literal["one pass", "one scan, counted", "one scan", "many"]
WAYS: tuple[Way, ...] = ("one pass", "one scan, counted", "one scan", "many")
_WAYS_OF_FEW = {
    "one pass": few_listing.list_in_one_pass,
    "one scan, counted": few_listing.list_and_count_in_one_scan,
    "one scan": few_listing.list_in_one_scan,
}

_all_ways = few_listing.ways_of_few


@contextmanager
def reading(way: Way) -> Generator[None]:
    """Has every database read this way meanwhile. The tables of a test are within a high bound.

    A page that has no such way, and any other read, takes the only one that it has for few sessions. The costs of a
    window have two: in one pass all usage is read, and else that of each session is looked up.
    """

    def only_this(filters: SessionListFilters) -> list[tuple[few.Bound, few_listing.FewWay]]:
        ways = [one for _, one in _all_ways(filters)]
        wanted = _WAYS_OF_FEW.get(way)
        return [(few.bound(0), wanted if wanted in ways else ways[-1])]

    def bound(scopes: int, **times: int) -> few.Bound:
        is_of_fewest = scopes == 0 and not times
        return few.Bound(0, 0) if is_of_fewest and way != "one pass" else few.bound(scopes, **times)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "PAGES_OF_A_STATEMENT", 1_000_000)
        patch.setattr(few_listing, "ways_of_few", only_this)
        patch.setattr(repository, "bound", bound)
        patch.setattr(repository.KnownSize, "may_be_within", lambda *_: way != "many")
        yield
