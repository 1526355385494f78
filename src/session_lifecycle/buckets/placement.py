"""BucketPlacement: where the buckets are, and moving them. For an operator."""

from collections.abc import Callable
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.buckets import citus
from session_lifecycle.buckets.homes import Homes, patient_connection, public_url
from session_lifecycle.buckets.moving import Mover, arrive, claimed, clear_new_place
from session_lifecycle.errors import ConfigurationError, InvalidValueError
from session_lifecycle.models.maintenance import MoveReport
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.home import SchemaHome
from session_lifecycle.postgres.host_engines import driver_connection
from session_lifecycle.postgres.notes import sends_notes
from session_lifecycle.postgres.pool_execution import PoolExecution
from session_lifecycle.statements.buckets import moving
from session_lifecycle.statements.buckets.moving import arriving_schema


class BucketPlacement:
    """Where the buckets of a `BucketDatabase` are, and moving them between servers and between nodes of Citus."""

    def __init__(self, homes: Homes) -> None:
        """`BucketDatabase` makes it."""
        self._homes = homes
        self._executions = homes.executions
        self._deployment = homes.deployment

    async def where(self) -> list[str]:
        """Where each bucket is now, by number: the URL of the database without a password, `#` and the schema.

        Raises:
            SchemaError: A schema is no bucket yet.
            ConfigurationError: A bucket says that it is another one.
            DatabaseUnavailableError: A bucket was away. The message names it.
        """
        found: list[str] = []

        async def look(number: int) -> None:
            execution = self._executions[number]
            await execution.settle()
            await execution.run_here(lambda pool: self._deployment.look(pool, number), compares=False)
            found.append(f"{public_url(self._homes[number])}#{execution.schema}")

        await self._homes.each(look)
        return found

    async def node_of(self, number: int) -> str | None:
        """The node of Citus that has a bucket, as host:port; None where Citus has not distributed it.

        Raises:
            InvalidValueError: There is no such bucket.
            DatabaseUnavailableError: The bucket was away.
        """
        self._check_number(number)
        schema = self._executions[number].schema

        async def look(pool: PoolExecution) -> str | None:
            try:
                async with pool.connection() as connection:
                    return await citus.node_of(driver_connection(connection), schema)
            except DRIVER_FAILURES as error:
                raise_as_ours(error)

        return await self._executions[number].run_here(look, compares=False)

    async def distribute(self, *, on_progress: Callable[[str], object] | None = None) -> None:
        """Has Citus keep each bucket on one of its nodes. Does what is missing, so it may be called again.

        The places are schemas of a coordinator's database. Each becomes a distributed schema, and each of its functions
        one that runs on the node of its bucket. The writers of a bucket wait while its rows go to the node. `migrate`
        does afterwards what a later revision needs.

        Args:
            on_progress: Called with a sentence for each bucket.

        Raises:
            SchemaError: A schema is not migrated to the revision of this version, or is no bucket yet.
            ConfigurationError: A bucket says that it is another one, its database has no Citus, or Citus refuses the
                user.
            DatabaseUnavailableError: A bucket was away. The message names it; all others are distributed.
        """

        async def distribute(number: int) -> None:
            execution = self._executions[number]
            await execution.settle()
            await self._homes[number].check()
            await execution.run_here(lambda pool: self._deployment.look(pool, number), compares=False)
            async with self._homes.connection(number) as connection:
                await citus.distribute(connection, execution.schema)
                node = await citus.node_of(connection, execution.schema)
            if on_progress is not None:
                on_progress(f"bucket {number} is on node {node}")

        await self._homes.each(distribute)

    async def move(
        self,
        number: int,
        to: str,
        *,
        keep_copy: bool = False,
        on_progress: Callable[[str], object] | None = None,
    ) -> MoveReport:
        """Moves a bucket to another server, into a schema of the same name, while programs write into it.

        The writers of this bucket wait for less than a second at the end; no other bucket is touched. Every program
        goes on at the new place by itself. Tell them the new place before the old server goes: a program that starts
        afterwards must know it. The user of the new place owns the schema there; grant it to the role that works.

        An interrupted move changes nothing, and the next call begins anew. There is one exception: for some tenths of a
        second the bucket has left its old place and has not arrived. Interrupted there, calls of the bucket raise
        DatabaseUnavailableError until the next call of this one, which does the rest first.

        Args:
            number: The number of the bucket.
            to: The URL of the new server and its database.
            keep_copy: Whether the rows stay at the old place, in the schema with ` (moved)` after its name. They stay
                as they were: erasing a user does not reach them.
            on_progress: Called with a sentence after each step.

        Raises:
            InvalidValueError: There is no such bucket.
            ConfigurationError: The bucket has row-level security or is on a node of Citus, the schema is there already
                at the new place, both places are one database, another move of the bucket is at work, or the database
                refuses the user or the access.
            TransactionConflictError: The writers never let the move have its lock. The bucket is where it was.
            DatabaseUnavailableError: A place cannot be reached or lost the connection.
        """
        self._check_number(number)
        execution, home = self._executions[number], self._homes[number]
        try:
            if (move_id := await execution.find_unarrived()) is not None:
                async with patient_connection(home) as here:
                    await arrive(driver_connection(here), execution.schema, move_id)
            wanted = self._homes.home_at(to, execution.schema)
            if public_url(wanted) == public_url(home):
                return MoveReport(rows=0, changes=0, paused_seconds=0.0)
            await execution.run_here(lambda pool: self._deployment.look(pool, number))
            if (node := await self.node_of(number)) is not None:
                raise ConfigurationError(f"bucket {number} is on node {node} of Citus: give host:port of another node")
            async with (
                patient_connection(home) as old,
                patient_connection(wanted) as new,
                claimed(execution.schema, driver_connection(old), driver_connection(new)),
            ):
                report = await self._move(number, old, new, wanted, keep_copy=keep_copy, on_progress=on_progress)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)
        await execution.settle()
        return report

    async def _move(
        self,
        number: int,
        old: AsyncConnection,
        new: AsyncConnection,
        wanted: SchemaHome,
        *,
        keep_copy: bool,
        on_progress: Callable[[str], object] | None,
    ) -> MoveReport:
        """Moves a bucket from one connection to the other. Both are claimed."""
        schema, one, move_id = self._executions[number].schema, self._deployment, uuid4()
        reader, writer = driver_connection(old), driver_connection(new)
        if await reader.fetchval(moving.IS_ROW_SECURITY_ON, schema):
            raise ConfigurationError(
                f"bucket {number} has row-level security, whose roles and key a move does not carry: disable it, move "
                "the bucket, and enable it at the new place"
            )
        async with old.begin():
            notes = await sends_notes(old, schema)
        # One transaction: nobody finds a copy that does not say whose it is.
        async with new.begin():
            await clear_new_place(writer, schema, number)
            arriving = wanted.beside(arriving_schema(schema))
            await arriving.migrate(connection=new, notes=notes)
            say, *grants = moving.say_arriving(arriving_schema(schema))
            await writer.execute(say, number, one.bucket_count, one.hash_name, one.deployment_id, move_id)
            for grant in grants:
                await writer.execute(grant)
        return await Mover(reader, writer, schema, move_id, on_progress).move(public_url(wanted), keeps_copy=keep_copy)

    async def move_to_node(self, number: int, node: str) -> float:
        """Has Citus move a bucket to one of its nodes, while programs write into it. Returns the seconds it took.

        Writers of the bucket wait at the end, while Citus carries over their last changes.

        Args:
            number: The number of the bucket.
            node: The node, as host:port.

        Raises:
            InvalidValueError: There is no such bucket.
            ConfigurationError: There is no such node, or Citus has not distributed the bucket.
            TransactionConflictError: Transactions of hosts ended the move again and again, or a transaction on the node
                still uses what the last move left there. The bucket is where it was.
            DatabaseUnavailableError: The coordinator cannot be reached or lost the connection.
        """
        self._check_number(number)
        execution = self._executions[number]
        await execution.run_here(lambda pool: self._deployment.look(pool, number))
        async with self._homes.connection(number) as connection:
            return await citus.move(connection, execution.schema, node)

    async def rebalance(self) -> None:
        """Has Citus spread the buckets over its nodes, while programs write into them. Returns when that is done.

        Citus moves whatever it distributes in the database of the buckets, also what is not of this library.

        Raises:
            ConfigurationError: A bucket is not distributed.
            DatabaseUnavailableError: The coordinator cannot be reached, or Citus gave up.
        """
        coordinators: dict[str, int] = {}
        for number, home in enumerate(self._homes):
            await self._executions[number].settle()
            if await self.node_of(number) is None:
                raise ConfigurationError(
                    f"bucket {number} is not distributed: run `{citus.DISTRIBUTE_COMMAND}` with all places"
                )
            coordinators.setdefault(public_url(home), number)
        for number in coordinators.values():
            async with self._homes.connection(number) as connection:
                await citus.rebalance(connection)

    def _check_number(self, number: int) -> None:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self._homes):
            raise InvalidValueError("number", number, f"a bucket from 0 to {len(self._homes) - 1}")
