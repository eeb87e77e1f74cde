"""The examples work: the chat page resumes by cursor, and other languages read the tape."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import httpx
import pytest
import redis

from tokentape import Client
from tokentape.job import new_job_id
from tokentape.simulator import expected_text

from .conftest import ROOT, Environment

EXAMPLES = ROOT / "examples"


def body(text: str, **script: Any) -> dict[str, Any]:
    """A chat request; keyword arguments script the simulator's answer."""
    request: dict[str, Any] = {"model": "sim-1", "messages": [{"role": "user", "content": text}]}
    return {**request, "simulate": script} if script else request


# ---- the chat page


@pytest.fixture
def web(service: Environment, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The application, as a module of its own for each test."""
    for name in ("TOKENTAPE_REDIS_URL", "TOKENTAPE_NAMESPACE"):
        monkeypatch.setenv(name, service[name])
    spec = importlib.util.spec_from_file_location("chat_page", EXAMPLES / "web" / "app.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def browser(web: ModuleType) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running application, without a network between the two."""
    transport = httpx.ASGITransport(app=web.app)
    async with (
        web.app.router.lifespan_context(web.app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as http,
    ):
        yield http


def read_events(text: str) -> list[tuple[str, str, Any]]:
    """Events as (id, event, data)."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


async def test_a_message_is_answered_once_however_often_it_is_sent(web: ModuleType) -> None:
    message = {"message": "Why is the sky blue?", "key": new_job_id()}

    async with browser(web) as http:
        first, second = [await http.post("/chats", json=message) for _ in range(2)]
        events = await http.get(f"/chats/{first.json()['id']}/events")

    assert first.status_code == 201
    assert first.json() == second.json()
    assert events.headers["content-type"].startswith("text/event-stream")
    kinds = [kind for _, kind, _ in read_events(events.text)]
    assert kinds[:2] == ["queued", "attempt"]
    assert kinds[-1] == "end"


async def test_a_browser_that_connects_again_gets_what_comes_after_the_last_event(
    web: ModuleType, client: Client
) -> None:
    job = client.submit(request=body("resume"))

    async with browser(web) as http:
        whole = read_events((await http.get(f"/chats/{job.id}/events")).text)
        cursor = whole[4][0]
        rest = read_events((await http.get(f"/chats/{job.id}/events", headers={"Last-Event-ID": cursor})).text)

    assert rest == whole[5:]


async def test_a_browser_that_has_everything_is_told_not_to_come_back(web: ModuleType, client: Client) -> None:
    job = client.submit(request=body("whole"))
    job.result()

    async with browser(web) as http:
        answers = [
            await http.get(f"/chats/{job.id}/events", headers={"Last-Event-ID": cursor})
            for cursor in (job.status().last_entry_id, "9-9")
        ]

    assert [answer.status_code for answer in answers] == [204, 204]


async def test_what_cannot_be_followed_has_a_status_of_its_own(web: ModuleType, client: Client) -> None:
    job = client.submit(request=body("statuses"))

    async with browser(web) as http:
        unknown = await http.get(f"/chats/{new_job_id()}/events")
        nonsense = await http.get(f"/chats/{job.id}/events", headers={"Last-Event-ID": "yesterday"})
        empty = await http.post("/chats", json={"message": None, "key": "k"})

    assert [unknown.status_code, nonsense.status_code, empty.status_code] == [404, 400, 400]


async def test_what_is_no_message_is_refused(web: ModuleType) -> None:
    bodies = [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b'"message"', b"null", b"{}", b'{"message": "Hi"}']

    async with browser(web) as http:
        answers = [await http.post("/chats", content=content) for content in bodies]

    assert {answer.status_code for answer in answers} == {400}


async def test_another_message_under_the_same_key_is_a_conflict(web: ModuleType) -> None:
    key = new_job_id()

    async with browser(web) as http:
        first, other = [await http.post("/chats", json={"message": message, "key": key}) for message in ("Hi", "Hello")]

    assert [first.status_code, other.status_code] == [201, 409]


def test_the_application_imports_nothing_below_the_library() -> None:
    code = (EXAMPLES / "web" / "app.py").read_text()

    assert re.findall(r"^(?:from|import) (tokentape\S*)", code, re.MULTILINE) == ["tokentape"]


async def test_a_stream_that_says_nothing_is_kept_open(web: ModuleType) -> None:
    silence = asyncio.Event()

    async def nothing() -> AsyncIterator[Any]:
        await silence.wait()
        for _ in ():
            yield

    web.HEARTBEAT_S = 0.01  # type: ignore[attr-defined]
    events = web.sse(nothing())
    assert await anext(events) == b": still here\n\n"
    silence.set()

    left = [event async for event in events]

    assert set(left) <= {b": still here\n\n"}


# ---- other languages


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The Node reader, with its one package installed."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("node and npm are not here")
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(EXAMPLES / "node", folder, dirs_exist_ok=True)
    install = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    if installed.returncode and "CI" not in os.environ:
        pytest.skip("npm cannot install the package: is there a network?")
    assert installed.returncode == 0, installed.stderr
    return [program, str(folder / "follow.mjs")]


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The Go reader, built."""
    tool = shutil.which("go")
    if tool is None:
        pytest.skip("go is not here")
    folder = tmp_path_factory.mktemp("go")
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    build = [tool, "build", "-o", str(folder / "follow"), "."]
    built = subprocess.run(
        build, cwd=EXAMPLES / "go", env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert built.returncode == 0, built.stderr
    return [str(folder / "follow")]


@pytest.fixture(params=["node", "go"])
def reader(request: pytest.FixtureRequest) -> list[str]:
    command: list[str] = request.getfixturevalue(request.param)
    return command


def run(reader: list[str], service: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*reader, *arguments], env=service, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


def test_another_language_reads_the_answer_as_it_grows(reader: list[str], service: Environment, client: Client) -> None:
    request = body("read by another language", chunks=30, interval_ms=20)
    job = client.submit(request=request)

    read = run(reader, service, job.id)

    assert read.returncode == 0, read.stderr
    assert read.stdout == expected_text(request)


def test_another_language_goes_on_after_a_cursor(reader: list[str], service: Environment, client: Client) -> None:
    request = body("gone on with by another language")
    job = client.submit(request=request)
    chunks = [entry for entry in job.follow() if entry.kind == "chunk"]
    before = "".join(choice.delta.content or "" for entry in chunks[:5] for choice in entry.data.choices)  # type: ignore[union-attr]

    read = run(reader, service, job.id, chunks[4].id)

    assert read.returncode == 0, read.stderr
    assert before + read.stdout == expected_text(request)


def test_another_language_tells_how_a_job_ended(reader: list[str], service: Environment, client: Client) -> None:
    job = client.submit(request=body("cancelled", chunks=1000, interval_ms=100))
    job.cancel()

    ended = run(reader, service, job.id)
    unknown = run(reader, service, new_job_id())
    misused = run(reader, service, "yesterday")

    assert [ended.returncode, unknown.returncode, misused.returncode] == [1, 3, 2]
    assert "cancelled" in ended.stderr


@pytest.mark.parametrize("after", ["0-0", "1-1"])
def test_another_language_refuses_a_format_that_it_does_not_know_wherever_it_goes_on(
    reader: list[str], service: Environment, after: str
) -> None:
    job = new_job_id()
    entries: list[tuple[str, str, dict[str, Any]]] = [
        ("0-1", "queued", {"format": 2}),
        ("1-0", "attempt", {"reason": "submitted"}),
        ("1-1", "chunk", {"choices": []}),
        ("1-2", "end", {"status": "completed"}),
    ]
    with redis.Redis.from_url(service["TOKENTAPE_REDIS_URL"]) as server:
        for entry_id, kind, data in entries:
            tape = f"{service['TOKENTAPE_NAMESPACE']}:{{{job[4:6]}}}:{job}:tape"
            server.xadd(tape, {"kind": kind, "data": json.dumps(data)}, id=entry_id)

    read = run(reader, service, job, after)

    assert read.returncode == 1
    assert "format 2 is not known here" in read.stderr
    assert "completed" not in read.stderr


def test_another_language_does_not_wait_beyond_the_end(reader: list[str], service: Environment, client: Client) -> None:
    job = client.submit(request=body("waited for beyond the end"))
    job.result()

    read, beyond = [run(reader, service, job.id, cursor) for cursor in (job.status().last_entry_id, "9-9")]

    assert [read.returncode, beyond.returncode] == [0, 2]
    assert "completed" in read.stderr
    assert "beyond its end" in beyond.stderr


def test_another_language_says_where_an_attempt_starts_over(
    reader: list[str], service: Environment, client: Client
) -> None:
    # A text of its own for each reader: the simulator counts the calls of a request.
    request = body(f"started over {new_job_id()}", chunks=20, fault=["disconnect"], fault_times=1)
    job = client.submit(request=request)

    read = run(reader, service, job.id)

    assert read.returncode == 0, read.stderr
    assert "starts over (upstream_error)" in read.stderr
    assert read.stdout.endswith(expected_text(request))
