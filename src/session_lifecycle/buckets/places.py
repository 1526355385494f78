"""Places of buckets, and the function that chooses the bucket of a user."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID

from session_lifecycle.errors import ConfigurationError, shortened

MOST_BUCKETS = 64
HASH_NAME = "blake2b-64"
"""The name of `hashed`, which every bucket keeps. Another function needs another name."""
HOSTS_OWN = "host"
"""The name of a function of the host, where the host gives none."""

ChooseBucket = Callable[[UUID], int]


@dataclass(frozen=True)
class Place:
    """Where a bucket is.

    Attributes:
        schema: The Postgres schema; None: the settings' `database_schema`.
        url: The URL of the server and its database; None: the URL or engine that `buckets` was given.
    """

    schema: str | None = None
    url: str | None = None


def places_of(given: Sequence[Place | str]) -> list[Place]:
    """The places. A text that begins with `postgresql` and has `://` is a URL, every other text names a schema.

    Raises:
        ConfigurationError: There are none or too many, one is no place, or one is there twice.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not 1 <= len(given) <= MOST_BUCKETS:
        raise ConfigurationError(f"places: got {_shown(given)}, expected a list of 1 to {MOST_BUCKETS} places")
    places: list[Place] = []
    for number, one in enumerate(given):
        if not isinstance(one, Place | str):
            raise ConfigurationError(f"places: number {number} is a {type(one).__name__}, expected a Place or a text")
        is_url = isinstance(one, str) and one.startswith(("postgresql://", "postgresql+asyncpg://", "postgres://"))
        place = one if isinstance(one, Place) else Place(url=one) if is_url else Place(schema=one)
        if place in places:
            raise ConfigurationError(f"places: number {number} is the same place as number {places.index(place)}")
        places.append(place)
    return places


def _shown(given: object) -> str:
    # A URL has a password.
    return f"{len(given)} places" if isinstance(given, list | tuple) else f"a {type(given).__name__}"


def hashed(count: int) -> ChooseBucket:
    """The function that spreads users over `count` buckets by a hash of their id. It is fixed for ever.

    It takes the first 8 bytes of BLAKE2b of the 16 bytes of the id as a big-endian number, modulo the count.
    """

    def bucket_of(user_id: UUID) -> int:
        return int.from_bytes(blake2b(user_id.bytes, digest_size=8).digest(), "big") % count

    return bucket_of


def checked_choice(choose: ChooseBucket, count: int) -> ChooseBucket:
    """The host's function, whose answers are looked at.

    Raises:
        ConfigurationError: `choose` is not callable.
    """
    if not callable(choose):
        raise ConfigurationError(f"of: got {shortened(choose)}, expected a function of a user id")

    def bucket_of(user_id: UUID) -> int:
        number = choose(user_id)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise ConfigurationError(
                f"of: got {shortened(number)} for the user {user_id}, expected a number from 0 to {count - 1}"
            )
        return number

    return bucket_of
