"""Anthropic's Messages."""

import json
from collections.abc import Iterator

from support.model_apis.dialect import Dialect, Json, Served, pieces, texts_of


class Anthropic(Dialect):
    api, id_prefix = "anthropic", "msg_"

    def read(self) -> None:
        for message in self.body.get("messages") or []:
            content = message.get("content")
            if message.get("role") == "assistant":
                self.turn += 1
                blocks = content if isinstance(content, list) else []
                self.called += [block["name"] for block in blocks if block.get("type") == "tool_use"]
            elif texts_of(content).strip():
                self.prompt = texts_of(content)

    def offered(self) -> dict[str, Json]:
        tools = [tool for tool in self.body.get("tools") or [] if "input_schema" in tool]
        return {tool["name"]: tool["input_schema"] for tool in tools}

    def count(self, served: Served) -> None:
        served.tokens_in, served.tokens_out = 7120 + self.turn, 64 + self.turn
        served.cache_read_tokens, served.reasoning_tokens = 5000, 20
        served.cache_write_tokens, served.cache_write_1h_tokens = 2000, 500

    def _usage(self, served: Served) -> Json:
        if not served.tells_usage:
            return {"input_tokens": 0, "output_tokens": 0}
        usage: Json = {
            "input_tokens": 120 + self.turn,
            "cache_creation_input_tokens": 2000,
            "cache_creation": {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500},
            "cache_read_input_tokens": 5000,
            "output_tokens": served.tokens_out,
            "output_tokens_details": {"thinking_tokens": 20},
            "service_tier": "priority" if "priority" in self.words else "standard",
            "inference_geo": "not_available",
        }
        if "search" in self.words:
            usage["server_tool_use"] = {"web_search_requests": 2, "web_fetch_requests": 0}
        return usage

    def _block(self) -> Json:
        if self.tool:
            call_id, name, arguments = self.tool
            return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}
        wanted = (self.body.get("output_config") or {}).get("format") or self.body.get("output_format") or {}
        return {"type": "text", "text": self.text(wanted.get("schema"))}

    def _reason(self) -> str:
        return "tool_use" if self.tool else "end_turn"

    def _message(self, served: Served) -> Json:
        told = {"id": served.response_id, "type": "message", "role": "assistant", "model": served.served_model}
        return {**told, "content": [], "stop_reason": None, "stop_sequence": None}

    def whole(self, served: Served) -> Json:
        told = {"content": [self._block()], "stop_reason": self._reason(), "usage": self._usage(served)}
        return {**self._message(served), **told}

    def error(self, status: int) -> Json:
        kind = "rate_limit_error" if status == 429 else "api_error"
        return {"type": "error", "error": {"type": kind, "message": "Rate limited" if status == 429 else "Internal"}}

    def events(self, served: Served) -> Iterator[Json | str]:
        usage = self._usage(served)
        begun = {name: value for name, value in usage.items() if name != "output_tokens_details"}
        begun["output_tokens"] = min(3, usage["output_tokens"])
        yield {"type": "message_start", "message": {**self._message(served), "usage": begun}}
        block = self._block()
        empty: Json = {**block, "input": {}} if self.tool else {**block, "text": ""}
        yield {"type": "content_block_start", "index": 0, "content_block": empty}
        for piece in pieces(json.dumps(block["input"]) if self.tool else block["text"]):
            delta = (
                {"type": "input_json_delta", "partial_json": piece}
                if self.tool
                else {"type": "text_delta", "text": piece}
            )
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        last = {name: value for name, value in usage.items() if name in _DELTA_COUNTS}
        reason = {"stop_reason": self._reason(), "stop_sequence": None}
        yield {"type": "message_delta", "delta": reason, "usage": last}
        yield {"type": "message_stop"}


_DELTA_COUNTS = {
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
}
