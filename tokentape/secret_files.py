"""Secrets that stand in files: how containers and service managers hand them over. No message repeats one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from .errors import ConfigError


def read_secret(setting: str, path: str | Path) -> str:
    """What a file holds, white space stripped. Raises ConfigError that names the setting, never the secret."""
    try:
        secret = Path(path).read_text().strip()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name with a NUL
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{setting}: {path} cannot be read ({reason})") from None
    if not secret:
        raise ConfigError(f"{setting}: {path} is empty")
    return secret


def with_password(url: Any, password: str) -> Any:
    """A URL with a password, where it has none: `redis://worker@host` keeps its user."""
    if not isinstance(url, str):
        return url  # unset, or refused by the validation
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if parts.password or "password" in parse_qs(parts.query):
        return url
    host = parts.netloc.rpartition("@")[2]  # nothing, for a Unix socket
    return parts._replace(netloc=f"{parts.username or ''}:{quote(password, safe='')}@{host}").geturl()
