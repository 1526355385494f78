"""The classes of use: which count is part of which, and what is left of a count after the parts inside it."""

from collections.abc import Mapping
from typing import Literal

ServiceTier = Literal["standard", "batch", "flex", "priority", "fast"]
"""The service tier that a response was billed in. `fast` is Anthropic's fast mode, and OpenAI's tier of that name."""

WHOLES: dict[str, tuple[str, ...]] = {
    "tokens_in": (),
    "tokens_out": (),
    "cache_read_tokens": ("tokens_in",),
    "cache_write_tokens": ("tokens_in",),
    "cache_write_1h_tokens": ("cache_write_tokens",),
    "audio_tokens_in": ("tokens_in",),
    "cache_read_audio_tokens": ("cache_read_tokens", "audio_tokens_in"),
    "image_tokens_in": ("tokens_in",),
    "cache_read_image_tokens": ("cache_read_tokens", "image_tokens_in"),
    "video_tokens_in": ("tokens_in",),
    "reasoning_tokens": ("tokens_out",),
    "audio_tokens_out": ("tokens_out",),
    "image_tokens_out": ("tokens_out",),
    "web_searches": (),
}
"""Every class of use by the name of its count, and the counts that it is a part of."""


def _parts_inside(whole: str) -> tuple[str, ...]:
    """Every part of the count, and every part of its parts, each once."""
    parts = [part for part, wholes in WHOLES.items() if whole in wholes]
    return tuple(dict.fromkeys([*parts, *(inner for part in parts for inner in _parts_inside(part))]))


_PARTS_INSIDE = {field: _parts_inside(field) for field in WHOLES}
_FINEST_FIRST = tuple(
    (field, _PARTS_INSIDE[field]) for field in sorted(WHOLES, key=lambda one: len(_PARTS_INSIDE[one]))
)


def shares(counts: Mapping[str, int]) -> dict[str, int]:
    """What is left of each count after all parts inside it: every token is in exactly one share.

    Cached audio is taken out of `cache_read_tokens` and out of `audio_tokens_in`, and once out of `tokens_in`. A share
    is negative where the parts are larger than their whole; `excess` then says which part is refused.

    Args:
        counts: The counts by the names in `WHOLES`. A missing count is 0. Other names are ignored.

    Returns:
        The shares that are not 0.
    """
    left: dict[str, int] = {}
    for field, parts in _FINEST_FIRST:
        share = counts.get(field, 0)
        for part in parts:
            share -= left.get(part, 0)
        if share:
            left[field] = share
    return left


def excess(counts: Mapping[str, int]) -> tuple[str, str] | None:
    """The part that is larger than its whole, and what is expected of it; None where every part fits.

    Parts that are only together larger than their whole are refused too; the last of them is the part that is named.
    """
    whole = next((field for field, share in shares(counts).items() if share < 0), None)
    if whole is None:
        return None
    limit = f"at most {whole} ({counts.get(whole, 0)})"
    parts = [part for part, wholes in WHOLES.items() if whole in wholes and counts.get(part)]
    too_large = next((part for part in parts if counts[part] > counts.get(whole, 0)), None)
    if too_large is not None:
        return too_large, limit
    overlap = any(len(set(wholes) & set(parts)) > 1 for wholes in WHOLES.values())
    together = f"{', '.join(parts[:-1])} and {parts[-1]} that are together {limit}"
    return parts[-1], f"{together}, with what counts in two of them taken once" if overlap else together
