"""Google GenAI's generateContent."""

from collections.abc import Iterator

from support.model_apis.dialect import Dialect, Json, Served, pieces, texts_of, told_as_called


class Google(Dialect):
    api, id_prefix = "google", "google_"

    def read(self) -> None:
        for content in self.body.get("contents") or []:
            parts = content.get("parts") or []
            if content.get("role") == "model":
                self.turn += 1
                self.called += [part["functionCall"]["name"] for part in parts if "functionCall" in part]
            elif texts_of(parts).strip():
                text = texts_of(parts)
                self.called += told_as_called(text)
                if not text.startswith("For context:"):
                    self.prompt = text

    def offered(self) -> dict[str, Json]:
        functions = [
            one
            for tool in self.body.get("tools") or []
            for one in tool.get("functionDeclarations") or tool.get("function_declarations") or []
        ]
        return {
            one["name"]: one.get("parameters")
            or one.get("parametersJsonSchema")
            or one.get("parameters_json_schema")
            or {}
            for one in functions
        }

    def count(self, served: Served) -> None:
        served.tokens_in, served.tokens_out = 1500 + 10 * self.turn, 80 + self.turn
        served.cache_read_tokens, served.reasoning_tokens = 1024, 20

    def error(self, status: int) -> Json:
        name = "RESOURCE_EXHAUSTED" if status == 429 else "INTERNAL"
        return {"error": {"code": status, "message": "The service had an error", "status": name}}

    def _usage(self, served: Served) -> Json:
        if not served.tells_usage:
            return {}
        usage: Json = {
            "promptTokenCount": served.tokens_in,
            "candidatesTokenCount": served.tokens_out - 20,
            "thoughtsTokenCount": 20,
            "cachedContentTokenCount": 1024,
            "totalTokenCount": served.tokens_in + served.tokens_out,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": served.tokens_in}],
        }
        return {"usageMetadata": usage}

    def _chunk(self, served: Served, parts: list[Json], reason: str | None) -> Json:
        candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
        if reason:
            candidate["finishReason"] = reason
        told = {"modelVersion": served.served_model, "responseId": served.response_id}
        return {"candidates": [candidate], **told}

    def _parts(self) -> list[Json]:
        if self.tool:
            call_id, name, arguments = self.tool
            return [{"functionCall": {"id": call_id, "name": name, "args": arguments}}]
        wanted = self.body.get("generationConfig") or {}
        return [{"text": self.text(wanted.get("responseJsonSchema") or wanted.get("responseSchema"))}]

    def whole(self, served: Served) -> Json:
        return self._chunk(served, self._parts(), "STOP") | self._usage(served)

    def events(self, served: Served) -> Iterator[Json | str]:
        parts = self._parts()
        if not self.tool:
            for piece in pieces(parts[0]["text"]):
                begun = self._usage(served)
                if begun:  # a stream tells its counts so far with each piece
                    counts = begun["usageMetadata"]
                    counts |= {"candidatesTokenCount": 1, "totalTokenCount": served.tokens_in + 21}
                yield self._chunk(served, [{"text": piece}], None) | begun
            parts = [{"text": ""}]
        yield self._chunk(served, parts, "STOP") | self._usage(served)
