"""OpenAI's APIs: Chat Completions, Responses, embeddings, images."""

import json
from collections.abc import Iterator
from typing import Any

from support.model_apis.dialect import Dialect, Json, Served, pieces, texts_of, told_as_called


class Chat(Dialect):
    api, id_prefix = "chat", "chatcmpl-"

    def read(self) -> None:
        for message in self.body.get("messages") or []:
            if message.get("role") == "user" and texts_of(message.get("content")).strip():
                text = texts_of(message["content"])
                self.called += told_as_called(text)
                if not text.startswith("For context:"):
                    self.prompt = text
            elif message.get("role") == "assistant":
                self.turn += 1
                self.called += [call["function"]["name"] for call in message.get("tool_calls") or []]

    def offered(self) -> dict[str, Json]:
        tools = [tool["function"] for tool in self.body.get("tools") or [] if tool.get("type") == "function"]
        return {tool["name"]: tool.get("parameters") or {} for tool in tools}

    def _usage(self, served: Served) -> Json | None:
        if not served.tells_usage:
            return None
        return {
            "prompt_tokens": served.tokens_in,
            "completion_tokens": served.tokens_out,
            "total_tokens": served.tokens_in + served.tokens_out,
            "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0, "cache_write_tokens": 64},
            "completion_tokens_details": {
                "reasoning_tokens": 48,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def _schema(self) -> Json | None:
        wanted = self.body.get("response_format") or {}
        schema: Json | None = (wanted.get("json_schema") or {}).get("schema")
        return schema

    def _common(self, served: Served, kind: str) -> Json:
        told = {"id": served.response_id, "object": kind, "created": 1795000000, "model": served.served_model}
        return {**told, "service_tier": self._tier()}

    def whole(self, served: Served) -> Json:
        message: Json = {"role": "assistant", "content": self.text(self._schema()), "refusal": None, "annotations": []}
        if self.tool:
            call_id, name, arguments = self.tool
            function = {"name": name, "arguments": json.dumps(arguments)}
            message |= {"content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]}
        reason = "tool_calls" if self.tool else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        whole = {**self._common(served, "chat.completion"), "choices": [choice]}
        usage = self._usage(served)
        return whole if usage is None else whole | {"usage": usage}

    def events(self, served: Served) -> Iterator[Json | str]:
        wants_usage = bool((self.body.get("stream_options") or {}).get("include_usage"))
        served.tells_usage = served.tells_usage and wants_usage
        common = self._common(served, "chat.completion.chunk") | ({"usage": None} if wants_usage else {})

        def chunk(delta: Json, reason: str | None = None) -> Json:
            return {
                **common,
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}],
            }

        yield chunk({"role": "assistant", "content": "" if self.tool is None else None})
        if self.tool:
            call_id, name, arguments = self.tool
            call = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            yield chunk({"tool_calls": [call]})
            for piece in pieces(json.dumps(arguments)):
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        else:
            for piece in pieces(self.text(self._schema())):
                yield chunk({"content": piece})
        yield chunk({}, "tool_calls" if self.tool else "stop")
        if served.tells_usage:
            yield {**common, "choices": [], "usage": self._usage(served)}
        yield "[DONE]"


class Responses(Dialect):
    api, id_prefix = "responses", "resp_"

    def read(self) -> None:
        self.turn, called, self.prompt = self._kept.remembered(self.body.get("previous_response_id"))
        self.called = list(called)
        items = self.body.get("input")
        if isinstance(items, str):
            self.prompt = items
            return
        was_answer = False
        for item in items or []:
            kind = item.get("type", "message")
            is_answer = kind in {"reasoning", "function_call"} or item.get("role") == "assistant"
            if is_answer and not was_answer:
                self.turn += 1
            was_answer = is_answer
            if kind == "function_call":
                self.called.append(item["name"])
            elif item.get("role") == "user":
                text = texts_of(item.get("content"))
                self.prompt = text if text.strip() else self.prompt

    def offered(self) -> dict[str, Json]:
        tools = [tool for tool in self.body.get("tools") or [] if tool.get("type") == "function"]
        return {tool["name"]: tool.get("parameters") or {} for tool in tools}

    def _response(self, served: Served, status: str = "completed") -> Json:
        is_over = status == "completed"
        usage = {
            "input_tokens": served.tokens_in,
            "input_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 64},
            "output_tokens": served.tokens_out,
            "output_tokens_details": {"reasoning_tokens": 48},
            "total_tokens": served.tokens_in + served.tokens_out,
        }
        return {
            "id": served.response_id,
            "object": "response",
            "created_at": 1795000000,
            "status": status,
            "background": bool(self.body.get("background")),
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": served.served_model,
            "output": self._output(served) if is_over else [],
            "parallel_tool_calls": True,
            "previous_response_id": self.body.get("previous_response_id"),
            "service_tier": self._tier() if is_over else "auto",
            "temperature": 1.0,
            "text": self.body.get("text") or {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": self.body.get("tools") or [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": usage if is_over and served.tells_usage else None,
            "user": None,
        }

    def _item_id(self, served: Served) -> str:
        return served.response_id.replace("resp_", "fc_" if self.tool else "msg_")

    def _output(self, served: Served) -> list[Json]:
        searches = [
            {
                "id": f"ws_{number}",
                "type": "web_search_call",
                "status": "completed",
                "action": {"type": "search", "query": "Tartu"},
            }
            for number in range(2 if "search" in self.words else 0)
        ]
        return [*searches, self._item(served)]

    def _item(self, served: Served) -> Json:
        if self.tool:
            call_id, name, arguments = self.tool
            told = {"id": self._item_id(served), "type": "function_call", "status": "completed", "call_id": call_id}
            return {**told, "name": name, "arguments": json.dumps(arguments)}
        text = {"type": "output_text", "text": self._answer(), "annotations": [], "logprobs": []}
        told = {"id": self._item_id(served), "type": "message", "status": "completed", "role": "assistant"}
        return {**told, "content": [text]}

    def _answer(self) -> str:
        wanted = (self.body.get("text") or {}).get("format") or {}
        return self.text(wanted.get("schema"))

    def whole(self, served: Served) -> Json:
        if self.body.get("background"):
            self._kept.made[served.response_id] = self._response(served)
            return self._response(served, "queued")
        return self._response(served)

    def failure(self, served: Served) -> Json:
        failed = self._response(served, "failed")
        failed["error"] = {"code": "server_error", "message": "The server had an error"}
        return {"type": "response.failed", "sequence_number": 3, "response": failed}

    def events(self, served: Served) -> Iterator[Json | str]:
        numbers = iter(range(1000))
        if self.body.get("background"):
            self._kept.made[served.response_id] = self._response(served)

        def event(kind: str, **fields: Any) -> Json:
            return {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}

        item, item_id = self._item(served), self._item_id(served)
        place = {"item_id": item_id, "output_index": 0}
        yield event("created", response=self._response(served, "in_progress"))
        yield event("in_progress", response=self._response(served, "in_progress"))
        if self.tool:
            begun = {**item, "status": "in_progress", "arguments": ""}
            yield event("output_item.added", output_index=0, item=begun)
            for piece in pieces(item["arguments"]):
                yield event("function_call_arguments.delta", **place, delta=piece)
            done = {**place, "arguments": item["arguments"], "name": item["name"]}
            yield event("function_call_arguments.done", **done)
        else:
            place["content_index"] = 0
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield event("output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []})
            yield event("content_part.added", **place, part=empty)
            for piece in pieces(self._answer()):
                yield event("output_text.delta", **place, delta=piece, logprobs=[])
            yield event("output_text.done", **place, text=self._answer(), logprobs=[])
            yield event("content_part.done", **place, part=item["content"][0])
        yield event("output_item.done", output_index=0, item=item)
        yield event("completed", response=self._response(served))


class Decisions(Responses):
    api = "decisions"

    def whole(self, served: Served) -> Json:
        response = self._response(served)
        return {
            "answers": [{"type": "predicate", "probability": 0.5}],
            "model": response["model"],
            "usage": response["usage"],
        }


class Embeddings(Dialect):
    api, id_prefix = "embeddings", "emb_"

    def read(self) -> None:
        self.prompt = texts_of(self.body.get("input"))
        self.is_stream = False

    def count(self, served: Served) -> None:
        served.tokens_in = 8

    def whole(self, served: Served) -> Json:
        embedding = "AACAPwAAAEA=" if self.body.get("encoding_format") == "base64" else [1.0, 2.0]
        data = [{"object": "embedding", "index": 0, "embedding": embedding}]
        whole: Json = {"object": "list", "data": data, "model": served.served_model}
        return whole | ({"usage": {"prompt_tokens": 8, "total_tokens": 8}} if served.tells_usage else {})


class Images(Dialect):
    api, id_prefix = "images", "img_"

    def read(self) -> None:
        self.prompt = texts_of(self.body.get("prompt"))
        self.is_stream = False

    def count(self, served: Served) -> None:
        served.tokens_in, served.tokens_out = 50, 1056

    def whole(self, served: Served) -> Json:
        usage: Json = {
            "input_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens": 1056,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": 1056},
            "total_tokens": 1106,
        }
        whole: Json = {"created": 1795000000, "data": [{"b64_json": "AAAA"}]}
        return whole | ({"usage": usage} if served.tells_usage else {})
