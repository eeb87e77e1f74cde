"""A scripted chat API, for the demo, the tests and the benchmarks: answers that can be checked, in three dialects.

    POST /v1/chat/completions           OpenAI's
    POST /v1/messages                   Anthropic's
    POST /v1beta/models/M:generateContent, :streamGenerateContent    Gemini's; also below /v1
    GET  /v1/models                     the models it was told to list; it answers for any model
    GET  /stats[?digest=D]              calls so far, calls under way; with a digest, calls of that request

Streamed or whole; what it says is `answer.py`, how is `script.py`, in which words `simulator_dialects.py`. A request
gets the same answer in each dialect that it is translated to. A call is planned first (`answer_plan.py`) and then sent
(`simulator_send.py`). A client that leaves cancels its call, at whatever point that is.

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
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict, Unpack, cast

import click

from .answer import Answer, answer, chunks, expected_completion, expected_text, request_digest
from .answer_plan import error_body, http_error, to_json
from .errors import ConfigError, ExtraMissing, InvalidRequest
from .job import MAX_REQUEST_BYTES
from .script import FAULTS, Fault, Script
from .simulator_anthropic import Anthropic
from .simulator_dialects import OpenAI, Posted, Refusal, SimulatedDialect
from .simulator_gemini import Gemini

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from aiohttp.typedefs import Handler

try:
    from aiohttp import web
except ImportError as error:
    raise ExtraMissing("the simulator", "local") from error

from .simulator_send import respond, wait_until_left

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

#: OpenAI's last: it takes every path that is no other's.
_DIALECTS: Final[tuple[SimulatedDialect, ...]] = (Anthropic(), Gemini(), OpenAI())

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
        app = web.Application(middlewares=[_in_its_shape], client_max_size=_MAX_BODY_BYTES)
        for path in (path for dialect in _DIALECTS for path in dialect.paths):
            app.router.add_post(path, self._chat)
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
        return f"{self.root_url}/v1"

    @property
    def root_url(self) -> str:
        """What Anthropic's and Google's clients take, who put the version there themselves."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def active(self) -> int:
        """Chat calls under way."""
        return len(self._under_way)

    def calls_of(self, request: dict[str, Any]) -> int:
        """Calls so far with this request's model and messages."""
        return self._by_digest[request_digest(request)]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request)
        dialect = _dialect_of(request)
        posted = Posted(request.path, request.query, request.headers, _parsed(await request.read()))
        try:
            chat, wire = dialect.read(posted)
            asked = answer(chat, self.defaults)
        except RecursionError:
            raise InvalidRequest("nested too deeply") from None
        self.calls += 1
        self._by_digest.add(asked.digest)
        # Two tests may send the same words with other scripts to one server: their faults are counted apart.
        nth = self._by_script.add((asked.digest, asked.script)) if asked.script.fault else 1
        fault, split = asked.script.strikes(nth)
        call = cast("asyncio.Task[Any]", asyncio.current_task())  # never None: aiohttp runs each handler in one
        self._under_way.add(call)
        try:
            instead = _instead(dialect, asked.script, fault)
            return instead or await respond(request, asked, wire(asked), fault, split)
        except ConnectionError:  # a write found out before the cancellation came
            await wait_until_left()
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
        given = _dialect_of(request).key(request.headers, request.query)
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


def _dialect_of(request: web.Request) -> SimulatedDialect:
    return next(dialect for dialect in _DIALECTS if dialect.owns(request.path))


def _refused(dialect: SimulatedDialect, status: int, headers: dict[str, str], body: dict[str, Any]) -> web.Response:
    """An error that is said in OpenAI's shape, in the dialect's own."""
    refusal = dialect.refusal(Refusal(status, headers, body))
    return _json(refusal.body, status=refusal.status, headers=refusal.headers)


@web.middleware
async def _in_its_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever is refused is refused as the API that was asked would."""
    try:
        return await handler(request)
    except InvalidRequest as error:
        body = error_body(str(error), "invalid_request_error", param=error.field)
        return _refused(_dialect_of(request), 400, {}, body)
    except web.HTTPException as error:  # no key, no such path, another method, a body over the limit
        code = "invalid_api_key" if error.status == HTTPStatus.UNAUTHORIZED else None
        body = error_body(error.text or error.reason, "invalid_request_error", code=code)
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
        return _refused(_dialect_of(request), error.status, headers, body)


def _instead(dialect: SimulatedDialect, script: Script, fault: Fault | None) -> web.Response | None:
    """The response that a fault gives in place of an answer; None where there is an answer to begin."""
    if fault in ("status", "rate_limit"):
        status, headers, body = http_error(script, limited=fault == "rate_limit")
        return _refused(dialect, status, headers, body)
    if fault == "html":
        return web.Response(text=_HTML, content_type="text/html")
    if fault == "empty":
        return web.Response(content_type="text/event-stream")
    if fault == "wrong_json":
        return _json({"status": "ok", "result": ["not", "a", "completion"]})
    return None


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
    def root_url(self) -> str:
        """As the Simulator's."""
        return self._simulator.root_url

    @property
    def defaults(self) -> Script:
        """How calls are answered that have no script of their own. Set it, and those that begin later go by it."""
        return self._simulator.defaults

    @defaults.setter
    def defaults(self, script: Script) -> None:
        self._simulator.defaults = script

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
