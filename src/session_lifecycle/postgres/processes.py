"""What a forked child must forget: the event loops, threads and connections of its parent."""

import os
from typing import Protocol
from weakref import WeakSet


class HasParents(Protocol):
    """An object that holds something which only the process that made it can use."""

    def forget_parent(self) -> object:
        """Drops what belongs to the parent process, and returns it. Runs in the child, before any other code."""
        ...


_holders: "WeakSet[HasParents]" = WeakSet()
# Never freed: the finalizer of a connection would say goodbye to the server on the parent's socket.
_of_parents: list[object] = []


def forget_in_child(holder: HasParents) -> None:
    """Has `forget_parent` called in every forked child, for as long as the holder exists."""
    _holders.add(holder)


def _forget_parent() -> None:
    _of_parents.extend(holder.forget_parent() for holder in list(_holders))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_parent)
