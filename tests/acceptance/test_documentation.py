"""The documentation is true: its Python runs and is typed, its links have targets, its settings exist."""

import ast
import inspect
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

import session_lifecycle
from session_lifecycle import (
    End,
    RunFilters,
    SessionDatabase,
    SessionListFilters,
    Settings,
    SummaryFilters,
    Touch,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.models import (
    Action,
    Budget,
    BudgetUse,
    CostByAgentRow,
    CostByModelRow,
    CostByUserAgentRow,
    CostByUserRow,
    Durations,
    ErasureReceipt,
    FamilyFigures,
    LedgerEvent,
    Lineage,
    Mismatch,
    PruneReport,
    RecentActivity,
    ReconcileReport,
    RepriceReport,
    Reservation,
    RollUpReport,
    RunDetail,
    RunDurations,
    RunEvent,
    RunPage,
    SessionAnnotation,
    SessionDetail,
    SessionDurations,
    SessionFigures,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    SessionSummary,
    Spend,
    SummaryPage,
    TelemetryKey,
    TelemetrySummary,
    Thread,
    ThreadPage,
    TokenClasses,
    TokensByClass,
    UsageEventFilters,
    UsageEventPage,
    UsageFigures,
    UsageFilters,
    UsageReport,
    UsageRow,
)
from session_lifecycle.testing import SessionClock
from support.documentation import (
    PAGES,
    ROOT,
    Block,
    Finding,
    blocks,
    mypy_findings,
    on_pages,
    pyright_findings,
    write_modules,
)


async def run_block(page: Path, block: Block, names: dict[str, Any]) -> None:
    """Runs a block, with await allowed at its top level, as in asyncio's REPL."""
    # A traceback names the line of the page.
    source = "\n" * (block.line - 1) + block.code
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = FunctionType(code, names)()
    if inspect.isawaitable(running):
        await running


# LiteLLM is imported by its page, and Pydantic warns of two of its types.
@pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning")
@pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.stem)
async def test_the_python_of_a_page_runs(
    page: Path, session_database: SessionDatabase, session_database_url: str, session_clock: SessionClock
) -> None:
    # The block reads on a replica, which follows the primary with a delay.
    urls = {"url": session_database_url, "read_url": session_database_url}
    names: dict[str, Any] = {"db": session_database, **urls, "user_id": uuid4()}
    fixtures = {"session_database": session_database, "session_clock": session_clock}
    for block in blocks(page):
        await run_block(page, block, names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            await value(**{argument: fixtures[argument] for argument in inspect.signature(value).parameters})


def test_the_program_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, session_database_url: str
) -> None:
    [program] = blocks(ROOT / "README.md")
    file = tmp_path / "program.py"
    file.write_text(program.code)
    monkeypatch.setattr(SessionDatabase, "embedded", lambda: SessionDatabase.connect(session_database_url))
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out.startswith("applied 0.00045\n")


@pytest.mark.parametrize("check", [mypy_findings, pyright_findings])
def test_the_python_of_the_pages_is_typed(check: Callable[[Path], Iterator[Finding]], tmp_path: Path) -> None:
    # A page with an error shows that the type checker looked, and that it names the line of the page.
    wrong = tmp_path / "wrong.md"
    wrong.write_text("# Page\n\nText.\n\n```python\nawait db.migrate()\nnumber: int = url\n```\n")
    modules = tmp_path / "modules"
    modules.mkdir()
    pages = write_modules(modules, [*PAGES, wrong])
    findings = on_pages(check(modules), pages)
    expected, *others = sorted(findings, key=lambda one: "wrong.md:7: " not in one)
    assert "wrong.md:7: " in expected
    assert not others, "\n".join(others)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_has_a_target(page: Path) -> None:
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
        *(ThreadPage, Thread, Action, RecentActivity),
        *(SessionAnnotation, SessionFigures, FamilyFigures),
        *(TokenClasses, TokensByClass, Durations, SessionDurations, RunDurations),
        *(UsageEventFilters, UsageEventPage, LedgerEvent, UsageFilters, UsageReport, UsageFigures, UsageRow),
        *(Spend, CostByAgentRow, CostByUserRow, CostByUserAgentRow, TelemetrySummary, TelemetryKey),
        *(Budget, BudgetUse, Reservation),
        *(RepriceReport, RollUpReport, PruneReport, ErasureReceipt, ReconcileReport, Mismatch),
    ],
)
def test_every_field_of_a_value_is_in_the_reference(value: type[BaseModel]) -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    hidden = {"sees_all"}  # set by `Viewer.auditor()` only
    fields = {*value.model_fields, *value.model_computed_fields} - hidden
    assert [name for name in sorted(fields) if not re.search(rf"`[^`]*\b{name}\b", page)] == []


def test_every_error_is_explained() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    ours = [name for name in session_lifecycle.__all__ if name.endswith("Error")]
    assert len(ours) == 12
    assert [name for name in ours if not re.search(rf"^\| `{name}` \|", page, re.MULTILINE)] == []
