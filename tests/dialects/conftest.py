from __future__ import annotations

from tests.upstream.conftest import connect, no_proxies, serve

__all__ = ["connect", "no_proxies", "serve"]
