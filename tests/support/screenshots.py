"""`docs/images`: every page of the dashboard in Chromium, light and dark, wide and narrow.

Run as a script it writes the pictures from an embedded Postgres; `make screenshots` does that.
"""

import asyncio
import sys
from pathlib import Path
from typing import Literal

from session_lifecycle import SessionDatabase
from session_lifecycle.postgres.embedded import temporary_data_dir
from support.chromium import MISSING, chromium, chromium_path, served
from support.lived_in import SHOWN, live_in, lived_in_host

FOLDER = Path(__file__).parents[2] / "docs" / "images"
PAGES = {
    "overview": "/",
    "sessions": "/sessions?limit=25",
    "session": f"/session?id={SHOWN}",
    "usage": f"/session?id={SHOWN}&view=usage",
    "live": "/live",
    "budgets": "/budgets",
}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SIZES = {"wide": (1280, 800), "narrow": (390, 800)}


async def write_pictures(folder: Path) -> None:
    """Writes a picture of each page into the folder."""
    with temporary_data_dir() as data_dir:
        async with SessionDatabase.embedded(data_dir) as db:
            await db.migrate()
            await live_in(db)
            host, feed = lived_in_host(db)
            async with served(host) as url, chromium() as browser:
                for size, (width, height) in SIZES.items():
                    for scheme in SCHEMES:
                        page = await browser.new_page(
                            color_scheme=scheme,
                            viewport={"width": width, "height": height},
                            timezone_id="UTC",
                            locale="en-US",
                        )
                        for name, path in PAGES.items():
                            await page.goto(f"{url}/pages{path}")
                            await page.screenshot(path=folder / f"{name}-{scheme}-{size}.png", animations="disabled")
                        await page.close()
            await feed.close()


if __name__ == "__main__":
    if chromium_path() is None:
        sys.exit(MISSING)
    FOLDER.mkdir(exist_ok=True)
    asyncio.run(write_pictures(FOLDER))
