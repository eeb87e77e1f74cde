"""What the answers of an upstream mean to `tokentape doctor`: as vendors give them, on a real connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tokentape.doctor_facts import UpstreamFacts
from tokentape.settings import Upstream
from tokentape_worker.probe import probe

from .conftest import Exchange, Handler, Serve

KEY = "key-of-the-upstream-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)


def answers(with_key: tuple[int, Any], without: tuple[int, Any] = (401, {})) -> Handler:
    """An API that gives one answer to a call with a key, and another to one without."""

    async def handle(exchange: Exchange) -> None:
        status, body = with_key if KEY in str(exchange.headers) else without
        await exchange.send_whole(body if isinstance(body, bytes) else json.dumps(body).encode(), status)

    return handle


async def ask(url: str, **fields: Any) -> UpstreamFacts:
    upstream = Upstream(**{"base_url": url, "api_key_env": "SOME_KEY", **fields})
    (facts,) = await asyncio.to_thread(probe, {"main": upstream})
    return facts


LIST = {"object": "list", "data": [{"id": "one"}]}
OPENAI_REFUSES = {"error": {"code": "invalid_api_key", "type": "invalid_request_error", "message": "Incorrect API key"}}
OPENAI_SCOPE = {"error": {"code": "missing_scope", "type": "invalid_request_error", "message": "Missing scopes: x"}}
ANTHROPIC_REFUSES = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
ANTHROPIC_FORBIDS = {"type": "error", "error": {"type": "permission_error", "message": "not this one"}}
GEMINI_REFUSES = {
    "error": {
        "code": 400,
        "message": "API key not valid.",
        "status": "INVALID_ARGUMENT",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
    }
}


@pytest.mark.parametrize(
    ("dialect", "status", "body"),
    [
        ("openai", 401, OPENAI_REFUSES),
        ("anthropic", 401, ANTHROPIC_REFUSES),
        ("gemini", 400, GEMINI_REFUSES),
        ("openai", 400, [GEMINI_REFUSES]),  # Gemini, asked as an OpenAI-compatible API
    ],
)
async def test_a_key_is_refused_as_each_vendor_does_it(serve: Serve, dialect: str, status: int, body: Any) -> None:
    server = await serve(answers((status, body)))

    facts = await ask(server.url, dialect=dialect)

    assert (facts.key, facts.problem, facts.doubt) == ("refused", None, None)
    assert facts.key_note


@pytest.mark.parametrize(
    ("status", "body"), [(403, OPENAI_SCOPE), (401, OPENAI_SCOPE), (403, ANTHROPIC_FORBIDS), (403, b"Forbidden")]
)
async def test_a_key_that_may_not_list_models_is_not_refused(serve: Serve, status: int, body: Any) -> None:
    server = await serve(answers((status, body)))

    facts = await ask(server.url)

    assert (facts.key, facts.problem, facts.doubt) == ("unchecked", None, "list")


@pytest.mark.parametrize("body", [LIST, [{"id": "one"}], {"models": [{"name": "models/one"}]}])
@pytest.mark.parametrize("refusal", [(401, OPENAI_REFUSES), (403, {}), (400, {"error": {"message": "no key"}})])
async def test_a_key_is_accepted_where_it_makes_the_difference(
    serve: Serve, body: Any, refusal: tuple[int, Any]
) -> None:
    server = await serve(answers((200, body), refusal))

    facts = await ask(server.url, models=["one", "two", "th*"])

    assert (facts.key, facts.doubt, facts.unlisted) == ("accepted", None, ("two",))


async def test_a_key_is_not_called_accepted_for_an_api_that_is_down_a_moment_later(serve: Serve) -> None:
    server = await serve(answers((200, LIST), (503, b"")))

    assert (await ask(server.url)).key == "unchecked"


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_no_list_leaves_the_path_in_doubt(serve: Serve, status: int) -> None:
    server = await serve(answers((status, b"no such page")))

    facts = await ask(server.url.removesuffix("/v1"))

    assert (facts.key, facts.doubt) == ("unchecked", "path")
    assert facts.key_note == f"HTTP {status} for /models"


async def test_no_list_by_deployment_is_as_it_should_be(serve: Serve) -> None:
    server = await serve(answers((404, {})))

    facts = await ask(f"{server.url}/deployments/{{model}}?api-version=1", auth="api-key")

    assert (facts.key, facts.doubt, facts.problem) == ("unchecked", None, None)


@pytest.mark.parametrize("body", [b"<html>A chat page</html>", {"status": "ok"}, {"data": ["one"]}])
async def test_something_else_than_a_list_leaves_the_path_in_doubt(serve: Serve, body: Any) -> None:
    server = await serve(answers((200, body)))

    assert (await ask(server.url)).doubt == "path"


@pytest.mark.parametrize(
    ("listed", "model", "known"),
    [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5", True),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku-latest", True),
        ("gpt-4o-2024-08-06", "gpt-4o", True),
        ("llama3.2:latest", "llama3.2", True),
        ("some/model", "some/model:online", True),
        ("llama3.2:latest", "llama3", False),
        ("gpt-4o-mini", "gpt-4o", False),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku-20240101", False),
        ("20250929", "gpt", False),
    ],
)
async def test_a_name_may_stand_for_one_that_is_listed(serve: Serve, listed: str, model: str, known: bool) -> None:
    server = await serve(answers((200, {"data": [{"id": listed}]})))

    facts = await ask(server.url, models=[model])

    assert facts.unlisted == (() if known else (model,))


async def test_a_page_of_a_list_does_not_say_what_is_missing(serve: Serve) -> None:
    server = await serve(answers((200, {**LIST, "has_more": True})))

    facts = await ask(server.url, models=["two"])

    assert (facts.key, facts.unlisted) == ("accepted", ())


async def test_too_many_calls_say_nothing_of_the_key_but_a_spent_quota_is_a_problem(serve: Serve) -> None:
    busy = await serve(answers((429, {"error": {"code": "rate_limit_exceeded", "message": "slowly"}})))
    spent = await serve(answers((429, {"error": {"code": "insufficient_quota", "message": "no credit"}})))

    assert (await ask(busy.url)).doubt == "busy"
    assert (await ask(spent.url)).problem == "no credit"


@pytest.mark.parametrize(("dialect", "key"), [("gemini", "missing"), ("openai", "unchecked")])
async def test_forbidden_without_a_key(serve: Serve, dialect: str, key: str) -> None:
    server = await serve(answers((200, LIST), (403, {"error": {"code": 403, "message": "unregistered callers"}})))

    assert (await ask(server.url, dialect=dialect, api_key_env=None)).key == key
