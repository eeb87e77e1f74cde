"""What transport errors mean that a server on this machine cannot be made to cause."""

from __future__ import annotations

import ssl

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey

from tokentape.errors import ConfigError
from tokentape_worker.transport import explain, new_client

KEY = ConnectionKey(
    "upstream.example", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
)


@pytest.mark.parametrize(
    ("cause", "type_", "code", "retryable"),
    [
        (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown")), "upstream_error", "dns", True),
        (
            aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("self-signed")),
            "upstream_error",
            "tls_certificate",
            False,
        ),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError("handshake")), "upstream_error", "tls", True),
        (aiohttp.ConnectionTimeoutError("x"), "timeout", "connect_timeout", True),
        (aiohttp.SocketTimeoutError("x"), "timeout", "timeout", True),
        (aiohttp.ServerDisconnectedError(), "upstream_error", "disconnected", True),
        (aiohttp.ClientConnectionResetError("x"), "upstream_error", "disconnected", True),
        (aiohttp.ClientProxyConnectionError(KEY, OSError(111, "refused")), "upstream_error", "proxy", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_cause_decides_and_not_what_the_transport_calls_it(
    cause: Exception, type_: str, code: str, retryable: bool
) -> None:
    error = httpx.ConnectTimeout("secret")
    error.__cause__ = cause

    info = explain(error)

    assert (info.type, info.code, info.retryable) == (type_, code, retryable)
    assert "secret" not in info.message


@pytest.mark.parametrize("error", [httpx.ReadError("secret"), httpx.RemoteProtocolError("secret"), OSError("secret")])
def test_other_failures_may_be_tried_again(error: Exception) -> None:
    info = explain(error)

    assert (info.type, info.retryable) == ("upstream_error", True)
    assert "secret" not in info.message


@pytest.mark.parametrize("proxy", ["socks6://me:s3cret@127.0.0.1:1", "http://me:s3cret@127.0.0.1:port"])
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", None])
def test_a_way_out_that_is_none_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, proxy: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, proxy)

    with pytest.raises(ConfigError, match=variable or "^proxy: ") as told:
        new_client(proxy=None if variable else proxy)

    assert "s3cret" not in str(told.value)
