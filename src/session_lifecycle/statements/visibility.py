"""Which sessions a viewer sees (rule R11). Every read goes through here."""

from sqlalchemy import ColumnElement, false, or_, true

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import Viewer


def visible(viewer: Viewer) -> ColumnElement[bool]:
    """True for the sessions this viewer sees: owned by them or their agents, or in a permitted data set."""
    if viewer.sees_all:
        return true()
    ways: list[ColumnElement[bool]] = []
    if viewer.owner_ids:
        ways.append(S.user_id.in_(viewer.owner_ids))
    if viewer.permitted_dataset_ids:
        ways.append(S.dataset_id.in_(viewer.permitted_dataset_ids))
    return or_(*ways) if ways else false()
