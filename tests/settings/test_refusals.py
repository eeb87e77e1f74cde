"""A wrong name or value of a setting: refused where it was read, with the nearest right one, without secrets."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from pydantic import ValidationError

from tokentape import Settings
from tokentape.errors import ConfigError
from tokentape.masking import shown
from tokentape.settings import Upstream


def refusal(environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        Settings.load(environ)
    return refused.value


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TOKENTAPE_LEASES", "5", "no such setting; did you mean TOKENTAPE_LEASE_S?"),
        ("TOKENTAPE_REDIS", "x", "no such setting; did you mean TOKENTAPE_REDIS_URL?"),
        ("TOKENTAPE_CONFG", "x", "no such setting; did you mean TOKENTAPE_CONFIG?"),
        ("TOKENTAPE_ZZZZZZ", "x", "TOKENTAPE_ZZZZZZ: no such setting"),
        ("TOKENTAPE_UPSTREAMS", "x", "upstreams stand in the file that TOKENTAPE_CONFIG names"),
        ("TOKENTAPE_LOG_LEVEL", "warn", "not 'warn'; did you mean warning?"),
        ("TOKENTAPE_LOG_LEVEL", "INFO", "must be one of debug, info, warning, error, not 'INFO'; did you mean info?"),
        ("TOKENTAPE_LEASE_S", "5s", "must be a number of seconds, not '5s'; did you mean 5?"),
        ("TOKENTAPE_RETENTION_S", "1.5h", "did you mean 5400?"),
        ("TOKENTAPE_RETENTION_S", "500 ms", "did you mean 0.5?"),
        ("TOKENTAPE_RETENTION_S", "soon", "must be a number of seconds, not 'soon'"),
        ("TOKENTAPE_RESEND_BYTES", "64KiB", "must be a whole number of bytes, not '64KiB'; did you mean 65536?"),
        ("TOKENTAPE_RESEND_BYTES", "10", "must be at least 1024, not '10'"),
        ("TOKENTAPE_CONCURRENCY", "0", "must be at least 1, not '0'"),
        ("TOKENTAPE_CONCURRENCY", "1000000", "must be at most 100000"),
        ("TOKENTAPE_SWEEP_S", "-1", "must be more than 0"),
        ("TOKENTAPE_NAMESPACE", "my app!", "not 'my app!'; did you mean my-app?"),
        ("TOKENTAPE_REDIS_URL", "localhost:6379", "did you mean redis://localhost:6379?"),
        ("TOKENTAPE_REDIS_URL", "rdis://localhost", "did you mean redis?"),
        ("TOKENTAPE_TAPE_URL", "", "must begin with redis://"),
        ("TOKENTAPE_REDIS_URL", "redis://", "names no server, as redis://127.0.0.1:6379/0 does"),
        ("TOKENTAPE_REDIS_URL", "redis://h:6379/abc", "nothing but the number of a database, as in /0"),
        ("TOKENTAPE_REDIS_URL", "redis://:123/word@host", "nothing but the number of a database"),
        ("TOKENTAPE_REDIS_URL", "redis://foo..bar", "its host is not a name that there can be"),
        ("TOKENTAPE_HEALTH_FILE", "", "must not be empty; leave it away instead"),
        ("TOKENTAPE_LEASE_S", "nan", "not 'nan'"),
        ("TOKENTAPE_RENEW_S", "4", "renew_s (4) must be at most half of lease_s (5)"),
        ("OPENAI_BASE_URL", "api.example", "OPENAI_BASE_URL (default): base_url must be http:// or https://"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_with_the_nearest_right_one(
    variable: str, value: str, expected: str
) -> None:
    message = str(refusal({variable: value}))

    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lease = 5", "lease in FILE: no such setting; did you mean lease_s?"),
        ("Redis-URL = 'redis://x'", "Redis-URL in FILE: no such setting; did you mean redis_url?"),
        ("TOKENTAPE_GRACE_S = 3", "TOKENTAPE_GRACE_S in FILE: no such setting; did you mean grace_s?"),
        ("[upstream.default]", "upstream in FILE: no such setting; did you mean upstreams?"),
        ("[upstreams.a]\nbase_ur = 'x'", "upstreams in FILE (a.base_ur): no such setting; did you mean base_url?"),
        ("[upstreams.a]\ndialect = 'antropic'", "upstreams in FILE (a.dialect): must be one of openai, anthropic"),
        ("[upstreams.a]\ndialect = 'antropic'", "; did you mean anthropic?"),
        ("[upstreams.a]\nidle_timeout_s = '30s'", "must be a number of seconds; did you mean 30?"),
        ("[upstreams.a]\nmax_attempts = 101", "upstreams in FILE (a.max_attempts): must be at most 100, not 101"),
        ("[upstreams.a]\nfan_out = 'maybe'", "must be true or false"),
        ("upstreams = 0", "upstreams in FILE: must be a table"),
        ("concurrency = true", "concurrency in FILE: must be a number, not true or false"),
        ("lease_s = true", "lease_s in FILE: must be a number, not true or false"),
        ("redis_password_file = 5", "redis_password_file in FILE: must be a text"),
        ('redis_password_file = "a\\u0000b"', "cannot be read"),
        ('[upstreams.a]\nmodels = "gpt-*"', '(a.models): must be a list, as in ["gpt-*"]'),
        ("upstreams = 3", "upstreams in FILE: must be a table"),
        ("[upstreams]\ndefault = 3", "upstreams in FILE (default): must be a table"),
        ("redis_url = 6379", "redis_url in FILE: must be a text"),
        ("this is no TOML", "FILE: not TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_nearest_right_one(
    tmp_path: Path, text: str, expected: str
) -> None:
    file = tmp_path / "tokentape.toml"
    file.write_text(text)

    message = str(refusal({"TOKENTAPE_CONFIG": str(file)}))

    assert expected.replace("FILE", str(file)) in message


def test_all_that_is_wrong_is_found_at_once() -> None:
    error = refusal({"TOKENTAPE_LEASE": "5", "TOKENTAPE_SWEEP_S": "0", "TOKENTAPE_CONCURRENCY": "many"})

    assert len(error.problems) == 3
    assert str(error) == "; also: ".join(error.problems)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokentape.toml"
    file.write_bytes(b'namespace = "\xff"')

    assert f"{file}: not TOML" in str(refusal({"TOKENTAPE_CONFIG": str(file)}))


@pytest.mark.parametrize(
    "address",
    ["htp://me:{}@host/0", "{}@host:6379", "redis://me:{}/@host:6379", "redis://h:port/0?password={}", "me:{}@host"],
)
def test_a_refused_address_does_not_tell_its_password(address: str) -> None:
    password = f"k-{secrets.token_hex(8)}"

    for variable in ("TOKENTAPE_REDIS_URL", "OPENAI_BASE_URL"):
        value = address.format(password)
        assert password not in str(refusal({variable: value}))


def test_a_key_that_stands_in_the_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    key = f"k-{secrets.token_hex(8)}"
    file = tmp_path / "tokentape.toml"
    file.write_text(f'[upstreams.a]\napi_key = "{key}"\nauth = "{key}"\nmax_attempts = "{key}"')

    error = refusal({"TOKENTAPE_CONFIG": str(file)})

    assert "(a.api_key): no such setting; did you mean api_key_env?" in " ".join(error.problems)
    assert len(error.problems) == 3
    assert key not in " ".join([*error.problems, str(error)])


@pytest.mark.parametrize("key", ["sk-{}", "gsk_{}Aa", "hf_{}aaaa", "AIza{}Zz_", "{}", "", "MY KEY {}"])
def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    key = key.format(f"a1{secrets.token_hex(15)}")
    file = tmp_path / "tokentape.toml"
    file.write_text(f'[upstreams.a]\napi_key_env = "{key}"')

    message = str(refusal({"TOKENTAPE_CONFIG": str(file)}))

    assert message.endswith(
        "(a.api_key_env): must be the name of the variable that holds the key, as OPENAI_API_KEY, not the key itself"
    )
    assert not key or key not in message
    with pytest.raises(ValidationError) as direct:
        Upstream(api_key_env=key)
    assert not key or key not in str(direct.value)


@pytest.mark.parametrize(
    "proxy",
    [
        "localhost:3128",
        "me:{}@localhost:3128",
        "socks5://me:{}@localhost:1080",
        "http://",
        "http://:3128",
        "http:localhost",
        "http://me:{}@localhost:port",
        "http://me:{}@localhost:65536",
        "http://me:{}@[::1",
        "http://local host",
        "",
    ],
)
def test_a_proxy_that_cannot_be_one_is_refused_and_its_password_not_repeated(tmp_path: Path, proxy: str) -> None:
    password = f"k-{secrets.token_hex(8)}"
    file = tmp_path / "tokentape.toml"
    file.write_text(f'[upstreams.a]\nproxy = "{proxy.format(password)}"')

    message = str(refusal({"TOKENTAPE_CONFIG": str(file)}))

    assert "(a.proxy): must be http:// or https:// with a host, as http://proxy.example:3128" in message
    assert password not in message


@pytest.mark.parametrize("proxy", ["http://localhost:3128", "https://me:word@[::1]:1/", "http://proxy.example"])
def test_a_proxy_is_taken(proxy: str) -> None:
    assert Upstream(proxy=proxy).proxy == proxy


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "_KEY2", "key_of_team_2", "A" * 31 + "9", "x" * 40])
def test_a_variables_name_is_taken(name: str) -> None:
    assert Upstream(api_key_env=name).api_key_env == name


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://me:k-word@host/0", "redis://me:***@host/0"),
        ("rediss://:k/wo#rd@host:1/0", "rediss://:***@host:1/0"),
        ("redis://:a@b/c@host", "redis://:***@host"),
        ("redis://:k?word@host/0", "redis://:***@host/0"),
        ("redis://host/0?password=kword", "redis://host/0?password=***"),
        ("redis://:se&auth=1@h", "redis://:***@h"),
        ("redis://:ab?token=cd@h/0", "redis://:***@h/0"),
        ("unix:///run/redis.sock?db=1&password=k-word", "unix:///run/redis.sock?db=1&password=***"),
        ("https://host/v1?api-version=3&api-key=k-word", "https://host/v1?api-version=3&api-key=***"),
    ],
)
def test_an_address_is_shown_without_what_is_secret_in_it(url: str, expected: str) -> None:
    assert shown(url) == expected
