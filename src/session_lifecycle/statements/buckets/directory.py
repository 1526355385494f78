"""What a bucket says of itself, which data sets it has, and its clock."""

from typing import Any

from sqlalchemy import CompoundSelect, Select, bindparam, func, select, true, union
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import Uuid

from session_lifecycle.entities import metadata
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.kept import kept

COLUMNS = tuple(tables.buckets.__table__.columns)


def this_bucket() -> Select[*tuple[Any, ...]]:
    """At most one row: which bucket the schema is."""
    return select(*COLUMNS)


def users() -> CompoundSelect[*tuple[Any, ...]]:
    """One row for each user of whom the schema has anything. It reads every table."""
    owned = [table for table in metadata.sorted_tables if "user_id" in table.c]
    return union(*(select(table.c.user_id).where(table.c.user_id.is_not(None)).distinct() for table in owned))


def write_bucket(fields: dict[str, Any]) -> ReturningInsert[int]:
    """Says which bucket the schema is, unless the schema says so already. No row in the answer."""
    return insert(tables.buckets).values(**fields).on_conflict_do_nothing().returning(tables.buckets.number)


@kept
def present_datasets() -> Select[*tuple[Any, ...]]:
    """One row: those of the data sets in which the bucket has a session, and the bucket's clock as `as_of`.

    An index finds one session of each data set. Binds `dataset_ids` and `as_of`.
    """
    dataset_ids = bindparam("dataset_ids", type_=ARRAY(Uuid))
    dataset = func.unnest(dataset_ids).table_valued("id", name="dataset").render_derived()
    first = (
        select(tables.sessions.dataset_id)
        .where(tables.sessions.dataset_id == dataset.c.id)
        .limit(1)
        .correlate(dataset)
        .lateral("first")
    )
    found = select(func.array_agg(dataset.c.id, type_=ARRAY(Uuid))).select_from(dataset.join(first, true()))
    return select(found.scalar_subquery().label("dataset_ids"), clock().label("as_of"))


@kept
def now() -> Select[*tuple[Any, ...]]:
    """One row: the bucket's clock as `as_of`. Binds `as_of`."""
    return select(clock().label("as_of"))
