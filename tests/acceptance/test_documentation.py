"""The pages tell the truth: their Python runs, their links lead somewhere, their settings exist."""

import ast
import inspect
import re
import runpy
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

import session_lifecycle
from session_lifecycle import (
    Action,
    CostByAgentRow,
    CostByModelRow,
    CostByUserRow,
    Durations,
    End,
    ErasureReceipt,
    Lineage,
    Mismatch,
    PruneReport,
    ReconcileReport,
    RepriceReport,
    RollUpReport,
    RunDetail,
    RunDurations,
    RunEvent,
    RunFilters,
    RunPage,
    SessionDatabase,
    SessionDetail,
    SessionDurations,
    SessionListFilters,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    SessionSummary,
    Settings,
    Spend,
    SummaryFilters,
    SummaryPage,
    TelemetryKey,
    TelemetrySummary,
    Thread,
    ThreadPage,
    TokenClasses,
    TokensByClass,
    Touch,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.testing import SessionClock

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The Python of a page."""
    return BLOCK.findall(page.read_text())


async def run_block(source: str, name: str, names: dict[str, Any]) -> None:
    """Runs a block, which may await at its top, as the REPL of asyncio does."""
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = FunctionType(code, names)()
    if inspect.isawaitable(running):
        await running


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.stem)
async def test_the_python_of_a_page_runs(
    page: Path, session_database: SessionDatabase, session_database_url: str, session_clock: SessionClock
) -> None:
    # What is read on a replica is what the primary has, a little later.
    urls = {"url": session_database_url, "read_url": session_database_url}
    names: dict[str, Any] = {"db": session_database, **urls, "user_id": uuid4()}
    fixtures = {"session_database": session_database, "session_clock": session_clock, "user_id": names["user_id"]}
    for number, block in enumerate(blocks(page), 1):
        await run_block(block, f"{page.name}:{number}", names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            await value(**{argument: fixtures[argument] for argument in inspect.signature(value).parameters})


def test_the_program_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, session_database_url: str
) -> None:
    [program] = blocks(ROOT / "README.md")
    file = tmp_path / "program.py"
    file.write_text(program)
    monkeypatch.setattr(SessionDatabase, "embedded", lambda: SessionDatabase.connect(session_database_url))
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out.startswith("applied 0.00045\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(Settings.model_fields)


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    assert [name for name in session_lifecycle.__all__ if not re.search(rf"`[^`]*\b{name}\b", page)] == []


@pytest.mark.parametrize(
    "value",
    [
        *(Touch, UsageEvent, End, UsageReceipt, Viewer, SessionListFilters),
        *(SessionListPage, SessionRowWithStatus, SessionRecord, SessionStats, CostByModelRow),
        *(
            Lineage,
            SummaryFilters,
            SummaryPage,
            SessionSummary,
            SessionDetail,
            RunFilters,
            RunPage,
            RunDetail,
            RunEvent,
        ),
        *(ThreadPage, Thread, Action),
        *(TokenClasses, TokensByClass, Durations, SessionDurations, RunDurations),
        *(Spend, CostByAgentRow, CostByUserRow, TelemetrySummary, TelemetryKey),
        *(RepriceReport, RollUpReport, PruneReport, ErasureReceipt, ReconcileReport, Mismatch),
    ],
)
def test_every_field_of_a_value_is_in_the_reference(value: type[BaseModel]) -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    hidden = {"sees_all"}  # told by `Viewer.auditor()`
    fields = {*value.model_fields, *value.model_computed_fields} - hidden
    assert [name for name in sorted(fields) if not re.search(rf"`[^`]*\b{name}\b", page)] == []


def test_every_error_is_explained() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    ours = [name for name in session_lifecycle.__all__ if name.endswith("Error")]
    assert len(ours) == 8
    assert [name for name in ours if not re.search(rf"^\| `{name}` \|", page, re.MULTILINE)] == []
