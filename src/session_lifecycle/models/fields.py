"""The types of fields with their limits (rule R19), and `Value`, the base class of the values in and out."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self
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

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.refusals import inconsistent, refusal, refused

MOST_TOKENS = 10**12
MOST_COST_USD = Decimal(10**9)
COST_DECIMALS = 30
# A row of a B-tree index holds 2,704 bytes, and a session id may have 2,048 of them (512 characters of four bytes).
# Beside it and a user id stands a model; or beside it, two UUIDs, a status and a time, the name of an agent.
MODEL_BYTES = 600
SESSION_ID_CHARACTERS = 512
LABEL_BYTES = 500
LABEL_CHARACTERS = 200
LONG_LABEL_CHARACTERS = 1000
ID_BYTES = 1500
# The two ids of a key: of a run and its step, of a session and its message.
KEY_BYTES = 2600
CUT = "…"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


_EXACT = Context(prec=100, traps=[Inexact, InvalidOperation])


def storable(text: str) -> str:
    if "\x00" in text:
        raise refused("text_nul")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise refused("text_surrogate") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise refused("text_blank")
    return text


def _within_id_bytes(text: str) -> str:
    if not text or len(text.encode()) > ID_BYTES:
        raise refused("id_bytes", limit=ID_BYTES)
    return text


def _stripped(value: Any) -> Any:
    # Names of models that differ in outer spaces only are one model.
    return value.strip() or None if isinstance(value, str) else value


def refuse_long_key(field: str, key: str, beside: str, other: str) -> None:
    """Raises the refusal of an id that does not fit into an index row beside the other id of its key."""
    room = KEY_BYTES - len(other.encode())
    if len(key.encode()) > room:
        raise inconsistent(field, f"at most {room:,} bytes in UTF-8, because it and {beside} are together one key")


def safe_text(text: str) -> str:
    """The text, with U+FFFD in place of NUL and lone surrogates, which Postgres cannot hold."""
    if "\x00" not in text and text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins a high and a low surrogate to the character they encode. Only lone surrogates are replaced.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\x00", REPLACEMENT)


def beginning(text: str, most_bytes: int) -> str:
    """The longest beginning of the text that has at most so many bytes in UTF-8."""
    return text[:most_bytes].encode()[:most_bytes].decode(errors="ignore")


def cut(text: str, most_bytes: int, characters: int | None = None) -> str:
    """The text, or where it is longer than a limit its beginning and the mark `…`, together within the limits.

    The same text gives the same result, and the result stays as it is when it is cut again.
    """
    if len(text) <= (most_bytes if characters is None else characters) and len(text.encode()) <= most_bytes:
        return text
    most_characters = len(text) if characters is None else characters - len(CUT)
    return beginning(text[:most_characters], most_bytes - len(CUT.encode())) + CUT


def _label(most_bytes: int, characters: int | None = None) -> AfterValidator:
    """A validator that cuts a label to its limits: a record is not refused for a long label (rule R26)."""
    return AfterValidator(lambda text: cut(text, most_bytes, characters))


def blank_as_none(value: Any) -> Any:
    # Only a text is compared: a missing value of pandas is neither equal nor unequal.
    return None if isinstance(value, str) and not value else value


# The driver writes the very first and the very last datetime as -infinity and infinity. In Postgres these are before
# and after every moment, and the driver reads them without a time zone. Some programs use the first one where they know
# no time.
_FIRST_MOMENT = datetime.min.replace(microsecond=1, tzinfo=UTC)
_LAST_MOMENT = datetime.max.replace(microsecond=999_998, tzinfo=UTC)


def _aware_utc(value: Any) -> Any:
    """Returns an aware datetime in UTC. Reads ISO 8601 text first, because JSON has no datetime."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise refused("datetime_type") from None
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is not UTC:
        if value.utcoffset() is None:
            raise refused("datetime_naive")
        try:
            value = value.astimezone(UTC)
        except OverflowError:
            raise refused("datetime_range") from None
    return value if MINYEAR < value.year < MAXYEAR else min(max(value, _FIRST_MOMENT), _LAST_MOMENT)


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
    if not amount.is_finite() or not 0 <= amount <= MOST_COST_USD:
        raise refused("money_range", most=f"{MOST_COST_USD:,}")
    if not amount:
        return Decimal(0)  # also for -0
    sign, digits, exponent = amount.as_tuple()
    decimals = places = -int(exponent)
    while decimals > COST_DECIMALS and digits[-1] == 0:
        digits, decimals = digits[:-1], decimals - 1
    if decimals > COST_DECIMALS:
        raise refused("money_decimals", most=COST_DECIMALS)
    return amount if decimals == places else Decimal((sign, digits, -decimals))


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum exactly, whatever the host's decimal context. It has room for 10^60 of the greatest amounts."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def model_key(name: str) -> str:
    """The name of a model as names are compared: only letters of ASCII have no case, as in the collation "C"."""
    return name.lower() if name.isascii() else name.translate(_ASCII_LOWER)


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
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, float, str)):
        raise refused("money_type")
    try:
        return Decimal(repr(float(value)) if isinstance(value, float) else value)
    except (InvalidOperation, ValueError):
        raise refused("money_type") from None


Text = Annotated[str, Strict(), AfterValidator(storable)]
# Lengths come before `storable`: Pydantic checks the length of a plain text itself, and that of others in Python.
SessionId = Annotated[
    str,
    Strict(),
    Field(min_length=1, max_length=SESSION_ID_CHARACTERS),
    AfterValidator(storable),
    AfterValidator(_not_blank),
]
Label = Annotated[Text, _label(LABEL_BYTES, LABEL_CHARACTERS)]
RequiredLabel = Annotated[Text, Field(min_length=1), _label(LABEL_BYTES, LABEL_CHARACTERS)]
OptionalName = Annotated[Label | None, BeforeValidator(blank_as_none)]
OptionalModel = Annotated[Annotated[Text, _label(MODEL_BYTES)] | None, BeforeValidator(_stripped)]
OptionalTitle = Annotated[
    Annotated[Text, _label(4 * LONG_LABEL_CHARACTERS, LONG_LABEL_CHARACTERS)] | None, BeforeValidator(blank_as_none)
]
Key = Annotated[str, Strict(), Field(min_length=1, max_length=512), AfterValidator(storable)]
ExternalId = Annotated[Text, AfterValidator(_within_id_bytes)]
OptionalExternalId = Annotated[ExternalId | None, BeforeValidator(blank_as_none)]
OptionalSessionId = Annotated[SessionId | None, BeforeValidator(blank_as_none)]
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


_set = object.__setattr__  # a value is frozen


# In the `__dict__` of a value whose fields were never checked. It is no field: Pydantic neither compares nor dumps it.
_UNCHECKED = "_is_unchecked"


class Value(BaseModel):
    """The base class of the values in and out. It is frozen and refuses unknown fields.

    A value is made with keyword arguments, or from JSON with `model_validate_json`. `model_dump_json` writes JSON.
    """

    # An error must not contain what people or models said. Pydantic's own text would quote it.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="constants", hide_input_in_errors=True
    )

    if not TYPE_CHECKING:  # type checkers see Pydantic's own signature, which lists the fields

        @classmethod
        def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
            """As Pydantic's, which does not look at the values: a call that takes the value looks at them then."""
            made = super().model_construct(_fields_set, **values)
            vars(made)[_UNCHECKED] = True
            return made

    @classmethod
    def row_defaults(cls) -> dict[str, Any]:
        """The default of each field, in the order of the fields; `PydanticUndefined` for a field that has none."""
        return {name: field.default for name, field in cls.model_fields.items()}

    @classmethod
    def maker_of_rows(cls) -> Callable[[dict[str, Any]], Self]:
        """A function that makes a value of a row that Postgres returned.

        Nothing is checked, as half the time of a page went into checks. The function takes every field in exactly its
        type: a copy of `row_defaults` with what the row has. The tables hold no other values. JSON has the fields in
        this order. The dictionary becomes a part of the value.
        """
        # All values share one set of names, which takes more memory than all fields: nothing changes the set of a
        # frozen value, and a copy of the value has a copy of the set.
        new, names = cls.__new__, set(cls.model_fields)

        def make(fields: dict[str, Any]) -> Any:
            made = new(cls)
            # The four slots of a model.
            _set(made, "__dict__", fields)
            _set(made, "__pydantic_fields_set__", names)
            _set(made, "__pydantic_extra__", None)
            _set(made, "__pydantic_private__", None)
            return made

        return make

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As Pydantic's, which does not look at the new values: a call that takes the value looks at them then."""
        made = super().model_copy(update=update, deep=deep)
        if update:
            vars(made)[_UNCHECKED] = True
        return made

    @classmethod
    def of_call(cls, /, **arguments: Any) -> Self:
        """The arguments of a call as a checked value.

        Raises:
            InvalidValueError: An argument is refused. The error names the argument, its value and what is expected.
        """
        try:
            # `model_validate` hands on its options and does nothing else, for a tenth of the time.
            made: Self = cls.__pydantic_validator__.validate_python(arguments)
        except ValidationError as error:
            raise refusal(error, cls) from error
        return made

    @classmethod
    def checked(cls, value: Any, name: str) -> Self:
        """The value of a call's argument of this name, with fields that are checked.

        A class says nothing about the fields: a subclass may have other rules for them, and Pydantic makes values
        without a check. Such a value becomes a checked one of this class.

        Raises:
            InvalidValueError: The value is not one of this class, or a field is refused.
        """
        if type(value) is cls and _UNCHECKED not in vars(value):
            return value
        if not isinstance(value, cls):
            raise InvalidValueError(name, value, f"a {cls.__name__}")
        given, named = vars(value), value.model_fields_set
        fields = {
            # A default that nobody gave is not handed on: a validator may read such a field from another one.
            name: given[name]
            for name, field in cls.model_fields.items()
            if name in given and (name in named or given[name] is not field.default)
        }
        return cls.of_call(**fields)
