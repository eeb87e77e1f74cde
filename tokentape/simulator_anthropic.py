"""Anthropic's Messages API, simulated. The contract is in simulator_dialects.

| the answer | events |
|---|---|
| its beginning | message_start, ping |
| reasoning | a thinking block, where the request asks for thinking, and its signature. Else it is counted, not sent |
| content, tool calls | a text block; a tool_use block for each, the arguments as input_json_delta |
| its end | message_delta with stop_reason and the usage, whose counts are cumulative; message_stop |

There is one answer to a call: `n` is unknown here. Calls keep the ids that the answer gives them. Thinking that an
earlier turn sends back is refused where its signature is not the one it was given. 503 is unknown to this API, which
says 529, overloaded.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from .answer import Answer, Choice
from .answer_plan import to_json
from .errors import InvalidRequest
from .simulator_dialects import FAILURE, Asked, Posted, Refusal, an_object, bearer, given, objects, request_id, sign

#: Whether thinking is asked for, and whether its text is to be seen.
Thinking = Literal["shown", "omitted"] | None

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_LEAST_BUDGET: Final = 1024
_ERRORS: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Anthropic:
    """The dialect."""

    paths: tuple[str, ...] = ("/v1/messages", "/messages")

    def owns(self, path: str) -> bool:
        """Messages, and what stands below."""
        return path.removeprefix("/v1").split("/")[1:2] == ["messages"]

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:  # noqa: ARG002 - keys are in headers
        """x-api-key; some ways in take a bearer's token."""
        return headers.get("x-api-key") or bearer(headers)

    def read(self, posted: Posted) -> Asked:
        """A body of the Messages API, as a chat.completions request."""
        if "anthropic-version" not in posted.headers:
            raise InvalidRequest("header is required", field="anthropic-version")
        body = posted.body
        for name in ("model", "messages", "max_tokens"):
            if not body.get(name):
                raise InvalidRequest("Field required", field=name)
        thinking = _thinking(body)
        tools = [
            {"type": "function", "function": given(name=tool.get("name"), parameters=tool["input_schema"])}
            for _, tool in objects(body.get("tools"), "tools")
            if "input_schema" in tool  # others run at Anthropic's
        ]
        request = given(
            model=body["model"],
            messages=list(_messages(body)),
            max_tokens=body["max_tokens"],
            stream=body.get("stream"),
            tools=tools or None,
            simulate=body.get("simulate"),
            **_tool_choice(body.get("tool_choice")),
        )
        return Asked(request, lambda answer: MessageWire(answer, thinking))

    def refusal(self, said: Refusal) -> Refusal:
        """Errors have a type that says what the status says."""
        status = 529 if said.status == 503 else said.status
        kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        error = {"type": kind, "message": said.body["error"]["message"]}
        return Refusal(status, said.headers, {"type": "error", "error": error, "request_id": "req_simulated"})


class MessageWire:
    """Writes one answer."""

    content_type = "text/event-stream"
    line_end = b"\n"
    malformed = b'event: content_block_delta\ndata: {"type": "content_block_delta", "delta"\n\n'

    def __init__(self, answer: Answer, thinking: Thinking) -> None:
        self.headers: Mapping[str, str] = {"request-id": request_id(answer)}
        self.done = _event("message_stop")
        self._answer = answer
        self._thinking = thinking
        self._block = -1  # the last that was begun
        self._open: str | None = None  # its type, until its end
        self._thought: list[str] = []

    def packet(self, chunk: dict[str, Any]) -> bytes:
        choice = chunk["choices"][0]
        if choice["finish_reason"]:
            return b"".join(self._finish(choice["finish_reason"]))
        return b"".join(self._delta(choice["delta"]))

    def whole(self) -> dict[str, Any]:
        choice = self._answer.choices[0]
        return {
            **self._head(),
            "content": list(self._blocks(choice)),
            "stop_reason": _STOP_REASONS[choice.finish_reason],
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def failure(self) -> dict[str, Any]:
        return Anthropic().refusal(FAILURE).body

    def failed(self) -> bytes:
        return _event("error", **{name: value for name, value in self.failure().items() if name != "type"})

    def _delta(self, delta: dict[str, Any]) -> Iterator[bytes]:
        if "role" in delta:
            yield from self._begin()
        elif "reasoning_content" in delta:
            yield from self._think(delta["reasoning_content"])
        elif "content" in delta:
            if self._open != "text":
                yield from self._start({"type": "text", "text": ""})
            yield self._add({"type": "text_delta", "text": delta["content"]})
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}
                yield from self._start(block)
            yield self._add({"type": "input_json_delta", "partial_json": call["function"]["arguments"]})

    def _begin(self) -> Iterator[bytes]:
        usage = {**self._usage(), "output_tokens": 1}
        usage.pop("output_tokens_details", None)
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _event("message_start", message=message)
        yield _event("ping")

    def _think(self, text: str) -> Iterator[bytes]:
        if self._thinking is None:
            return
        if self._open != "thinking":
            yield from self._start({"type": "thinking", "thinking": "", "signature": ""})
        if self._thinking == "shown":
            self._thought.append(text)
            yield self._add({"type": "thinking_delta", "thinking": text})

    def _start(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._stop()
        self._block += 1
        self._open = block["type"]
        yield _event("content_block_start", index=self._block, content_block=block)

    def _add(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._block, delta=delta)

    def _stop(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._add({"type": "signature_delta", "signature": sign("".join(self._thought))})
        self._open = None
        yield _event("content_block_stop", index=self._block)

    def _finish(self, reason: str) -> Iterator[bytes]:
        yield from self._stop()
        delta = {"stop_reason": _STOP_REASONS[reason], "stop_sequence": None}
        yield _event("message_delta", delta=delta, usage=self._usage())

    def _head(self) -> dict[str, Any]:
        answer = self._answer
        return {"id": f"msg_{answer.digest[:24]}", "type": "message", "role": "assistant", "model": answer.model}

    def _blocks(self, choice: Choice) -> Iterator[dict[str, Any]]:
        if choice.reasoning and self._thinking is not None:
            thought = "".join(choice.reasoning) if self._thinking == "shown" else ""
            yield {"type": "thinking", "thinking": thought, "signature": sign(thought)}
        if choice.content:
            yield {"type": "text", "text": choice.text()}
        for call in choice.calls:
            yield {"type": "tool_use", "id": call.id, "name": call.name, "input": _input("".join(call.fragments))}

    def _usage(self) -> dict[str, Any]:
        counts = self._answer.usage()
        thought = counts["completion_tokens_details"]["reasoning_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"],
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": counts["completion_tokens"],
            **({"output_tokens_details": {"thinking_tokens": thought}} if thought else {}),
        }


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {to_json({'type': kind, **fields})}\n\n".encode()


def _input(arguments: str) -> dict[str, Any]:
    """The input of a call; of one that max_tokens cut off, none."""
    try:
        value: dict[str, Any] = json.loads(arguments)
    except ValueError:
        return {}
    return value


def _thinking(body: dict[str, Any]) -> Thinking:
    thinking = an_object(body.get("thinking", {}), "thinking")
    if thinking.get("type") not in ("enabled", "adaptive"):
        return None
    if thinking["type"] == "enabled":
        budget, limit = thinking.get("budget_tokens"), body["max_tokens"]
        if not isinstance(budget, int) or budget < _LEAST_BUDGET:
            raise InvalidRequest(f"must be {_LEAST_BUDGET} or more", field="thinking.enabled.budget_tokens")
        if isinstance(limit, int) and limit <= budget:
            raise InvalidRequest("must be greater than `thinking.budget_tokens`", field="max_tokens")
    return "omitted" if thinking.get("display") == "omitted" else "shown"


def _tool_choice(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    choice = an_object(value, "tool_choice")
    kind = choice.get("type")
    if kind == "tool":
        chosen: object = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in _CHOICES:
        chosen = _CHOICES[kind]
    else:
        raise InvalidRequest("must be auto, any, tool or none", field="tool_choice.type")
    return given(tool_choice=chosen, parallel_tool_calls=False if choice.get("disable_parallel_tool_use") else None)


def _messages(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each block a message of its own: what one side says is one turn all the same."""
    for _, block in _blocks_at(body.get("system"), "system"):
        yield {"role": "system", "content": block.get("text")}
    for at, message in objects(body["messages"], "messages"):
        role = message.get("role")
        if role not in ("user", "assistant"):
            raise InvalidRequest("Input should be 'user' or 'assistant'", field=f"{at}.role")
        for where, block in _blocks_at(message.get("content"), f"{at}.content"):
            yield from _message(role, block, where)


def _blocks_at(content: object, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The blocks of a content; a text is one. Those of text must not be empty."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for where, block in objects(blocks, field):
        if block.get("type") == "text" and not block.get("text"):
            raise InvalidRequest("text content blocks must be non-empty", field=where)
        yield where, block


def _message(role: str, block: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """A block as a message; nothing for what does not count."""
    kind = block.get("type")
    if kind == "tool_use":
        function = {"name": block.get("name"), "arguments": json.dumps(block.get("input"))}
        yield {"role": role, "tool_calls": [{"id": block.get("id"), "type": "function", "function": function}]}
    elif kind == "tool_result":
        inner = _blocks_at(block.get("content") or [], f"{where}.content")
        yield {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": [part for _, entry in inner if (part := _part(entry)) is not None],
        }
    elif kind == "thinking":
        if block.get("signature") != sign(str(block.get("thinking"))):
            raise InvalidRequest("Invalid `signature` in `thinking` block", field=where)
    elif (part := _part(block)) is not None:
        yield {"role": role, "content": [part]}


def _part(block: dict[str, Any]) -> dict[str, Any] | None:
    if block.get("type") == "text":
        return {"type": "text", "text": block["text"]}
    source = block.get("source")
    if not isinstance(source, dict):  # what a server tool did, and the like
        return None
    data = source.get("data")
    if source.get("type") == "text":
        data = base64.b64encode(str(data).encode()).decode()
    url = source.get("url") or f"data:{source.get('media_type')};base64,{data}"
    return {"type": "file", "file": {"file_data": url}}
