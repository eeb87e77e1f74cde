"""A scripted chat API, for the demo, the tests and the benchmarks: OpenAI's shape, answers that can be checked.

    POST /v1/chat/completions    streamed or whole; what it says is `answer.py`, how is `script.py`
    GET  /v1/models              the models it was told to list; it answers for any model
    GET  /stats[?digest=D]       calls so far, calls under way; with a digest, calls of that request

A call is planned first (`answer_plan.py`) and then sent, at the script's pace: with an interval, one chunk is one
packet (the socket has TCP_NODELAY); without one, chunks are joined up to 64 KiB and the reader's speed
holds the writer back. A client that leaves cancels its call, at whatever point that is.

Needs aiohttp. The expected answers can be had from `tokentape.answer` without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import signal
import threading
from collections import OrderedDict
from concurrent.futures import Future
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypedDict, Unpack, cast

import click

from .answer import Answer, answer, chunks, expected_completion, expected_text, request_digest
from .answer_plan import error_body, http_error, plan, to_json
from .errors import ConfigError, ExtraMissing, InvalidRequest
from .job import MAX_REQUEST_BYTES
from .script import FAULTS, Fault, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from aiohttp.typedefs import Handler

try:
    from aiohttp import web
except ImportError as error:
    raise ExtraMissing("the simulator", "local") from error

__all__ = [
    "FAULTS",
    "Answer",
    "Fault",
    "Script",
    "Simulator",
    "SimulatorThread",
    "answer",
    "chunks",
    "expected_completion",
    "expected_text",
    "request_digest",
    "run",
]

DEFAULT_MODELS: Final = ("simulated",)

#: Chunks due at the same time are joined up to this size: what aiohttp lets through before it waits for the reader.
_BATCH_BYTES: Final = 64 * 1024
#: Requests whose calls are counted one by one; the oldest are forgotten.
_COUNTED_REQUESTS: Final = 65_536
#: Connections that wait to be accepted. A thousand streams are opened at once in the benchmarks.
_BACKLOG: Final = 4096
#: A worker adds fields to a request that was as large as it may be.
_MAX_BODY_BYTES: Final = MAX_REQUEST_BYTES + 1024 * 1024

_HTML: Final = "<!doctype html>\n<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>\n"


class _Tally:
    """Counts by key; bounded, the key that was counted longest ago goes first."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Hashable, int] = OrderedDict()

    def add(self, key: Hashable) -> int:
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > _COUNTED_REQUESTS:
            self._counts.popitem(last=False)
        return count

    def __getitem__(self, key: Hashable) -> int:
        return self._counts.get(key, 0)


class Simulator:
    """The server, in the running event loop: `async with Simulator() as simulator: … simulator.base_url`.

    `port` 0 takes a free one. With an `api_key`, calls without it are answered 401. Starting raises ConfigError
    where the address cannot be listened on. Leaving the context cuts the calls under way.
    """

    def __init__(
        self,
        defaults: Script | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Sequence[str] = DEFAULT_MODELS,
        api_key: str | None = None,
    ) -> None:
        self.defaults = defaults or Script()
        self.models = tuple(models)
        #: Chat calls that were understood and let in, so far; those that met a fault too.
        self.calls = 0
        self._host = host
        self._port = port
        self._api_key = api_key
        self._by_digest = _Tally()
        self._by_script = _Tally()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[_in_openai_shape], client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/stats", self._stats)
        # aiohttp leaves the handler of a client that left alone, unless it is told to cancel it.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=_BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(f"cannot listen on {self._host}:{self._port} ({error.strerror or error})") from error
        self._port = runner.addresses[0][1]
        self._runner = runner
        return self

    async def __aexit__(self, *exc: object) -> None:
        for call in self._under_way:
            call.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL; ends in /v1."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    @property
    def active(self) -> int:
        """Chat calls under way."""
        return len(self._under_way)

    def calls_of(self, request: dict[str, Any]) -> int:
        """Calls so far with this request's model and messages."""
        return self._by_digest[request_digest(request)]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request)
        asked = answer(_parsed(await request.read()), self.defaults)
        self.calls += 1
        self._by_digest.add(asked.digest)
        # Two tests may send the same words with other scripts to one server: their faults are counted apart.
        nth = self._by_script.add((asked.digest, asked.script)) if asked.script.fault else 1
        fault, split = asked.script.strikes(nth)
        call = cast("asyncio.Task[Any]", asyncio.current_task())  # never None: aiohttp runs each handler in one
        self._under_way.add(call)
        try:
            return _instead(asked.script, fault) or await _respond(request, asked, fault, split)
        except ConnectionError:  # a write found out before the cancellation came
            await _wait_until_left()
        finally:
            self._under_way.discard(call)

    async def _list_models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        common = {"object": "model", "created": 1_600_000_000, "owned_by": "tokentape"}
        return _json({"object": "list", "data": [{"id": model, **common} for model in self.models]})

    async def _stats(self, request: web.Request) -> web.Response:
        stats: dict[str, Any] = {"calls": self.calls, "active": self.active}
        if digest := request.query.get("digest"):
            stats |= {"digest": digest, "digest_calls": self._by_digest[digest]}
        return _json(stats)

    def _check_key(self, request: web.Request) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), self._api_key.encode()):
            raise web.HTTPUnauthorized(text="Incorrect API key provided.")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _json(body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=to_json(body), status=status, headers=headers, content_type="application/json")


@web.middleware
async def _in_openai_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever is refused is refused as OpenAI's API would."""
    try:
        return await handler(request)
    except InvalidRequest as error:
        return _json(error_body(str(error), "invalid_request_error", param=error.field), status=400)
    except web.HTTPException as error:  # no key, no such path, another method, a body over the limit
        code = "invalid_api_key" if error.status == HTTPStatus.UNAUTHORIZED else None
        body = error_body(error.text or error.reason, "invalid_request_error", code=code)
        return _json(body, status=error.status, headers={k: v for k, v in error.headers.items() if k == "Allow"})


def _instead(script: Script, fault: Fault | None) -> web.Response | None:
    """The response that a fault gives in place of an answer; None where there is an answer to begin."""
    if fault in ("status", "rate_limit"):
        status, headers, body = http_error(script, limited=fault == "rate_limit")
        return _json(body, status=status, headers=headers)
    if fault == "html":
        return web.Response(text=_HTML, content_type="text/html")
    if fault == "empty":
        return web.Response(content_type="text/event-stream")
    if fault == "wrong_json":
        return _json({"status": "ok", "result": ["not", "a", "completion"]})
    return None


async def _respond(request: web.Request, asked: Answer, fault: Fault | None, split: bool) -> web.StreamResponse:
    if fault == "stall_before":
        await _wait_until_left()
    if fault == "disconnect_before":
        await _close(request)
    body = plan(asked, fault, split)
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Request-Id": f"req_{asked.digest[:32]}"})
    response.content_type = "text/event-stream" if asked.stream else "application/json"
    response.charset = "utf-8"
    script = asked.script
    if not asked.stream:
        # The whole answer takes as long as its chunks would have taken.
        await asyncio.sleep((script.first_token_ms + script.interval_ms * script.chunks) / 1000)
    await response.prepare(request)
    if asked.stream and script.first_token_ms:
        await asyncio.sleep(script.first_token_ms / 1000)
    if split:
        await _send_apart(response, body.packets)
    elif asked.stream and script.interval_ms:
        await _send_paced(response, body.packets, script.interval_ms / 1000)
    else:
        await _send_joined(response, body.packets)
    if body.then == "close":
        await _close(request)
    if body.then == "stall":
        await _wait_until_left()
    await response.write_eof()
    return response


async def _send_paced(response: web.StreamResponse, packets: Iterable[bytes], interval_s: float) -> None:
    """One packet an interval, counted from the first, so that delays do not add up."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    for packet in packets:
        # Also where it is late already: a stream that catches up must let the others run.
        await asyncio.sleep(max(0.0, due - loop.time()))
        await response.write(packet)
        due += interval_s


async def _send_joined(response: web.StreamResponse, packets: Iterable[bytes]) -> None:
    batch = bytearray()
    for packet in packets:
        batch += packet
        if len(batch) >= _BATCH_BYTES:
            await response.write(bytes(batch))
            batch.clear()
            await asyncio.sleep(0)
    await response.write(bytes(batch))


async def _send_apart(response: web.StreamResponse, packets: Iterator[bytes]) -> None:
    """Each packet a write of its own. The loop turns now and then, so that readers see them come apart."""
    while group := tuple(islice(packets, 8)):
        for packet in group:
            await response.write(packet)
        await asyncio.sleep(0)


async def _close(request: web.Request) -> NoReturn:
    """Close the connection. What was written before still goes out, the end of the body does not."""
    if request.transport is not None:
        request.transport.close()
    await _wait_until_left()


async def _wait_until_left() -> NoReturn:
    """Wait for the cancellation that comes when the connection is gone."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody resolves this future")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: a paced chunk costs about a tenth less with it."""
    try:
        import uvloop  # noqa: PLC0415 - an extra, and only the process that serves wants it
    except ImportError:
        return None
    return uvloop.new_event_loop


def run(
    defaults: Script | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 9000,
    models: Sequence[str] = DEFAULT_MODELS,
    api_key: str | None = None,
    as_json: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, then return. Prints one line on stdout once it listens.

    The line is `listening on URL`, or with `as_json` an object with `base_url`. Raises ConfigError where the
    address cannot be listened on. Call it from the main thread.
    """

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: there SIGINT arrives as KeyboardInterrupt
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with Simulator(defaults, host=host, port=port, models=models, api_key=api_key) as simulator:
            url = simulator.base_url
            click.echo(json.dumps({"base_url": url}) if as_json else f"listening on {url}")
            await stop.wait()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner, contextlib.suppress(KeyboardInterrupt):
        runner.run(serve())


class _Options(TypedDict, total=False):
    host: str
    port: int
    models: Sequence[str]
    api_key: str | None


class SimulatorThread:
    """A simulator in a thread of its own, for tests that are not async: `with SimulatorThread() as simulator:`.

    Takes what Simulator takes. Entering raises what starting it raises.
    """

    def __init__(self, defaults: Script | None = None, **options: Unpack[_Options]) -> None:
        self._simulator = Simulator(defaults, **options)
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="simulator", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(self, *exc: object) -> None:
        loop, stop = self._ready.result()
        loop.call_soon_threadsafe(stop.set)
        self._thread.join()

    @property
    def base_url(self) -> str:
        """As the Simulator's."""
        return self._simulator.base_url

    @property
    def active(self) -> int:
        """Chat calls under way."""
        return self._simulator.active

    def calls(self, request: dict[str, Any] | None = None) -> int:
        """Chat calls so far: all of them, or those of one request."""
        return self._simulator.calls if request is None else self._simulator.calls_of(request)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                if self._ready.done():
                    raise
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        stop = asyncio.Event()
        async with self._simulator:
            self._ready.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()
