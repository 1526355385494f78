"""The Python blocks of the pages: found, and checked as modules by mypy and pyright."""

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

# The names that the text around the blocks provides. The blocks of a page are one program that may await at its top, so
# they are the body of one asynchronous function.
PREAMBLE = (
    "from uuid import UUID; from session_lifecycle import SessionDatabase",
    "async def page(db: SessionDatabase, url: str, read_url: str, user_id: UUID) -> None:",
)
INDENT = "    "


class Block(NamedTuple):
    """A Python block of a page."""

    line: int
    """Where its code begins on the page, from 1."""
    code: str


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, in their order."""
    found: list[Block] = []
    begin: int | None = None
    lines = page.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if begin is None:
            begin = number + 1 if line == "```python\n" else None
        elif line.rstrip("\n") == "```":
            found.append(Block(begin, "".join(lines[begin - 1 : number - 1])))
            begin = None
    return found


def as_module(page: Path) -> str:
    """The blocks of a page as one module, in which each line of code has the number it has on the page."""
    lines = list(PREAMBLE)
    for block in blocks(page):
        if block.line <= len(lines):
            raise ValueError(f"{page.name}:{block.line}: the preamble leaves no room for a block in the first lines")
        lines += [""] * (block.line - 1 - len(lines))
        lines += textwrap.indent(block.code, INDENT).splitlines()
    return "\n".join(lines) + "\n"


def write_modules(folder: Path, pages: Iterable[Path]) -> dict[str, Path]:
    """Writes each page that has blocks as a module; the pages by the names of their modules."""
    written = {f"page_{number}": page for number, page in enumerate(pages) if blocks(page)}
    for name, page in written.items():
        (folder / f"{name}.py").write_text(as_module(page))
    return written


class Finding(NamedTuple):
    """What a type checker says of one line of a module."""

    module: str
    line: int
    message: str


def mypy_findings(folder: Path) -> Iterator[Finding]:
    """The errors of `mypy --strict` in the modules of a folder."""
    # Nothing else is configured: a host may have no configuration, and no plugin of Pydantic's.
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    [runtimes] = [one["module"] for one in overrides if one.get("follow_imports") == "skip"]
    (folder / "mypy.ini").write_text(f"[mypy]\n[mypy-{','.join(runtimes)}]\nfollow_imports = skip\n")
    options = ["--strict", "--allow-subclassing-any", "--config-file=mypy.ini", "--output=json", "--no-error-summary"]
    options.append(f"--cache-dir={os.devnull}")  # the folder is looked at once
    for line in _run("mypy", *options, ".", folder=folder).splitlines():
        found = json.loads(line)
        if found["severity"] == "error":
            yield Finding(Path(found["file"]).stem, found["line"], f"{found['message']} [{found['code']}]")


def pyright_findings(folder: Path) -> Iterator[Finding]:
    """The errors of a strict pyright in the modules of a folder."""
    # What a block defines is defined for the reader, who sees no function around it.
    unused = {"reportUnusedVariable": False, "reportUnusedFunction": False}
    # The types of some runtimes are not complete.
    of_runtimes = {"reportMissingTypeStubs": False, "reportUnknownMemberType": False}
    settings: dict[str, Any] = {"include": ["."], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "strict"}
    settings |= unused | of_runtimes
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    answer = _run("pyright", "--outputjson", f"--pythonpath={sys.executable}", folder=folder)
    found: list[dict[str, Any]] = json.loads(answer)["generalDiagnostics"]
    for one in found:
        if one["severity"] == "error":
            line = one["range"]["start"]["line"] + 1  # pyright counts from 0
            yield Finding(Path(one["file"]).stem, line, f"{one['message']} [{one.get('rule', 'syntax')}]")


def _run(checker: str, *options: str, folder: Path) -> str:
    """The output of a type checker, which ends with 0, or with 1 where it found errors."""
    command = [sys.executable, "-m", checker, *options]
    # On this path mypy takes the library for an installed package: it reads its types, and reports no errors in it.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode not in {0, 1}:
        raise RuntimeError(f"{checker} ended with {ran.returncode}: {ran.stderr or ran.stdout}")
    return ran.stdout


def on_pages(findings: Iterable[Finding], pages: dict[str, Path]) -> list[str]:
    """The findings as text, each with the page and the line that it is about."""
    return [f"{os.path.relpath(pages[one.module], ROOT)}:{one.line}: {one.message}" for one in findings]
