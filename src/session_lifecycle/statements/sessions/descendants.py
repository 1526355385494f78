"""The figures of a session, alone and with its descendants."""

from typing import Any

from sqlalchemy import BigInteger, Numeric, Select, Text, and_, func, literal, select, tuple_, union_all
from sqlalchemy.orm import aliased

from session_lifecycle.models.sessions import SessionFigures
from session_lifecycle.statements import tables
from session_lifecycle.statements.sessions.records import preferred_session
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, as_text, summed
from session_lifecycle.statements.shared.kept import OWNER_ID, SESSION_ID, kept
from session_lifecycle.statements.shared.visibility import ViewerShape, visible

OWN, WITH_DESCENDANTS = "own", "with_descendants"
_SUMMED = tuple(name for name in SessionFigures.model_fields if name in tables.sessions.__table__.columns)


@kept
def family_figures(viewer: ViewerShape, *, has_owner_id: bool) -> Select[*tuple[Any, ...]]:
    """Two rows: the figures of the session that rule R15 prefers, and the figures of it and its descendants.

    Both count no session where the viewer sees no such session. The descendants are followed through sessions that the
    viewer does not see, and only visible ones are counted. Binds the viewer, `session_id` and `owner_id`.
    """
    preferred = preferred_session(SESSION_ID, viewer, owner_id=OWNER_ID if has_owner_id else None).cte("preferred")
    key = (preferred.c.record_user_id.label("user_id"), preferred.c.record_session_id.label("session_id"))
    family = select(*key).cte("family", recursive=True)
    child = aliased(tables.sessions, name="child")
    is_child = and_(child.user_id == family.c.user_id, child.parent_session_id == family.c.session_id)
    # UNION finds each session once, so a circle of parents ends.
    family = family.union(select(child.user_id, child.session_id).join(family, is_child))
    is_of_family = and_(tables.sessions.user_id == family.c.user_id, tables.sessions.session_id == family.c.session_id)
    seen = visible(viewer)
    is_preferred = tuple_(tables.sessions.user_id, tables.sessions.session_id).in_(select(*key))
    rows = []
    for label, conditions in ((OWN, (seen, is_preferred)), (WITH_DESCENDANTS, (seen,))):
        figures = [
            func.coalesce(func.sum(getattr(tables.sessions, name)), 0)
            .cast(Numeric if name.endswith("_usd") else BigInteger)
            .label(name)
            for name in _SUMMED
        ]
        further = summed(tables.sessions.further_totals).label(FURTHER_TOTALS)
        sums = select(literal(label, Text).label("label"), func.count().label("sessions"), *figures, further)
        rows.append(sums.join_from(tables.sessions, family, is_of_family).where(*conditions))
    both = union_all(*rows).subquery("both")
    return select(*(as_text(one) if one.name == FURTHER_TOTALS else one for one in both.c))
