"""What a viewer sees (rule R11), as sets of sessions that an index or a roll-up has each as a whole.

A condition with OR over owners and data sets has no index: it would read all that is visible. Read one set at a time
and merged, a page reads a page's worth of rows.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, all_, and_, any_, bindparam, literal_column, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Uuid

from session_lifecycle.entities import (
    RolledUpSessionEntity,
    SessionModelRollupChangeEntity,
    SessionRecordEntity,
    SessionRollupChangeEntity,
)
from session_lifecycle.models import Viewer

OfSessions = type[
    SessionRecordEntity | RolledUpSessionEntity | SessionRollupChangeEntity | SessionModelRollupChangeEntity
]
"""A table whose rows are of a session each, and so of its user and data set."""


class ScopeKinds(NamedTuple):
    """Which kinds of scopes there are: all that the text of a statement depends on."""

    users: bool
    datasets: bool
    pairs: bool
    everybody: bool

    def conditions(self, table: OfSessions) -> list[ColumnElement[bool]]:
        """One of each kind, and a row meets at most one of them: to be asked one by one, and put together.

        They bind what `Scopes.parameters` gives.
        """
        found: list[ColumnElement[bool]] = []
        if self.everybody:
            found.append(
                of_everybody(table) if issubclass(table, SessionRecordEntity | RolledUpSessionEntity) else true()
            )
        if self.users:
            found.append(table.user_id == any_(_ids("users")))
        if self.datasets:
            shared = table.dataset_id == any_(_ids("datasets"))
            found.append(and_(shared, table.user_id != all_(_ids("users"))) if self.users else shared)
        if self.pairs:
            # They are one user in some data sets, or some users in one.
            found.append(and_(table.user_id == any_(_ids("users")), table.dataset_id == any_(_ids("datasets"))))
        return found


class Scopes(NamedTuple):
    """Sessions: all of these users and all in these data sets, or those of these users in these data sets."""

    users: Sequence[UUID] = ()
    datasets: Sequence[UUID] = ()
    only_both: bool = False
    """Only what is of one of the users and in one of the data sets."""
    everybody: bool = False
    """Every session there is; the others are empty then."""

    @property
    def kinds(self) -> ScopeKinds:
        """Which kinds of scopes there are."""
        one_by_one = not self.only_both
        return ScopeKinds(
            users=one_by_one and bool(self.users),
            datasets=one_by_one and bool(self.datasets),
            pairs=self.only_both and bool(self.users) and bool(self.datasets),
            everybody=self.everybody,
        )

    @property
    def pairs(self) -> Sequence[tuple[UUID, UUID]]:
        """Each of the users with each of the data sets."""
        return tuple(product(self.users, self.datasets))

    def parameters(self) -> dict[str, Any]:
        """What conditions bind."""
        return {"users": list(self.users), "datasets": list(self.datasets)}


def scopes(viewer: Viewer, owner_id: UUID | None = None, dataset_id: UUID | None = None) -> Scopes:
    """What the viewer sees; of one owner only, or in one data set only, where that is asked."""
    is_own = viewer.sees_all or owner_id in viewer.owner_ids
    is_permitted = viewer.sees_all or dataset_id in viewer.permitted_dataset_ids
    if owner_id is not None and dataset_id is not None:
        return Scopes((owner_id,), (dataset_id,), only_both=True) if is_own or is_permitted else Scopes()
    if owner_id is not None:
        return Scopes((owner_id,)) if is_own else Scopes((owner_id,), viewer.permitted_dataset_ids, only_both=True)
    if dataset_id is not None:
        in_dataset = Scopes((), (dataset_id,))
        return in_dataset if is_permitted else Scopes(viewer.owner_ids, (dataset_id,), only_both=True)
    return Scopes(everybody=True) if viewer.sees_all else Scopes(viewer.owner_ids, viewer.permitted_dataset_ids)


def of_everybody(table: type[SessionRecordEntity | RolledUpSessionEntity]) -> ColumnElement[bool]:
    """True of every session; the indexes on everybody's are only planned with where it is named."""
    return table.session_id != literal_column("''")


def _ids(name: str) -> ColumnElement[Any]:
    """As an array: the same statement however many there are."""
    return bindparam(name, type_=ARRAY(Uuid))
