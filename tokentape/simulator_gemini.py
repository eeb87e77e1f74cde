"""Gemini's generateContent, simulated. The contract is in simulator_dialects.

Each response is one piece of one candidate, and the counts so far. Framed with CRLF, and with neither event names nor
an end marker; without `alt=sse` the stream is one JSON array.

| the answer | parts |
|---|---|
| reasoning | text with `thought`, where thinkingConfig.includeThoughts asks for it. Else it is counted, not sent |
| content | text |
| tool call | functionCall, whole, once its last fragment is there; none for a call that was cut off |
| its end | an empty text or the last call, with finishReason |

Where there was reasoning, the first call or else the last part has a thoughtSignature. A call that comes back in a
later turn with another one is refused. Calls keep the ids that the answer gives them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .answer import Answer, Choice
from .answer_plan import to_json
from .errors import InvalidRequest
from .job import canonical_json
from .simulator_dialects import (
    FAILURE,
    Asked,
    Posted,
    Refusal,
    an_object,
    bearer,
    data_event,
    given,
    objects,
    request_id,
    sign,
)

Part = dict[str, Any]

_METHODS: Final = "generateContent|streamGenerateContent"
_FINISH_REASONS: Final = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS"}
_MODES: Final = {"AUTO": "auto", "VALIDATED": "auto", "ANY": "required", "NONE": "none"}
_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    504: "DEADLINE_EXCEEDED",
}
#: What Google documents for calls that were never signed, because another model made them; also as SDKs write bytes.
_UNSIGNED: Final = tuple(
    spelled
    for name in ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")
    for spelled in (name, base64.b64encode(name.encode()).decode())
)


class Gemini:
    """The dialect."""

    paths: tuple[str, ...] = (
        f"/v1beta/{{model:.+}}:{{method:{_METHODS}}}",
        f"/v1/{{model:.+}}:{{method:{_METHODS}}}",
    )

    def owns(self, path: str) -> bool:
        """Everything in v1beta, which is Google's; and what is asked by its methods."""
        return path.startswith("/v1beta/") or re.search(rf":({_METHODS})$", path) is not None

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """x-goog-api-key, or in the query; a bearer's token as with Vertex."""
        return headers.get("x-goog-api-key") or query.get("key") or bearer(headers)

    def read(self, posted: Posted) -> Asked:
        """A body of generateContent, as a chat.completions request. The model and the way are in the path."""
        body = posted.body
        place, _, method = posted.path.rpartition(":")
        config = an_object(_at(body, "generationConfig") or {}, "generation_config")
        thinking = an_object(_at(config, "thinkingConfig") or {}, "generation_config.thinking_config")
        if _at(thinking, "thinkingBudget") is not None and _at(thinking, "thinkingLevel") is not None:
            raise InvalidRequest("You can only set only one of thinking budget and thinking level.",
                                 field="generation_config.thinking_config")  # fmt: skip
        messages = list(_messages(body))
        if not any(message["role"] != "system" for message in messages):
            raise InvalidRequest("contents is not specified", field="contents")
        tools = list(_tools(body))
        request = given(
            model=place.split("/", 2)[2].removeprefix("models/"),
            messages=messages,
            max_tokens=_at(config, "maxOutputTokens"),
            n=_at(config, "candidateCount"),
            logprobs=_at(config, "responseLogprobs"),
            stream=method == "streamGenerateContent",
            tools=tools or None,
            tool_choice=_tool_choice(body),
            simulate=body.get("simulate"),
        )
        thoughts, sse = bool(_at(thinking, "includeThoughts")), posted.query.get("alt") == "sse"
        return Asked(request, lambda answer: ResponseWire(answer, thoughts=thoughts, sse=sse))

    def refusal(self, said: Refusal) -> Refusal:
        """google.rpc.Status. When to come again stands in the details, and a wrong key is a wrong argument."""
        error = said.body["error"]
        status, details = said.status, []
        if (delay := said.headers.get("Retry-After")) is not None:
            details.append(_detail("RetryInfo", retryDelay=f"{delay}s"))
        if error["param"]:
            violation = {"field": error["param"], "description": error["message"]}
            details.append(_detail("BadRequest", fieldViolations=[violation]))
        if error["code"] == "invalid_api_key":
            status = 400
            details.append(_detail("ErrorInfo", reason="API_KEY_INVALID", domain="googleapis.com"))
        name = _STATUSES.get(status, "UNAVAILABLE" if status > 500 else "INVALID_ARGUMENT")
        restated = {"code": status, "message": error["message"], "status": name, **given(details=details or None)}
        headers = {name: value for name, value in said.headers.items() if name != "Retry-After"}
        return Refusal(status, headers, {"error": restated})


@dataclass(slots=True)
class _Candidate:
    """One choice so far: the call whose fragments are coming, and whether something was signed."""

    call: dict[str, Any] | None = None
    fragments: list[str] = field(default_factory=list)
    thought: bool = False
    signed: bool = False

    def end_call(self) -> list[Part]:
        """The call, once its last fragment is there."""
        call, arguments = self.call, "".join(self.fragments)
        self.call = None
        self.fragments.clear()
        if call is None:
            return []
        parts = _call(call["id"], call["function"]["name"], arguments, signed=self.thought and not self.signed)
        self.signed = self.signed or bool(parts and self.thought)
        return parts


class ResponseWire:
    """Writes one answer. `thoughts`: whether reasoning is to be seen. `sse`: events, or one array."""

    def __init__(self, answer: Answer, *, thoughts: bool, sse: bool) -> None:
        self.content_type = "text/event-stream" if sse else "application/json"
        self.headers: Mapping[str, str] = {"X-Request-Id": request_id(answer)}
        self.line_end = b"\r\n"
        self.done = b"" if sse else b"\n]\n"
        self.malformed = b'data: {"candidates": [{"content"\n\n' if sse else b',\n{"candidates": [{"content"\n'
        self._answer = answer
        self._thoughts = thoughts
        self._sse = sse
        self._begun = False
        self._candidates = [_Candidate() for _ in answer.choices]
        self._counts = {"candidatesTokenCount": 0, "thoughtsTokenCount": 0}

    def packet(self, chunk: dict[str, Any]) -> bytes:
        choice = chunk["choices"][0]
        parts = self._parts(self._candidates[choice["index"]], choice)
        if not parts:
            return b""
        candidate = given(
            content={"parts": parts, "role": "model"},
            finishReason=_FINISH_REASONS.get(choice["finish_reason"]),
            logprobsResult=_logprobs(choice["logprobs"]),
        )
        return self._frame(self._response([{**candidate, "index": choice["index"]}]))

    def whole(self) -> dict[str, Any]:
        counts = self._answer.usage()
        thoughts = counts["completion_tokens_details"]["reasoning_tokens"]
        self._counts |= {"candidatesTokenCount": counts["completion_tokens"] - thoughts, "thoughtsTokenCount": thoughts}
        chunk = self._answer.completion()
        return self._response([
            given(
                content={"parts": self._all_parts(choice), "role": "model"},
                finishReason=_FINISH_REASONS[choice.finish_reason],
                index=choice.index,
                logprobsResult=_logprobs(chunk["choices"][choice.index]["logprobs"]),
            )
            for choice in self._answer.choices
        ])  # fmt: skip

    def failure(self) -> dict[str, Any]:
        return Gemini().refusal(FAILURE).body

    def failed(self) -> bytes:
        return self._frame(self.failure())

    def _parts(self, candidate: _Candidate, choice: dict[str, Any]) -> list[Part]:
        """What a chunk adds; nothing where a response would say nothing."""
        delta = choice["delta"]
        if choice["finish_reason"]:
            signed = candidate.thought and not candidate.signed and candidate.call is None
            return candidate.end_call() or [_text("", signed=signed)]
        if "reasoning_content" in delta:
            candidate.thought = True
            self._counts["thoughtsTokenCount"] += 1
            return [{"text": delta["reasoning_content"], "thought": True}] if self._thoughts else []
        if delta.get("content"):
            self._counts["candidatesTokenCount"] += 1
            return [_text(delta["content"])]
        parts: list[Part] = []
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                parts += candidate.end_call()
                candidate.call = call
            else:
                self._counts["candidatesTokenCount"] += 1
                candidate.fragments.append(call["function"]["arguments"])
        return parts

    def _all_parts(self, choice: Choice) -> list[Part]:
        parts: list[Part] = []
        if choice.reasoning and self._thoughts:
            parts.append({"text": "".join(choice.reasoning), "thought": True})
        if choice.content:
            parts.append(_text("".join(choice.content), signed=bool(choice.reasoning)))
        calls: list[Part] = []
        for call in choice.calls:
            calls += _call(call.id, call.name, "".join(call.fragments), signed=bool(choice.reasoning) and not calls)
        return parts + calls or [_text("")]

    def _response(self, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        counts = {name: count for name, count in self._counts.items() if count}
        prompt = self._answer.prompt_tokens
        return {
            "candidates": candidates,
            "usageMetadata": {
                "promptTokenCount": prompt,
                **counts,
                "totalTokenCount": prompt + sum(counts.values()),
            },
            "modelVersion": self._answer.model,
            "responseId": self._answer.digest[:22],
        }

    def _frame(self, response: dict[str, Any]) -> bytes:
        if self._sse:
            return data_event(response)
        mark = b",\n" if self._begun else b"["
        self._begun = True
        return mark + to_json(response).encode()


def _text(text: str, *, signed: bool = False) -> Part:
    return {"text": text, **({"thoughtSignature": sign("")} if signed else {})}


def _call(call_id: str, name: str, arguments: str, *, signed: bool) -> list[Part]:
    try:
        args = json.loads(arguments)
    except ValueError:
        return []
    signature = _signature(name, args) if signed else None
    return [{"functionCall": {"id": call_id, "name": name, "args": args}, **given(thoughtSignature=signature)}]


def _signature(name: object, args: object) -> str:
    return sign(f"{name}{canonical_json(args).decode()}")


def _logprobs(logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    chosen = [{"token": token["token"], "logProbability": token["logprob"]} for token in logprobs["content"]]
    return {"chosenCandidates": chosen, "topCandidates": [{"candidates": [token]} for token in chosen]}


def _detail(kind: str, **fields: object) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}


def _at(value: Mapping[str, Any], name: str) -> Any:
    """A field by its name in camelCase; in snake_case the API takes it too."""
    found = value.get(name)
    return value.get(re.sub("([A-Z])", r"_\1", name).lower()) if found is None else found


def _object_at(part: Part, name: str, where: str) -> dict[str, Any] | None:
    value = _at(part, name)
    return None if value is None else an_object(value, f"{where}.{name}")


def _messages(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each part a message of its own: what one side says is one turn all the same."""
    instruction = an_object(_at(body, "systemInstruction") or {}, "system_instruction")
    for _, part in objects(instruction.get("parts"), "system_instruction.parts"):
        yield {"role": "system", "content": part.get("text")}
    for at, content in objects(body.get("contents"), "contents"):
        role = content.get("role", "user")
        if role not in ("user", "model", "function"):
            raise InvalidRequest("Please use a valid role: user, model.", field=f"{at}.role")
        for where, part in objects(content.get("parts"), f"{at}.parts"):
            yield from _message("assistant" if role == "model" else "user", part, where)


def _message(role: str, part: Part, where: str) -> Iterator[dict[str, Any]]:
    """A part as a message; nothing for what does not count."""
    call, result = _object_at(part, "functionCall", where), _object_at(part, "functionResponse", where)
    inline, file = _object_at(part, "inlineData", where), _object_at(part, "fileData", where)
    if part.get("thought"):
        return
    if call is not None:
        name, args = call.get("name"), call.get("args") or {}
        signature = _at(part, "thoughtSignature")
        if signature not in (None, _signature(name, args), *_UNSIGNED):
            raise InvalidRequest("Thought signature is not valid.", field=where)
        function = {"name": name, "arguments": json.dumps(args)}
        yield {"role": role, "tool_calls": [{"id": call.get("id"), "type": "function", "function": function}]}
    elif result is not None:
        yield {"role": "tool", "tool_call_id": result.get("id"), "content": json.dumps(result.get("response"))}
    elif inline is not None:
        url = f"data:{_at(inline, 'mimeType')};base64,{inline.get('data')}"
        yield {"role": role, "content": [{"type": "file", "file": {"file_data": url}}]}
    elif file is not None:
        yield {"role": role, "content": [{"type": "file", "file": {"file_data": _at(file, "fileUri")}}]}
    elif isinstance(part.get("text"), str):
        yield {"role": role, "content": part["text"]}


def _tools(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for at, tool in objects(body.get("tools"), "tools"):
        for _, function in objects(_at(tool, "functionDeclarations"), f"{at}.function_declarations"):
            schema = _at(function, "parametersJsonSchema")
            schema = _lowered(function.get("parameters")) if schema is None else schema
            yield {"type": "function", "function": given(name=function.get("name"), parameters=schema)}


def _lowered(schema: Any) -> Any:
    """Google's own schemas write types in capitals: `STRING`."""
    if isinstance(schema, list):
        return [_lowered(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.lower() if name == "type" and isinstance(value, str) else _lowered(value)
        for name, value in schema.items()
    }


def _tool_choice(body: dict[str, Any]) -> str | dict[str, Any] | None:
    config = an_object(_at(body, "toolConfig") or {}, "tool_config")
    calling = an_object(_at(config, "functionCallingConfig") or {}, "tool_config.function_calling_config")
    mode = str(calling.get("mode", "AUTO")).upper()
    if mode not in _MODES:
        raise InvalidRequest(f"must be one of {', '.join(_MODES)}", field="tool_config.function_calling_config.mode")
    names = _at(calling, "allowedFunctionNames")
    if not names:
        return _MODES[mode]
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": _MODES[mode], "tools": tools}}
