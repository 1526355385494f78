"""`PriceOverride`, a price that the host passes in, and `Price`, the price of one response."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from pydantic import Field

from session_lifecycle.models.fields import AwareTime, Cost, Text, Value
from session_lifecycle.models.usage_classes import ServiceTier


class PriceOverride(Value):
    """The host's own prices of some models, in USD. They go in, and come before the catalogue.

    Where an override is in force, the catalogue is not asked: an event that used something the override has no price
    for is unpriced. A price of 0 is a price. The prices are per million tokens, and for web searches per thousand.
    A price is at most 1,000,000,000 USD and has at most 30 decimals.

    Example:
        `PriceOverride(model_pattern="gpt-4o*", input_usd_per_million="2", output_usd_per_million="8")`

    Attributes:
        model_pattern: A pattern as in `fnmatch`, without case and outer spaces. It is compared with the model's name
            as given, and with what follows each `/` in the name: `gpt-4o*` matches `azure/gpt-4o`, `acme/*` matches
            `acme/large`.
        input_usd_per_million: The price of input that is in no other class.
        output_usd_per_million: The price of output that is in no other class.
        cache_read_usd_per_million: `None`: the price of input.
        cache_write_usd_per_million: `None`: the price of input.
        reasoning_usd_per_million: `None`: the price of output.
        valid_from: The override is not used before this time. `None`: it is used at any time. Where several overrides
            match, the latest `valid_from` wins, and `None` counts as the earliest. Among equals the first given wins.
        provider: The override is used for this provider alone: where the event names it, by any of its names, or the
            event names none and the model's name begins with it (`azure/gpt-4o`). `None`: any provider, or none.
        service_tier: The override is used for events of this service tier alone.
        cache_write_1h_usd_per_million: The price of cache writes that last an hour. `None`: unpriced.
        audio_in_usd_per_million: The price of audio that is read from no cache. `None`: unpriced.
        cache_read_audio_usd_per_million: The price of audio read from a cache. `None`: unpriced.
        image_in_usd_per_million: `None`: the price of input.
        cache_read_image_usd_per_million: `None`: the price of `cache_read_usd_per_million`.
        video_in_usd_per_million: `None`: the price of input.
        audio_out_usd_per_million: `None`: unpriced.
        image_out_usd_per_million: `None`: unpriced.
        web_search_usd_per_thousand: `None`: unpriced.
    """

    model_pattern: Annotated[Text, Field(min_length=1)]
    input_usd_per_million: Cost
    output_usd_per_million: Cost
    cache_read_usd_per_million: Cost | None = None
    cache_write_usd_per_million: Cost | None = None
    reasoning_usd_per_million: Cost | None = None
    valid_from: AwareTime | None = None
    provider: str | None = Field(default=None, min_length=1)
    service_tier: ServiceTier = "standard"
    cache_write_1h_usd_per_million: Cost | None = None
    audio_in_usd_per_million: Cost | None = None
    cache_read_audio_usd_per_million: Cost | None = None
    image_in_usd_per_million: Cost | None = None
    cache_read_image_usd_per_million: Cost | None = None
    video_in_usd_per_million: Cost | None = None
    audio_out_usd_per_million: Cost | None = None
    image_out_usd_per_million: Cost | None = None
    web_search_usd_per_thousand: Cost | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one response. It comes out of `PriceCatalogue`, and the ledger keeps it.

    Attributes:
        cost_usd: USD, exact. More than 18 decimal places are rounded half-even.
        source: `override:<pattern>`, or `genai-prices <version>:<provider>/<model id>`. When the host keeps the
            catalogue updated (`genai_prices.UpdatePrices`), the version is followed by `+` and the time of the update.
        unit_prices: The unit prices in force for the model, as decimal texts, ready for JSON: USD per million tokens,
            and USD per thousand for `requests_kcount` and `web_searches_kcount`, the latter where the response has
            searches. A price that depends on the length of the input reads `3 (6 above 200000 input tokens)`.
    """

    cost_usd: Decimal
    source: str
    unit_prices: dict[str, str]
