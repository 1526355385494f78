"""Why a value is refused: one table from the kind of refusal to our sentence (rule R19).

Pydantic finds what is wrong; its sentences never reach a caller. A sentence completes "expected …".
"""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from types import UnionType
from typing import Annotated, Any, Literal, LiteralString, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from session_lifecycle.errors import InvalidValueError

CONTENT = {
    "comment", "content", "error", "errors", "input", "inputs", "metadata", "output", "prompt", "reason", "title",
}  # fmt: skip
"""Fields with text of people or models. An error names the type and size of their values, never the values."""

_EXPECTED: dict[str, LiteralString] = {
    "bool_parsing": "true or false",
    "budget_window": "total, hour, day, week or month, or a timedelta above 0 and of at most {limit} days",
    "bool_type": "true or false",
    "date_from_datetime_parsing": "a date",
    "datetime_naive": "a datetime with a time zone, or its ISO 8601 text",
    "datetime_range": "a datetime between the years 1 and 9999 in UTC",
    "datetime_type": "a datetime with a time zone, or its ISO 8601 text",
    "decimal_places": "at most {most} digits after the point",
    "dict_type": "a dict with text keys",
    "enum": "one of {expected}",
    "extra_forbidden": "no field of that name",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "{range}",
    "greater_than_equal": "{range}",
    "id_bytes": "1 to {limit} bytes in UTF-8",
    "int_from_float": "a whole number{range_of}",
    "int_parsing": "a whole number{range_of}",
    "int_parsing_size": "a whole number{range_of}",
    "int_type": "a whole number{range_of}",
    "invalid_key": "no field of that name",
    "is_instance_of": "a {class}",
    "json_depth": "at most {limit} levels of nesting",
    "json_number": "numbers in it that are finite and have at most 100 digits",
    "json_object": "a dict with text keys",
    "json_size": "at most {limit} bytes when written as JSON",
    "json_value": "what JSON can hold: text, numbers, true, false, null, lists and mappings",
    "less_than": "{range}",
    "less_than_equal": "{range}",
    "list_type": "a list",
    "literal_error": "one of {expected}",
    "missing": "a value: the field is required",
    "model_type": "a {class_name}",
    "money_decimals": "at most {most} digits after the point",
    "money_range": "an amount from 0 to {most} USD",
    "money_type": "a Decimal, an int, a float, or a number as text such as 0.10",
    "none_required": "None",
    "string_too_long": "{length}",
    "string_too_short": "{length}",
    "string_type": "text",
    "string_unicode": "text that UTF-8 can hold, without lone surrogates",
    "text_blank": "text that is not only whitespace",
    "text_nul": "text without the character NUL",
    "text_surrogate": "text that UTF-8 can hold, without lone surrogates",
    "time_delta_type": "a timedelta",
    "time_zone": "the name of an IANA time zone, such as Europe/Berlin",
    "too_long": "{length}",
    "too_short": "{length}",
    "tuple_type": "a list or tuple",
    "uuid_parsing": "a UUID or its text",
    "uuid_type": "a UUID or its text",
}
"""What is expected, by the kind of refusal: Pydantic's kinds and those that our validators raise."""
_KINDS = {int: "a whole number", timedelta: "a timedelta"}
_BOUNDS = ("ge", "gt", "le", "min_length", "max_length")
UNFORESEEN = "a value of another kind"
"""For a kind that is not in the table: a refusal must not end in an error about its words."""


class Withheld(str):
    """What stands in an error in place of content: its type and size."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def refused(kind: LiteralString, **context: Any) -> PydanticCustomError:
    """The error that a validator of one field raises: a kind of the table, and what its sentence names."""
    return PydanticCustomError(kind, _EXPECTED[kind], context)


def inconsistent(field: str, expected: str) -> PydanticCustomError:
    """The error that a validator of several fields raises about one of them; `expected` completes "expected …"."""
    return PydanticCustomError("inconsistent", "{field}: expected {expected}", {"field": field, "expected": expected})


def refuse_empty_window(since: datetime | None, until: datetime | None, prefix: str = "") -> None:
    """Raises the refusal of a window that ends before it begins; the prefix is that of its two fields."""
    if since is not None and until is not None and until < since:
        raise inconsistent(f"{prefix}until", f"a time at or after {prefix}since")


def refusal(error: ValidationError, model: type[BaseModel] | None = None) -> InvalidValueError:
    """The first refusal of Pydantic as an error of ours: field, value found, what is expected.

    Args:
        error: The error of Pydantic.
        model: The model whose fields were validated: its bounds are named in full.
    """
    first = error.errors(include_url=False)[0]
    if first["type"] == "inconsistent":
        context = first.get("ctx", {})
        given = first["input"]
        field = str(context["field"])
        found = given.get(field) if isinstance(given, Mapping) else getattr(given, field, None)
        return InvalidValueError(field, shown(field, found), str(context["expected"]))
    names = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    name = names[0] if names else error.title
    found = Withheld("nothing") if first["type"] == "missing" else shown(name, first["input"])
    return InvalidValueError(".".join(names) or error.title, found, expectation(first, model))


def expectation(details: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """What is expected, as the table has it for this kind of refusal."""
    context = dict(details.get("ctx", {}))
    location = details["loc"]
    field = model.model_fields.get(str(location[0])) if model is not None and location else None
    bounds = _bounds(field) if field is not None and len(location) == 1 else {}
    if details["type"] == "string_unicode" and field is not None and (members := _members(field)):
        return _EXPECTED["literal_error"].format(expected=", ".join(members))
    bounds = {name: context[name] for name in _BOUNDS if name in context} | bounds
    context |= {
        "range": f"{_KINDS.get(type(details['input']), 'a number')}{_range(bounds)}",
        "range_of": _range(bounds),
        "length": _between(bounds, "characters" if isinstance(details["input"], str) else "items"),
    }
    if context.get("class") == "UUID":
        return _EXPECTED["uuid_type"]
    if "expected" in context:
        # Pydantic writes 'a', 'b' or 'c'.
        context["expected"] = str(context["expected"]).replace("'", "").replace(" or ", ", ")
    context = {name: _readable(value) for name, value in context.items()}
    return _EXPECTED.get(details["type"], UNFORESEEN).format_map(context)


def shown(field: str, value: Any) -> Any:
    """The value as an error may hold it: of a field with content only its type and size."""
    if field not in CONTENT or value is None:
        return value
    match value:
        case str():
            return Withheld(f"text of {len(value)} characters")
        case Collection():
            return Withheld(f"a {type(value).__name__} of {len(value)} items")
        case _:
            return Withheld(f"a {type(value).__name__}")


def _readable(value: Any) -> str:
    """A number with separators, a timedelta by its days where it has whole days."""
    match value:
        case timedelta() if value and not value % timedelta(days=1):
            return f"{value.days:,} days"
        case timedelta():
            return f"{value.total_seconds():g} seconds"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def _range(bounds: Mapping[str, Any]) -> str:
    least, above, most = (None if name not in bounds else _readable(bounds[name]) for name in ("ge", "gt", "le"))
    if least is not None:
        return f" of at least {least}" if most is None else f" from {least} to {most}"
    parts = [*([] if above is None else [f"above {above}"]), *([] if most is None else [f"of at most {most}"])]
    return "".join(f" {part}" for part in [" and ".join(parts)] if part)


def _between(bounds: Mapping[str, Any], what: str) -> str:
    least, most = (None if name not in bounds else _readable(bounds[name]) for name in ("min_length", "max_length"))
    if least is not None and most is not None:
        return f"{least} to {most} {what}"
    if least == "1":
        return f"at least one {what.removesuffix('s')}"
    return f"at least {least} {what}" if most is None else f"at most {most} {what}"


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """The bounds of a field, by the names that Pydantic gives them."""
    found: dict[str, Any] = {}
    for constraint in _constraints(field):
        for name in _BOUNDS:
            value = getattr(constraint, name, None)
            if value is not None:
                found.setdefault(name, value)
    return found


def _members(field: FieldInfo) -> list[str]:
    """The texts that a field of fixed texts can have; empty for any other field."""
    return [str(member) for one in _constraints(field) if get_origin(one) is Literal for member in get_args(one)]


def _constraints(annotation: Any) -> Iterator[Any]:
    """The constraints of the value itself: those of an item of a list or mapping are not among them."""
    if isinstance(annotation, FieldInfo):
        for one in annotation.metadata:
            yield from _constraints(one)
        yield from _constraints(annotation.annotation)
    elif get_origin(annotation) is Annotated:
        kind, *constraints = get_args(annotation)
        yield from _constraints(kind)
        for one in constraints:
            yield from _constraints(one)
    elif get_origin(annotation) in {Union, UnionType}:
        for one in get_args(annotation):
            yield from _constraints(one)
    else:
        yield annotation
