"""The usage that a provider tells with a response, as counts of ours.

Every function takes the provider's usage as an object of its client or as the JSON object, and gives fields of
`Attempt.usage` and of `UsageEvent`. `tokens_in` includes all parts of the input, and `tokens_out` all parts of the
output. Counts of 0 are left out, so an empty result means that no usage was told.

The functions raise nothing, because a response that was billed must not be lost for a field of it:

- What is no whole number from 0 to 10**12 counts as not told. `True` is no number; 12.0 is 12.
- A whole is what the provider says that it is. A part that is larger than the room in its whole is cut to that room.
- A service tier that no price list of ours knows is left out, which means `standard`.

This module imports the standard library only: a hook command imports it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict, cast

MOST = 10**12
"""The largest count that an event may have."""
Tier = Literal["standard", "batch", "flex", "priority", "fast"]


class Counts(TypedDict, total=False):
    """Counts of one response, without zeros. The names are those of `UsageEvent`."""

    tokens_in: int
    tokens_out: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cache_write_1h_tokens: int
    audio_tokens_in: int
    cache_read_audio_tokens: int
    image_tokens_in: int
    cache_read_image_tokens: int
    video_tokens_in: int
    audio_tokens_out: int
    image_tokens_out: int
    web_searches: int
    service_tier: Tier


_TIERS: dict[str, Tier] = {
    "batch": "batch",
    "flex": "flex",
    "priority": "priority",
    "fast": "fast",
    "on_demand_priority": "priority",
    "on_demand_flex": "flex",
}


def number(value: Any) -> int:
    """The count; 0 where it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value if 0 <= value <= MOST else 0


def tier_counts(word: Any) -> Counts:
    """The service tier by the provider's word for it: a text or an enum. Nothing for the standard tier and others.

    `auto`, `default`, `scale`, `on_demand` and words that are not known are billed as standard, or not by token.
    """
    tier = _TIERS.get(str(getattr(word, "value", word)).lower())
    return {} if tier is None else {"service_tier": tier}


def openai_chat_counts(usage: Any) -> Counts:
    """The counts of `usage` of OpenAI's Chat Completions, and of APIs that are like them."""
    details_in, details_out = "prompt_tokens_details", "completion_tokens_details"
    return fitted(
        tokens_in=value_at(usage, "prompt_tokens"),
        tokens_out=value_at(usage, "completion_tokens"),
        cache_read_tokens=value_at(usage, details_in, "cached_tokens"),
        cache_write_tokens=value_at(usage, details_in, "cache_write_tokens"),
        audio_tokens_in=value_at(usage, details_in, "audio_tokens"),
        image_tokens_in=value_at(usage, details_in, "image_tokens"),
        reasoning_tokens=value_at(usage, details_out, "reasoning_tokens"),
        audio_tokens_out=value_at(usage, details_out, "audio_tokens"),
        image_tokens_out=value_at(usage, details_out, "image_tokens"),
    )


def openai_embedding_counts(usage: Any) -> Counts:
    """The counts of `usage` of OpenAI's embeddings: input only."""
    return fitted(tokens_in=value_at(usage, "prompt_tokens"))


def openai_responses_counts(usage: Any, output: Any = None) -> Counts:
    """The counts of `usage` of OpenAI's Responses, images and transcriptions.

    Args:
        usage: The usage.
        output: The response's `output`, where web searches stand. Only searches are billed, and not the opening of a
            page or the search in it.
    """
    details_in, details_out = "input_tokens_details", "output_tokens_details"
    if value_at(usage, details_in) is None:
        details_in = "input_token_details"  # a transcription's name of it
    return fitted(
        tokens_in=value_at(usage, "input_tokens"),
        tokens_out=value_at(usage, "output_tokens"),
        cache_read_tokens=value_at(usage, details_in, "cached_tokens"),
        cache_write_tokens=value_at(usage, details_in, "cache_write_tokens"),
        audio_tokens_in=value_at(usage, details_in, "audio_tokens"),
        image_tokens_in=value_at(usage, details_in, "image_tokens"),
        cache_read_audio_tokens=value_at(usage, details_in, "cached_tokens_details", "audio_tokens"),
        cache_read_image_tokens=value_at(usage, details_in, "cached_tokens_details", "image_tokens"),
        reasoning_tokens=value_at(usage, details_out, "reasoning_tokens"),
        audio_tokens_out=value_at(usage, details_out, "audio_tokens"),
        image_tokens_out=value_at(usage, details_out, "image_tokens"),
        web_searches=sum(
            value_at(item, "type") == "web_search_call" and value_at(item, "action", "type") in {None, "search"}
            for item in _list(output)
        ),
    )


def anthropic_counts(usage: Any) -> Counts:
    """The counts of `usage` of Anthropic's Messages, whose `input_tokens` are the input beside the cache.

    Anthropic gives one figure for all cache writes, or one for each lifetime of the cache, or both. Where both differ,
    the larger one counts. The tokens that the server used to compact the conversation are billed and are in no sum of
    the usage. They stand among its `iterations` (`BetaUsage` of Anthropic's client 2.14, December 2026).
    """
    tokens_in = read = written = written_1h = tokens_out = 0
    iterations = _list(value_at(usage, "iterations"))
    for part in (usage, *(one for one in iterations if value_at(one, "type") == "compaction")):
        by_time = [
            number(value_at(part, "cache_creation", name))
            for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
        ]
        read += number(value_at(part, "cache_read_input_tokens"))
        written += max(number(value_at(part, "cache_creation_input_tokens")), sum(by_time))
        written_1h += by_time[1]
        tokens_in += number(value_at(part, "input_tokens"))
        tokens_out += number(value_at(part, "output_tokens"))
    counts = fitted(
        tokens_in=tokens_in + read + written,
        tokens_out=tokens_out,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=written_1h,
        reasoning_tokens=value_at(usage, "output_tokens_details", "thinking_tokens"),
        web_searches=value_at(usage, "server_tool_use", "web_search_requests"),
    )
    is_fast = value_at(usage, "speed") == "fast"
    counts.update({"service_tier": "fast"} if is_fast else tier_counts(value_at(usage, "service_tier")))
    return counts


def google_counts(usage: Any) -> Counts:
    """The counts of the usage metadata of Google's generateContent, by the names of Python or of JSON.

    The results of tools that Google ran are input, beside the prompt. The output is what the total has beside the
    input: some sources count thoughts as candidates too, and some leave them out of both.
    """
    prompt = number(_google(usage, "prompt_token_count"))
    tokens_in = prompt + number(_google(usage, "tool_use_prompt_token_count"))
    thoughts = number(_google(usage, "thoughts_token_count"))
    total = number(_google(usage, "total_token_count"))
    tokens_out = number(_google(usage, "candidates_token_count")) + thoughts
    if total > tokens_in:
        tokens_out = total - tokens_in
    put_in, cached, put_out = (
        _modalities(usage, *names)
        for names in (
            ("prompt_tokens_details", "tool_use_prompt_tokens_details"),
            ("cache_tokens_details",),
            ("candidates_tokens_details",),
        )
    )
    counts = fitted(
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cache_read_tokens=_google(usage, "cached_content_token_count"),
        reasoning_tokens=thoughts,
        audio_tokens_in=put_in.get("AUDIO"),
        cache_read_audio_tokens=cached.get("AUDIO"),
        image_tokens_in=put_in.get("IMAGE"),
        cache_read_image_tokens=cached.get("IMAGE"),
        # Cached video has no class of its own: it stays in what was read from the cache.
        video_tokens_in=max(0, put_in.get("VIDEO", 0) - cached.get("VIDEO", 0)),
        audio_tokens_out=put_out.get("AUDIO"),
        image_tokens_out=put_out.get("IMAGE"),
    )
    counts.update(tier_counts(_google(usage, "traffic_type")))
    return counts


def fitted(
    *,
    tokens_in: Any = 0,
    tokens_out: Any = 0,
    cache_read_tokens: Any = 0,
    cache_write_tokens: Any = 0,
    cache_write_1h_tokens: Any = 0,
    audio_tokens_in: Any = 0,
    cache_read_audio_tokens: Any = 0,
    image_tokens_in: Any = 0,
    cache_read_image_tokens: Any = 0,
    video_tokens_in: Any = 0,
    reasoning_tokens: Any = 0,
    audio_tokens_out: Any = 0,
    image_tokens_out: Any = 0,
    web_searches: Any = 0,
) -> Counts:
    """The counts, such that every part fits in its whole, and without zeros. Each may be whatever a source gave."""
    all_in, all_out = number(tokens_in), number(tokens_out)
    read = min(number(cache_read_tokens), all_in)
    written = min(number(cache_write_tokens), all_in - read)
    room = all_in - read - written
    cached_room = read
    media: dict[str, tuple[int, int]] = {}
    for name, told, told_cached in (
        ("audio", audio_tokens_in, cache_read_audio_tokens),
        ("image", image_tokens_in, cache_read_image_tokens),
    ):
        count = number(told)
        # What finds no room beside the cache was read from it, even where the source does not say so.
        cached = min(max(number(told_cached), count - room), count, cached_room)
        beside = min(count - cached, room)
        room, cached_room = room - beside, cached_room - cached
        media[name] = (beside + cached, cached)
    reasoning = min(number(reasoning_tokens), all_out)
    audio_out = min(number(audio_tokens_out), all_out - reasoning)
    counts: Counts = {
        "tokens_in": all_in,
        "tokens_out": all_out,
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "reasoning_tokens": reasoning,
        "cache_write_1h_tokens": min(number(cache_write_1h_tokens), written),
        "audio_tokens_in": media["audio"][0],
        "cache_read_audio_tokens": media["audio"][1],
        "image_tokens_in": media["image"][0],
        "cache_read_image_tokens": media["image"][1],
        "video_tokens_in": min(number(video_tokens_in), room),
        "audio_tokens_out": audio_out,
        "image_tokens_out": min(number(image_tokens_out), all_out - reasoning - audio_out),
        "web_searches": number(web_searches),
    }
    return cast(Counts, {name: count for name, count in counts.items() if count})


def value_at(source: Any, *path: str) -> Any:
    """The value at a path of keys or attributes; None where the path ends early. Runtimes give objects and dicts."""
    for name in path:
        if source is None:
            return None
        if type(source) is dict or isinstance(source, Mapping):  # to ask a class for `Mapping` is slow
            source = source.get(name)
        else:
            source = getattr(source, name, None)
    return source


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else ()


def _google(usage: Any, name: str) -> Any:
    """The value by its name in Python, or by its name in JSON."""
    value = value_at(usage, name)
    # Objects of Google's client have all names of Python, mostly with None. They raise for a name that they lack.
    if value is None and name not in getattr(usage, "__dict__", ()):
        first, *others = name.split("_")
        value = value_at(usage, first + "".join(map(str.capitalize, others)))
    return value


def _modalities(usage: Any, *names: str) -> dict[str, int]:
    """The tokens by modality, of all details that have these names."""
    sums: dict[str, int] = {}
    for name in names:
        for detail in _list(_google(usage, name)):
            modality = value_at(detail, "modality")
            modality = str(getattr(modality, "value", modality)).upper()
            sums[modality] = sums.get(modality, 0) + number(_google(detail, "token_count"))
    return sums
