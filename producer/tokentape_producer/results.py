"""The lines of a batch's output, and how a later run reads them back.

Output and error file are written in OpenAI's format:

    {"id": "batch_req_…", "custom_id": "a", "error": null,
     "response": {"status_code": 200, "request_id": "job_…", "body": {…}}}

- a completed line goes to the output, `body` being the chat.completion;
- a failed line goes to the errors, with a status of 400 and more and a body `{"error": {message, type, param, code}}`;
- a line that was not executed to its end goes to the errors with `response` null and `error` `{code, message}`: code
  `batch_expired` (the window closed first), `batch_cancelled`, or `job_lost` (Redis lost the job again and again).

`request_id` is the job's id, so that its tape can be found. `id` is `batch_req_`, 16 hex digits of the batch and the
number of the input line, and from the second time on that the line was asked, which time it was (`…_000007_2`): whoever
resumes reads from the first bytes of each line what it answers, and needs no index.

Pure functions; `output_files.py` does the writing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from tokentape.job import ErrorInfo
from tokentape.tape import EndData

#: What became of a line.
Verdict = Literal["completed", "failed", "cancelled", "expired"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

#: Where the upstream gave no status of 400 or more: what an HTTP API would have answered.
_STATUS_OF: Final = {
    "authentication_error": 401,
    "content_filter": 400,
    "invalid_request": 400,
    "not_found": 404,
    "quota_exceeded": 429,
    "rate_limited": 429,
    "storage_full": 507,
    "timeout": 504,
    "upstream_error": 502,
    "output_too_large": 502,
}
_EXPIRED: Final = "This request could not be executed before the completion window expired."
_CANCELLED: Final = "This request was cancelled."
_LOST: Final = "Redis lost this job several times before it had ended."

_HEAD: Final = re.compile(rb'\{"id":"batch_req_([0-9a-f]{16})_(\d{1,12})(?:_(\d{1,9}))?"')


@dataclass(frozen=True, slots=True)
class Answered:
    """A line that was read back: which input line it answers, how, and which time of asking that was."""

    number: int
    verdict: Verdict
    asked: int = 1


class ResultLines:
    """Encodes and decodes the result lines of one batch. `asked` is which time of asking a line answers."""

    def __init__(self, batch_id: str) -> None:
        self._mark = hashlib.sha256(batch_id.encode()).hexdigest()[:16]

    def completed(self, number: int, custom_id: str, job_id: str, completion: bytes, *, asked: int = 1) -> bytes:
        """A line of the output. `completion` is a JSON object."""
        if b"\n" in completion:
            completion = _json(json.loads(completion))
        response = b'{"status_code":200,"request_id":%s,"body":%s}' % (_json(job_id), completion)
        return b'%s,"response":%s,"error":null}\n' % (self._head(number, custom_id, asked), response)

    def failed(self, number: int, custom_id: str, job_id: str, error: ErrorInfo, *, asked: int = 1) -> bytes:
        """A line of the errors, for a job that its upstream or its worker gave up."""
        body = {"error": {"message": error.message, "type": error.type, "param": None, "code": error.code}}
        response = {"status_code": status_of(error), "request_id": job_id, "body": body}
        return b'%s,"response":%s,"error":null}\n' % (self._head(number, custom_id, asked), _json(response))

    def cancelled(self, number: int, custom_id: str, end: EndData | None, *, asked: int = 1) -> bytes:
        """A line of the errors, for a job that somebody cancelled."""
        message = end.error.message if end is not None and end.error is not None else _CANCELLED
        return self._not_executed(number, custom_id, asked, "batch_cancelled", message)

    def expired(self, number: int, custom_id: str, *, asked: int = 1) -> bytes:
        """A line of the errors, for a line whose window closed first."""
        return self._not_executed(number, custom_id, asked, "batch_expired", _EXPIRED)

    def lost(self, number: int, custom_id: str, *, asked: int = 1) -> bytes:
        """A line of the errors, for a job that never ended because its tape vanished."""
        return self._not_executed(number, custom_id, asked, "job_lost", _LOST)

    def read_output(self, line: bytes) -> Answered | None:
        """What a line of the output answers; None for one that is not of this batch."""
        place = self._place(line)
        return None if place is None else Answered(place[0], "completed", place[1])

    def read_error(self, line: bytes) -> Answered | None:
        """What a line of the errors answers; None for one that is not of this batch."""
        place = self._place(line)
        if place is None:
            return None
        try:
            error = json.loads(line)["error"]
            code = error["code"] if error is not None else None
        except (ValueError, KeyError, TypeError):
            return None
        verdicts: dict[Any, Verdict] = {"batch_expired": "expired", "batch_cancelled": "cancelled"}
        return Answered(place[0], verdicts.get(code, "failed"), place[1])

    def _place(self, line: bytes) -> tuple[int, int] | None:
        """Number and time of asking."""
        match = _HEAD.match(line)
        if match is None or match[1].decode() != self._mark:
            return None
        return int(match[2]), int(match[3] or 1)

    def _head(self, number: int, custom_id: str, asked: int) -> bytes:
        again = b"_%d" % asked if asked > 1 else b""
        return b'{"id":"batch_req_%s_%06d%s","custom_id":%s' % (self._mark.encode(), number, again, _json(custom_id))

    def _not_executed(self, number: int, custom_id: str, asked: int, code: str, message: str) -> bytes:
        error = {"code": code, "message": message}
        return b'%s,"response":null,"error":%s}\n' % (self._head(number, custom_id, asked), _json(error))


def status_of(error: ErrorInfo) -> int:
    """The HTTP status that stands for a failure: the upstream's own, or one that fits the type."""
    if error.upstream_status is not None and error.upstream_status >= 400:
        return error.upstream_status
    return _STATUS_OF.get(error.type, 500)


def _json(value: Any) -> bytes:
    """Compact JSON. Half a surrogate pair, which an upstream may send and UTF-8 cannot hold, stays an escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
