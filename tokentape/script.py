"""Script: how the simulator answers, how fast, and what goes wrong.

A server has one as its default (the flags of `tokentape simulate`); a request overrides single fields of it with
an object under `simulate`, which workers pass on like every field they do not know. What is said in either case
is the business of `answer.py`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, model_validator

Fault = Literal[
    # Instead of an answer:
    "status",  # the HTTP error `status`
    "rate_limit",  # 429 with Retry-After
    "disconnect_before",  # the connection closes without a byte
    "stall_before",  # not a byte, and the connection stays open
    "html",  # 200 and a web page
    "empty",  # 200 and no body
    "wrong_json",  # 200 and JSON of another shape
    # After `fault_after` chunks:
    "disconnect",  # the connection closes
    "truncate",  # a clean end of the body: no finish reason, no [DONE]
    "stall",  # nothing more, and the connection stays open
    "malformed",  # a data line that is not JSON; the rest follows
    "error_event",  # an error object in the stream, then its end
    "huge",  # chunks without end
    # At the end, and throughout:
    "no_done",  # everything but [DONE]
    "split_bytes",  # 1 to 7 bytes a write, through the middle of characters, with every kind of line end
]
FAULTS: Final[tuple[str, ...]] = get_args(Fault)

#: The text of one choice is built in memory.
MAX_TEXT_BYTES: Final = 256 * 1024 * 1024


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Script(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How the simulator answers: a server's defaults, or the `simulate` object of one request."""

    #: What each choice says, a word a piece, in place of `chunks` drawn words. Where tools are called, nothing.
    text: Annotated[str | None, Field(max_length=16 * 1024 * 1024)] = None
    #: Pieces of content in each choice.
    chunks: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    #: Bytes (UTF-8) of each piece; None is one word each.
    chunk_bytes: Annotated[int | None, Field(ge=1, le=1024 * 1024)] = None
    #: Pieces of `reasoning_content` before the content.
    reasoning_chunks: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    #: Tool calls instead of content, where the request has tools.
    tool_calls: Annotated[int, Field(ge=0, le=128)] = 0
    #: From one chunk to the next; 0 is as fast as the reader reads.
    interval_ms: Annotated[float, Field(ge=0, le=3_600_000)] = 0.0
    #: From the request to the first chunk.
    first_token_ms: Annotated[float, Field(ge=0, le=3_600_000)] = 0.0
    #: One name or several. Several take turns: the k-th call of one request meets the k-th. `split_bytes` takes no
    #: turn, it accompanies all of them.
    fault: Annotated[tuple[Fault, ...], BeforeValidator(_as_tuple)] = ()
    #: Chunks sent before a fault in the stream; None is half of them. It always strikes before the answer is whole.
    fault_after: Annotated[int | None, Field(ge=0)] = None
    #: How many calls of one request meet a fault, so that retries succeed in the end; None is all of them.
    fault_times: Annotated[int | None, Field(ge=0)] = None
    #: What the fault `status` answers.
    status: Annotated[int, Field(ge=400, le=599)] = 500
    #: Seconds in Retry-After; None is no header, but 1 for `rate_limit`.
    retry_after: Annotated[float | None, Field(ge=0)] = None

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Script:
        if max(self.chunks, self.reasoning_chunks) * (self.chunk_bytes or 1) > MAX_TEXT_BYTES:
            raise ValueError(f"a text may have {MAX_TEXT_BYTES} bytes; for more there is the fault 'huge'")
        return self

    def strikes(self, call_number: int) -> tuple[Fault | None, bool]:
        """The fault that this call of a request meets, counted from 1, and whether its bytes are split."""
        if self.fault_times is not None and call_number > self.fault_times:
            return None, False
        turns = [fault for fault in self.fault if fault != "split_bytes"]
        return turns[(call_number - 1) % len(turns)] if turns else None, "split_bytes" in self.fault
