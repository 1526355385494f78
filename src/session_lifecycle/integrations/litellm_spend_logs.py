"""Rows of LiteLLM's table `LiteLLM_SpendLogs`, as items: a usage event for each request.

The columns are those of LiteLLM's `schema.prisma` (https://github.com/BerriAI/litellm/blob/main/schema.prisma). The
details of usage stand in the column `metadata`, under `usage_object` or `additional_usage_values`.
"""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.integrations.counts import Counts, fitted, number, openai_chat_counts, value_at
from session_lifecycle.integrations.foreign_import import ForeignRow, amount_of, made, moment_of, owner, whole_of
from session_lifecycle.models import Item, Touch, UsageEvent

UNMAPPED = (
    *("api_key", "api_base", "cache_key", "completionStartTime", "end_user", "model_group", "model_id"),
    *("organization_id", "mcp_namespaced_tool_name", "messages", "proxy_server_request", "requester_ip_address"),
    *("response", "request_tags", "team_id"),
)
"""The columns that have no place here."""
_EMPTY: tuple[Any, ...] = (None, "", "{}", "[]", {}, [], "None", "Cache OFF")
_DETAILS = ("prompt_tokens_details", "completion_tokens_details")


def spend_log_row(where: str, row: Mapping[str, Any], default_owner: UUID | None) -> ForeignRow:
    """The items of a row.

    A request is an event of its session: `session_id`, or where the row has none, the request itself. `user` is the
    owner where it is a UUID, else the default owner. The time of use is `endTime`. `spend` is the cost, as it is given.
    LiteLLM also writes 0 for a model whose price it does not know, so tokens that cost 0 are priced by our catalogue.

    Raises:
        InvalidValueError: A field is refused.
    """
    request_id = row.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise InvalidValueError("request_id", request_id, "the id of the request")
    metadata = _object(row.get("metadata"))
    spend = amount_of("spend", row.get("spend"))
    counts = _counts(row, metadata)
    has_failed = "failure" in (row.get("status"), metadata.get("status"))
    key = {
        "user_id": owner("user", row.get("user"), default_owner),
        "session_id": row.get("session_id") or request_id,
    }
    # LiteLLM answers from a cache of its own with the counts of the first answer, which nobody used again.
    is_cached = str(row.get("cache_hit")).lower() == "true"
    if not spend and (is_cached or (not counts and not has_failed)):
        return ForeignRow(where, [])
    used_at = moment_of("endTime", row.get("endTime"))
    items: list[Item] = [
        made(Touch, **key, agent_name=row.get("agent_id") or None, at=moment_of("startTime", row.get("startTime"))),
        made(
            UsageEvent,
            **key,
            **counts,
            model=row.get("model") or None,
            provider=row.get("custom_llm_provider") or None,
            cost_usd=spend or (None if counts else spend),
            errored=has_failed,
            kind="embedding" if "embedding" in str(row.get("call_type")) else "llm",
            idempotency_key=request_id,
            at=used_at,
        ),
    ]
    return ForeignRow(where, items)


def unmapped_fields(row: Mapping[str, Any]) -> list[str]:
    """The columns of the row that have a value and no place here."""
    return [name for name in UNMAPPED if row.get(name) not in _EMPTY]


def _counts(row: Mapping[str, Any], metadata: Mapping[str, Any]) -> Counts:
    """The counts of a row. LiteLLM's `prompt_tokens` have the tokens of the cache in them, whoever answered."""
    details = metadata.get("usage_object") or metadata.get("additional_usage_values") or {}
    # The columns say how much there was, and the details what parts of it there were.
    usage = {
        "prompt_tokens": whole_of("prompt_tokens", row.get("prompt_tokens")),
        "completion_tokens": whole_of("completion_tokens", row.get("completion_tokens")),
        **{name: value_at(details, name) for name in _DETAILS},
    }
    counts = openai_chat_counts(usage)
    read = max(counts.get("cache_read_tokens", 0), number(value_at(details, "cache_read_input_tokens")))
    written = max(counts.get("cache_write_tokens", 0), number(value_at(details, "cache_creation_input_tokens")))
    parts: dict[str, Any] = {name: value for name, value in counts.items() if name != "service_tier"}
    return fitted(**{**parts, "cache_read_tokens": read, "cache_write_tokens": written})


def _object(value: Any) -> dict[str, Any]:
    """An object of JSON, or its text as CSV has it; empty where it is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
