"""Kept statements: each is built once for its shape, and binds other values each time it runs.

A function that builds a kept statement is given the shape alone, so that no value of one call is in it.
"""

from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Text, Uuid, bindparam

MOST_KEPT = 1000
"""How many statements a function keeps. Building a statement takes longer than Postgres needs to run it."""

# The values that several kept statements bind, by these names.
SESSION_ID: ColumnElement[str] = bindparam("session_id", type_=Text)
OWNER_ID: ColumnElement[UUID] = bindparam("owner_id", type_=Uuid)
LIMIT: ColumnElement[int] = bindparam("limit", type_=BigInteger)
OFFSET: ColumnElement[int] = bindparam("offset", type_=BigInteger)
