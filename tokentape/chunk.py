"""The chat.completion.chunk object: what a worker publishes, what stands on a tape, what a reader gets.

Every field of the API is typed here; whatever else an upstream adds survives, on every level, and a chunk goes back
to the JSON that it came from: a field that was absent stays absent, a null stays a null.

Strict where nonsense would corrupt what is assembled, tolerant elsewhere: `choices` must be a list of objects with
an integer `index`, content a text or null; but a finish reason, a role or a service tier of an unknown name passes,
and so does a chunk without id, model or object. `choices` is the one field without a default, because without it an
error body (`{"error": …}`) would read as a chunk that says nothing. What upstreams send in other shapes (content as
a list, arguments as an object, `"delta": null`) is put right by the worker's dialects before it is published.

These models are on the hot path: one chunk costs about 3 µs to read. So they hold no validators written in Python,
which would cost as much again, and are frozen, so that a chunk, a hub's followers and a fold can share one object.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: Positions are keys of the fold. A text or a boolean that pydantic would coerce to one is nonsense.
Index = Annotated[int, Field(strict=True, ge=0)]


class ApiObject(BaseModel):
    """Base of the API's objects. Frozen; unknown fields are kept; errors do not quote what they refuse."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    def to_json(self) -> bytes:
        """The object as compact JSON in UTF-8, with the fields that were set and no others."""
        # What model_dump_json calls, without its detour through str.
        return self.__pydantic_serializer__.to_json(self, exclude_unset=True)


class PromptTokensDetails(ApiObject):
    """What the prompt's tokens were. `None`: not reported."""

    audio_tokens: int | None = None
    cache_write_tokens: int | None = None
    cached_tokens: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None


class CompletionTokensDetails(ApiObject):
    """What the completion's tokens were. `None`: not reported."""

    accepted_prediction_tokens: int | None = None
    audio_tokens: int | None = None
    reasoning_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    text_tokens: int | None = None


class Usage(ApiObject):
    """Token counts of the whole request, as reported.

    `prompt_tokens`, `completion_tokens`: of the question and of the answer.
    `total_tokens`: not always the sum of the two.
    `prompt_tokens_details`, `completion_tokens_details`: how many of them were cached, reasoning, and so on.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class TopLogprob(ApiObject):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None


class TokenLogprob(ApiObject):
    """A token, its log probability, and the likeliest ones at its position."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] | None = None


class Logprobs(ApiObject):
    """Log probabilities of the tokens of the content and of the refusal."""

    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class UrlCitation(ApiObject):
    """A web page that the content cites between two of its characters."""

    end_index: int | None = None
    start_index: int | None = None
    title: str | None = None
    url: str | None = None


class Annotation(ApiObject):
    """Something said about the content. The API knows one type, `url_citation`."""

    type: str | None = None
    url_citation: UrlCitation | None = None


class AudioDelta(ApiObject):
    """A piece of spoken answer: base64 data and transcript are fragments, `expires_at` is in Unix seconds."""

    id: str | None = None
    data: str | None = None
    transcript: str | None = None
    expires_at: int | None = None


class FunctionDelta(ApiObject):
    """A piece of a function call: `arguments` is a fragment of JSON text."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(ApiObject):
    """A piece of the tool call at `index`. Id and type usually come with its first piece only."""

    index: Index
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(ApiObject):
    """What a chunk adds to one choice's message."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None
    audio: AudioDelta | None = None
    annotations: list[Annotation] | None = None


class ChunkChoice(ApiObject):
    """What a chunk adds to the choice at `index`. A `finish_reason` says that its message is complete."""

    index: Index
    delta: Delta = Delta()
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(ApiObject):
    """One chunk of a streamed answer, with the API's own fields.

    `id`, `model`, `created` (Unix seconds), `object`, `system_fingerprint`, `service_tier`: of the whole answer.
    `choices`: what it adds to each choice; empty in the chunk with the usage.
    `usage`: the tokens of the request, in one of the last chunks where the upstream tells them.
    `moderation`, `obfuscation`: as upstream sent them.
    """

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice]
    system_fingerprint: str | None = None
    service_tier: str | None = None
    usage: Usage | None = None
    moderation: dict[str, Any] | None = None
    obfuscation: str | None = None


# model_validate_json is this and 0.4 µs of checks of options that are not used here.
_validate_json = ChatCompletionChunk.__pydantic_validator__.validate_json


def parse_chunk(data: bytes | str) -> ChatCompletionChunk:
    """A chunk from its JSON text. Raises ValueError, which names the field and never quotes what stood there."""
    try:
        return _validate_json(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    raise ValueError(f"not a chat.completion.chunk: {field + ': ' if field else ''}{first['msg']}")
