"""The simulator's answer: a pure function of the request.

Whoever holds a request can work out, word for word, what the simulator says to it, so a test or a demo
compares a whole answer and not just its shape. What an answer depends on:

    model, messages            the digest; with the choice's index, the seed of every word. Of the messages only what is
                               said counts (`said.py`), so that a request in another API's words is the same request
    n, tools, tool_choice, parallel_tool_calls, logprobs, max_tokens, stream_options    as the real API has them
    simulate                   how much to say, how fast, and what goes wrong: a `Script`

Pace and faults change how an answer is sent, never what it says. Nothing else enters: no clock, no counter and no
random source; `id` and `created` come from the digest too. A text that the script does not give begins with the digest
and the index of its choice, so that two answers are never mistaken for each other.

One piece (a word, a fragment of arguments) is one token and one chunk. The bytes that choose the words come from
SHAKE-256, so that another language can say the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InvalidRequest
from .job import canonical_json
from .said import said
from .schema_sample import sample
from .script import Script

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Characters of one fragment of a tool call's arguments.
FRAGMENT_CHARS: Final = 12
SYSTEM_FINGERPRINT: Final = "fp_simulated"

#: 64 words, so that a byte picks one evenly. Characters of one to four bytes, and combining ones, are among them.
_SOME_TEXT: Final = (
    "rain river stone light winter garden open quiet letter road yellow small bread morning wind paper "
    "house under clear water field seven early glass island north music table silver story cloud "
    "naïve straße façade mañana jalapeño smörgåsbord Ångström über čaj żółw привет мир река ветер φῶς λόγος "
    "東京 雨 日本語 山川 你好 世界 한국 바다 नमस्ते ภาษา שלום سلام 🙂 🌊 👩‍🚀 𠮷野家 e\u0301clair"
)
WORDS: Final = tuple(_SOME_TEXT.split())


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Function(BaseModel):
    name: Annotated[str, Field(min_length=1)]
    parameters: dict[str, Any] | None = None


class _Tool(BaseModel):
    function: _Function | None = None


class _Request(BaseModel):
    """The fields of a chat.completions body that bear on the answer."""

    model_config = ConfigDict(strict=True)

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int | None, Field(ge=1, le=128)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    simulate: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function call; its arguments are JSON in fragments."""

    id: str
    name: str
    fragments: tuple[str, ...]

    def message(self) -> dict[str, Any]:
        """The call as a message holds it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": "".join(self.fragments)},
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """What one choice says, piece by piece. `content` is None where the answer is tool calls."""

    index: int
    reasoning: tuple[str, ...]
    content: tuple[str, ...] | None
    calls: tuple[ToolCall, ...]
    finish_reason: Literal["stop", "length", "tool_calls"]

    @property
    def tokens(self) -> int:
        """One a piece, reasoning and arguments included."""
        return len(self.reasoning) + len(self.content or ()) + sum(len(call.fragments) for call in self.calls)

    def text(self) -> str | None:
        """The message's content."""
        return None if self.content is None else "".join(self.content)

    def deltas(self) -> Iterator[dict[str, Any]]:
        """What its chunks carry, the last one (with the finish reason) excepted."""
        yield {"role": "assistant", "content": None if self.content is None else "", "refusal": None}
        for piece in self.reasoning:
            yield {"reasoning_content": piece}
        for piece in self.content or ():
            yield {"content": piece}
        for index, call in enumerate(self.calls):
            head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
            yield {"tool_calls": [head]}
            for fragment in call.fragments:
                yield {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}

    def message(self) -> dict[str, Any]:
        """The assembled message."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text(), "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = [call.message() for call in self.calls]
        return message


@dataclass(frozen=True, slots=True)
class Answer:
    """All that the simulator will say to one request, and the script it says it by."""

    digest: str
    model: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    script: Script
    stream: bool
    include_usage: bool
    logprobs: bool

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The chat.completion.chunk objects in the order they are sent: the choices in turn, piece by piece."""
        for round_ in zip_longest(*(self._choice_chunks(choice) for choice in self.choices)):
            for part in round_:
                if part is not None:
                    yield self._envelope("chat.completion.chunk", [part], None)
        if self.include_usage:
            yield self._envelope("chat.completion.chunk", [], self.usage())

    def completion(self) -> dict[str, Any]:
        """The chat.completion object that the chunks add up to."""
        return self._envelope("chat.completion", [self._choice_whole(choice) for choice in self.choices], self.usage())

    def usage(self) -> dict[str, Any]:
        """Tokens of the prompt (a quarter of the bytes of what it says) and of all choices."""
        completion_tokens = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": sum(len(choice.reasoning) for choice in self.choices),
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def _envelope(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        envelope = {
            "id": f"chatcmpl-{self.digest[:32]}",
            "object": kind,
            "created": 1_600_000_000 + int(self.digest[:6], 16),
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": choices,
        }
        if usage is not None or self.include_usage:
            envelope["usage"] = usage
        return envelope

    def _choice_chunks(self, choice: Choice) -> Iterator[dict[str, Any]]:
        for delta in choice.deltas():
            logprobs = _logprobs((delta["content"],)) if self.logprobs and delta.get("content") else None
            yield {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        yield {"index": choice.index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}

    def _choice_whole(self, choice: Choice) -> dict[str, Any]:
        logprobs = _logprobs(choice.content) if self.logprobs and choice.content else None
        return {
            "index": choice.index,
            "message": choice.message(),
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }


def answer(request: dict[str, Any], defaults: Script | None = None) -> Answer:
    """What the simulator answers. `defaults` is the script of the server that is asked.

    Raises InvalidRequest, naming the field.
    """
    asked = _validated(_Request, request, ())
    script = _script(asked.simulate, defaults or Script())
    words = said(asked.messages)
    digest = _digest(asked.model, words)
    return Answer(
        digest=digest,
        model=asked.model,
        choices=tuple(_choice(asked, script, digest, index) for index in range(asked.n or 1)),
        prompt_tokens=len(canonical_json(words)) // 4 + 1,
        script=script,
        stream=bool(asked.stream),
        include_usage=bool(asked.stream and asked.stream_options and asked.stream_options.include_usage),
        logprobs=bool(asked.logprobs),
    )


def expected_completion(request: dict[str, Any], defaults: Script | None = None) -> dict[str, Any]:
    """The whole chat.completion, usage included (which a stream carries only where `include_usage` asks for it)."""
    return answer({**request, "stream": False}, defaults).completion()


def expected_text(request: dict[str, Any], choice: int = 0, defaults: Script | None = None) -> str:
    """The content of one choice; "" where it is tool calls."""
    return answer(request, defaults).choices[choice].text() or ""


def chunks(request: dict[str, Any], defaults: Script | None = None) -> list[dict[str, Any]]:
    """Every chunk of the streamed answer, in order."""
    return list(answer({**request, "stream": True}, defaults).chunks())


def request_digest(request: dict[str, Any]) -> str:
    """What names a request: SHA-256 of its model and what its messages say, as canonical JSON."""
    return _digest(request["model"], said(request["messages"]))


def _digest(model: str, words: list[dict[str, Any]]) -> str:
    # Gemini's API has `models/` before the name of every model, and takes it with and without.
    named = {"model": model.removeprefix("models/"), "messages": words}
    return hashlib.sha256(canonical_json(named)).hexdigest()


_Model = TypeVar("_Model", bound=BaseModel)


def _script(simulate: dict[str, Any] | None, defaults: Script) -> Script:
    if not simulate:
        return defaults
    return _validated(Script, {**defaults.model_dump(), **simulate}, ("simulate",))


def _validated(model: type[_Model], value: dict[str, Any], prefix: tuple[str, ...]) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join((*prefix, *(str(part) for part in first["loc"]))) or None
        raise InvalidRequest(first["msg"].removeprefix("Value error, "), field=field) from None


def _choice(asked: _Request, script: Script, digest: str, index: int) -> Choice:
    seed = f"{digest}:{index}"
    reasoning = _pieces(f"{seed}:reasoning", "", script.reasoning_chunks, script.chunk_bytes)
    calls = _calls(asked, script, seed)
    name = f"{digest[:12]}:{index}"
    content = None if calls else _content(script, f"{seed}:content", name)
    whole = Choice(index, reasoning, content, calls, "tool_calls" if calls else "stop")
    limit = min(asked.max_tokens or whole.tokens, asked.max_completion_tokens or whole.tokens)
    return whole if limit >= whole.tokens else _cut(whole, limit)


def _content(script: Script, seed: str, name: str) -> tuple[str, ...]:
    if script.text is None:
        return _pieces(seed, name, script.chunks, script.chunk_bytes)
    return tuple(re.findall(r"\s*\S+|\s+", script.text))


def _cut(choice: Choice, limit: int) -> Choice:
    """The first `limit` pieces of a choice, which ends with `length`."""
    reasoning = choice.reasoning[:limit]
    left = limit - len(reasoning)
    content = None if choice.content is None else choice.content[:left]
    calls: list[ToolCall] = []
    for call in choice.calls:
        if left > 0:
            calls.append(ToolCall(call.id, call.name, call.fragments[:left]))
            left -= len(call.fragments)
    return Choice(choice.index, reasoning, content, tuple(calls), "length")


def _pieces(seed: str, name: str, count: int, size: int | None) -> tuple[str, ...]:
    """`count` pieces of text that begin with `name`: words, or `size` bytes each where a size is given."""
    if count == 0:
        return ()
    if size is None:
        picks = hashlib.shake_256(seed.encode()).digest(count)
        words = [f" {WORDS[pick & 63]}" for pick in picks]
        words[0] = name or words[0][1:]
        return tuple(words)
    # A word and its space are at least four bytes, so this many are enough.
    picks = hashlib.shake_256(seed.encode()).digest(count * size // 4 + 1)
    text = " ".join((name, *(WORDS[pick & 63] for pick in picks))).lstrip().encode()
    return tuple(_whole_characters(text[start : start + size]) for start in range(0, count * size, size))


def _whole_characters(cut: bytes) -> str:
    """The text of a piece. A character that the cut went through gives way to spaces, so the size stays."""
    text = cut.decode(errors="ignore")
    return text + " " * (len(cut) - len(text.encode()))


def _calls(asked: _Request, script: Script, seed: str) -> tuple[ToolCall, ...]:
    functions = [tool.function for tool in asked.tools or () if tool.function is not None]
    choice = asked.tool_choice
    if not functions or choice == "none":
        return ()
    count = script.tool_calls
    names = _allowed(choice)
    if names is not None:
        functions = [function for function in functions if function.name in names]
        if not functions:
            raise InvalidRequest("names a function that is not among the tools", field="tool_choice")
    if _mode(choice) != "auto":
        count = max(count, 1)  # "required", or a function by name
    if asked.parallel_tool_calls is False:
        count = min(count, 1)
    return tuple(_call(functions[k % len(functions)], f"{seed}:call:{k}") for k in range(count))


def _allowed(choice: str | dict[str, Any] | None) -> list[object] | None:
    """The names of the functions that a tool_choice leaves; None where it leaves all."""
    if not isinstance(choice, dict):
        return None
    among = choice.get("allowed_tools")
    tools = among.get("tools") if isinstance(among, dict) else [choice]
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return names if names or isinstance(among, dict) else None


def _mode(choice: str | dict[str, Any] | None) -> object:
    """Whether a call must be made; of a function by name it must."""
    if not isinstance(choice, dict):
        return choice or "auto"
    among = choice.get("allowed_tools")
    return among.get("mode", "auto") if isinstance(among, dict) else "required"


def _call(function: _Function, seed: str) -> ToolCall:
    noise = hashlib.shake_256(seed.encode()).digest(256)
    try:
        arguments = canonical_json(sample(function.parameters or {}, noise, WORDS)).decode()
    except ValueError as error:
        raise InvalidRequest(f"{function.name}: {error}", field="tools") from error
    fragments = tuple(arguments[i : i + FRAGMENT_CHARS] for i in range(0, len(arguments), FRAGMENT_CHARS))
    return ToolCall(f"call_{noise[:12].hex()}", function.name, fragments)


def _logprobs(pieces: tuple[str, ...]) -> dict[str, Any]:
    """One token a piece; a probability that its bytes decide."""
    content = [
        {"token": piece, "logprob": -(sum(data) % 64) / 16, "bytes": list(data), "top_logprobs": []}
        for piece, data in ((piece, piece.encode()) for piece in pieces)
    ]
    return {"content": content, "refusal": None}
