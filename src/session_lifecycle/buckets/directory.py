"""The directory: every bucket says of itself which one it is, of how many, and by which function users are spread.

So a wrong list of places is found by any bucket that answers, and a place that is away hides nothing from the others.
Where a bucket moved away, its place says where it went.
"""

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from asyncpg import InvalidSchemaNameError, UndefinedTableError

from session_lifecycle.buckets.places import ChooseBucket
from session_lifecycle.errors import ConfigurationError, SchemaError
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.buckets import directory, moving

if TYPE_CHECKING:
    import asyncpg

USERS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Trace:
    """What a place says of a bucket.

    Attributes:
        is_here: Whether the bucket is here.
        moved_to: The URL of the place to which it went from here, without a password.
        move_id: The move that took it there.
        arriving_by: The move that copies it, or has copied it, to this place.
    """

    is_here: bool
    moved_to: str | None
    move_id: UUID | None
    arriving_by: UUID | None

    def is_arriving_by(self, move_id: UUID | None) -> bool:
        """Whether the copy of this move waits here for its name."""
        return not self.is_here and move_id is not None and self.arriving_by == move_id


async def find_trace(connection: "asyncpg.Connection", schema: str) -> Trace | None:
    """Looks at a place for a bucket. None: the place has changed during the look."""
    arriving = moving.arriving_schema(schema)
    arriving_by = moved_to = move_id = None
    try:
        if await connection.fetchval(moving.HAS_TABLE, arriving, "session_buckets"):
            [(_, _, arriving_by)] = await connection.fetch(moving.read_bucket(arriving))
        is_here = bool(await connection.fetchval(moving.HAS_TABLE, schema, "session_records"))
        if not is_here and await connection.fetchval(moving.HAS_TABLE, schema, "session_buckets"):
            [(_, moved_to, move_id)] = await connection.fetch(moving.read_bucket(schema))
    except (UndefinedTableError, InvalidSchemaNameError):
        return None
    return Trace(is_here, moved_to, move_id, arriving_by)


@dataclass
class Deployment:
    """What all buckets must agree on."""

    bucket_count: int
    hash_name: str
    deployment_id: UUID | None = None
    """The id that the first bucket that was asked has; None before that."""

    async def write(self, execution: Execution, number: int, choose: ChooseBucket) -> None:
        """Says in a bucket which one it is, unless the bucket says so already, and compares.

        Args:
            execution: Runs statements at the place of the bucket.
            number: The number of the bucket.
            choose: Gives the number of the bucket of a user.

        Raises:
            ConfigurationError: The bucket says something else; or it says nothing, and has users of another one.
        """
        rows = await execution.fetch(directory.this_bucket())
        if not rows:
            await self._refuse_strangers(execution, number, choose)
            fields = {
                "number": number,
                "bucket_count": self.bucket_count,
                "hash_name": self.hash_name,
                "deployment_id": self.deployment_id or uuid4(),
            }
            await execution.fetch(directory.write_bucket(fields), writes=True)
            rows = await execution.fetch(directory.this_bucket())
        self.compare(number, rows[0])

    async def _refuse_strangers(self, execution: Execution, number: int, choose: ChooseBucket) -> None:
        """Refuses a schema that was in use before it became a bucket, unless all its users belong to the bucket."""
        async with execution.snapshot() as stream, aclosing(stream(directory.users(), USERS_AT_ONCE)) as batches:
            async for rows in batches:
                for (user_id,) in rows:
                    if (home := choose(user_id)) != number:
                        raise ConfigurationError(
                            f"schema {execution.schema!r} has the user {user_id} of bucket {home}, so it cannot become "
                            f"bucket {number}: export it, and import it into buckets in empty schemas"
                        )

    async def look(self, execution: Execution, number: int) -> None:
        """Compares what a bucket says of itself with what the host says.

        Args:
            execution: Runs statements at the place of the bucket.
            number: The number that the bucket should have.

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
        self.compare(number, rows[0])

    def compare(self, number: int, row: Any) -> None:
        """Compares a bucket's row with what the host says. See `look`."""
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
