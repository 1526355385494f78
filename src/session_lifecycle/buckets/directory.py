"""The directory: every bucket says of itself which one it is, of how many, and by which function users are spread.

So a wrong list of places is found by any bucket that answers, and a place that is away hides nothing from the others.
Where a bucket moved away, its place says where it went.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from session_lifecycle.errors import ConfigurationError, SchemaError
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.buckets import directory

INCOMPLETE = "the bucket is being copied to this place and is not complete"


@dataclass
class Deployment:
    """What all buckets must agree on."""

    bucket_count: int
    hash_name: str
    deployment_id: UUID | None = None
    """The id that the first bucket that was asked has; None before that."""

    async def write(self, execution: Execution, number: int) -> None:
        """Says in a bucket which one it is, unless the bucket says so already, and compares.

        Raises:
            ConfigurationError: The bucket says something else.
        """
        rows = await execution.fetch(directory.this_bucket())
        if not rows:
            fields = {
                "number": number,
                "bucket_count": self.bucket_count,
                "hash_name": self.hash_name,
                "deployment_id": self.deployment_id or uuid4(),
            }
            await execution.fetch(directory.write_bucket(fields))
            rows = await execution.fetch(directory.this_bucket())
        self.compare(number, rows[0])

    async def look(self, execution: Execution, number: int, *, is_complete: bool = False) -> None:
        """Compares what a bucket says of itself with what the host says.

        Args:
            execution: Runs statements at the place of the bucket.
            number: The number that the bucket should have.
            is_complete: Whether the bucket is known to be complete, also where it says that it is being copied.

        Raises:
            ConfigurationError: They differ. The message names what differs.
            SchemaError: The schema is no bucket yet.
        """
        rows = await execution.fetch(directory.this_bucket())
        if not rows:
            raise SchemaError(
                f"schema {execution.schema!r} is no bucket yet: "
                "run `session-lifecycle db buckets migrate` with all places"
            )
        self.compare(number, rows[0], is_complete=is_complete)

    def compare(self, number: int, row: Any, *, is_complete: bool = False) -> None:
        """Compares a bucket's row with what the host says. See `look`."""
        if row.is_arriving and not is_complete:
            raise ConfigurationError(INCOMPLETE)
        if self.deployment_id is None:
            self.deployment_id = row.deployment_id
        given = {
            "number of buckets": (self.bucket_count, row.bucket_count),
            "order of the places": (f"place {number}", f"bucket {row.number}"),
            "function of users": (self.hash_name, row.hash_name),
            "deployment": (self.deployment_id, row.deployment_id),
        }
        if number == row.number:
            del given["order of the places"]
        for what, (ours, theirs) in given.items():
            if ours != theirs:
                raise ConfigurationError(
                    f"the {what} differs: this program has {ours}, and the place of bucket {number} says {theirs}"
                )
