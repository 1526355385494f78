"""The types of fields with their limits (rule R19), and `Value`, the base class of the values in and out."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
)

from session_lifecycle.models.refusals import refusal, refused

MOST_TOKENS = 10**12
MOST_COST_USD = Decimal(10**9)
COST_DECIMALS = 30
# A row of a B-tree holds 2,704 bytes; a key is a user id, a session id (512 characters of up to 4 bytes) and a model.
MODEL_BYTES = 600


def storable(text: str) -> str:
    if "\x00" in text:
        raise refused("text_nul")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise refused("text_surrogate") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise refused("text_blank")
    return text


def _within_model_bytes(text: str) -> str:
    if len(text.encode()) > MODEL_BYTES:
        raise refused("model_bytes", limit=MODEL_BYTES)
    return text


def _blank_as_none(value: Any) -> Any:
    return None if value == "" else value


def _aware_utc(value: Any) -> Any:
    """Returns an aware datetime in UTC. Reads ISO 8601 text first, because JSON has no datetime."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise refused("datetime_type") from None
    if not isinstance(value, datetime):
        return value
    if value.utcoffset() is None:
        raise refused("datetime_naive")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise refused("datetime_range") from None


def _uuid(value: Any) -> Any:
    """Returns a UUID. Reads text first, because JSON has no UUID."""
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            raise refused("uuid_parsing") from None
    return value


def exact_money(value: Any) -> Decimal:
    """The amount exactly as given, whatever the host's decimal context. A float is read by its shortest decimal form.

    This function does no arithmetic: an operation on a Decimal would round to the host's context.
    """
    amount = _decimal(value)
    if not amount.is_finite() or amount < 0 or amount > MOST_COST_USD:
        raise refused("money_range", most=f"{MOST_COST_USD:,}")
    sign, digits, exponent = amount.as_tuple()
    if not any(digits):
        return Decimal(0)  # also for -0
    decimals = places = -int(exponent)
    while decimals > COST_DECIMALS and digits[-1] == 0:
        digits, decimals = digits[:-1], decimals - 1
    if decimals > COST_DECIMALS:
        raise refused("money_decimals", most=COST_DECIMALS)
    return amount if decimals == places else Decimal((sign, digits, -decimals))


def one_of(members: Sequence[StrEnum]) -> PlainValidator:
    """A validator that accepts these members of an enum, or their text, and returns the member."""
    by_text = {member.value: member for member in members}

    def member(value: Any) -> StrEnum:
        found = by_text.get(value) if isinstance(value, str) else None
        if found is None:
            raise refused("literal_error", expected=", ".join(by_text))
        return found

    return PlainValidator(member, json_schema_input_type=type(members[0]))


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, Decimal | int | float | str):
        raise refused("money_type")
    try:
        return Decimal(repr(float(value)) if isinstance(value, float) else value)
    except (InvalidOperation, ValueError):
        raise refused("money_type") from None


Text = Annotated[str, Strict(), AfterValidator(storable)]
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
Id = Annotated[UUID, BeforeValidator(_uuid), Strict()]
Flag = Annotated[bool, Strict()]
Tokens = Annotated[int, Strict(), Field(ge=0, le=MOST_TOKENS)]
Revision = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
Money = Decimal | float | str
"""The types of an amount of USD that goes in. Type checkers accept an int as a float. A value holds a `Decimal`."""
Cost = Annotated[Money, PlainValidator(exact_money, json_schema_input_type=Money)]
AwareTime = Annotated[datetime, BeforeValidator(_aware_utc), Strict()]
TokenDetails = Annotated[dict[Key, Tokens], Field(max_length=64)]


class Value(BaseModel):
    """The base class of the values in and out. It is frozen and refuses unknown fields.

    A value is made with keyword arguments, or from JSON with `model_validate_json`. `model_dump_json` writes JSON.
    """

    # An error must not contain what people or models said. Pydantic's own text would quote it.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="constants", hide_input_in_errors=True
    )

    @classmethod
    def of_call(cls, **arguments: Any) -> Self:
        """The arguments of a call as a checked value.

        Raises:
            InvalidValueError: An argument is refused. The error names the argument, its value and what is expected.
        """
        try:
            return cls.model_validate(arguments)
        except ValidationError as error:
            raise refusal(error, cls) from error
