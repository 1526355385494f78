"""What the tests of plans share: databases with so many sessions that the number of rows read must not depend on it."""

from collections.abc import Iterator

import pytest

from session_lifecycle.testing import TemplateServer
from support.plans import databases_of_many


@pytest.fixture(scope="module")
def urls(session_template_server: TemplateServer) -> Iterator[dict[str, str]]:
    """The URLs of two databases with the same sessions: one rolled up, one never rolled up."""
    with databases_of_many(session_template_server) as found:
        yield found


@pytest.fixture(autouse=True)
def reads_as_of_many(as_of_many: None) -> None:
    """So many sessions are few for a window that cuts buckets."""
