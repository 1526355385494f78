"""CodeBlock: a part of a session that begins and ends with a block of code: a run or a step."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ClassVar, Self


class CodeBlock(ABC):
    """A block for `with` and `async with`: entering begins it, and leaving finishes it with the exception, if any.

    Inside it is the current one of its kind. Tasks that are started inside find it too, and so do threads that run in a
    copy of the context.
    """

    innermost: ClassVar[ContextVar[Any]]
    """The innermost block of this kind around the code."""

    _outer: Any = None

    @abstractmethod
    def begin(self) -> Self:
        """Records that it began."""

    @abstractmethod
    def finish(self, error: BaseException | None = None) -> None:
        """Records that it ended."""

    @contextmanager
    def active(self) -> Generator[None]:
        """Makes this the current one inside the block, without beginning or finishing it: for callbacks, generators."""
        outer = self.innermost.get()
        self.innermost.set(self)
        try:
            yield
        finally:
            self.innermost.set(outer)

    def __enter__(self) -> Self:
        self.begin()
        self._outer = self.innermost.get()
        self.innermost.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not by a token: a generator may be closed in another context, and a token would raise there.
        self.innermost.set(self._outer)
        self.finish(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)
