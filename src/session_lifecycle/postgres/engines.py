"""Database URLs and engines."""

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from session_lifecycle.errors import ConfigurationError
from session_lifecycle.settings import Settings

DRIVER = "postgresql+asyncpg"
# https://magicstack.github.io/asyncpg/current/api/index.html#connection
URL_OPTIONS = {"direct_tls", "gsslib", "host", "krbsrvname", "passfile", "port", "ssl", "target_session_attrs"}


def asyncpg_url(url: str | URL) -> URL:
    """Returns the URL with asyncpg as its driver and asyncpg's names of its options.

    Raises:
        ConfigurationError: The URL cannot be read, is for another database or driver, or has an unknown option.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        # Neither the message nor a cause may quote the URL: an unescaped @ or : makes the password part of anything.
        raise ConfigurationError(
            "the database URL cannot be read, expected postgresql://user:password@host/name "
            "with special characters of the password percent-encoded"
        ) from None
    if parsed.drivername not in {"postgresql", "postgres", DRIVER}:
        raise ConfigurationError(
            f"the database URL is for {parsed.drivername!r}, expected postgresql:// or {DRIVER}://: "
            f"{parsed.set(drivername=DRIVER).render_as_string(hide_password=True)}"
        )
    query = dict(parsed.query)
    if "sslmode" in query:  # libpq's name of the option that asyncpg calls ssl
        query["ssl"] = query.pop("sslmode")
    if unknown := sorted(set(query) - URL_OPTIONS):
        known = ", ".join(sorted({*URL_OPTIONS, "sslmode"}))
        raise ConfigurationError(
            f"the database URL has the option {unknown[0]!r}, expected none but {known}: "
            "set other options in Settings, or pass your own engine to SessionDatabase.from_engine"
        )
    return parsed.set(drivername=DRIVER, query=query)


def check_engine(name: str, engine: object) -> None:
    """Checks an engine that the host passed as the argument `name`.

    Raises:
        ConfigurationError: `engine` is not an `AsyncEngine` that uses asyncpg.
    """
    if not isinstance(engine, AsyncEngine) or engine.dialect.driver != "asyncpg":
        raise ConfigurationError(f"{name}: got {engine!r}, expected an AsyncEngine of {DRIVER}://…")


def create_engine(url: URL, settings: Settings, *, pgbouncer: bool) -> AsyncEngine:
    """Creates an engine with the pool size and timeouts of the settings. Opens no connection.

    Args:
        url: A URL from `asyncpg_url`.
        settings: The settings.
        pgbouncer: Whether a pgbouncer in transaction mode stands between the engine and the database.
    """
    server_settings = {"application_name": settings.application_name}
    arguments: dict[str, object] = {"timeout": settings.connect_timeout_seconds, "server_settings": server_settings}
    timeout = settings.statement_timeout_seconds
    if pgbouncer:
        # A statement that was prepared on one server connection of pgbouncer is unknown on the next.
        arguments["statement_cache_size"] = 0
        # pgbouncer refuses the start-up parameter statement_timeout, so the client enforces the timeout.
        arguments["command_timeout"] = timeout
    else:
        server_settings["statement_timeout"] = "0" if timeout is None else str(round(timeout * 1000))
        # Postgres overestimates the cost of a page, and would compile it for longer than the page takes.
        server_settings["jit"] = "off"
    return create_async_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout_seconds,
        # The connection used last is used next, as its backend has warm caches. In turns, each call of a single caller
        # would meet a cold backend and take half as long again.
        pool_use_lifo=True,
        connect_args=arguments,
    )
