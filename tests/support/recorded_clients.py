"""The client of a model API that is recorded, and the stand-in that it asks."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from session_lifecycle import SessionDatabase, SessionRecorder
from support import books
from support.books import Event
from support.model_server import ModelServer
from support.usage import A

Client = TypeVar("Client")


class RecordedClient(Generic[Client]):
    """A stand-in, a recorder, and a client that is recorded.

    Attributes:
        bare: The client as its package makes it.
        client: The client that is recorded.
    """

    def __init__(
        self,
        db: SessionDatabase,
        recorder: SessionRecorder,
        server: ModelServer,
        bare: Client,
        record: Callable[..., Client],
    ) -> None:
        self.db, self.recorder, self.server, self.bare = db, recorder, server, bare
        self._record = record
        self.client = self.recorded()

    def recorded(self, **more: Any) -> Client:
        """Another client that is recorded."""
        return self._record(self.bare, self.recorder, **more)

    async def events(self) -> list[Event]:
        """The events, once the recorder has written them."""
        await self.recorder.flush()
        return list((await books.events(self.db)).values())

    async def equal_what_was_served(self) -> None:
        """Checks that each whole answer with usage is an event of its own, by its id, and nothing else has counts."""
        await self.recorder.flush()
        assert await books.measured(self.db) == books.served(self.server)
        assert self.recorder.snapshot().failures == 0


@asynccontextmanager
async def recorded_client(
    db: SessionDatabase,
    make: Callable[[ModelServer], Client],
    record: Callable[..., Client],
    close: Callable[[Client], Awaitable[None]],
) -> AsyncGenerator[RecordedClient[Client]]:
    """A client that is recorded, inside run r1 of session s1."""
    async with ModelServer() as server, db.recorder() as recorder:
        made = RecordedClient(db, recorder, server, make(server), record)
        try:
            async with recorder.session("s1", A, quiet=True) as session:
                with session.run(run_id="r1"):
                    yield made
        finally:
            await close(made.bare)
