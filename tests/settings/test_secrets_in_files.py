"""Secrets that stand in files of their own, as Docker and Kubernetes mount them."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tokentape import Settings
from tokentape.connection import connect
from tokentape.errors import ConfigError


@pytest.fixture
def password() -> str:
    """With characters that mean something in a URL."""
    return f"k-secret/{secrets.token_hex(4)}@:%?#"


@pytest.fixture
def password_file(tmp_path: Path, password: str) -> str:
    file = tmp_path / "password"
    file.write_text(f"{password}\n")
    return str(file)


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("redis://db:6379/0", None),
        ("redis://worker@db:6379/2", "worker"),
        ("rediss://worker@[::1]:6380/0", "worker"),
        ("unix:///run/valkey.sock?db=0", None),
    ],
)
def test_the_password_of_a_file_goes_into_a_url_that_has_none(
    url: str, user: str | None, password: str, password_file: str
) -> None:
    settings = Settings.load({"TOKENTAPE_REDIS_URL": url, "TOKENTAPE_REDIS_PASSWORD_FILE": password_file})

    with connect(settings.redis_url) as client, connect(url) as plain:
        got, asked = client.connection_pool.connection_kwargs, plain.connection_pool.connection_kwargs
        assert got["password"] == password
        assert got.get("username") == user
        assert {name: got.get(name) for name in ("host", "port", "path", "db")} == {
            name: asked.get(name) for name in ("host", "port", "path", "db")
        }


@pytest.mark.parametrize("url", ["redis://:own@db:6379/0", "unix:///run/valkey.sock?db=0&password=own"])
def test_a_url_with_a_password_keeps_it(url: str, password_file: str) -> None:
    settings = Settings.load({"TOKENTAPE_REDIS_URL": url, "TOKENTAPE_REDIS_PASSWORD_FILE": password_file})

    assert settings.redis_url == url


def test_the_password_is_for_the_tapes_server_too_and_for_the_default_address(
    password: str, password_file: str
) -> None:
    settings = Settings.load(
        {"TOKENTAPE_TAPE_URL": "redis://tapes:6379/0", "TOKENTAPE_REDIS_PASSWORD_FILE": password_file}
    )

    for url, host in ((settings.redis_url, "127.0.0.1"), (settings.tape_url, "tapes")):
        with connect(url or "") as client:
            got = client.connection_pool.connection_kwargs
            assert (got["host"], got["password"]) == (host, password)


def test_an_address_that_is_none_is_refused_also_where_a_password_is_to_go_into_it(password_file: str) -> None:
    environment = {"TOKENTAPE_REDIS_URL": "redis://[::1", "TOKENTAPE_REDIS_PASSWORD_FILE": password_file}

    with pytest.raises(ConfigError, match="TOKENTAPE_REDIS_URL: "):
        Settings.load(environment)


def test_without_a_tape_url_the_tapes_stay_on_the_queues_server(password_file: str) -> None:
    settings = Settings.load({"TOKENTAPE_REDIS_PASSWORD_FILE": password_file})

    assert settings.tape_url is None


@pytest.mark.parametrize("name", ["REDIS_URL", "TAPE_URL"])
def test_a_whole_url_may_stand_in_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://:k-secret@db:6379/0\n")

    settings = Settings.load({f"TOKENTAPE_{name}_FILE": str(file)})

    assert getattr(settings, name.lower()) == "redis://:k-secret@db:6379/0"


def test_a_url_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    environment = {"TOKENTAPE_REDIS_URL": "redis://db", "TOKENTAPE_REDIS_URL_FILE": str(tmp_path / "url")}

    with pytest.raises(ConfigError, match="TOKENTAPE_REDIS_URL_FILE and TOKENTAPE_REDIS_URL exclude each other"):
        Settings.load(environment)


@pytest.mark.parametrize("variable", ["TOKENTAPE_REDIS_URL_FILE", "TOKENTAPE_REDIS_PASSWORD_FILE"])
def test_a_file_that_is_missing_or_empty_is_named(variable: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"

    with pytest.raises(ConfigError, match=f"{variable}: {file} cannot be read"):
        Settings.load({variable: str(file)})
    file.write_text("\n")
    with pytest.raises(ConfigError, match=f"{variable}: {file} is empty"):
        Settings.load({variable: str(file)})


def test_a_wrong_name_of_a_file_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match="did you mean TOKENTAPE_REDIS_URL_FILE"):
        Settings.load({"TOKENTAPE_REDIS_URI_FILE": "x"})


def test_the_key_of_the_only_upstream_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k-secret\n")

    settings = Settings.load({"OPENAI_API_KEY_FILE": str(file)})

    assert settings.upstreams["default"].api_key() == "k-secret"
    assert "k-secret" not in repr(settings)


def test_an_empty_file_of_a_key_is_refused_and_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("\n")
    settings = Settings.load({"OPENAI_API_KEY_FILE": str(file)})

    with pytest.raises(ConfigError, match="is empty"):
        settings.upstreams["default"].api_key()
