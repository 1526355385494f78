"""The home of each bucket: its schema, and the server where that is now."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.buckets.directory import Deployment
from session_lifecycle.buckets.execution import BucketExecution
from session_lifecycle.buckets.places import Place
from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.postgres.failures import DRIVER_FAILURES, raise_as_ours
from session_lifecycle.postgres.home import SchemaHome
from session_lifecycle.postgres.host_engines import driver_connection
from session_lifecycle.postgres.server import Server
from session_lifecycle.settings import Settings, settings_of

if TYPE_CHECKING:
    import asyncpg


class Homes:
    """The homes of all buckets, by number.

    Attributes:
        deployment: What all buckets must agree on.
        executions: How statements of each bucket are run, wherever it is now.
    """

    def __init__(
        self,
        places: Sequence[Place],
        make_server: Callable[[str | None], Server],
        deployment: Deployment,
        settings: Settings,
    ) -> None:
        """Opens no connection.

        Args:
            places: Where the buckets are, by number.
            make_server: Makes the server of a URL; None: that of the places without a URL.
            deployment: What all buckets must agree on.
            settings: The settings, with the schema of the places that name none.
        """
        self.deployment = deployment
        self._make_server = make_server
        self._settings = settings
        self._servers: dict[str | None, Server] = {}
        self._homes = [self.home_at(place.url, place.schema) for place in places]
        self.executions = [self._execution_of(number) for number in range(len(places))]

    def __len__(self) -> int:
        return len(self._homes)

    def __iter__(self) -> Iterator[SchemaHome]:
        return iter(self._homes)

    def __getitem__(self, number: int) -> SchemaHome:
        return self._homes[number]

    def home_at(self, url: str | None, schema: str | None) -> SchemaHome:
        """The home of a schema on the server of a URL. Opens no connection."""
        return SchemaHome(self._server(url), settings_of(self._settings, schema))

    def _server(self, url: str | None) -> Server:
        """The server of a URL, which is made once. None: that of the places without a URL."""
        key = None if url is None else make_url(url).render_as_string(hide_password=False)
        if key not in self._servers:
            self._servers[key] = self._make_server(url)
        return self._servers[key]

    def _execution_of(self, number: int) -> BucketExecution:
        home = self._homes[number]

        def follow(url: str) -> None:
            home.move_to(self._server(self._with_credentials(url, home)))

        return BucketExecution(number, home.schema, self.deployment, home.pool_execution, follow)

    def _with_credentials(self, url: str, home: SchemaHome) -> str:
        """The URL with the user and the password of a place that is there, or of the place before."""
        wanted = make_url(url)
        for known in self._servers:
            if known is not None:
                place = make_url(known)
                if (place.host, place.port, place.database, place.query) == (
                    wanted.host, wanted.port, wanted.database, wanted.query,
                ):  # fmt: skip
                    return known
        before = home.engines.engine.url
        full = wanted.set(username=before.username, password=before.password)
        return full.render_as_string(hide_password=False)

    async def each(self, work: Callable[[int], Awaitable[None]]) -> None:
        """Does the work for each bucket, also after one has failed. The error names the buckets that failed."""
        failures: dict[int, SessionLifecycleError] = {}
        for number in range(len(self._homes)):
            try:
                await work(number)
            except SessionLifecycleError as error:
                failures[number] = error
        if failures:
            first = next(iter(failures.values()))
            named = "; ".join(
                text if (text := str(error)).startswith(f"bucket {number}: ") else f"bucket {number}: {text}"
                for number, error in failures.items()
            )
            raise type(first)(named) from first

    @asynccontextmanager
    async def connection(self, number: int) -> AsyncGenerator["asyncpg.Connection"]:
        """A connection to the bucket's server without a deadline, outside a transaction."""
        try:
            async with patient_connection(self[number]) as connection:
                yield driver_connection(connection)
        except DRIVER_FAILURES as error:
            raise_as_ours(error)

    async def close(self) -> None:
        """Closes every server, also after one has failed."""
        failures: list[SessionLifecycleError] = []
        for server in self._servers.values():
            try:
                await server.close()
            except SessionLifecycleError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def public_url(home: SchemaHome) -> str:
    """The URL of the home's database, without user and password."""
    url = home.engines.engine.url
    # `URL.set` keeps what is set to None.
    return URL.create("postgresql", None, None, url.host, url.port, url.database, url.query).render_as_string()


@asynccontextmanager
async def patient_connection(home: SchemaHome) -> AsyncGenerator[AsyncConnection]:
    """A connection without a deadline, outside a transaction."""
    async with home.patient_engine() as engine, engine.connect() as connection:
        yield connection
