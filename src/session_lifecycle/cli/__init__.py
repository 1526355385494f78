"""The command line, behind the extra `cli`."""


def main() -> None:
    """Runs the command `session-lifecycle`. Without the extra `cli`, exits with a message that names it."""
    try:
        from session_lifecycle.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer"}:
            raise
        raise SystemExit("the command line needs an extra: pip install 'session-lifecycle[cli]'") from None
    run()
