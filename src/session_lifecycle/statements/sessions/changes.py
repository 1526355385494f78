"""Changes of a session that are no activity: its fields replaced, annotations written. Calls of our functions.

The functions themselves are in `alembic/functions/writing/`.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Double, Select, Text, bindparam, column, select, type_coerce
from sqlalchemy.types import Uuid

from session_lifecycle.statements import tables
from session_lifecycle.statements.sessions.records import record_columns
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ
from session_lifecycle.statements.shared.database_functions import database_function, json_parameter
from session_lifecycle.statements.shared.kept import kept

_OF_SESSION = (bindparam("user_id", type_=Uuid), bindparam("session_id", type_=Text))


@kept
def update_session(schema: str) -> Select[*tuple[Any, ...]]:
    """Replaces fields of a session. At most one row: the session afterwards, in the columns of `record_columns`.

    Binds `user_id`, `session_id`, and `changes`: a JSON object as text, with a key for each field that is replaced.
    """
    columns = [column(one.name, one.type) for one in tables.sessions.__table__.columns]
    updated = database_function(schema, "update_session_v1", *_OF_SESSION, json_parameter("changes"))
    return select(*record_columns(updated.table_valued(*columns, name="updated").c))


@kept
def annotate_session(schema: str) -> Select[datetime | None]:
    """Writes an annotation. One row: the time of the annotation, or null where there is no such session.

    Binds `user_id`, `session_id`, `name`, `annotator` (empty where it is not known), `score`, `label`, `comment`, `at`.
    """
    texts = {name: bindparam(name, type_=Text) for name in ("name", "annotator", "label", "comment")}
    annotated = database_function(
        schema,
        "annotate_session_v1",
        *_OF_SESSION,
        texts["name"],
        texts["annotator"],
        bindparam("score", type_=Double),
        texts["label"],
        texts["comment"],
        bindparam("at", type_=TIMESTAMPTZ),
    )
    return select(type_coerce(annotated, TIMESTAMPTZ))
