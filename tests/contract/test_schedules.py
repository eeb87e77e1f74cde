"""Random schedules: the product's scripts, many processes, every kind of fault, and what must hold in the end.

Each run is one seed. A run that fails prints its seed, its faults and its trace; `TOKENTAPE_TEST_SCHEDULES=20000` looks
further. That these tests can fail is tested too: with one rule taken out of a script, they must.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import faults
from tests.contract.bench import chat_job
from tests.contract.clients import read, submit
from tests.contract.faults import FAULTS, come_to_rest
from tests.contract.invariants import check
from tests.contract.workers import start_worker
from tests.contract.world import LEASE_MS, Ablation, Wire, World
from tokentape import tape
from tokentape.embedded import EmbeddedServer
from tokentape.tape import EndData, decode_entry
from tokentape_worker import ownership as own

#: Runs of the random test; each takes some 25 ms.
RUNS = int(os.environ.get("TOKENTAPE_TEST_SCHEDULES", "320"))
#: They are dealt to so many tests, which the processes of pytest-xdist share.
PARTS = 8
#: So many seeds may pass before the absence of a rule shows.
SEEDS_TO_SHOW = 400


@pytest.fixture(scope="module")
def server(server_binary: Path | None) -> Iterator[EmbeddedServer]:
    """A server of our own: worlds flush it."""
    with EmbeddedServer(unix_socket=True, binary=server_binary) as running:
        yield running


@pytest.fixture
def wire(server: EmbeddedServer) -> Iterator[Wire]:
    wire = Wire(server.url)
    wire.load()
    yield wire
    wire.close()


@pytest.mark.server_contract
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_job_comes_to_its_one_right_end(wire: Wire, part: int) -> None:
    for seed in range(part, RUNS, PARTS):
        outcome = faults.run(wire, seed)

        assert outcome.violation is None, outcome.report(seed)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_no_fault_alone_breaks_a_rule(wire: Wire, fault: str) -> None:
    for seed in range(3):
        outcome = faults.run(wire, seed, faults=[fault])

        assert outcome.violation is None, outcome.report(seed)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(names=st.sets(st.sampled_from(sorted(FAULTS)), max_size=6), seed=st.integers(0, 2**32 - 1))
def test_no_set_of_faults_breaks_a_rule(wire: Wire, names: set[str], seed: int) -> None:
    outcome = faults.run(wire, seed, faults=names)

    assert outcome.violation is None, outcome.report(seed)


_NOT_THE_OWNER = "if worker ~= ARGV[1] or delivery ~= ARGV[3] then return"

#: Rules, each as the lines that hold it, and the faults that show what it is for. Rules that stand behind another one,
#: so that chance seldom meets the two of them failing together, have their tests in test_tape_contract and
#: test_queue_contract.
ABLATIONS: dict[str, tuple[list[Ablation], list[str]]] = {
    "append only after the last position": (
        [Ablation(tape.APPEND, "if at_seq + 1 < first then return {'gap', at_seq} end")],
        ["roll back the tape"],
    ),
    "claim only by a newer delivery": (
        [
            Ablation(
                tape.CLAIM,
                "if its_delivery > delivery or (its_delivery == delivery and its_try >= try) then",
                "if false then",
            ),
            Ablation(own.START, f"{_NOT_THE_OWNER} {{0}} end"),
        ],
        ["freeze"],
    ),
    "claim again only by the same run": (
        [Ablation(tape.CLAIM, "its_try == try and before.token == ARGV[3]", "its_try == try")],
        ["stumble"],
    ),
    "drains and waits cost no attempt": (
        [Ablation(tape.CLAIM, "if ARGV[4] ~= 'drained' and ARGV[4] ~= 'wait' then", "if true then")],
        ["upstream waits", "drain"],
    ),
    "settle only what is overdue": (
        [Ablation(tape.SETTLE, "if ARGV[3] == '1' and now_ms() < first.deadline_at_ms then", "if false then")],
        ["roll back the tape"],
    ),
    "pop only with a lease": (
        [
            Ablation(
                own.POP,
                "if not lease or tonumber(lease) <= now then return {'dead'} end",
                "lease = lease or '1'",
            )
        ],
        ["drain", "late"],
    ),
    "pop only what nobody owns": (
        [Ablation(own.POP, "if owner and redis.call('ZSCORE', KEYS[1], owner) then return false end")],
        ["duplicate"],
    ),
    "start only what one owns": (
        [Ablation(own.START, f"{_NOT_THE_OWNER} {{0}} end")],
        ["late", "freeze"],
    ),
    "renew only while the entry stands": (
        [Ablation(own.RENEW, "if not lease or tonumber(lease) == 0 then return 0 end")],
        ["freeze"],
    ),
    "put back clears the owner": (
        [Ablation(own.PUTBACK, "redis.call('HDEL', KEYS[1], ARGV[2])")],
        ["drain"],
    ),
    "a round of a release acts once": (
        [Ablation(own.RELEASE, "redis.call('LREM', KEYS[5], 0, id) > 0 and ", "")],
        ["late", "freeze"],
    ),
    "an acknowledged end is watched for a while": (
        [Ablation(own.ACK, "text(now + tonumber(ARGV[4]))", "text(now)")],
        ["roll back the tape"],
    ),
    "adopt only what nobody owns": (
        [Ablation(own.ADOPT, "if owner and redis.call('ZSCORE', KEYS[1], owner) then return {0} end")],
        ["stock", "duplicate"],
    ),
}


@pytest.mark.parametrize("rule", ABLATIONS)
def test_a_rule_that_is_missing_shows(wire: Wire, rule: str) -> None:
    ablations, names = ABLATIONS[rule]
    wire.load(*ablations)

    shown = any(faults.run(wire, seed, faults=names, often=3).violation for seed in range(SEEDS_TO_SHOW))

    assert shown, f"{SEEDS_TO_SHOW} schedules passed without the rule"


def test_a_job_that_kills_its_workers_takes_no_other_along(wire: Wire) -> None:
    world = World(wire, random.Random(1))
    poison, *others = [chat_job(job_id=f"job_{number:02x}{'0' * 30}") for number in range(8)]
    world.plans[poison.id] = ["poison"] * 10
    for job in (poison, *others):
        world.spawn("client", submit(world, job))
        world.spawn(f"reader {job.id}", read(world, job.id))
    start_worker(world, 8)

    while world.happened["crash"] < 3:
        process = world.pick()
        assert process is not None, world.story()
        world.step(process)
        if not any(worker.working for worker in world.workers):
            world.now_ms += LEASE_MS
            start_worker(world, 8)
            start_worker(world, 8)
    come_to_rest(world)

    check(world)
    assert {job.id: status(world, job.id) for job in others} == {job.id: "completed" for job in others}
    assert status(world, poison.id) == "failed"
    assert world.happened["crash"] == 3


def status(world: World, job_id: str) -> str:
    (row,) = world.look("tape", *world.tape(job_id).last())
    return decode_entry(job_id, row).expect(EndData).status
