"""The path as it was sent, and the extra that the routes need."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from session_lifecycle.web.routes import sent_path

WEB = Path(__file__).parents[2] / "src" / "session_lifecycle" / "web"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"path": "/sessions/a/b", "raw_path": b"/sessions/a%2Fb"}, "/sessions/a%2Fb"),
        ({"path": "/sessions/stats", "raw_path": b"/sessions/%73tats"}, "/sessions/%73tats"),
        # A server need not tell the path as it was sent.
        ({"path": "/sessions/a b%2F"}, "/sessions/a%20b%252F"),
        # A middleware changed the path, as a redirect to the path without a slash does.
        ({"path": "/sessions", "raw_path": b"/sessions/"}, "/sessions"),
        # Mounted, or behind a proxy that strips a prefix: the path has the root, or has it not.
        ({"path": "/sub/x/a/b", "raw_path": b"/sub/x/a%2Fb", "root_path": "/sub"}, "/x/a%2Fb"),
        ({"path": "/ü b/x/a/b", "raw_path": b"/%C3%BC%20b/x/a%2Fb", "root_path": "/ü b"}, "/x/a%2Fb"),
        ({"path": "/x/a/b", "raw_path": b"/x/a%2Fb", "root_path": "/sub"}, "/x/a%2Fb"),
        ({"path": "/subway/a/b", "raw_path": b"/subway/a%2Fb", "root_path": "/sub"}, "/subway/a%2Fb"),
        ({"path": "/one/two/x", "raw_path": b"/one/two/x", "root_path": "/one/two"}, "/x"),
    ],
)
def test_the_path_as_it_was_sent(scope: dict[str, Any], expected: str) -> None:
    assert sent_path(scope) == expected


@pytest.mark.parametrize("module", ["reading", "writing", "ingest", "filters", "problems"])
def test_without_fastapi_an_import_names_the_extra(module: str) -> None:
    program = f"import sys; sys.modules['fastapi'] = None; import session_lifecycle.web.{module}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "ImportError: the HTTP routes need FastAPI: pip install 'session-lifecycle[web]'"
    )


def test_one_module_imports_fastapi() -> None:
    importing = {
        module.name
        for module in WEB.glob("*.py")
        if any(line.strip().startswith(("from fastapi", "from starlette")) for line in module.read_text().splitlines())
    }
    assert importing - {"otlp.py"} == {"framework.py"}
