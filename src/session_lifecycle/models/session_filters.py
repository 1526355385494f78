"""The filters and the page of session lists, the arguments of `get_session_row`, and `Window`."""

from functools import cached_property
from typing import Any

from session_lifecycle.models.fields import AwareTime, Flag, Id, SessionId, Text, Value
from session_lifecycle.models.pages import Page, PageFilters
from session_lifecycle.models.sessions import EffectiveStatus, SessionRowWithStatus, StatusFilter

SESSION_ORDERS = ("last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out")
"""The columns that a page of sessions can be ordered by (rule R13)."""
DEFAULT_SESSION_ORDER = SESSION_ORDERS[0]


class SessionFilters(PageFilters):
    """The filters that every list of sessions takes. Base class of the filters that go in.

    `since` and `until` are a window `[since, until)` on `last_activity_at`.
    """

    status_filter: StatusFilter | None = None
    order_by: Text = DEFAULT_SESSION_ORDER

    @property
    def wanted_status(self) -> EffectiveStatus | None:
        """The effective status that all sessions of the page have; None: any status."""
        return None if self.status_filter is None else EffectiveStatus(self.status_filter)

    @cached_property
    def order_column(self) -> str:
        """The column that the page is ordered by. An unknown `order_by` means `last_activity_at` (rule R13)."""
        return self.order_by if self.order_by in SESSION_ORDERS else DEFAULT_SESSION_ORDER

    def question(self) -> dict[str, Any]:
        return super().question() | {"order_by": self.order_column}


class SessionListFilters(SessionFilters):
    """The argument of `list_session_rows`. An unknown `order_by` means `last_activity_at`."""


class OneSession(Value):
    """The arguments of `get_session_row`, without the viewer."""

    session_id: SessionId
    prefer_other_owner: Flag = False
    owner_id: Id | None = None


class Window(Value):
    """A window of time `[since, until)` that goes in. A bound that is None is open."""

    since: AwareTime | None = None
    until: AwareTime | None = None


class SessionListPage(Page):
    """A page of sessions. `list_session_rows` returns it."""

    sessions: list[SessionRowWithStatus]
