"""The types fields are made of, and how a refused value is told (rule R19)."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic_core import PydanticCustomError

from session_lifecycle.errors import InvalidValueError

MOST_TOKENS = 10**12
MOST_COST_USD = Decimal(10**9)
COST_DECIMALS = 30
# A row of a B-tree holds 2,704 bytes; a key is a user id, a session id (512 characters of up to 4 bytes) and a model.
MODEL_BYTES = 600
METADATA_BYTES = 65_536
METADATA_DEPTH = 32

_NUMBER = Decimal | int | float


def _storable(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("text_nul", "text without NUL")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError("text_surrogate", "text without lone surrogates") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("text_blank", "text that is not only whitespace")
    return text


def _within_model_bytes(text: str) -> str:
    if len(text.encode()) > MODEL_BYTES:
        raise PydanticCustomError("model_bytes", "at most {limit} bytes in UTF-8", {"limit": MODEL_BYTES})
    return text


def _blank_as_none(value: Any) -> Any:
    return None if value == "" else value


def _aware_utc(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        raise PydanticCustomError("datetime_naive", "an aware datetime")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("datetime_range", "a datetime between the years 1 and 9999 in UTC") from None


def _exact_decimal(value: Any) -> Any:
    """A float by its shortest decimal form; everything that is not a number is left for Pydantic to refuse."""
    if isinstance(value, bool) or not isinstance(value, _NUMBER):
        raise PydanticCustomError("cost_type", "a Decimal, int or float")
    try:
        amount = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    except ValueError:
        raise PydanticCustomError("cost_type", "a Decimal, int or float") from None
    if not amount.is_finite() or amount < 0 or amount > MOST_COST_USD:
        raise PydanticCustomError("cost_range", "a finite amount from 0 to {most} USD", {"most": str(MOST_COST_USD)})
    if amount and -int(amount.normalize().as_tuple().exponent) > COST_DECIMALS:
        raise PydanticCustomError("cost_decimals", "at most {most} decimals", {"most": COST_DECIMALS})
    return amount + 0 if amount else Decimal(0)  # -0 is 0


def _json_object(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PydanticCustomError("json_object", "a mapping with text keys")
    plain = _plain_json(value, METADATA_DEPTH)
    if len(json.dumps(plain, ensure_ascii=False).encode()) > METADATA_BYTES:
        raise PydanticCustomError("json_size", "at most {limit} bytes as JSON", {"limit": METADATA_BYTES})
    return plain


def _plain_json(value: Any, depth: int) -> Any:
    """A copy made only of what JSON has, so that nothing can change it afterwards."""
    if depth == 0:
        raise PydanticCustomError("json_depth", "at most {limit} levels", {"limit": METADATA_DEPTH})
    match value:
        case None | bool():
            return value
        case str():
            return _storable(value)
        case int() | float():
            return _plain_number(value)
        case Mapping():
            return {_plain_key(key): _plain_json(member, depth - 1) for key, member in value.items()}
        case list() | tuple():
            return [_plain_json(member, depth - 1) for member in value]
        case _:
            raise PydanticCustomError("json_value", "what JSON can hold")


def _plain_number(value: float) -> float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PydanticCustomError("json_number", "finite numbers")
    elif abs(value) >= 10**100:
        raise PydanticCustomError("json_number", "numbers of at most 100 digits")
    return value


def _plain_key(key: Any) -> str:
    if not isinstance(key, str):
        raise PydanticCustomError("json_object", "a mapping with text keys")
    return _storable(key)


Text = Annotated[str, Strict(), AfterValidator(_storable)]
SessionId = Annotated[Text, Field(min_length=1, max_length=512), AfterValidator(_not_blank)]
OptionalName = Annotated[Annotated[Text, Field(max_length=200)] | None, BeforeValidator(_blank_as_none)]
OptionalModel = Annotated[
    Annotated[Text, Field(max_length=200), AfterValidator(_within_model_bytes)] | None, BeforeValidator(_blank_as_none)
]
OptionalTitle = Annotated[Annotated[Text, Field(max_length=1000)] | None, BeforeValidator(_blank_as_none)]
Key = Annotated[Text, Field(min_length=1, max_length=512)]
ExternalId = Annotated[Text, Field(min_length=1, max_length=200)]
OptionalExternalId = Annotated[ExternalId | None, BeforeValidator(_blank_as_none)]
OptionalSessionId = Annotated[SessionId | None, BeforeValidator(_blank_as_none)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[UUID, Strict()]
Flag = Annotated[bool, Strict()]
Tokens = Annotated[int, Strict(), Field(ge=0, le=MOST_TOKENS)]
Revision = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
Cost = Annotated[Decimal, BeforeValidator(_exact_decimal)]
Moment = Annotated[datetime, Strict(), AfterValidator(_aware_utc)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]
TokenDetails = Annotated[dict[Key, Tokens], Field(max_length=64)]


class Value(BaseModel):
    """A frozen value. Positional arguments are taken in the order of the fields, as the call shapes do."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def __init__(self, *args: Any, **fields: Any) -> None:
        if args:
            names = list(type(self).model_fields)
            if len(args) > len(names):
                raise TypeError(f"{type(self).__name__} has {len(names)} fields, {len(args)} were given by position")
            for name, value in zip(names, args, strict=False):
                if name in fields:
                    raise TypeError(f"{type(self).__name__}: {name} was given twice")
                fields[name] = value
        super().__init__(**fields)

    # As on Pydantic's own: positions are all that is added, so validating need not come through here. It could not with
    # JSON, where a strict field takes the text of an id or a time.
    vars(__init__)["__pydantic_base_init__"] = True

    @classmethod
    def of_call(cls, **arguments: Any) -> Self:
        """The value a call's arguments make.

        Raises:
            InvalidValueError: An argument was refused; names it, its value and what is expected.
        """
        try:
            return cls.model_validate(arguments)
        except ValidationError as error:
            raise refusal(error) from error


def inconsistent(field: str, expected: str) -> PydanticCustomError:
    """What a validator of several fields raises about one of them."""
    return PydanticCustomError("inconsistent", "{field}: expected {expected}", {"field": field, "expected": expected})


def refusal(error: ValidationError) -> InvalidValueError:
    """Pydantic's first complaint as an error of ours."""
    first = error.errors(include_url=False)[0]
    if about := first.get("ctx", {}).get("field"):
        return InvalidValueError(about, first["input"].get(about), first.get("ctx", {})["expected"])
    field = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
    return InvalidValueError(field or error.title, first["input"], _expectation(first["type"], first["msg"]))


def _expectation(kind: str, message: str) -> str:
    return "nothing by that name" if kind == "extra_forbidden" else message.removeprefix("Input should be ")
