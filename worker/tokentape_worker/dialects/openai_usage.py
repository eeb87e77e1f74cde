"""Token counts: what upstreams report, under the names of the API. Nothing is summed or computed anew."""

from __future__ import annotations

from typing import Any, Final

_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_DETAILS: Final = ("prompt_tokens_details", "completion_tokens_details")
#: Where the counts that the API has stand elsewhere: (object or none, name), then the names that others give it.
_ELSEWHERE: Final = (
    ("", "prompt_tokens", ("input_tokens",)),
    ("", "completion_tokens", ("output_tokens",)),
    # DeepSeek, Moonshot, Anthropic and the gateways before it, in this order.
    ("prompt_tokens_details", "cached_tokens", ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")),
    ("prompt_tokens_details", "cache_write_tokens", ("cache_creation_input_tokens",)),
    ("completion_tokens_details", "reasoning_tokens", ("reasoning_tokens",)),
)


def normalised_usage(usage: object) -> dict[str, Any] | None:
    """A usage object with whole numbers under the API's names; unknown fields stay. None where there is none.

    A total that was left out is the sum of the other two; one that was sent stays, though it be another number.
    """
    if not isinstance(usage, dict) or not usage:
        return None
    fixed = _counts_fixed(usage)
    for name in _DETAILS:
        if isinstance(fixed.get(name), dict):
            fixed[name] = _counts_fixed(fixed[name])
        elif fixed.get(name) is not None:
            del fixed[name]
    for outer, name, others in _ELSEWHERE:
        count = next((number for other in others if (number := _count(fixed.get(other))) is not None), None)
        place = fixed if not outer else (fixed.get(outer) or {})
        if count is not None and place.get(name) is None:
            if outer:
                fixed[outer] = {**place, name: count}
            else:
                fixed[name] = count
    if "total_tokens" not in fixed and "prompt_tokens" in fixed and "completion_tokens" in fixed:
        fixed["total_tokens"] = fixed["prompt_tokens"] + fixed["completion_tokens"]
    return fixed if any(name in fixed for name in _COUNTS) else None


def _counts_fixed(counts: dict[str, Any]) -> dict[str, Any]:
    """The same without the counts of the API that are no numbers."""
    fixed = {}
    for name, value in counts.items():
        if name in _COUNTS or (name.endswith("_tokens") and value is not None):
            number = _count(value)
            if number is not None:
                fixed[name] = number
        else:
            fixed[name] = value
    return fixed


def _count(value: object) -> int | None:
    """A count as a whole number. None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
        return number if 0 <= number < 2**53 and number == float(value) else None
    except (ValueError, OverflowError):
        return None
