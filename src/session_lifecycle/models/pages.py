"""What every page has in common: what is asked, and what is told beside its rows."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, model_validator

from session_lifecycle.models.fields import Flag, Id, Moment, OptionalName, Text, Value, inconsistent
from session_lifecycle.models.viewer import Viewer

TOTAL_BOUND = 10_000
"""How far `total="bounded"` counts."""

MOST_OFFSET = 2**62
DEFAULT_LIMIT = 50
Total = Literal["exact", "bounded", "none"]
"""How exactly the rows of all pages are counted."""
Limit = Annotated[int, Strict(), Field(ge=1, le=500)]


class PageFilters(Value):
    """What every page is asked: by whom, of whom, and which part.

    Who is asking is either `viewer`, or in the reference's shape `user_id` and `permitted_dataset_ids`.
    """

    viewer: Viewer | None = None
    user_id: Id | None = None
    permitted_dataset_ids: tuple[Id, ...] = ()
    since: Moment | None = None
    until: Moment | None = None
    limit: Limit = DEFAULT_LIMIT
    offset: Annotated[int, Strict(), Field(ge=0, le=MOST_OFFSET)] = 0
    descending: Flag = True
    owner_id: Id | None = None
    dataset_id: Id | None = None
    agent_name: OptionalName = None
    cursor: Text | None = None
    """A page's `next_cursor`: the page after it, under the same filters. Not together with `offset`."""
    total: Total = "exact"

    @model_validator(mode="after")
    def _is_one_question(self) -> Self:
        if self.viewer is not None and (self.user_id is not None or self.permitted_dataset_ids):
            raise inconsistent("viewer", "none beside user_id and permitted_dataset_ids")
        if self.cursor is not None and self.offset:
            raise inconsistent("cursor", "none together with an offset")
        return self

    @property
    def asker(self) -> Viewer:
        """Who is asking, whichever shape it came in; one who sees nothing when nobody is named."""
        return self.viewer or Viewer(self.user_id, self.permitted_dataset_ids)

    def question(self) -> dict[str, Any]:
        """What a cursor is good for: everything that is asked but which part of the answer, ready for JSON."""
        return self.model_dump(mode="json", exclude={"cursor", "limit", "offset", "total"})


class Page(Value):
    """Which part of all rows a page is, and how to go on, from the snapshot its rows are from."""

    total: int | None
    """Of all pages; None when it was not asked for."""
    total_is_lower_bound: bool = False
    """`total="bounded"` stopped counting: there are at least `total`."""
    limit: int
    offset: int
    has_more: bool
    next_cursor: str | None
