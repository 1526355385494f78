"""What a viewer sees (rule R11), as sets of sessions that an index or a roll-up has each as a whole.

A condition with OR over owners and data sets has no index: it would read all that is visible. Read one set at a time
and merged, a page reads a page's worth of rows.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, all_, and_, any_, bindparam, true
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


class Scopes(NamedTuple):
    """Sessions: all of these users, all in these data sets, and all of these users in those data sets."""

    users: Sequence[UUID] = ()
    datasets: Sequence[UUID] = ()
    pairs: Sequence[tuple[UUID, UUID]] = ()
    everybody: bool = False
    """Every session there is; the others are empty then."""

    @property
    def overlap(self) -> Sequence[tuple[UUID, UUID]]:
        """Whose sessions in which data set are in the scopes twice: for the owner's sake and for the data set's."""
        return tuple(product(self.users, self.datasets))

    def conditions(self, table: OfSessions) -> list[ColumnElement[bool]]:
        """One for each kind of scope, and a row meets at most one of them: to be asked one by one, and put together."""
        if self.everybody:
            return [true()]
        found: list[ColumnElement[bool]] = []
        if self.users:
            found.append(table.user_id == any_(ids(self.users)))
        if self.datasets:
            shared = table.dataset_id == any_(ids(self.datasets))
            found.append(and_(shared, table.user_id != all_(ids(self.users))) if self.users else shared)
        if self.pairs:
            users, datasets = zip(*self.pairs, strict=True)
            # They are one user in some data sets, or some users in one.
            found.append(and_(table.user_id == any_(ids(users)), table.dataset_id == any_(ids(datasets))))
        return found


def ids(values: Sequence[UUID]) -> ColumnElement[Any]:
    """As an array: the same statement however many there are."""
    return bindparam(None, list(dict.fromkeys(values)), type_=ARRAY(Uuid))


def scopes(viewer: Viewer, owner_id: UUID | None = None, dataset_id: UUID | None = None) -> Scopes:
    """What the viewer sees; of one owner only, or in one data set only, where that is asked."""
    is_own = viewer.sees_all or owner_id in viewer.owner_ids
    is_permitted = viewer.sees_all or dataset_id in viewer.permitted_dataset_ids
    if owner_id is not None and dataset_id is not None:
        return Scopes(pairs=((owner_id, dataset_id),) if is_own or is_permitted else ())
    if owner_id is not None:
        of_owner = product((owner_id,), viewer.permitted_dataset_ids)
        return Scopes(users=(owner_id,)) if is_own else Scopes(pairs=tuple(of_owner))
    if dataset_id is not None:
        in_dataset = product(viewer.owner_ids, (dataset_id,))
        return Scopes(datasets=(dataset_id,)) if is_permitted else Scopes(pairs=tuple(in_dataset))
    return Scopes(everybody=True) if viewer.sees_all else Scopes(viewer.owner_ids, viewer.permitted_dataset_ids)
