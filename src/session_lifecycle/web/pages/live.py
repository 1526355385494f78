"""What runs now. A page makes two reads. A script shows changes as they happen: it hears the host's event stream."""

from session_lifecycle.models import EffectiveStatus, SessionListFilters
from session_lifecycle.web.framework import APIRouter, Response
from session_lifecycle.web.pages.problems import PageRoute
from session_lifecycle.web.pages.visit import AskedVisit

router = APIRouter(route_class=PageRoute)

MOST_SESSIONS = 50
REFRESH_SECONDS = 10
"""How often the page is loaded again, where no script does better."""


@router.get("/live")
async def live(visit: AskedVisit) -> Response:
    """The sessions that run or wait, the most recently active first."""
    found = [
        await visit.db.lifecycle.list_session_rows(
            SessionListFilters(viewer=visit.viewer, status_filter=status, limit=MOST_SESSIONS, total="bounded")
        )
        for status in (EffectiveStatus.RUNNING, EffectiveStatus.WAITING)
    ]
    names = await visit.names_of(row.record.user_id for page in found for row in page.sessions)
    return visit.answer(
        "live.html",
        lists=list(zip(("Running", "Waiting"), found, strict=True)),
        names=names,
        refresh_seconds=REFRESH_SECONDS,
    )
