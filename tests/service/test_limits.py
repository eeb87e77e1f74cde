"""Limits that all workers share."""

from __future__ import annotations

from typing import Any

from tokentape.simulator import expected_text

from .conftest import Stack, body, wait_until


def upstreams(stack: Stack, **limits: int) -> dict[str, Any]:
    return {"default": {"base_url": stack.simulator.base_url, **limits}}


def test_calls_are_spaced_over_all_workers(stack: Stack) -> None:
    client = stack.client()
    for _ in range(2):
        stack.worker(upstreams=upstreams(stack, requests_per_minute=1200))

    jobs = list(client.submit_many(body(f"spaced {n}") for n in range(60)))

    assert [job.result().text for job in jobs] == [expected_text(body(f"spaced {n}")) for n in range(60)]
    # 20 a second, and one second's worth at once: the last of 60 has to wait for 39 others, and can only be later.
    begun = [job.status().started_at or 0.0 for job in jobs]
    assert max(begun) - jobs[0].status().created_at >= 1.9


def test_a_job_whose_turn_is_far_away_waits_without_a_slot(stack: Stack) -> None:
    client = stack.client()
    stack.worker(upstreams=upstreams(stack, requests_per_minute=2), hold_s=0.1)

    first = client.submit(**body("first turn"))
    first.result()
    second = client.submit(**body("second turn"))

    wait_until(lambda: second.status().status == "waiting")
    assert second.status().attempts == 0
    assert client.overview().running == 0


def test_tokens_are_charged_after_the_answer(stack: Stack) -> None:
    client = stack.client()
    stack.worker(upstreams=upstreams(stack, tokens_per_minute=60), hold_s=0.1)

    first = client.submit(**body("costs tokens", chunks=100))
    first.result()
    wait_until(lambda: client.overview().running == 0)
    second = client.submit(**body("has to wait"))

    wait_until(lambda: second.status().status == "waiting")
