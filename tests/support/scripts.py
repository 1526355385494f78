"""Runs a program of a test in a process of its own, where it may fork, exit and leave connections behind."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent

PREAMBLE = """
import asyncio, os, sys, threading, time
from uuid import UUID
from session_lifecycle import *
from support.usage import A, usage
URL = sys.argv[1]
"""


def run_script(source: str, *arguments: str, with_log: bool = False, within_seconds: float = 60, code: int = 0) -> str:
    """Runs Python source after `PREAMBLE`; returns what it prints. Raises if it ends with another code.

    Args:
        source: The source.
        arguments: The arguments; the first one is `URL`.
        with_log: Whether the log is part of the answer, so that a test sees what asyncio complains about.
        within_seconds: The program is killed after so long.
        code: The exit code that is expected.
    """
    program = PREAMBLE + dedent(source)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if with_log else subprocess.PIPE,
        text=True,
        timeout=within_seconds,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    # In its debug mode asyncio logs callbacks that took long. They take long on a busy machine.
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith("Executing <")).strip()


def refusal_without(package: str, module: str) -> str:
    """What importing an adapter says in a process where a package is not installed.

    The library itself, and what adapters share, must be importable there.
    """
    program = f"""
        import sys
        sys.modules[{package!r}] = None
        import session_lifecycle
        from session_lifecycle.integrations import adapter, generated_clients
        try:
            import session_lifecycle.integrations.{module}
        except ImportError as error:
            print(error)
    """
    ran = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True)
    return ran.stdout
