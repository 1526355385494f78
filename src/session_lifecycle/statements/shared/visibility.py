"""The sessions and runs that a viewer sees (rule R11), as a condition on a row and as scopes.

A scope is a set of sessions that an index or a roll-up holds as a whole. No index serves a condition with OR over
owners and datasets: Postgres would read everything that is visible. A page reads one scope at a time and merges them,
so it reads about a page's worth of rows.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    all_,
    and_,
    any_,
    bindparam,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Uuid

from session_lifecycle.models import Viewer
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import unknown
from session_lifecycle.statements.shared.keys import Columns

MOST_IDS_COMPARED, MOST_IDS_IN_ARRAY = 24, 1000
"""The most ids that a row is compared with one after another, where every row is looked at and where an index finds the
rows. A longer list is a subquery, which Postgres hashes.
"""

ONE_USER: ColumnElement[UUID] = bindparam("one_user", type_=Uuid)
"""The bound user of scopes that name one user."""

_HASHED = MOST_IDS_IN_ARRAY + 1


class BoundIds(NamedTuple):
    """Ids that a kept statement binds when it runs."""

    name: str
    like_count: int
    """A number of ids for which the text is the same: `_like_count` of how many there are."""
    are_unknown: bool
    """Whether they should be `unknown` values."""


class ViewerShape(NamedTuple):
    """What the text of a statement depends on in a viewer.

    A kept statement is built from a shape, so it cannot hold the ids of one viewer and show them to another.
    """

    has_user_id: bool
    owners: int
    """A number of owners for which the text is the same, as in `permitted`."""
    permitted: int
    sees_all: bool
    looks_at_all: bool = False
    """Whether the statement looks at every session, so that no index has to serve its conditions."""

    @property
    def user_id(self) -> ColumnElement[UUID] | None:
        """The bound `viewer`, where there is one."""
        return bindparam("viewer", type_=Uuid) if self.has_user_id else None

    @property
    def owner_ids(self) -> BoundIds | tuple[()]:
        """The bound `owners`."""
        return BoundIds("owners", self.owners, self.looks_at_all) if self.owners else ()

    @property
    def permitted_dataset_ids(self) -> BoundIds | tuple[()]:
        """The bound `permitted` datasets."""
        return BoundIds("permitted", self.permitted, self.looks_at_all) if self.permitted else ()

    def looking_at_all(self) -> "ViewerShape":
        """The shape for a condition on every session. Postgres hashes the ids where that is the shorter way."""
        owners, permitted = (one if one <= MOST_IDS_COMPARED else _HASHED for one in (self.owners, self.permitted))
        return self._replace(owners=owners, permitted=permitted, looks_at_all=True)


AnyViewer = Viewer | ViewerShape
"""A viewer, whose ids the statement holds, or the shape of a viewer, whose ids the statement binds when it runs."""

ScopedTable = type[tables.sessions | tables.rolled_up_sessions | tables.roll_up_changes | tables.model_roll_up_changes]
"""A table in which each row belongs to one session, and so to one user and at most one dataset."""


class ScopeKinds(NamedTuple):
    """Which kinds of scopes a viewer has. The text of a statement depends on the kinds only."""

    users: bool
    datasets: bool
    pairs: bool
    everybody: bool
    has_one_user: bool = False
    """Whether the scopes name one user, who is then bound alone: Postgres expects ten ids in any bound array."""

    def are_of(self, user_id: Column) -> ColumnElement[bool]:
        """Whether sessions belong to one of the bound users."""
        return user_id == (ONE_USER if self.has_one_user else any_(_ids("users")))

    def are_not_of(self, user_id: Column) -> ColumnElement[bool]:
        """Whether sessions belong to none of the bound users."""
        return user_id != (ONE_USER if self.has_one_user else all_(_ids("users")))

    def conditions(self, table: ScopedTable) -> list[ColumnElement[bool]]:
        """One condition per kind of scope; a row meets at most one of them, so their results can be added up.

        The conditions bind what `Scopes.parameters` returns.
        """
        return self._conditions(table, are_apart=True)

    def in_any(self, table: ScopedTable) -> ColumnElement[bool]:
        """Whether a row is in any of the scopes, as one condition. Binds as `conditions` does."""
        return or_(false(), *self._conditions(table, are_apart=False))

    def _conditions(self, table: ScopedTable, *, are_apart: bool) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if self.everybody:
            conditions.append(
                of_everybody(table) if issubclass(table, tables.sessions | tables.rolled_up_sessions) else true()
            )
        if self.users:
            conditions.append(self.are_of(table.user_id))
        if self.datasets:
            shared = table.dataset_id == any_(_ids("datasets"))
            is_counted = are_apart and self.users
            conditions.append(and_(shared, self.are_not_of(table.user_id)) if is_counted else shared)
        if self.pairs:
            # The pairs are one user with some datasets, or some users with one dataset, so two arrays name them.
            conditions.append(and_(self.are_of(table.user_id), table.dataset_id == any_(_ids("datasets"))))
        return conditions


EVERYBODY = ScopeKinds(users=False, datasets=False, pairs=False, everybody=True)
"""The kinds of the scopes of a viewer who sees all."""


class Scopes(NamedTuple):
    """A set of sessions: all of these users and all in these datasets, or only those of both."""

    users: Sequence[UUID] = ()
    datasets: Sequence[UUID] = ()
    only_both: bool = False
    """Whether a session must belong to one of the users and be in one of the datasets."""
    everybody: bool = False
    """Whether the set has every session. The other fields are empty then."""

    @property
    def kinds(self) -> ScopeKinds:
        """The kinds of these scopes."""
        one_by_one = not self.only_both
        return ScopeKinds(
            users=one_by_one and bool(self.users),
            datasets=one_by_one and bool(self.datasets),
            pairs=self.only_both and bool(self.users) and bool(self.datasets),
            everybody=self.everybody,
            has_one_user=len(self.users) == 1,
        )

    @property
    def number(self) -> int:
        """How many scopes there are."""
        if self.only_both:
            return len(self.users) * len(self.datasets)
        return len(self.users) + len(self.datasets) + self.everybody

    @property
    def pairs(self) -> Sequence[tuple[UUID, UUID]]:
        """Each user with each dataset."""
        return tuple(product(self.users, self.datasets))

    def parameters(self) -> dict[str, Any]:
        """The parameters that the conditions of `ScopeKinds` bind."""
        one_user = self.users[0] if self.users else None
        return {"users": list(self.users), "one_user": one_user, "datasets": list(self.datasets)}


def scopes(viewer: Viewer, owner_id: UUID | None = None, dataset_id: UUID | None = None) -> Scopes:
    """The scopes that the viewer sees, limited to one owner or one dataset where the caller names one."""
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


def of_everybody(table: type[tables.sessions | tables.rolled_up_sessions] | Columns) -> ColumnElement[bool]:
    """A condition that holds for every session.

    The indexes on everybody's sessions are partial and have this condition. Postgres only plans with a partial index
    when the query repeats its condition.
    """
    return table.session_id != literal_column("''")


def _ids(name: str) -> ColumnElement[Any]:
    """The bound array of ids: the text of a statement stays the same, however many ids there are."""
    return bindparam(name, type_=ARRAY(Uuid))


def shape_of_viewer(viewer: Viewer) -> tuple[ViewerShape, dict[str, Any]]:
    """The shape of a viewer, and the parameters that statements of this shape bind."""
    owners, permitted = viewer.owner_ids, viewer.permitted_dataset_ids
    shape = ViewerShape(viewer.user_id is not None, _like_count(owners), _like_count(permitted), viewer.sees_all)
    parameters: dict[str, Any] = {"viewer": viewer.user_id}
    for name, ids in (("owners", owners), ("permitted", permitted)):
        parameters |= {name: list(ids), f"first_of_{name}": ids[0] if ids else None}
    return shape, parameters


def _like_count(ids: Sequence[UUID]) -> int:
    return next((most for most in (0, 1, MOST_IDS_COMPARED, MOST_IDS_IN_ARRAY) if len(ids) <= most), _HASHED)


def array_of(ids: Sequence[UUID] | BoundIds) -> ColumnElement[Any]:
    """The ids as one bound array."""
    if not isinstance(ids, BoundIds):
        return literal(list(ids), ARRAY(Uuid))
    array = _ids(ids.name)
    # Without the cast, ANY would compare with the rows of the subquery.
    return cast(unknown(array), ARRAY(Uuid)) if ids.are_unknown else array


def is_one_of(column: Column | ColumnElement[Any], ids: Sequence[UUID] | BoundIds) -> ColumnElement[bool]:
    """Whether the column is one of these ids, bound as one parameter: a statement takes at most 32,767 parameters."""
    how_many = ids.like_count if isinstance(ids, BoundIds) else len(ids)
    if how_many == 1:
        if not isinstance(ids, BoundIds):
            return column == ids[0]
        first: ColumnElement[UUID] = bindparam(f"first_of_{ids.name}", type_=Uuid)
        return column == (unknown(first) if ids.are_unknown else first)
    array = array_of(ids)
    if how_many <= MOST_IDS_IN_ARRAY:
        return column == any_(array)
    # A generic plan compares each row with one element of an array after another. It hashes a subquery.
    return column.in_(select(func.unnest(array).column_valued("id")))


def visible(viewer: AnyViewer, session: type[tables.sessions] | Columns = tables.sessions) -> ColumnElement[bool]:
    """Whether the viewer sees a session: the viewer or one of their agents owns it, or its dataset is permitted."""
    if viewer.sees_all:
        return true()
    ways: list[ColumnElement[bool]] = []
    if viewer.owner_ids:
        own = is_one_of(session.user_id, viewer.owner_ids)
        looks_at_all = isinstance(viewer, ViewerShape) and viewer.looks_at_all
        # The extra condition lets Postgres plan with the partial index on a user's activity.
        ways.append(own if looks_at_all else and_(own, of_everybody(session)))
    if viewer.permitted_dataset_ids:
        ways.append(is_one_of(session.dataset_id, viewer.permitted_dataset_ids))
    return or_(*ways) if ways else false()


def visible_run(viewer: AnyViewer) -> ColumnElement[bool]:
    """Whether the viewer sees a run, in a statement that outer-joins runs with their sessions.

    The viewer sees the runs of visible sessions. The viewer also sees the runs outside a session that they or their
    agents own.
    """
    if viewer.sees_all:
        return true()
    if not viewer.owner_ids:
        return visible(viewer)
    own = is_one_of(tables.runs.user_id, viewer.owner_ids)
    if viewer.permitted_dataset_ids:
        return or_(visible(viewer), and_(tables.runs.session_id.is_(None), own))
    # Every visible run is the viewer's own, and so is its session. Postgres would expect hardly any rows where the
    # condition named the owner of the session too, and would not use the order of the index on a user's runs.
    return and_(own, or_(tables.sessions.session_id.is_not(None), tables.runs.session_id.is_(None)))
