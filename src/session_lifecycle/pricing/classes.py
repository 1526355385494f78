"""The classes of use that have a price: our count, the catalogue's names, and the field of `PriceOverride`."""

from dataclasses import dataclass

from session_lifecycle.models.usage_classes import WHOLES

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class UsageClass:
    """One class of use. Names of genai-prices are those of version 0.2.3 (`genai_prices.data_units`).

    Attributes:
        field: Our count of it, a name in `WHOLES`.
        usage_key: The count in `genai_prices.Usage`.
        price_key: The unit price in an entry of genai-prices.
        override_field: The unit price in `PriceOverride`.
        priced_as: The class whose price counts where a list of prices does not name this class. None: such a use is
            unpriced.
        override_priced_as: The same for a `PriceOverride`.
        per: How many the unit price is for.
    """

    field: str
    usage_key: str
    price_key: str
    override_field: str
    priced_as: str | None = None
    override_priced_as: str | None = None
    per: int = MILLION

    @property
    def wholes(self) -> tuple[str, ...]:
        """The counts that this class is a part of."""
        return WHOLES[self.field]


def _million(
    field: str,
    usage_key: str,
    override: str,
    *,
    priced_as: str | None = None,
    override_priced_as: str | None = None,
) -> UsageClass:
    price_key = f"{usage_key.removesuffix('_tokens')}_mtok"
    other = override_priced_as or priced_as
    return UsageClass(field, usage_key, price_key, f"{override}_usd_per_million", priced_as, other)


# Price pages that do not list images or video bill them as the input that they are part of, and reasoning as output:
# "$0.30 (text / image / video) $1.00 (audio)", https://ai.google.dev/gemini-api/docs/pricing
_ALL = (
    _million("tokens_in", "input_tokens", "input"),
    _million("tokens_out", "output_tokens", "output"),
    _million("cache_read_tokens", "cache_read_tokens", "cache_read", override_priced_as="tokens_in"),
    _million("cache_write_tokens", "cache_write_tokens", "cache_write", override_priced_as="tokens_in"),
    _million("cache_write_1h_tokens", "cache_write_1h_tokens", "cache_write_1h"),
    _million("audio_tokens_in", "input_audio_tokens", "audio_in"),
    _million("cache_read_audio_tokens", "cache_audio_read_tokens", "cache_read_audio"),
    _million("image_tokens_in", "input_image_tokens", "image_in", priced_as="tokens_in"),
    _million("cache_read_image_tokens", "cache_image_read_tokens", "cache_read_image", priced_as="cache_read_tokens"),
    _million("video_tokens_in", "input_video_tokens", "video_in", priced_as="tokens_in"),
    _million("reasoning_tokens", "output_reasoning_tokens", "reasoning", priced_as="tokens_out"),
    _million("audio_tokens_out", "output_audio_tokens", "audio_out"),
    _million("image_tokens_out", "output_image_tokens", "image_out"),
    UsageClass("web_searches", "web_searches", "web_searches_kcount", "web_search_usd_per_thousand", per=1_000),
)
CLASSES = {one.field: one for one in _ALL}
"""Every class of use by our count of it, in the order of `WHOLES`."""

REQUESTS_KEY = "requests_kcount"
"""The unit price of one response, per thousand. It is charged once per event and has no count."""
TOKEN_PRICE_KEYS = tuple(one.price_key for one in _ALL if one.per == MILLION)
"""The unit prices of tokens."""
PRICE_KEYS = (*(one.price_key for one in _ALL), REQUESTS_KEY)
"""All unit prices that we use."""
