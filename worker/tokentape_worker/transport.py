"""The one HTTP client of a worker, and what its failures mean.

httpx is the API and aiohttp does the work: httpx's own pool is walked on every request, 7 ms of CPU each at 500 open
streams. The fences around the transport between them:

- its sessions keep no cookies and the connector has no limit: calls of different jobs share nothing, and the bound is
  the upstream's `max_concurrency`;
- a subclass of its client, because environment proxies (HTTPS_PROXY, NO_PROXY) are used only where no transport is
  given;
- refused, DNS, TLS and "closed without an answer" all come as ConnectTimeout: the cause is what is looked at;
- a bad status line, a bad chunk size and oversized headers come as aiohttp's own errors, so those are caught too. Their
  repr holds the request's headers and with them the key: nothing of an exception is passed on, neither text nor chain.
"""

from __future__ import annotations

import errno
import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport, HttpxAiohttpClient

from tokentape import __version__
from tokentape.errors import ConfigError
from tokentape.job import ErrorInfo

#: What a call may raise. ValueError: a header or a URL that cannot be sent.
TRANSPORT_ERRORS: Final = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    aiohttp.ClientError,
    OSError,
    ValueError,
)

#: How long an idle connection is kept for the next call.
_KEEP_ALIVE_S: Final = 15.0

#: Hosts that the environment's proxies are not asked for, whatever NO_PROXY says: to a proxy on another machine they
#: are its own. httpx's patterns; an upstream's own `proxy` is asked for them as for all others.
_LOOPBACK: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class _Client(HttpxAiohttpClient):
    def _init_transport(self, *args: Any, **kwargs: Any) -> httpx.AsyncBaseTransport:
        return _fenced(super()._init_transport(*args, **kwargs))

    def _init_proxy_transport(self, *args: Any, **kwargs: Any) -> httpx.AsyncBaseTransport:
        return _fenced(super()._init_proxy_transport(*args, **kwargs))


def _fenced(transport: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    """The transport with a session of our own making, which it asks for with its first request."""
    if not isinstance(transport, AiohttpTransport):
        raise TypeError(f"expected a transport over aiohttp, not {type(transport).__name__}")

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, ssl=transport.ssl_context, keepalive_timeout=_KEEP_ALIVE_S)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    transport.client = session
    return transport


def new_client(*, ca_file: Path | None = None, proxy: str | None = None) -> httpx.AsyncClient:
    """A client without timeouts of its own for reading: those are the caller's. Close it in the loop that used it.

    `ca_file`: certificates that are trusted instead of the system's. `proxy`: the way out instead of the environment's,
    which is not taken to this machine itself.
    Raises ConfigError where the file cannot be read as certificates, or the way out is no address of a proxy.
    """
    try:
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca_file) if ca_file else True
    except ssl.SSLError:  # an OSError, whose words are those of the C library
        raise ConfigError(f"ca_file: {ca_file} holds no certificates (it must be PEM)") from None
    except OSError as error:
        raise ConfigError(f"ca_file: {ca_file} cannot be read ({error.strerror})") from None
    try:
        return _Client(
            verify=verify,
            proxy=proxy,
            mounts=None if proxy else dict.fromkeys(_LOOPBACK),
            headers={"user-agent": f"tokentape/{__version__}"},
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            timeout=None,
            trust_env=True,
        )
    except (ValueError, httpx.InvalidURL):  # their words hold the address, and with it a password
        where = "proxy" if proxy else "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY of the environment"
        raise ConfigError(f"{where}: no address of a proxy, as http://proxy.example:3128") from None


def explain(error: BaseException) -> ErrorInfo:
    """What a transport error means. Its text says what happened and quotes nothing."""
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError | OSError) else error
    for kinds, type_, code, message, retryable in _KINDS:
        if isinstance(cause, kinds):
            return ErrorInfo(type=type_, code=code, message=message + _system_code(cause), retryable=retryable)
    return ErrorInfo(type="upstream_error", code="transport", message="the connection failed", retryable=True)


def _system_code(error: BaseException) -> str:
    name = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    return f" ({name})" if name else ""


_Kind = tuple[tuple[type[BaseException], ...], str, str, str, bool]
#: The first that matches; subclasses stand before their bases.
_KINDS: Final[tuple[_Kind, ...]] = (
    (
        (aiohttp.ConnectionTimeoutError, httpx.PoolTimeout),
        "timeout",
        "connect_timeout",
        "connecting took too long",
        True,
    ),
    ((aiohttp.ServerTimeoutError, httpx.TimeoutException, TimeoutError), "timeout", "timeout", "took too long", True),
    ((aiohttp.ClientConnectorDNSError,), "upstream_error", "dns", "its host name cannot be resolved", True),
    (
        (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError),
        "upstream_error",
        "tls_certificate",
        "its TLS certificate is not trusted",
        False,
    ),
    ((aiohttp.ClientSSLError, ssl.SSLError), "upstream_error", "tls", "the TLS handshake failed", True),
    (
        (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError, httpx.ProxyError),
        "upstream_error",
        "proxy",
        "the proxy before it does not let us through",
        True,
    ),
    ((aiohttp.ClientConnectorError,), "upstream_error", "connect", "the connection was refused or failed", True),
    (
        (aiohttp.ServerDisconnectedError, ConnectionResetError, aiohttp.ClientOSError),
        "upstream_error",
        "disconnected",
        "closed the connection without an answer",
        True,
    ),
    ((aiohttp.ClientPayloadError,), "upstream_error", "truncated", "the connection broke off in the answer", True),
    ((httpx.DecodingError,), "upstream_error", "bad_encoding", "its answer cannot be decompressed", True),
    (
        (aiohttp.InvalidURL, httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError),
        "invalid_request",
        "unsendable",
        "the request cannot be sent: its address, a header or the body is not valid",
        False,
    ),
    ((aiohttp.ClientResponseError, httpx.ProtocolError), "upstream_error", "bad_http", "its answer is not HTTP", True),
)
