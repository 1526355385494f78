"""What the command line loads before it works, and the texts of its options."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from session_lifecycle import __version__
from session_lifecycle.cli import choices, options
from session_lifecycle.cli.commands import exports, reports, transfer
from session_lifecycle.maintenance.role import DEFAULT_BATCH, DEFAULT_PRUNE_BATCH
from session_lifecycle.models import EffectiveStatus
from session_lifecycle.models.pages import Total
from session_lifecycle.models.reports import BUCKETS
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS
from session_lifecycle.models.summaries import SUMMARY_ORDERS
from session_lifecycle.models.transfer import ExportFormat
from session_lifecycle.models.usage_classes import ServiceTier
from support.commands import options_of_commands, run, succeed

HEAVY = ("sqlalchemy", "asyncpg", "alembic", "pydantic_settings", "genai_prices", "session_lifecycle.models")
# Typer itself loads Pydantic before it reads the arguments of a command, so this holds for the program's own options.
PYDANTIC = ("pydantic", "pydantic_core")
NOWHERE = ("--database-url", "postgresql://127.0.0.1:1/x")
REFUSED = (
    ("--nonsense",),
    ("nonsense",),
    ("sessions", "list", "--limit", "0"),
    ("sessions", "list", "--status", "gone"),
    ("sessions", "list", "--metadata", "[]"),
    ("sessions", "list", "--tag", "name"),
    ("sessions", "list", "--min-cost", "much"),
    ("sessions", "list", *NOWHERE, "--embedded"),
    ("sessions", "update", "s", "--user", "00000000-0000-0000-0000-000000000001"),
    ("search", "", *NOWHERE),
    ("cost", "--since", "yesterday"),
    ("prune-sessions", "--older-than-days", "nan", *NOWHERE),
    ("erase-user", "me"),
    ("spool", "poison", "--drop"),
    ("spool", "poison", "--drop", "--retry"),
)

RUNS_EACH = """
import contextlib, io, json, sys
from session_lifecycle.cli import main

for arguments in json.loads(sys.argv.pop()):
    sys.argv = ["session-lifecycle", *arguments]
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([arguments, code, sorted(sys.modules)]))
"""


def loaded_after(each: list[list[str]]) -> list[tuple[list[str], int, set[str]]]:
    """Runs the commands one after another in one process: each with its exit code and the modules that are loaded."""
    ran = subprocess.run(
        [sys.executable, "-c", RUNS_EACH, json.dumps(each)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [(arguments, code, set(loaded)) for arguments, code, loaded in map(json.loads, ran.stdout.splitlines())]


def test_help_and_version_load_no_library() -> None:
    explained = [[*name.split(), "--help"] for name in options_of_commands()]
    found = loaded_after([["--version"], ["--help"], *explained])
    assert len(found) == len(explained) + 2
    for arguments, code, loaded in found:
        assert (code, loaded.intersection(HEAVY)) == (0, set()), arguments
    for arguments, _, loaded in found[:2]:
        assert not loaded.intersection(PYDANTIC), arguments


def test_a_refused_option_loads_no_library() -> None:
    found = loaded_after(list(map(list, REFUSED)))
    assert len(found) == len(REFUSED)
    for arguments, code, loaded in found:
        assert (code, loaded.intersection(HEAVY)) == (2, set()), arguments


def test_the_version_is_printed() -> None:
    assert succeed("--version") == f"session-lifecycle {__version__}\n"


def test_the_texts_of_options_are_those_of_the_library() -> None:
    assert get_args(choices.Status) == tuple(map(str, EffectiveStatus))
    assert get_args(choices.SessionOrder) == ALL_SESSION_ORDERS
    assert get_args(choices.SummaryOrder) == SUMMARY_ORDERS
    assert choices.Total == Total
    assert choices.ServiceTier == ServiceTier
    for file_format in (exports.Format, transfer.FolderFormat):
        assert get_args(file_format)[0] == ExportFormat
    assert reports.TIMES == BUCKETS
    assert (options.PRUNE_BATCH, options.REPRICE_BATCH) == (DEFAULT_PRUNE_BATCH, DEFAULT_BATCH)


@pytest.mark.parametrize("command", sorted(options_of_commands()))
def test_every_command_that_answers_has_json(command: str) -> None:
    has_json = "--json" in options_of_commands()[command]
    # They print SQL, JSON already, a link, or what Prometheus reads.
    assert has_json is (command not in {"db sql", "db rls sql", "hook claude-code", "metrics", "serve"})


def test_an_argument_that_is_refused_is_misuse() -> None:
    # The library refuses these values before it reaches a database.
    for arguments in (
        ("sessions", "list", "--min-cost", "-1"),
        ("sessions", "list", "--min-tokens", "5", "--max-tokens", "3"),
        ("sessions", "list", "--dataset", "00000000-0000-0000-0000-000000000001", "--without-dataset"),
        ("sessions", "list", "--cursor", "nonsense"),
        ("sessions", "show", " "),
        ("events", "--since", "2026-02-01", "--until", "2026-01-01"),
        ("cost", "--by", "nonsense"),
        ("cost", "--by", "day"),
        ("cost", "--by", "model,model"),
        ("cost", "--order-by", "nonsense"),
        ("cost", "--by", "day", "--since", "7d", "--timezone", "Nowhere"),
        ("reprice", "--batch", "0"),
        ("budgets", "set", "b", "--limit-usd", "1"),
        ("budgets", "set", "b", "--agent", "a", "--limit-usd", "1", "--window", "year"),
    ):
        refused = run(*arguments, *NOWHERE)
        assert (refused.returncode, refused.stdout) == (2, ""), arguments
        assert refused.stderr.startswith("error: "), arguments
        assert ", expected " in refused.stderr, arguments
        assert refused.stderr.count("\n") == 1, arguments


PAGE = Path(__file__).parents[3] / "docs/reference/command-line.md"


def test_the_reference_has_every_command_with_an_example() -> None:
    commands = options_of_commands()
    sections = dict(re.findall(r"^### (.+?)\n(.+?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert sections.keys() == commands.keys()
    for name, section in sections.items():
        examples = [shlex.split(line) for line in re.findall(r"^session-lifecycle (.+)$", section, re.MULTILINE)]
        assert examples, name
        for words in examples:
            assert words[: len(name.split())] == name.split()
            assert {word for word in words if word.startswith("--")} <= set(commands[name]), words


def test_the_examples_of_the_reference_are_accepted() -> None:
    # With an option of the database twice, nothing is done, and every other option has been read before.
    both = ("--database-url", "postgresql://127.0.0.1:1/x", "--data-dir", "/nowhere")
    options = options_of_commands()
    examples = re.findall(r"^session-lifecycle (.+)$", PAGE.read_text(), re.MULTILINE)
    read = [shlex.split(one) for one in examples if not one.startswith(("replay", "import"))]
    for words in read:
        name = next(name for name in options if words[: len(name.split())] == name.split())
        if "--data-dir" in options[name]:
            refused = run(*words, *both)
            assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
            assert refused.stderr.startswith("error: --embedded and --data-dir are for the embedded Postgres")
