"""Addresses of pages: everything that a page shows is in its address, so a link or a bookmark shows it again."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from session_lifecycle.web.framework import Request

OF_PLACE = frozenset({"cursor", "offset", "after", "before", "done"})
"""The parameters that say which part of a list a page shows. A change of what is listed begins at the first part."""


def encoded(path: str) -> str:
    """A path of the host as browsers send it, and as a header and the path of a cookie can have it."""
    return quote(path, safe="/!$&'()*+,:=@")


@dataclass(frozen=True)
class Address:
    """The address of the page that a request asks for."""

    root: str
    """The path that the dashboard is mounted at, behind every proxy; encoded, as a browser sends it."""
    path: str
    """The path below it."""
    query: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, request: Request, path: str) -> "Address":
        """The address of a request, at one of our paths."""
        return cls(encoded(request.scope.get("root_path", "")), path, tuple(request.query_params.multi_items()))

    def to(self, path: str, **parameters: Any) -> str:
        """The address of another page. A parameter that is None is left out; a list is repeated."""
        return self.root + path + _text(_pairs(parameters))

    def here(self, **changes: Any) -> str:
        """The address of this page with other parameters; None leaves one out. It keeps the part of the list."""
        kept = [pair for pair in self.query if pair[0] not in changes]
        return self.root + self.path + _text([*kept, *_pairs(changes)])

    def listing(self, **changes: Any) -> str:
        """The same, at the first part of the list."""
        return self.here(**dict.fromkeys(OF_PLACE), **changes)

    def without(self, name: str, value: str) -> str:
        """The address of this page without one of the texts of a parameter, at the first part of the list."""
        kept = [pair for pair in self.query if pair != (name, value) and pair[0] not in OF_PLACE]
        return self.root + self.path + _text(kept)

    def hidden(self, *replaced: str) -> list[tuple[str, str]]:
        """The parameters that a form of this page keeps beside its own fields, which are named."""
        return [pair for pair in self.query if pair[0] not in {*replaced, *OF_PLACE}]

    def get(self, name: str) -> str | None:
        """The text of a parameter; None without it."""
        return next((value for one, value in self.query if one == name), None)

    def all(self, name: str) -> list[str]:
        """The texts of a parameter that may be repeated."""
        return [value for one, value in self.query if one == name]


def _pairs(parameters: dict[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in parameters.items():
        values: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
        pairs += [(name, str(one)) for one in values if one is not None]
    return pairs


def _text(pairs: list[tuple[str, str]]) -> str:
    return f"?{urlencode(pairs)}" if pairs else ""
