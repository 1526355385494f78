"""What the tables share: their metadata, and the types of their columns."""

from sqlalchemy import CheckConstraint, DateTime, MetaData, Numeric, Text, text
from sqlalchemy.orm import DeclarativeBase

from session_lifecycle.settings import DEFAULT_SCHEMA

metadata = MetaData(
    schema=DEFAULT_SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    },
)
"""Our tables, for a host's Alembic: in its `target_metadata`, or kept out by `include_object`."""

# Equal to Python's order of the same texts, one lock order everywhere, and indexes no system update can break.
SessionKey = Text(collation="C")
Zero = text("0")
Instant = DateTime(timezone=True)
Money = Numeric()
# True of every session: an index with this condition is only planned with for what is asked of everybody, and says so.
OF_EVERYBODY = "session_id <> ''"


class Base(DeclarativeBase):
    """The declarative base of our tables."""

    metadata = metadata


def never_negative(*columns: str) -> CheckConstraint:
    """The constraint that none of these columns is."""
    return CheckConstraint(" AND ".join(f"{column} >= 0" for column in columns), name="never_negative")
