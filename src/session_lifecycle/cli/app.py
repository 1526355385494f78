"""The Typer app: registers the commands."""

import io
import sys

import typer

from session_lifecycle.cli.commands import demo, maintenance, replay, schema, spool

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


def run() -> None:
    """Runs the app. An interrupt exits with code 130, after the embedded server has stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a name that the terminal's encoding does not have
    try:
        app(prog_name="session-lifecycle")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
