"""Which sessions a viewer sees (rule R11). Every read goes through here."""

from sqlalchemy import ColumnElement, and_, false, literal_column, or_, true

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.models import Viewer


def visible(viewer: Viewer) -> ColumnElement[bool]:
    """True for the sessions this viewer sees: owned by them or their agents, or in a permitted data set."""
    if viewer.sees_all:
        return true()
    ways: list[ColumnElement[bool]] = []
    if viewer.owner_ids:
        # True of every session; the index on a user's activity is only planned with where it is named.
        every_session = S.session_id != literal_column("''")
        ways.append(and_(S.user_id.in_(viewer.owner_ids), every_session))
    if viewer.permitted_dataset_ids:
        ways.append(S.dataset_id.in_(viewer.permitted_dataset_ids))
    return or_(*ways) if ways else false()


def visible_run(viewer: Viewer) -> ColumnElement[bool]:
    """True for the runs this viewer sees, of runs outer-joined with their sessions.

    Those are the runs of visible sessions; and of runs that wait outside of any, the viewer's own and their agents'.
    """
    if viewer.sees_all:
        return true()
    if not viewer.owner_ids:
        return visible(viewer)
    own = R.user_id.in_(viewer.owner_ids)
    seen = or_(visible(viewer), and_(R.session_id.is_(None), own))
    # All of them are the viewer's own where nothing is shared; said, so that the index on a user's runs is used.
    return seen if viewer.permitted_dataset_ids else and_(own, seen)
