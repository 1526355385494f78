"""A value of a runtime that is not what its version promises."""

from typing import Any


class Broken:
    """Raises, whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"the runtime has no {name} any more")
