"""What an operator is told of the schema: its revisions, and the rights of a role."""

from session_lifecycle.models.fields import Value


class SchemaRevision(Value):
    """A revision that this version of the library knows."""

    revision: str
    does: str
    """What the revision does, a sentence."""


class SchemaRevisions(Value):
    """The revision of a schema, and those that this version knows."""

    applied: str | None
    """The newest revision that was applied; None where the schema is not migrated."""
    newest: str
    """The newest revision that this version knows."""
    oldest_served_version: str | None
    """The oldest version of the library that the schema serves; None where the schema does not say."""
    known: tuple[SchemaRevision, ...]
    """The revisions that this version knows, oldest first."""


class RoleReport(Value):
    """The rights of the role of a connection, compared with those that its work needs."""

    role: str
    """The name of the role."""
    checked_as: str
    """What the role was compared with: `migrator`, `worker`, `roller`, `operator` or `reader`."""
    missing: tuple[str, ...]
    """The rights that the role needs and does not have, as `INSERT on session_runs`."""
    excess: tuple[str, ...]
    """The rights that the role has and does not need."""


class RowLevelSecurityReport(Value):
    """The state of row-level security in a schema, and of the role of a connection."""

    role: str
    """The name of the role."""
    is_enabled: bool
    """Whether tables have the policies of this library."""
    is_walled_in: bool
    """Whether the role sees the rows of the viewer only, whom each read names."""
    trusted_roles: tuple[str, ...]
    """The roles that see every row, as they write."""
    problems: tuple[str, ...]
    """What is wrong, a sentence each; empty where nothing is."""
