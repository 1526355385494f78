"""The price catalogue: the exact price of one response, and its source."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from typing import TYPE_CHECKING

from session_lifecycle.errors import ConfigurationError, InvalidValueError
from session_lifecycle.models.fields import MOST_COST_USD
from session_lifecycle.models.prices import Price, PriceOverride
from session_lifecycle.models.usage_classes import ServiceTier, excess, shares
from session_lifecycle.pricing.classes import CLASSES, MILLION, PRICE_KEYS, REQUESTS_KEY, TOKEN_PRICE_KEYS
from session_lifecycle.pricing.model_names import Entry, NameResolver, PricedNames, name_resolver

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import TieredPrices

    UnitPrices = Mapping[str, Decimal | TieredPrices]
    """Unit prices by the catalogue's names."""

__all__ = ["Price", "PriceCatalogue", "PriceOverride"]

_MOST_DECIMALS = 18
_FINEST = Decimal(1).scaleb(-_MOST_DECIMALS)

# 60 digits keep the product of a 19-digit token count and any price exact. The host's own decimal context is neither
# used nor changed.
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow])

# By our count: its unit price, the unit price that counts where that one is not listed, and how often it counts per
# million.
_PRICED_BY = {
    field: (one.price_key, one.priced_as and CLASSES[one.priced_as].price_key, MILLION // one.per)
    for field, one in CLASSES.items()
}
_PRICE_KEYS_WITHOUT_SEARCHES = (*TOKEN_PRICE_KEYS, REQUESTS_KEY)
# The context in which the catalogue has the prices of a tier. The standard tier has none.
_CONTEXTS: dict[str, dict[str, str]] = {
    "standard": {},
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast"},
}
_CONTEXTS_OF = {("anthropic", "fast"): {"speed": "fast"}}


class PriceCatalogue:
    """Prices responses by model, provider, service tier and time of use. Tasks can share one catalogue.

    Args:
        overrides: The host's own prices. They come before the prices of genai-prices.

    Raises:
        InvalidValueError: An override is not a `PriceOverride`, or a field of it is refused.
    """

    def __init__(self, overrides: Sequence[PriceOverride] = ()) -> None:
        self._overrides = tuple(
            (one, PricedNames(one.model_pattern, one.provider), _prices_of(one))
            for one in (PriceOverride.checked(given, "prices") for given in overrides)
        )
        self.is_loaded = False
        """Whether `load` has finished."""
        self._get_snapshot: Callable[[], DataSnapshot] | None = None
        self._snapshot: DataSnapshot | None = None
        self._resolve: NameResolver | None = None

    async def load(self) -> None:
        """Imports genai-prices and its data, in a thread. A second call does nothing."""
        if not self.is_loaded:
            self._get_snapshot, self._snapshot, self._resolve = await asyncio.to_thread(_import_catalogue)
            self.is_loaded = True

    def price(
        self,
        *,
        model: str | None,
        provider: str | None,
        at: datetime,
        service_tier: ServiceTier = "standard",
        tokens_in: int = 0,
        tokens_out: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        audio_tokens_in: int = 0,
        cache_read_audio_tokens: int = 0,
        image_tokens_in: int = 0,
        cache_read_image_tokens: int = 0,
        video_tokens_in: int = 0,
        reasoning_tokens: int = 0,
        audio_tokens_out: int = 0,
        image_tokens_out: int = 0,
        web_searches: int = 0,
    ) -> Price | None:
        """The price of one response; `None` when no price is known. A response without a price is unpriced, not free.
        So is a response that would cost more than one event holds, 1,000,000,000 USD.

        The cost is the sum of each share of the use times its own unit price: `models.usage_classes` says what is part
        of what, `pricing.classes` which unit price counts. The response is unpriced if one share has no unit price. The
        whole `tokens_in` chooses among prices by length, for every share.

        Where `calc_price` of genai-prices finds no price for a part, it bills the part as its whole or not at all; this
        method never does (https://github.com/pydantic/genai-prices, version 0.2.3).

        Args:
            model: The model's name as its source gave it, with or without a provider's prefix (`azure/gpt-4o`).
            provider: Who billed the response. No other provider's prices are used. `None`: the provider in the prefix,
                then the model's maker, then every provider that has a model of this name, if their prices agree.
            at: The time of use, with a time zone.
            service_tier: The tier of service. A tier that the provider's own entry does not have is unpriced. A unit
                price that the tier does not change is that of the standard tier.
            tokens_in: The whole input.
            tokens_out: The whole output.
            cache_read_tokens: The part of the input that was read from a cache.
            cache_write_tokens: The part of the input that was written to a cache.
            cache_write_1h_tokens: The part of `cache_write_tokens` that the cache keeps for an hour.
            audio_tokens_in: The part of the input that is audio.
            cache_read_audio_tokens: The part of `cache_read_tokens` and of `audio_tokens_in` that is in both.
            image_tokens_in: The part of the input that is images.
            cache_read_image_tokens: The part of `cache_read_tokens` and of `image_tokens_in` that is in both.
            video_tokens_in: The part of the input that is video.
            reasoning_tokens: The part of the output that is reasoning.
            audio_tokens_out: The part of the output that is audio.
            image_tokens_out: The part of the output that is images.
            web_searches: How many searches the provider billed.

        Raises:
            InvalidValueError: `at` is naive, the tier is unknown, a count is negative, or parts are larger than their
                whole.
            ConfigurationError: No override matches, and `load` has not finished.
        """
        if at.utcoffset() is None:
            raise InvalidValueError("at", at, "an aware datetime")
        if service_tier not in _CONTEXTS:
            raise InvalidValueError("service_tier", service_tier, f"one of {', '.join(_CONTEXTS)}")
        use = _shares(
            {
                "tokens_in": tokens_in,
                "tokens_out": tokens_out,
                "cache_read_tokens": cache_read_tokens,
                "cache_write_tokens": cache_write_tokens,
                "cache_write_1h_tokens": cache_write_1h_tokens,
                "audio_tokens_in": audio_tokens_in,
                "cache_read_audio_tokens": cache_read_audio_tokens,
                "image_tokens_in": image_tokens_in,
                "cache_read_image_tokens": cache_read_image_tokens,
                "video_tokens_in": video_tokens_in,
                "reasoning_tokens": reasoning_tokens,
                "audio_tokens_out": audio_tokens_out,
                "image_tokens_out": image_tokens_out,
                "web_searches": web_searches,
            }
        )
        if model is None:
            return None
        override = self._override(model, provider, at, service_tier)
        prices: UnitPrices | None
        if override is not None:
            source, prices = override
        else:
            snapshot, entries = self._find(model, provider)
            prices = _agreed_prices(entries, at, service_tier)
            source = _source(snapshot, entries[0]) if entries else ""
        if not prices:
            return None
        cost = _cost(use, prices, tokens_in)
        if cost is None or cost > MOST_COST_USD:
            return None
        charged = PRICE_KEYS if web_searches else _PRICE_KEYS_WITHOUT_SEARCHES
        texts = {key: _text(price) for key in charged if (price := prices.get(key)) is not None}
        return Price(cost, source, texts)

    def _override(
        self, model: str, provider: str | None, at: datetime, service_tier: ServiceTier
    ) -> tuple[str, "UnitPrices"] | None:
        best: tuple[str, UnitPrices] | None = None
        best_since: datetime | None = None
        for override, names, prices in self._overrides:
            since = override.valid_from
            if (since is not None and since > at) or override.service_tier != service_tier:
                continue
            is_later = since is not None and (best_since is None or since > best_since)
            if (best is None or is_later) and names.match(model, provider):
                best, best_since = (f"override:{override.model_pattern}", prices), since
        return best

    def _find(self, model: str, provider: str | None) -> tuple["DataSnapshot", tuple[Entry, ...]]:
        if self._get_snapshot is None:
            raise ConfigurationError("the price catalogue is not loaded: await PriceCatalogue.load() first")
        snapshot = self._get_snapshot()
        # The snapshot is another one after the host updated the prices.
        if self._resolve is None or snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._resolve = name_resolver(snapshot.providers)
        return snapshot, self._resolve(model, provider)


def _import_catalogue() -> "tuple[Callable[[], DataSnapshot], DataSnapshot, NameResolver]":
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    return get_snapshot, snapshot, name_resolver(snapshot.providers)


def _shares(counts: dict[str, int]) -> dict[str, int]:
    if min(counts.values()) < 0:
        field = next(field for field, count in counts.items() if count < 0)
        raise InvalidValueError(field, counts[field], "a count that is not negative")
    use = shares(counts)
    if use and min(use.values()) < 0 and (refused := excess(counts)):
        field, expected = refused
        raise InvalidValueError(field, counts[field], expected)
    return use


def _prices_of(override: PriceOverride) -> dict[str, Decimal]:
    """The override's unit prices by the catalogue's names, also those that it leaves to another price of its own."""
    prices: dict[str, Decimal] = {}
    for one in CLASSES.values():
        price: Decimal | None = getattr(override, one.override_field)
        if price is None and one.override_priced_as is not None:
            price = prices[CLASSES[one.override_priced_as].price_key]
        if price is not None:
            prices[one.price_key] = price
    return prices


def _agreed_prices(entries: tuple[Entry, ...], at: datetime, service_tier: ServiceTier) -> "UnitPrices | None":
    """The unit prices that are in force in every one of the entries; None if there is none, or two entries differ."""
    prices = [_prices_in_force(entry, at, service_tier) for entry in entries]
    return prices[0] if prices and all(one == prices[0] for one in prices[1:]) else None


def _prices_in_force(entry: Entry, at: datetime, service_tier: ServiceTier) -> "UnitPrices | None":
    """The entry's unit prices at a time; None if the provider's own entry does not have the tier at that time."""
    provider, model = entry
    context = _CONTEXTS_OF.get((provider.id, service_tier)) or _CONTEXTS[service_tier]
    if context and not (
        any(model is own for own in provider.models)
        and any(
            variant.when.items() <= context.items() and (variant.constraint is None or variant.constraint.active(at))
            for variant in model.price_variants or ()
        )
    ):
        return None
    return {key: price for key, price in vars(model.get_prices(at, context)).items() if price is not None}


def _cost(use: Mapping[str, int], prices: "UnitPrices", tokens_in: int) -> Decimal | None:
    """Each share times its unit price, exact up to 18 decimals; None if a share has no unit price."""
    total = Decimal(0)
    for field, share in use.items():
        key, other_key, times = _PRICED_BY[field]
        price = prices.get(key)
        if price is None:
            price = prices.get(other_key) if other_key else None
            if price is None:
                return None
        total = _EXACT.fma(_at_length(price, tokens_in), share * times, total)
    if (per_thousand := prices.get(REQUESTS_KEY)) is not None:
        total = _EXACT.fma(_at_length(per_thousand, tokens_in), 1_000, total)
    cost = _EXACT.divide(total, MILLION)
    exponent = cost.as_tuple().exponent
    return _EXACT.quantize(cost, _FINEST) if isinstance(exponent, int) and exponent < -_MOST_DECIMALS else cost


def _at_length(price: "Decimal | TieredPrices", tokens_in: int) -> Decimal:
    """The price for an input of this length."""
    if isinstance(price, Decimal):
        return price
    return next((tier.price for tier in reversed(price.tiers) if tokens_in > tier.start), price.base)


def _source(snapshot: "DataSnapshot", entry: Entry) -> str:
    import genai_prices

    provider, model = entry
    version = genai_prices.__version__
    if snapshot.from_auto_update:
        version += f"+{snapshot.timestamp:%Y-%m-%dT%H:%M:%S}"
    return f"genai-prices {version}:{provider.id}/{model.id}"


def _text(price: "Decimal | TieredPrices") -> str:
    if isinstance(price, Decimal):
        return f"{price:f}"
    tiers = ", ".join(f"{tier.price:f} above {tier.start} input tokens" for tier in price.tiers)
    return f"{price.base:f} ({tiers})"
