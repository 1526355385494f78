"""What a model response cost: the host's own prices first, then the catalogue of genai-prices.

Importing this module does not import genai-prices, whose data takes 0.2 s; `PriceCatalogue.load` does, in a thread.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from session_lifecycle.errors import ConfigurationError, InvalidValueError

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

__all__ = ["Price", "PriceCatalogue", "PriceOverride"]

_MILLIONTH = Decimal("0.000001")
_MOST_DECIMALS = 18
_FINEST = Decimal(1).scaleb(-_MOST_DECIMALS)
_MODELS_REMEMBERED = 1024

# Wide enough that a 19-digit token count times any price is exact; the host's own context is neither used nor changed.
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow])

# The catalogue's prices that our token counts can be multiplied with. `requests_kcount` is charged once per response.
_OUR_UNITS = (
    "input_mtok",
    "output_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "output_reasoning_mtok",
    "requests_kcount",
)

# Providers under names the catalogue does not have: OpenTelemetry's gen_ai.provider.name and gen_ai.system
# (https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/) and LiteLLM's prefixes
# (https://docs.litellm.ai/docs/providers). Lower case, with `_` and `.` as `-`.
_ALIASES = {
    alias: provider
    for provider, aliases in {
        "aws": "aws-bedrock bedrock bedrock-converse amazon-bedrock sagemaker",
        "azure": "az-ai-openai azure-ai-openai az-ai-inference azure-ai-inference azure-ai azure-openai azure-text",
        "google": "gcp-vertex-ai gcp-gemini gcp-gen-ai vertex-ai vertex-ai-beta vertex gemini models google-vertexai",
        "x-ai": "x-ai xai",
        "mistral": "mistral-ai mistralai",
        "fireworks": "fireworks-ai",
        "together": "together-ai",
        "moonshotai": "moonshot moonshot-ai",
        "cohere": "cohere-chat",
        "openai": "openai-responses text-completion-openai",
    }.items()
    for alias in aliases.split()
}

_Resolved = tuple["Provider", "ModelInfo"]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("price_type", "a number, not a bool")
    return value


# Pydantic takes a float by its shortest decimal form and refuses infinity and NaN.
_UsdPerMillion = Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]


class PriceOverride(BaseModel):
    """The host's own price of some models, asked before the catalogue. USD per million tokens.

    Example:
        `PriceOverride(model_pattern="gpt-4o*", input_usd_per_million="2", output_usd_per_million="8")`

    Attributes:
        model_pattern: Matched with case (`fnmatch.fnmatchcase`) against the model's name as given, and against what
            follows each `/` in it: `gpt-4o*` matches `azure/gpt-4o`, `acme/*` matches `acme/large`.
        input_usd_per_million: Input neither read from nor written to a cache.
        output_usd_per_million: Output that is not reasoning.
        cache_read_usd_per_million: `None`: as input.
        cache_write_usd_per_million: `None`: as input.
        reasoning_usd_per_million: `None`: as output.
        valid_from: Of several that match, the latest that is not after the time of use wins; among equals the first
            given. `None`: always, and before any time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_pattern: str = Field(min_length=1)
    input_usd_per_million: _UsdPerMillion
    output_usd_per_million: _UsdPerMillion
    cache_read_usd_per_million: _UsdPerMillion | None = None
    cache_write_usd_per_million: _UsdPerMillion | None = None
    reasoning_usd_per_million: _UsdPerMillion | None = None
    valid_from: AwareDatetime | None = None

    def unit_prices(self) -> dict[str, Decimal]:
        """The five prices under the catalogue's names, with what was left out filled in."""
        given, out = self.input_usd_per_million, self.output_usd_per_million
        read, write = self.cache_read_usd_per_million, self.cache_write_usd_per_million
        return {
            "input_mtok": given,
            "output_mtok": out,
            "cache_read_mtok": given if read is None else read,
            "cache_write_mtok": given if write is None else write,
            "output_reasoning_mtok": out if self.reasoning_usd_per_million is None else self.reasoning_usd_per_million,
        }


@dataclass(frozen=True, slots=True)
class Price:
    """What one response cost, and by which prices.

    Attributes:
        cost_usd: Exact; rounded half-even only beyond 18 decimal places.
        source: `override:<pattern>`, or `genai-prices <version>:<provider>/<model id>`. When the host keeps the
            catalogue updated (`genai_prices.UpdatePrices`), the version is followed by `+` and the time of the update.
        unit_prices: USD per million tokens (`requests_kcount`: per thousand responses) as decimal texts, ready for
            JSON. Where the price depends on the length of the input: `3 (6 above 200000 input tokens)`.
    """

    cost_usd: Decimal
    source: str
    unit_prices: dict[str, str]


class PriceCatalogue:
    """Prices by model, provider and time of use. Safe to share between tasks.

    Args:
        overrides: The host's own prices.
    """

    def __init__(self, overrides: Sequence[PriceOverride] = ()) -> None:
        self._overrides = tuple(overrides)
        self._get_snapshot: Callable[[], DataSnapshot] | None = None
        self._snapshot: DataSnapshot | None = None
        self._resolve: Callable[[str, str | None], _Resolved | None] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether `load` was awaited."""
        return self._get_snapshot is not None

    async def load(self) -> None:
        """Import genai-prices and its data, in a thread. Repeating it does nothing."""
        if self._get_snapshot is None:
            self._get_snapshot = await asyncio.to_thread(_import_catalogue)

    def price(
        self,
        *,
        model: str | None,
        provider: str | None,
        at: datetime,
        tokens_in: int,
        tokens_out: int,
        cache_read_tokens: int,
        cache_write_tokens: int,
        reasoning_tokens: int,
    ) -> Price | None:
        """The price of one response, or `None` when nobody knows one: unpriced, which is not free.

        `tokens_in` includes both cache counts, `tokens_out` includes reasoning. By an override the cost is the sum of
        (input - cache read - cache write) x input price, each cache count x its price, (output - reasoning) x output
        price and reasoning x its price, over a million; the catalogue counts alike, with its own tiers and dates
        (`genai_prices.types.ModelPrice.calc_price`, version 0.2.3, https://github.com/pydantic/genai-prices).

        Args:
            model: As the source named it, with or without a provider's prefix (`azure/gpt-4o`).
            provider: Asked first; when it is unknown or does not know the model, the prefix and then the model's own
                maker are asked.
            at: The time of use, aware.
            tokens_in: The whole input.
            tokens_out: The whole output.
            cache_read_tokens: The part of the input read from a cache.
            cache_write_tokens: The part of the input written to a cache.
            reasoning_tokens: The part of the output that is reasoning.

        Raises:
            InvalidValueError: `at` is naive, a count is negative, or the parts are larger than their whole.
            ConfigurationError: No override matches and `load` was not awaited.
        """
        counts = (tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens)
        _check(at, counts)
        if model is None:
            return None
        if override := self._override(model, at):
            return _override_price(override, counts)
        snapshot, resolved = self._find(model, provider)
        return resolved and _catalogue_price(snapshot, resolved, at, counts)

    def _override(self, model: str, at: datetime) -> PriceOverride | None:
        best: PriceOverride | None = None
        for override in self._overrides:
            since = override.valid_from
            if (since is not None and since > at) or not _matches(override.model_pattern, model):
                continue
            if best is None or (since is not None and (best.valid_from is None or since > best.valid_from)):
                best = override
        return best

    def _find(self, model: str, provider: str | None) -> tuple["DataSnapshot", _Resolved | None]:
        if self._get_snapshot is None:
            raise ConfigurationError("the price catalogue is not loaded: await PriceCatalogue.load() first")
        snapshot = self._get_snapshot()
        if self._resolve is None or snapshot is not self._snapshot:  # the first call, or the host updated the prices
            self._snapshot = snapshot
            self._resolve = lru_cache(_MODELS_REMEMBERED)(partial(_resolved, snapshot.providers))
        return snapshot, self._resolve(model, provider)


def _import_catalogue() -> "Callable[[], DataSnapshot]":
    from genai_prices.data_snapshot import get_snapshot

    get_snapshot()
    return get_snapshot


def _check(at: datetime, counts: tuple[int, int, int, int, int]) -> None:
    tokens_in, tokens_out, cache_read, cache_write, reasoning = counts
    if at.utcoffset() is None:
        raise InvalidValueError("at", at, "an aware datetime")
    if min(counts) < 0:
        raise InvalidValueError("tokens", counts, "counts that are not negative")
    if cache_read + cache_write > tokens_in:
        raise InvalidValueError("tokens_in", tokens_in, f"at least its cached parts, {cache_read} + {cache_write}")
    if reasoning > tokens_out:
        raise InvalidValueError("tokens_out", tokens_out, f"at least its reasoning part, {reasoning}")


def _matches(pattern: str, model: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in _names(model))


def _names(model: str) -> Iterator[str]:
    yield model
    while "/" in model:
        model = model.partition("/")[2]
        yield model


def _override_price(override: PriceOverride, counts: tuple[int, int, int, int, int]) -> Price:
    tokens_in, tokens_out, cache_read, cache_write, reasoning = counts
    prices = override.unit_prices()
    parts = (tokens_in - cache_read - cache_write, tokens_out - reasoning, cache_read, cache_write, reasoning)
    with localcontext(_EXACT):
        cost = sum((each * part for each, part in zip(prices.values(), parts, strict=True)), Decimal(0)) * _MILLIONTH
        return Price(_stored(cost), f"override:{override.model_pattern}", {k: f"{v:f}" for k, v in prices.items()})


def _stored(cost: Decimal) -> Decimal:
    exponent = cost.as_tuple().exponent
    return cost.quantize(_FINEST) if isinstance(exponent, int) and exponent < -_MOST_DECIMALS else cost


def _resolved(providers: "list[Provider]", model: str, provider: str | None) -> _Resolved | None:
    # Not `DataSnapshot.find_provider_model`: it remembers every name it was ever asked for, without bound.
    for candidate, name in _candidates({each.id: each for each in providers}, model.strip().lower(), provider):
        found = candidate.find_model(name, all_providers=providers)
        if found is not None and not _accidental(candidate, found, name, providers):
            return candidate, found
    return None


def _candidates(by_id: "dict[str, Provider]", model: str, provider: str | None) -> "Iterator[tuple[Provider, str]]":
    names = [model]  # as given, then without each prefix that names a provider
    prefixed: list[tuple[Provider, str]] = []
    while (prefix := names[-1].partition("/"))[1] and (owner := _provider(by_id, prefix[0])):
        names.append(prefix[2])
        prefixed.append((owner, prefix[2]))
        if owner.id == "aws" and "/" in prefix[2]:  # LiteLLM's bedrock/us-east-1/... and bedrock/converse/...
            prefixed.append((owner, prefix[2].rpartition("/")[2]))
    if provider and (asked := _provider(by_id, provider, loosely=True)):
        yield from ((asked, name) for name in names)
    yield from prefixed
    for name in names:
        for maker in by_id.values():
            if maker.model_match is not None and maker.model_match.is_match(name):
                yield maker, name
                break  # as the catalogue does: the first that claims the name


def _provider(by_id: "dict[str, Provider]", name: str, *, loosely: bool = False) -> "Provider | None":
    name = name.strip().lower()
    alias = _ALIASES.get(name.replace("_", "-").replace(".", "-"), name)
    if (found := by_id.get(alias)) or not loosely:
        return found
    return next((each for each in by_id.values() if each.provider_match and each.provider_match.is_match(name)), None)


def _accidental(provider: "Provider", found: "ModelInfo", name: str, providers: "list[Provider]") -> bool:
    # Some of the catalogue's rules ask only what a name contains. `my-claude-3-haiku` is not Anthropic's: a name whose
    # first word can be dropped without changing the answer was not recognised by it. Unless it is the model's own,
    # or a maker's: open-mistral-7b, text-davinci.
    word, dash, rest = name.partition("-")
    if not dash or word in {"open", "text"} or "." in word or "/" in word or name.startswith(found.id.lower()):
        return False
    return provider.find_model(rest, all_providers=providers) is found


def _catalogue_price(
    snapshot: "DataSnapshot", resolved: _Resolved, at: datetime, counts: tuple[int, int, int, int, int]
) -> Price | None:
    import genai_prices

    provider, model = resolved
    tokens_in, tokens_out, cache_read, cache_write, reasoning = counts
    prices = _unit_prices(model.get_prices(at))
    if not prices or (tokens_in and "input_mtok" not in prices) or (tokens_out and "output_mtok" not in prices):
        return None  # known, but not by what was used: the catalogue would count it as free
    usage = genai_prices.Usage(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        output_reasoning_tokens=reasoning,
    )
    with localcontext(_EXACT):
        cost = _stored(model.calc_price(usage, provider, genai_request_timestamp=at).total_price)
    version = genai_prices.__version__
    if snapshot.from_auto_update:
        version += f"+{snapshot.timestamp:%Y-%m-%dT%H:%M:%S}"
    return Price(cost, f"genai-prices {version}:{provider.id}/{model.id}", prices)


def _unit_prices(prices: "ModelPrice") -> dict[str, str]:
    values = vars(prices)
    return {unit: _text(value) for unit in _OUR_UNITS if (value := values.get(unit)) is not None}


def _text(price: "Decimal | TieredPrices") -> str:
    if isinstance(price, Decimal):
        return f"{price:f}"
    tiers = ", ".join(f"{tier.price:f} above {tier.start} input tokens" for tier in price.tiers)
    return f"{price.base:f} ({tiers})"
