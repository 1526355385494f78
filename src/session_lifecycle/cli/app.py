"""The Typer app: registers the commands."""

import io
import sys

import typer

from session_lifecycle.cli.commands import demo, hooks, importing, maintenance, replay, schema, spool

app = typer.Typer(
    help="Keep the sessions of AI agents in Postgres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    demo.demo,
    replay.replay,
    maintenance.prune_sessions,
    maintenance.prune_payloads,
    maintenance.erase_user,
    maintenance.reconcile,
    maintenance.roll_up,
):
    app.command()(command)
schema_app = typer.Typer(help="Migrate and check the database's schema.", no_args_is_help=True)
app.add_typer(schema_app, name="db")
for schema_command in (schema.upgrade, schema.check, schema.sql):
    schema_app.command()(schema_command)
spool_app = typer.Typer(help="Look at and deliver the items that wait in a local spool.", no_args_is_help=True)
app.add_typer(spool_app, name="spool")
for spool_command in (spool.status, spool.drain, spool.poison):
    spool_app.command()(spool_command)
import_app = typer.Typer(help="Record what coding agents have written into their own files.", no_args_is_help=True)
app.add_typer(import_app, name="import")
for import_command in (importing.claude_code, importing.codex):
    import_app.command()(import_command)
hook_app = typer.Typer(help="Have a coding agent tell what it does while it runs.", no_args_is_help=True)
app.add_typer(hook_app, name="hook")
hook_app.command()(hooks.claude_code)


def run() -> None:
    """Runs the app. An interrupt exits with code 130, after the embedded server has stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a name that the terminal's encoding does not have
    try:
        app(prog_name="session-lifecycle")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
