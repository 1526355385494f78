"""The path as it was sent, errors as problems, and the extra that the routes need."""

import json
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from session_lifecycle import (
    BudgetExceededError,
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SchemaError,
    SessionLifecycleError,
    SpoolError,
    SpoolFullError,
    TransactionConflictError,
)
from session_lifecycle.web.problems import RequestRefusedError, problem_handler
from session_lifecycle.web.routes import sent_path

STATUSES: dict[Exception, tuple[int, str | None]] = {
    InvalidValueError("range", "90d", "one of 24h"): (422, None),
    ConfigurationError("secret"): (500, None),
    SchemaError("secret"): (503, "5"),
    DatabaseUnavailableError("secret", may_have_written=True): (503, "5"),
    BudgetExceededError(["b"], "secret"): (429, None),
    TransactionConflictError("secret"): (503, "1"),
    RecorderFullError("secret"): (503, "1"),
    RecorderClosedError("secret"): (503, "5"),
    SpoolError("secret"): (500, None),
    SpoolFullError("secret"): (503, "1"),
    SessionLifecycleError("secret"): (500, None),
    RequestRefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too large"): (413, None),
}
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


@pytest.mark.parametrize("error", STATUSES, ids=lambda error: type(error).__name__)
async def test_an_error_is_a_problem_without_its_text(error: Exception) -> None:
    status, retry_after = STATUSES[error]
    answer = await problem_handler(Request({"type": "http"}), error)
    problem = json.loads(bytes(answer.body))
    assert (answer.status_code, problem["status"], answer.headers.get("retry-after")) == (status, status, retry_after)
    assert "secret" not in bytes(answer.body).decode()
    assert problem.get("may_have_written", False) is isinstance(error, DatabaseUnavailableError)


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
