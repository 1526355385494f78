"""The shape of a listing, on which the text of its statement depends, and the parameters that the statement binds."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from session_lifecycle.models import EffectiveStatus
from session_lifecycle.models.session_filters import DEFAULT_SESSION_ORDER, SESSION_ORDERS, SessionFilters
from session_lifecycle.statements.shared.paging import Position
from session_lifecycle.statements.shared.visibility import ScopeKinds, scopes

LIVE = frozenset({EffectiveStatus.RUNNING, EffectiveStatus.WAITING})
"""The statuses that hardly any rolled-up session has."""
ORDERS_OF_ROLLED_UP = frozenset({"cost_usd"})
"""The orders that one index has of all rolled-up sessions, beside the order by activity."""
AFTER_EVERY_SESSION_ID = "\U0010ffff" * 513
"""A text that comes after every session id: an id has at most 512 characters, and ids are compared byte by byte."""


class ListingShape(NamedTuple):
    """The part of a listing's filters on which the text of its statement depends. Equal shapes share one statement."""

    kinds: ScopeKinds
    order_by: str
    descending: bool
    status_filter: EffectiveStatus | None
    has_since: bool
    has_until: bool
    has_agent_name: bool
    abandon_after: timedelta
    has_position: bool
    """Whether the listing continues after the bound position."""
    position_is_null: bool
    """Whether that position has null in the order column."""
    in_one_scan: bool = False
    """Whether one scan of everybody's sessions looks for those in the scopes, in place of a scan for each scope."""

    @property
    def is_by_activity(self) -> bool:
        """Whether the sessions are ordered by their last activity."""
        return self.order_by == DEFAULT_SESSION_ORDER

    @property
    def has_index(self) -> bool:
        """Whether indexes find the page. They have sessions by activity; those that run or wait are few, and sorted."""
        is_of_few = self.status_filter in LIVE and self.order_by in SESSION_ORDERS
        return self.is_by_activity or (is_of_few and not self.kinds.everybody)


def has_index_of_rolled_up(filters: SessionFilters) -> bool:
    """Whether an index has all rolled-up sessions in the order of the listing, and buckets tell how many it wants."""
    is_narrowed = any(one is not None for one in (filters.since, filters.until, filters.agent_name))
    has_order = filters.order_column in ORDERS_OF_ROLLED_UP and filters.wanted_status not in LIVE
    return has_order and not (is_narrowed or filters.reads_rows)


def shape_of(
    filters: SessionFilters, position: Position | None, abandon_after: timedelta
) -> tuple[ListingShape, dict[str, Any]]:
    """The shape of a listing, and the parameters that statements of this shape bind."""
    seen = scopes(filters.asker, filters.owner_id, filters.dataset_id)
    shape = ListingShape(
        kinds=seen.kinds,
        order_by=filters.order_column,
        descending=filters.descending,
        status_filter=filters.wanted_status,
        has_since=filters.since is not None,
        has_until=filters.until is not None,
        has_agent_name=filters.agent_name is not None,
        abandon_after=abandon_after,
        has_position=position is not None,
        position_is_null=position is not None and position.value is None,
    )
    parameters = {
        **seen.parameters(),
        "since": filters.since,
        "until": filters.until,
        "agent_name": filters.agent_name,
        "abandon_after": abandon_after,
        "as_of": None if position is None else position.as_of,
        "rows_needed": filters.offset + filters.limit + 1,
        "offset": filters.offset,
        "row_limit": filters.limit + 1,
    }
    if position is not None:
        parameters |= _position_parameters(position, seen.users)
    return shape, parameters


def _position_parameters(position: Position, users: Sequence[UUID]) -> dict[str, Any]:
    user_id, session_id = position.key
    # For each user: the session id after which the user's sessions with the position's value come after the position.
    # An index without the user in its order finds the place by this id, however many sessions share the value.
    # All sessions of a lesser user come after the position in descending order, and none in ascending order: the id is
    # the last possible one, written as None. For a greater user it is the first possible one.
    ties = [session_id if user == user_id else None if user < user_id else "" for user in users]
    of_key = {"user_id": user_id, "session_id": session_id}
    return {"position": position.value, **of_key, "ties": ties, "tie": ties[0] if ties else None}
