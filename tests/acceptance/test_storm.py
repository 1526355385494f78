"""Row L46: many tasks on few sessions, killed connections, and callers that repeat until they are answered."""

import pytest

from session_lifecycle import SessionDatabase
from support.storm import Stormed, storm
from support.world import World


def on_one_server(world: World, url: str) -> Stormed:
    db = world.db
    return Stormed(db, db, (world.a, world.b), [url], ["session_lifecycle"], lambda: SessionDatabase.connect(url))


async def test_L46_a_storm_loses_and_doubles_nothing(world: World, session_database_url: str) -> None:
    await storm(on_one_server(world, session_database_url), tasks=20, uses=12)


@pytest.mark.soak
async def test_L46_the_whole_storm_loses_and_doubles_nothing(world: World, session_database_url: str) -> None:
    await storm(on_one_server(world, session_database_url), tasks=200, uses=50)
