"""Addresses as they may be shown: in messages, in logs, on a terminal."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

MASK: Final = "***"

#: `scheme://user:password@`. Greedy up to the last @: a password may hold what it should have been quoted for.
_USER_INFO: Final = re.compile(r"^([^:/]+://[^:@/]*):.*@", re.DOTALL)
_SERVERS: Final = ("redis:", "rediss:", "unix:")
#: Parts of a query whose value is a secret by their name; redis-py takes a password there too.
_SECRET_QUERY: Final = re.compile(r"(?i)([?&][^=&#]*(?:key|token|secret|passw|pwd|sig|auth)[^=&#]*=)[^&#]*")


def shown(url: str) -> str:
    """A URL without its password, and without what else in it is a secret by its name."""
    try:
        password = urlsplit(url).password
    except ValueError:  # not a URL at all, as with a bracket that is not closed
        password = None
    # The path of a server's address is a number: an @ behind one is of a password that was not quoted.
    if password and not url.startswith(_SERVERS):
        masked = url.replace(f":{password}@", f":{MASK}@", 1)
    else:
        masked = _USER_INFO.sub(rf"\1:{MASK}@", url)
    return _SECRET_QUERY.sub(rf"\1{MASK}", masked)
