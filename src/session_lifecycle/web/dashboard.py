"""`dashboard_app`: the pages of sessions as an app, which a host mounts beside its own.

The pages are rendered here, and a browser without scripts shows them too. `pages/` has a module for each page;
`templates/` says what the pages look like, and `static/` has their styles and scripts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from session_lifecycle.database import SessionDatabase
from session_lifecycle.models import Viewer
from session_lifecycle.web.dependencies import bring
from session_lifecycle.web.framework import AnyHTTPException, FastAPI, StaticFiles
from session_lifecycle.web.pages import budgets, changes, live, overview, session, sessions
from session_lifecycle.web.pages.guest import GuestApp
from session_lifecycle.web.pages.problems import broken_page_handler, problem_page_handler
from session_lifecycle.web.pages.visit import Dashboard, environment
from session_lifecycle.web.reading import UserEmails

STATIC = Path(__file__).parent / "static"


def dashboard_app(
    db: SessionDatabase,
    *,
    viewer: Callable[..., Viewer],
    api_path: str = "/api/v1",
    feed: Any = None,
    writable: bool = False,
    user_emails: UserEmails | None = None,
    templates: str | Path | None = None,
    frame_ancestors: str = "'none'",
) -> FastAPI:
    """The pages, as an app to mount under any path of the host.

    Args:
        db: The database. The host opens and closes it.
        viewer: The host's dependency that gives the `Viewer` of a request, or raises the host's own error: 401, 303
            with a `Location` where the user signs in, or one that the host has an exception handler for. Every page
            asks it first. Its `request.app` is the app of the host.
        api_path: Where the host has our routes, from the root of the host's app. The event stream is below it.
        feed: The feed that the host's event stream sends; None: the page `live` is loaded again in place of it.
        writable: Whether pages have forms that end, reopen, edit and annotate sessions: those of the viewer and of the
            viewer's agents.
        user_emails: Finds the e-mail addresses of users; None: the pages show the beginning of their ids.
        templates: A folder of the host's own Jinja2 templates, which come before ours. A `layout.html` there puts every
            page into the host's layout.
        frame_ancestors: The sites that may show the pages in a frame, as a content security policy names them.

    Raises:
        jinja2.TemplateSyntaxError: A template of the host that stands for one of ours is wrong.

    Example:
        app.mount("/dashboard", dashboard_app(db, viewer=current_viewer))
    """
    dashboard = Dashboard(
        api_path=api_path,
        has_feed=feed is not None,
        writable=writable,
        frame_ancestors=frame_ancestors,
        user_emails=user_emails,
        templates=environment(None if templates is None else Path(templates)),
    )
    app = GuestApp(dashboard, openapi_url=None, docs_url=None, redoc_url=None)
    asked_first = bring(db, viewer)
    for page in (overview, sessions, session, live, budgets):
        app.include_router(page.router, dependencies=asked_first)
    app.include_router(changes.preferences, dependencies=asked_first)
    if writable:
        app.include_router(changes.router, dependencies=asked_first)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(AnyHTTPException, problem_page_handler)
    app.add_exception_handler(Exception, broken_page_handler)
    return app
