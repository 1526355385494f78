"""The rules of writing and of figures, on a Postgres that testcontainers starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from session_lifecycle.testing import docker_answers
from support import docker_engine

ROOT = Path(__file__).parents[3]
# One suite that writes and one that reads: what differs on a container is the server, which both reach the same way.
SUITE = ("tests/acceptance/test_writing.py", "tests/acceptance/test_figures.py")


def test_the_rules_hold_on_a_container() -> None:
    if docker_answers():
        pytest.skip("a Docker engine answers: all tests run on a container already")
    if missing := docker_engine.what_is_missing():
        pytest.skip(f"no Docker engine answers, and none can be started: {missing}")
    with docker_engine.running_engine() as engine:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SESSION_"))},
            **engine.environment,
            "SESSION_LIFECYCLE_TEST_IMAGE": docker_engine.IMAGE,
            "SESSION_LIFECYCLE_PG_BIN": "/nowhere",  # so no embedded server can be used instead
        }
        command = [*engine.prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak"]
        ran = subprocess.run([*command, *SUITE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
