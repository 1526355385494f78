"""The filters that every list takes, and the fields that every page has beside its rows."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, model_validator

from session_lifecycle.models.fields import AwareTime, Flag, Id, OptionalName, Text, Value
from session_lifecycle.models.refusals import inconsistent, refuse_empty_window
from session_lifecycle.models.viewer import Viewer

TOTAL_BOUND = 10_000
"""The number of rows at which `total="bounded"` stops counting."""

# The bounds of every answer (rule R25). An answer that takes no limit refuses what is beyond.
MOST_ROWS = 50_000
"""The most rows of an answer that takes no limit."""
MOST_PARTS = 50_000
"""The most steps, messages and usage events in the runs of one answer."""
MOST_TEXT_BYTES = 128 * 2**20
"""The most bytes of messages and errors in one answer. The largest message fits, so there is always a smaller page."""
MOST_STORED_BYTES = 8 * 2**20
"""The most bytes of payloads, as they are stored, of one answer. Postgres compresses them to a ninetieth at most, so an
answer stays below the 1 GB of a value."""

MOST_OFFSET = 2**62
DEFAULT_LIMIT = 50
Total = Literal["exact", "bounded", "none"]
"""How the rows of all pages are counted: all of them, at most `TOTAL_BOUND`, or not at all."""
Limit = Annotated[int, Strict(), Field(ge=1, le=500)]
Offset = Annotated[int, Strict(), Field(ge=0, le=MOST_OFFSET)]
StepsLimit = Annotated[int, Strict(), Field(ge=1, le=MOST_PARTS)]


class PageFilters(Value):
    """The filters that every list takes. Base class of the filters that go in.

    The viewer is given as `viewer`, or in the reference's shape as `user_id` and `permitted_dataset_ids`.
    """

    viewer: Viewer | None = None
    user_id: Id | None = None
    permitted_dataset_ids: tuple[Id, ...] = ()
    since: AwareTime | None = None
    until: AwareTime | None = None
    limit: Limit = DEFAULT_LIMIT
    offset: Offset = 0
    descending: Flag = True
    owner_id: Id | None = None
    dataset_id: Id | None = None
    agent_name: OptionalName = None
    cursor: Text | None = None
    """The `next_cursor` of the page before, under the same filters. Not together with `offset`."""
    total: Total = "exact"

    @model_validator(mode="after")
    def _is_one_question(self) -> Self:
        if self.viewer is not None and (self.user_id is not None or self.permitted_dataset_ids):
            raise inconsistent("viewer", "either viewer, or user_id and permitted_dataset_ids, not both")
        if self.cursor is not None and self.offset:
            raise inconsistent("cursor", "either cursor or offset, not both")
        refuse_empty_window(self.since, self.until)
        return self

    @cached_property
    def asker(self) -> Viewer:
        """The viewer, from either shape. Filters that name no viewer give a viewer who sees nothing."""
        return self.viewer or Viewer(self.user_id, self.permitted_dataset_ids)

    def question(self) -> dict[str, Any]:
        """The fields that a cursor is valid for, ready for JSON: all but `cursor`, `limit`, `offset` and `total`."""
        return self.model_dump(mode="json", exclude={"cursor", "limit", "offset", "total"})


class Page(Value):
    """The fields that every page has beside its rows, from the same snapshot. Base class of the pages that come out."""

    total: int | None
    """The number of rows on all pages; None with `total="none"`."""
    total_is_lower_bound: bool = False
    """True where `total="bounded"` stopped counting: there are more than `total` rows."""
    limit: int
    offset: int
    has_more: bool
    next_cursor: str | None
    """The cursor of the next page; None on the last page."""
