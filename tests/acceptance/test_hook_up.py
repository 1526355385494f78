"""Every page of an agent runtime shows how to hook it up, and it takes three lines at most."""

from pathlib import Path

import pytest

from support.documentation import ROOT, blocks

BEGIN, END = "# hook up", "# hooked up"
MOST_LINES = 3


def hook_ups(page: Path) -> list[list[str]]:
    """The lines of code between the two comments, for each pair of them on a page."""
    found: list[list[str]] = []
    inside = False
    for block in blocks(page):
        for line in map(str.strip, block.code.splitlines()):
            if line == BEGIN:
                found.append([])
                inside = True
            elif line == END:
                inside = False
            elif inside and line and not line.startswith("#"):
                found[-1].append(line)
    if inside:
        raise ValueError(f"{page.name}: {BEGIN!r} has no {END!r}")
    return found


PAGES = [page for page in sorted((ROOT / "docs/how-to").glob("*.md")) if hook_ups(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runtime_is_hooked_up_in_three_lines(page: Path) -> None:
    for lines in hook_ups(page):
        assert 1 <= len(lines) <= MOST_LINES, lines


def test_every_adapter_has_a_page_that_hooks_it_up() -> None:
    shown = {line for page in PAGES for lines in hook_ups(page) for line in lines}
    folder = ROOT / "src/session_lifecycle/integrations"
    sources = {path.stem: path.read_text() for path in folder.glob("*.py")}
    # An adapter takes a recorder; what the OTLP endpoint reads with has an extra too.
    adapters = [
        name for name, text in sources.items() if "pip install 'session-lifecycle[" in text and "TakesQuietly" in text
    ]
    assert adapters
    assert [name for name in adapters if not any(f"integrations.{name} import" in line for line in shown)] == []
