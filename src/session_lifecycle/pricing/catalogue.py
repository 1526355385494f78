"""The price catalogue: the exact price of one response, and its source."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from typing import TYPE_CHECKING

from session_lifecycle.errors import ConfigurationError, InvalidValueError
from session_lifecycle.models.prices import Price, PriceOverride
from session_lifecycle.pricing.model_names import NameResolver, Resolved, matches_pattern, name_resolver

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelPrice, TieredPrices

__all__ = ["Price", "PriceCatalogue", "PriceOverride"]

_MILLIONTH = Decimal("0.000001")
_MOST_DECIMALS = 18
_FINEST = Decimal(1).scaleb(-_MOST_DECIMALS)

# 60 digits keep the product of a 19-digit token count and any price exact. The host's own decimal context is neither
# used nor changed.
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow])

# The catalogue's prices for the units that a usage event counts. `requests_kcount` is charged once per response.
_OUR_UNITS = (
    "input_mtok",
    "output_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "output_reasoning_mtok",
    "requests_kcount",
)


class PriceCatalogue:
    """Prices responses by model, provider and time of use. Tasks can share one catalogue.

    Args:
        overrides: The host's own prices. They come before the prices of genai-prices.
    """

    def __init__(self, overrides: Sequence[PriceOverride] = ()) -> None:
        self._overrides = tuple(overrides)
        self._get_snapshot: Callable[[], DataSnapshot] | None = None
        self._snapshot: DataSnapshot | None = None
        self._resolve: NameResolver | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether `load` has finished."""
        return self._get_snapshot is not None

    async def load(self) -> None:
        """Imports genai-prices and its data, in a thread. A second call does nothing."""
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
        """The price of one response; `None` when no price is known. A response without a price is unpriced, not free.

        `tokens_in` includes both cache counts, and `tokens_out` includes the reasoning. An override adds up these
        products and divides by a million: (input - cache read - cache write) x input price, each cache count x its
        price, (output - reasoning) x output price, and reasoning x its price. The catalogue computes the same, with its
        own tiers and dates (`genai_prices.types.ModelPrice.calc_price`, version 0.2.3,
        https://github.com/pydantic/genai-prices).

        Args:
            model: The model's name as its source gave it, with or without a provider's prefix (`azure/gpt-4o`).
            provider: The provider whose prices come first. When it is unknown or does not have the model, the prices
                of the provider in the prefix are next, and then those of the model's maker.
            at: The time of use, with a time zone.
            tokens_in: The whole input.
            tokens_out: The whole output.
            cache_read_tokens: The part of the input read from a cache.
            cache_write_tokens: The part of the input written to a cache.
            reasoning_tokens: The part of the output that is reasoning.

        Raises:
            InvalidValueError: `at` is naive, a count is negative, or the parts are larger than their whole.
            ConfigurationError: No override matches, and `load` has not finished.
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
            if (since is not None and since > at) or not matches_pattern(model, override.model_pattern):
                continue
            if best is None or (since is not None and (best.valid_from is None or since > best.valid_from)):
                best = override
        return best

    def _find(self, model: str, provider: str | None) -> tuple["DataSnapshot", Resolved | None]:
        if self._get_snapshot is None:
            raise ConfigurationError("the price catalogue is not loaded: await PriceCatalogue.load() first")
        snapshot = self._get_snapshot()
        # The snapshot is another one after the host updated the prices.
        if self._resolve is None or snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._resolve = name_resolver(snapshot.providers)
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


def _override_price(override: PriceOverride, counts: tuple[int, int, int, int, int]) -> Price:
    tokens_in, tokens_out, cache_read, cache_write, reasoning = counts
    prices = override.unit_prices()
    parts = (tokens_in - cache_read - cache_write, tokens_out - reasoning, cache_read, cache_write, reasoning)
    with localcontext(_EXACT):
        cost = sum((price * part for price, part in zip(prices.values(), parts, strict=True)), Decimal(0)) * _MILLIONTH
        unit_prices = {unit: f"{price:f}" for unit, price in prices.items()}
        return Price(_rounded(cost), f"override:{override.model_pattern}", unit_prices)


def _rounded(cost: Decimal) -> Decimal:
    exponent = cost.as_tuple().exponent
    return cost.quantize(_FINEST) if isinstance(exponent, int) and exponent < -_MOST_DECIMALS else cost


def _catalogue_price(
    snapshot: "DataSnapshot", resolved: Resolved, at: datetime, counts: tuple[int, int, int, int, int]
) -> Price | None:
    import genai_prices

    provider, model = resolved
    tokens_in, tokens_out, cache_read, cache_write, reasoning = counts
    prices = _unit_prices(model.get_prices(at))
    if not prices or (tokens_in and "input_mtok" not in prices) or (tokens_out and "output_mtok" not in prices):
        # The catalogue has the model, but no price for the tokens that were used: it would count them as free.
        return None
    usage = genai_prices.Usage(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        output_reasoning_tokens=reasoning,
    )
    with localcontext(_EXACT):
        cost = _rounded(model.calc_price(usage, provider, genai_request_timestamp=at).total_price)
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
