"""Puts one delta of an OpenAI-compatible stream right: what it adds to a choice's message, in the API's own shapes.

The role once; content a text or null; reasoning under one name; calls numbered; a name, an id or a text never twice,
because readers join texts.
"""

from __future__ import annotations

from typing import Any, Final

from .body import write_json
from .tool_calls import ToolCalls

#: Other names of the reasoning text.
REASONING_NAMES: Final = ("reasoning", "reasoning_text")
_TEXT_PARTS: Final = ("text", "output_text")


class ChoiceState:
    """What is known of one choice."""

    __slots__ = ("audio_id", "calls", "finish_reason", "function_name", "role_sent", "said", "thought")

    def __init__(self, call_id_prefix: str) -> None:
        self.calls = ToolCalls(call_id_prefix)
        self.finish_reason: str | None = None
        self.role_sent = False
        self.said = False  # content, a refusal, audio, a function call: anything but tool calls and reasoning
        self.thought = False
        self.function_name = ""
        self.audio_id = ""


def fix_delta(delta: dict[str, Any], state: ChoiceState) -> dict[str, Any]:
    """The delta as it should have been; unknown fields stay. The choice's state takes it in."""
    fixed = dict(delta)
    _fix_role(fixed, state)
    _fix_content(fixed)
    _fix_reasoning(fixed)
    if "tool_calls" in fixed:
        entries = fixed["tool_calls"]
        entries = [entries] if isinstance(entries, dict) else entries
        fixed["tool_calls"] = state.calls.put_right(entries) if isinstance(entries, list) else None
    if "function_call" in fixed:
        _fix_function_call(fixed, state)
    if isinstance(fixed.get("audio"), dict):
        _fix_audio(fixed, state)
    state.said = state.said or any(fixed.get(name) for name in ("content", "refusal", "audio", "function_call"))
    state.thought = state.thought or bool(fixed.get("reasoning_content"))
    return fixed


def _fix_role(delta: dict[str, Any], state: ChoiceState) -> None:
    role = delta.get("role")
    if not role or not isinstance(role, str):
        if "role" in delta:
            delta["role"] = None
    elif state.role_sent:
        del delta["role"]
    else:
        state.role_sent = True
        delta["role"] = "assistant"


def _fix_content(delta: dict[str, Any]) -> None:
    """Content is a text or null; Mistral's parts are split into content and reasoning, other parts kept beside it."""
    content = delta.get("content")
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        thinking = "".join(_part_text(part, "thinking") for part in content)
        texts = [_part_text(part, "text") for part in content if _part_type(part) in _TEXT_PARTS]
        others = [part for part in content if _part_type(part) not in ("thinking", *_TEXT_PARTS)]
        delta["content"] = "".join(texts) or None
        if thinking:
            delta["reasoning_content"] = thinking
        if others:
            delta["content_parts"] = others
    elif content is not None and not isinstance(content, str):
        delta["content"] = write_json(content).decode()
    if "refusal" in delta and (not delta["refusal"] or not isinstance(delta["refusal"], str)):
        delta["refusal"] = None


def _part_type(part: object) -> str:
    if isinstance(part, dict):
        return str(part.get("type", "text"))
    return "text" if isinstance(part, str) else ""


def _part_text(part: object, name: str) -> str:
    if isinstance(part, str):
        return part if name == "text" else ""
    value = part.get(name) if isinstance(part, dict) else None
    if isinstance(value, list):
        return "".join(_part_text(inner, "text") for inner in value)
    return value if isinstance(value, str) else ""


def _fix_reasoning(delta: dict[str, Any]) -> None:
    """One field for the reasoning text. Where two are sent they say the same."""
    others = [name for name in REASONING_NAMES if name in delta and isinstance(delta[name], str | None)]
    texts = [delta.get("reasoning_content"), *(delta.pop(name) for name in others)]
    details = delta.get("reasoning_details")
    if isinstance(details, list):
        parts = [entry for entry in details if isinstance(entry, dict)]
        texts.append("".join(_part_text(part, "text") or _part_text(part, "summary") for part in parts))
    text = next((text for text in texts if isinstance(text, str) and text), None)
    if text is not None:
        delta["reasoning_content"] = text
    elif "reasoning_content" in delta:
        delta["reasoning_content"] = None


def _fix_function_call(delta: dict[str, Any], state: ChoiceState) -> None:
    call = delta["function_call"]
    if not isinstance(call, dict):
        delta["function_call"] = None
        return
    fixed = dict(call)
    name = fixed.get("name")
    if not isinstance(name, str) or not name or name == state.function_name:
        fixed.pop("name", None)
    else:
        state.function_name += name
    arguments = fixed.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        fixed["arguments"] = write_json(arguments).decode()
    delta["function_call"] = fixed


def _fix_audio(delta: dict[str, Any], state: ChoiceState) -> None:
    audio = dict(delta["audio"])
    if state.audio_id and audio.get("id") == state.audio_id:
        del audio["id"]
    elif isinstance(audio.get("id"), str):
        state.audio_id = state.audio_id or audio["id"]
    delta["audio"] = audio
