"""What every test may use: a real server, a namespace of its own, and an environment without anybody's settings.

`TOKENTAPE_TEST_REDIS_SERVER` names another server program, and the whole suite runs on that one instead of the
embedded Valkey; `.ci/run` does so with Debian's redis-server for the tests marked `server_contract`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from tokentape.embedded import EmbeddedServer

TEST_VARIABLES = "TOKENTAPE_TEST_"

# Started in the background, as by some runners, a process ignores Ctrl-C and so do all that it starts: the tests that
# press it need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "tokentape",
    deadline=None,  # the machine is shared: how long an example takes says nothing about it
    max_examples=100,
    derandomize="CI" in os.environ,  # a push is not held up by what it did not change; elsewhere each run looks further
    print_blob=True,
)
hypothesis.settings.load_profile("tokentape")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the language model run where `script/setup --engine` was run."""
    if importlib.util.find_spec("xllamacpp") is None:
        for item in items:
            if item.get_closest_marker("engine"):
                item.add_marker(pytest.mark.skip(reason="the engine is not installed: script/setup --engine"))


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A developer's own settings and keys reach no test, and no process that a test starts; nor does their server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        for name in list(os.environ):
            if name.startswith(("TOKENTAPE_", "OPENAI_")) and not name.startswith(TEST_VARIABLES):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def server_binary() -> Path | None:
    """The server program to test on; None is the embedded Valkey."""
    binary = os.environ.get(f"{TEST_VARIABLES}REDIS_SERVER")
    return Path(binary) if binary else None


@pytest.fixture(scope="session")
def valkey(server_binary: Path | None) -> Iterator[EmbeddedServer]:
    """One server for all tests of this process. Tests that stop or stall a server start their own."""
    with EmbeddedServer(binary=server_binary) as server:
        yield server


@pytest.fixture
def redis_url(valkey: EmbeddedServer) -> str:
    return valkey.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client that answers bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def namespace() -> str:
    """Prefixes the keys and queues of one test, so that tests share a server without meeting."""
    return f"t{uuid.uuid4().hex[:12]}"
