"""`serve`: the pages and the HTTP routes, for the person at the terminal."""

import asyncio
import importlib
import ipaddress
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from session_lifecycle.cli.choices import Seen
from session_lifecycle.cli.options import (
    FAILURE,
    MISUSE,
    Place,
    on_database,
    refuse,
    refuse_two_databases,
    until_interrupted,
)
from session_lifecycle.cli.output import print_line, print_note

if TYPE_CHECKING:
    import uvicorn

    from session_lifecycle import SessionDatabase, Viewer
    from session_lifecycle.web.feed import LiveFeed

DEFAULT_PORT = 8765
DEMO_SCHEMA = "session_lifecycle_demo"
INSTALL_EXTRA = "pip install 'session-lifecycle[serve]'"
END_SECONDS = 3
"""How long requests that are under way may take when the server ends."""


def serve(
    place: Place,
    seen: Seen,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help="Show a fleet of made-up agents that moves. Default: in a schema of its own in the embedded Postgres "
            "of this user.",
        ),
    ] = False,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port; 0: a free one.")] = DEFAULT_PORT,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Your FastAPI dependency that gives the Viewer of a request, or refuses it. It takes the place of the "
            "link with a token, and an address beyond this machine needs it.",
            show_default=False,
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let in every program of this machine, without a token.")
    ] = False,
) -> None:
    """Show the sessions in a browser, until interrupted: pages under /, the HTTP routes under /api/v1.

    It reads as the auditor, or with --user as this user, and it writes nothing.
    """
    refuse_two_databases(place)
    if auth is not None and (no_token or seen.user):
        refuse("--auth says who is asking: give it without --no-token and --user", code=MISUSE)
    if not _is_loopback(host) and auth is None:
        refuse(f"--host: {host} can be reached from other machines, so --auth must say who may look", code=MISUSE)
    try:
        from session_lifecycle.web import serving
    except ImportError as missing:
        _refuse_without_extra(missing)
    viewer = _operator(seen) if auth is None else _dependency(auth)
    if demo and place == Place():
        place = Place(embedded=True, schema=DEMO_SCHEMA)

    def app_of(db: "SessionDatabase", feed: "LiveFeed", bound_port: int) -> Any:
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound_port}/"
        app = serving.serving_app(db, viewer=viewer, feed=feed)
        if auth is not None or no_token:
            print_line(url)
        if auth is not None:
            return app
        return serving.Door(
            app,
            names=frozenset({*serving.LOOPBACK_NAMES, host.lower(), f"[{host.lower()}]"}),
            port=bound_port,
            needs_token=not no_token,
            on_token=lambda token: print_line(f"{url}?token={token}"),
        )

    async def work(db: "SessionDatabase") -> None:
        with _listening(host, port) as listening:
            await until_interrupted(_serve(db, app_of, listening, demo=demo))

    on_database(work, place)


async def _serve(
    db: "SessionDatabase",
    app_of: "Callable[[SessionDatabase, LiveFeed, int], Any]",
    listening: socket.socket,
    *,
    demo: bool,
) -> None:
    """Serves until it is cancelled. Streams end then, and requests that are under way may take some seconds."""
    from session_lifecycle.cli.demo_fleet import keep_moving, record_history
    from session_lifecycle.web.feed import LiveFeed

    if demo:
        await db.migrate(notes=True)
        print_note("recording what the fleet did since it was last here")
        await record_history(db)
    await db.check()
    feed = LiveFeed(db)
    server = _server(app_of(db, feed, listening.getsockname()[1]))
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(keep_moving(db)) if demo else None
        serving = group.create_task(server.serve(sockets=[listening]))
        try:
            await asyncio.shield(serving)
        finally:
            if moving is not None:
                moving.cancel()
            # Streams end first: the server waits for every answer that is under way.
            await feed.close()
            server.should_exit = True
            await serving


def _refuse_without_extra(missing: ImportError) -> NoReturn:
    refuse(f"serving needs an extra that has {missing.name}: {INSTALL_EXTRA}", code=FAILURE)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    """A socket that listens, so that an address that cannot be had is refused before anything else is done."""
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(
            "127.0.0.1" if host.lower() == "localhost" else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listening = socket.socket(family, kind)
        with listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            # Before the link is printed: a browser that is as fast as that waits for the first answer.
            listening.listen()
            yield listening
    except OSError as error:
        refuse(f"cannot listen on {host}, port {port}: {error}", code=FAILURE)


def _server(app: Any) -> "uvicorn.Server":
    """A server that leaves the signals to the command."""
    try:
        import uvicorn
    except ImportError as missing:
        _refuse_without_extra(missing)

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

    return Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=END_SECONDS
        )
    )


def _operator(seen: Seen) -> Callable[..., Any]:
    """The dependency of the person at the terminal: the auditor, or the user that `--user` names."""
    found = seen.viewer()

    async def operator() -> "Viewer":
        return found

    return operator


def _dependency(name: str) -> Callable[..., Any]:
    """The dependency that `--auth` names, in a module of the working directory or of the environment."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute.isidentifier()):
        refuse(f"--auth: got {name!r}, expected MODULE:NAME, as myapp.auth:current_viewer", code=MISUSE)
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Callable[..., Any] | None = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        refuse(f"--auth: {module} cannot be imported: {error}", code=MISUSE)
    if found is None or not callable(found):
        refuse(f"--auth: {module} has no function {attribute}", code=MISUSE)
    return found
