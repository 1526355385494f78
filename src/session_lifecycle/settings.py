"""What can be configured, and from where.

Settings are read when a `Settings` is constructed, which `SessionDatabase` does when it is given none; never at import.
Each field is also an environment variable, `SESSION_LIFECYCLE_` and its name in capitals, or the one it names.
"""

import logging
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from session_lifecycle.errors import ConfigurationError, shortened

DEFAULT_SCHEMA = "session_lifecycle"
DEFAULT_ABANDON_AFTER = timedelta(seconds=1800)
LONGEST_ABANDON_AFTER = timedelta(days=36_500)
POSTGRES_NAME_BYTES = 63

# What each setting takes; completes "expected …".
_EXPECTED = {
    "database_url": "the URL of a database as text",
    "read_database_url": "the URL of a database as text",
    "database_schema": f"the name of a schema: 1 to {POSTGRES_NAME_BYTES} bytes, printable, not blank, not pg_…",
    "abandon_after": "a timedelta above 0 and of at most 36,500 days; in the environment: seconds",
    "pool_size": "a whole number from 1",
    "max_overflow": "a whole number from 0",
    "pool_timeout_seconds": "a number of seconds above 0",
    "connect_timeout_seconds": "a number of seconds above 0",
    "statement_timeout_seconds": "a number of seconds above 0, or None for no timeout",
    "application_name": "text",
    "retries": "a whole number from 0 to 100",
    "payload_limit_bytes": "a whole number from 1,000 to 100,000,000",
    "payload_when_larger": "truncate or refuse",
    "row_level_security": "true or false",
    "row_level_security_key": "a secret of at least 32 characters",
}
_SECRETS = {"row_level_security_key"}
_NAMES = {"SESSION_ABANDON_AFTER_SECONDS": "abandon_after"}

_logger = logging.getLogger(__name__)


def _lenient_seconds(value: Any) -> Any:
    """The environment's text as seconds; the default, with one warning, when it is not a number (rule R12)."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return DEFAULT_ABANDON_AFTER
    try:
        return timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        _logger.warning(
            "SESSION_ABANDON_AFTER_SECONDS is %s, which is not a number of seconds; using %d",
            shortened(value),
            DEFAULT_ABANDON_AFTER.total_seconds(),
        )
        return DEFAULT_ABANDON_AFTER


def check_callable(name: str, given: object) -> None:
    """Checks a function of the host that is called without `await`: nobody would await a coroutine function.

    Raises:
        ConfigurationError: It is neither None nor callable, or it is a coroutine function.
    """
    if given is None:
        return
    if not callable(given):
        raise ConfigurationError(f"{name}: got {given!r}, expected a callable")
    if iscoroutinefunction(given) or iscoroutinefunction(type(given).__call__):
        raise ConfigurationError(f"{name}: got {given!r}, a coroutine function, expected a function that is not async")


def check_schema_name(name: str) -> str:
    """The name of a Postgres schema as given, or ValueError: any text Postgres can hold as an identifier."""
    if not name.strip() or not name.isprintable() or len(name.encode("utf-8", "replace")) > POSTGRES_NAME_BYTES:
        raise ValueError(f"a schema's name is 1..{POSTGRES_NAME_BYTES} bytes, printable and not blank")
    if name.startswith("pg_"):
        raise ValueError("Postgres keeps names that begin with pg_ for itself")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a schema's name is valid Unicode") from None
    return name


class Settings(BaseSettings):
    """Everything that can be configured; construct it to read the environment.

    `Settings.load(**values)` is the same with our own error instead of Pydantic's.
    """

    model_config = SettingsConfigDict(
        env_prefix="SESSION_LIFECYCLE_", frozen=True, extra="forbid", populate_by_name=True, env_ignore_empty=True
    )

    database_url: SecretStr | None = Field(
        default=None, description="`postgresql://…`; used by `SessionDatabase.connect()` when it is given no URL."
    )
    read_database_url: SecretStr | None = Field(
        default=None, description="The URL of a replica. Reads that tolerate lag go there."
    )
    database_schema: Annotated[str, AfterValidator(check_schema_name)] = Field(
        default=DEFAULT_SCHEMA, description="The Postgres schema that holds our tables."
    )
    abandon_after: Annotated[
        timedelta, BeforeValidator(_lenient_seconds), Field(gt=timedelta(0), le=LONGEST_ABANDON_AFTER)
    ] = Field(
        default=DEFAULT_ABANDON_AFTER,
        validation_alias=AliasChoices("abandon_after", "SESSION_ABANDON_AFTER_SECONDS"),
        description="A running session idle for longer reads as abandoned. In the environment: seconds.",
    )
    pool_size: PositiveInt = Field(default=10, description="Connections kept open by an engine of ours.")
    max_overflow: Annotated[int, Field(ge=0)] = Field(
        default=10, description="Connections opened beyond `pool_size` under load."
    )
    pool_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="How long a call waits for a connection of the pool."
    )
    connect_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="How long opening one connection may take."
    )
    statement_timeout_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=30.0, description="After this Postgres cancels a statement of an engine of ours; None: never."
    )
    application_name: str = Field(default="session-lifecycle", description="As shown in `pg_stat_activity`.")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=5, description="How often a call that failed temporarily is repeated, where repeating is safe."
    )

    payload_limit_bytes: Annotated[int, Field(ge=1_000, le=100_000_000)] = Field(
        default=1_048_576, description="How large one payload of a run, step or message may be, as JSON or text."
    )
    payload_when_larger: Literal["truncate", "refuse"] = Field(
        default="truncate",
        description="What is done with a larger one: `truncate` it with a mark, or `refuse` the item.",
    )
    row_level_security: bool = Field(
        default=False,
        description="Whether each read names its viewer to Postgres, for a database with row-level security.",
    )
    row_level_security_key: Annotated[SecretStr, Field(min_length=32)] | None = Field(
        default=None, description="Signs the viewers. `db rls enable` gives the database what proves a signature."
    )

    @classmethod
    def load(cls, **values: Any) -> "Settings":
        """The settings from `values`, the rest from the environment.

        Raises:
            ConfigurationError: A value is not one its setting can have.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            setting = _NAMES.get(name, name)
            expected = _EXPECTED.get(setting, "no setting of that name")
            # The refused key must not be in a log.
            got = "another" if setting in _SECRETS else shortened(first["input"])
            raise ConfigurationError(f"setting {setting}: got {got}, expected {expected}") from (
                None if setting in _SECRETS else error
            )


def settings_of(settings: Settings | None, schema: str | None) -> Settings:
    """The settings for a schema.

    Args:
        settings: The host's settings; None: the environment's, read now.
        schema: The Postgres schema of the tables; None: the settings' `database_schema`.

    Raises:
        ConfigurationError: A setting or the schema's name is wrong.
    """
    settings = Settings.load() if settings is None else settings
    if schema is None:
        return settings
    try:
        return settings.model_copy(update={"database_schema": check_schema_name(schema)})
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"schema: got {schema!r}, expected the name of a Postgres schema: {error}") from error
