"""`docs/images`: every page of the dashboard in Chromium, light and dark, wide and narrow.

Run as a script it writes the pictures from an embedded Postgres; `make screenshots` does that.
"""

import asyncio
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from fastapi import FastAPI

from session_lifecycle import SessionDatabase
from session_lifecycle.postgres.embedded import temporary_data_dir
from session_lifecycle.web.dashboard import dashboard_app
from support.chromium import MISSING, chromium, chromium_path, served
from support.lived_in import SHOWN, USERS, live_in
from support.web import VIEWERS

FOLDER = Path(__file__).parents[2] / "docs" / "images"
PAGES = {
    "overview": "/",
    "sessions": "/sessions?limit=25",
    "session": f"/session?id={SHOWN}",
    "transcript": f"/session?id={SHOWN}&view=transcript",
    "usage": f"/session?id={SHOWN}&view=usage",
    "live": "/live",
    "budgets": "/budgets",
}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SIZES = {"wide": (1280, 800), "narrow": (390, 800)}


async def _names(user_ids: Iterable[UUID]) -> Mapping[UUID, str]:
    return {user_id: USERS[user_id] for user_id in user_ids if user_id in USERS}


def _viewer() -> Any:
    return VIEWERS["a"]


async def write_pictures(folder: Path) -> None:
    """Writes a picture of each page into the folder."""
    folder.mkdir(exist_ok=True)
    with temporary_data_dir() as data_dir:
        async with SessionDatabase.embedded(data_dir) as db:
            await db.migrate()
            await live_in(db)
            app = FastAPI()
            app.mount("/", dashboard_app(db, viewer=_viewer, user_emails=_names))
            async with served(app) as url, chromium() as browser:
                for size, (width, height) in SIZES.items():
                    for scheme in SCHEMES:
                        page = await browser.new_page(
                            color_scheme=scheme,
                            viewport={"width": width, "height": height},
                            timezone_id="UTC",
                            locale="en-US",
                        )
                        for name, path in PAGES.items():
                            await page.goto(url + path)
                            await page.screenshot(path=folder / f"{name}-{scheme}-{size}.png", animations="disabled")
                        await page.close()


if __name__ == "__main__":
    if chromium_path() is None:
        sys.exit(MISSING)
    asyncio.run(write_pictures(FOLDER))
