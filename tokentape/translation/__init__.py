"""Translation: how a chat.completions request is said to an API of another kind. Pure; no I/O, no clock, no keys.

It stands in the library, because both sides need it: the client, so that a request that cannot be said in the
upstream's dialect is refused at submit, by the field; and the worker, which sends what comes out.

Nothing is left out silently. A field that the other API has no word for is refused with InvalidRequest, or, where the
upstream's operator chose `drop_unsupported`, left out and named in `dropped`. A field that is null, or that asks for
what the other API does anyway (`n: 1`, `presence_penalty: 0`), asks for nothing.

A *native* body is one in the upstream's own form. Only what decides about the call is taken from it: which model, and
whether the answer is a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from .anthropic import anthropic_native, anthropic_request
from .drops import Drops
from .gemini import gemini_native, gemini_request
from .request import Translation

__all__ = ["DEFAULT_MAX_TOKENS", "Dialect", "Translation", "translate"]

Dialect = Literal["openai", "anthropic", "gemini"]

#: Anthropic's API wants a limit in each request; this is sent where a job names none.
DEFAULT_MAX_TOKENS: Final = 8192


def translate(
    dialect: Dialect,
    body: Mapping[str, Any],
    *,
    native: bool = False,
    drop_unsupported: bool = False,
    default_max_tokens: int = DEFAULT_MAX_TOKENS,
) -> Translation:
    """What to send for a request. The body is not changed, and may share parts with what is returned.

    Raises InvalidRequest, naming the field, for what cannot be said in the dialect.
    """
    drops = Drops(drop_unsupported)
    if dialect == "anthropic":
        if native:
            return anthropic_native(body)
        return anthropic_request(body, drops, default_max_tokens=default_max_tokens)
    if dialect == "gemini":
        return gemini_native(body) if native else gemini_request(body, drops)
    streamed = body.get("stream") is not False
    return Translation("/chat/completions", {**body, "stream": streamed}, streamed)
