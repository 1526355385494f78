"""The Typer app: registers the commands.

It knows their options and helps only. A command loads the library when it runs, so that help, and the refusal of an
option, come at once.
"""

import io
import sys
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from session_lifecycle._version import __version__
from session_lifecycle.cli.commands import (
    activity,
    buckets,
    budgets,
    demo,
    doctor,
    exports,
    foreign_imports,
    hooks,
    maintenance,
    replay,
    reports,
    row_level_security,
    schema,
    serve,
    sessions,
    spool,
    tail,
    transcript_imports,
    transfer,
)
from session_lifecycle.cli.option_groups import with_groups

EPILOG = "Exit codes: 0 done, 1 failed, 2 an argument was refused, 130 interrupted, 143 terminated."

app = typer.Typer(
    help="Keep the sessions of AI agents in Postgres.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        sys.stdout.write(f"session-lifecycle {__version__}\n")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep the sessions of AI agents in Postgres."""


def _register(to: typer.Typer, commands: Mapping[str, Callable[..., None]]) -> None:
    for name, command in commands.items():
        to.command(name)(with_groups(command))


def _group(
    name: str, explained: str, commands: Mapping[str, Callable[..., None]], *, within: typer.Typer = app
) -> typer.Typer:
    group = typer.Typer(help=explained, no_args_is_help=True)
    _register(group, commands)
    within.add_typer(group, name=name)
    return group


_group(
    "sessions",
    "List sessions, show one, and end, reopen, update or delete it.",
    {
        "list": sessions.list_sessions,
        "show": sessions.show,
        "end": sessions.end,
        "reopen": sessions.reopen,
        "update": sessions.update,
        "delete": sessions.delete,
    },
)
_register(
    app,
    {
        "search": activity.search,
        "runs": activity.runs,
        "events": activity.events,
        "tail": tail.tail,
        "stats": reports.stats,
        "usage": reports.usage,
        "cost": reports.cost,
        "prune-sessions": maintenance.prune_sessions,
        "prune-payloads": maintenance.prune_payloads,
        "erase-user": maintenance.erase_user,
        "reconcile": maintenance.reconcile,
        "reprice": maintenance.reprice,
        "roll-up": maintenance.roll_up,
        "serve": serve.serve,
        "doctor": doctor.doctor,
        "metrics": doctor.metrics,
        "move": transfer.move,
        "demo": demo.demo,
        "replay": replay.replay,
    },
)
_group(
    "budgets",
    "List budgets, show what is used of one, and set or delete it.",
    {
        "list": budgets.list_budgets,
        "show": budgets.show,
        "set": budgets.set_budget,
        "delete": budgets.delete,
    },
)
_db = _group(
    "db",
    "Migrate and check the schema, and its roles and row-level security.",
    {
        "upgrade": schema.upgrade,
        "downgrade": schema.downgrade,
        "current": schema.current,
        "check": schema.check,
        "history": schema.history,
        "sql": schema.sql,
        "stamp": schema.stamp,
        "roles": schema.roles,
        "distribute": buckets.distribute,
    },
)
_group(
    "rls",
    "Let Postgres show each role only the rows of the viewer of its read.",
    {
        "enable": row_level_security.enable,
        "disable": row_level_security.disable,
        "check": row_level_security.check,
        "sql": row_level_security.sql,
    },
    within=_db,
)
_group(
    "buckets",
    "Migrate, list, move, export and import buckets of users.",
    {
        "migrate": buckets.migrate,
        "list": buckets.list_buckets,
        "move": buckets.move,
        "rebalance": buckets.rebalance,
        "export": buckets.export,
        "import": buckets.import_,
    },
    within=_db,
)
_group(
    "spool",
    "Look at and deliver the items that wait in a local spool.",
    {"status": spool.status, "drain": spool.drain, "poison": spool.poison},
)
_group(
    "export",
    "Write sessions, usage events, runs, steps, messages, or everything into files.",
    {
        "sessions": exports.export_sessions,
        "usage-events": exports.export_usage_events,
        "runs": exports.export_runs,
        "steps": exports.export_steps,
        "messages": exports.export_messages,
        "all": transfer.export_all,
    },
)
_group(
    "import",
    "Import an export, the data of other systems, or the files of coding agents.",
    {
        "lifecycle": transfer.import_lifecycle,
        "reference": foreign_imports.import_reference,
        "litellm-spend-logs": foreign_imports.import_litellm_spend_logs,
        "langfuse": foreign_imports.import_langfuse,
        "claude-code": transcript_imports.claude_code,
        "codex": transcript_imports.codex,
    },
)
_group("hook", "Have a coding agent tell what it does while it runs.", {"claude-code": hooks.claude_code})


def run() -> None:
    """Runs the app. An interrupt exits with code 130, after the embedded server has stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a name that the terminal's encoding does not have
    try:
        app(prog_name="session-lifecycle")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
