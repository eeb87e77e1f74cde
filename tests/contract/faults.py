"""What goes wrong in the world, and the run as a whole: faults first, then rest, then the check."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from tests.contract import clients
from tests.contract.bench import chat_job
from tests.contract.invariants import at_rest, check, has_ended
from tests.contract.workers import Worker, run_stock, start_worker
from tests.contract.world import Dump, Fate, Lost, Violation, Where, Wire, World
from tokentape.job import ChatJob
from tokentape.operations import Ask

#: Each fault, and how often it may happen in one run; 0 is a fault of every step or of upstream.
FAULTS: Final[dict[str, int]] = {
    "crash": 2,
    "freeze": 2,
    "stumble": 1,
    "lost": 0,
    "late": 0,
    "jump": 0,
    "clock goes back": 2,
    "duplicate": 2,
    "cancel": 1,
    "resubmit": 1,
    "drain": 2,
    "stock": 2,
    "outage": 1,
    "roll back the tape": 1,
    "roll back both": 1,
    "full": 1,
    "deadline": 0,
    "upstream waits": 0,
    "upstream breaks": 0,
}
#: A failover loses no more than its fsync policy allows; an end is watched for 10 s.
_SNAPSHOT_HOLDS_MS: Final = 6_000
#: How likely it is that a fault strikes after a step.
_CHANCE: Final = 0.06
#: Steps until a world without faults must have come to rest; the longest take a quarter of them.
_STEPS_TO_REST: Final = 8_000


@dataclass
class Outcome:
    """What became of one run."""

    violation: str | None
    world: World
    faults: list[str]

    def report(self, seed: object) -> str:
        return f"seed {seed}, faults {self.faults}: {self.violation}\n{self.world.story()}"


class Faults:
    """Decides at every step what goes wrong, out of the faults of this run."""

    def __init__(self, world: World, names: Collection[str], jobs: list[ChatJob], often: int = 1) -> None:
        self._world = world
        self._rng = world.rng
        self._names = sorted(names)
        self._jobs = jobs
        self._often = often
        self._left = {name: FAULTS[name] * often for name in self._names}
        self._snapshot: tuple[int, dict[Where, Dump]] | None = None

    def plan_upstream(self) -> None:
        rng, plans = self._rng, self._world.plans
        for job in self._jobs:
            plan: list[str] = []
            if "upstream waits" in self._names and rng.random() < 0.6:
                plan += ["wait"] * rng.randint(1, 3)
            if "upstream breaks" in self._names and rng.random() < 0.6:
                plan += [rng.choice(("break", "refuse")) for _ in range(rng.randint(1, 3))]
            rng.shuffle(plan)
            plans[job.id] = plan

    def fate(self) -> Fate:
        """What becomes of the next command."""
        if "lost" in self._names and self._rng.random() < 0.1 * self._often:
            return self._rng.choice(("request lost", "reply lost", "partly"))
        if "late" in self._names and self._rng.random() < 0.05 * self._often:
            return "late"
        return "runs"

    def time_passes(self) -> None:
        usual, jumps = (0, 0, 1, 5, 20, 100), (0, 0, 5, 100, 500, 2000)
        self._world.now_ms += self._rng.choice(jumps if "jump" in self._names else usual)

    def strike(self) -> None:
        """Perhaps something happens now."""
        rng = self._rng
        self._thaw()
        if rng.random() > _CHANCE or not self._names:
            return
        name = rng.choice(self._names)
        if self._left[name] > 0:
            getattr(self, "_" + name.replace(" ", "_"))()

    def _spend(self, name: str) -> None:
        self._left[name] -= 1

    def _live(self) -> list[Worker]:
        return [worker for worker in self._world.workers if worker.working]

    def _one_of(self, workers: list[Worker]) -> Worker:
        """One that is busy, more often than not."""
        busy = [worker for worker in workers if worker.runs]
        return self._rng.choice(busy if busy and self._rng.random() < 0.8 else workers)

    def _any_job(self) -> str:
        return self._rng.choice(self._jobs).id

    # ---- workers

    def _crash(self) -> None:
        if live := self._live():
            self._spend("crash")
            worker = self._one_of(live)
            self._world.note(worker.name, "CRASHES")
            worker.crash()
            if self._rng.random() < 0.5:
                start_worker(self._world, 2)

    def _freeze(self) -> None:
        """A worker stands still, and does not know it: swapped out, or its machine moved."""
        awake = [worker for worker in self._live() if not worker.frozen]
        if len(awake) > 1:
            self._spend("freeze")
            worker = self._one_of(awake)
            worker.frozen = True
            worker.thaws_at_ms = self._world.now_ms + self._rng.choice((500, 5_500, 7_000, 9_000, 12_000))
            self._world.note(worker.name, "FREEZES")

    def _thaw(self) -> None:
        for worker in self._world.workers:
            if worker.frozen and worker.thaws_at_ms <= self._world.now_ms:
                worker.frozen = False
                self._world.note(worker.name, "THAWS")

    def _stumble(self) -> None:
        """A defect of ours ends one run in mid-stream; its worker lives on."""
        runs = [run for worker in self._live() for run in worker.runs.values() if run.process is not None]
        if runs:
            self._spend("stumble")
            self._world.happened["stumble"] += 1
            run = self._rng.choice(runs)
            assert run.process is not None
            self._world.note(run.process.name, "STUMBLES")
            self._world.kill(run.process)
            run.worker.attempts = {key for key in run.worker.attempts if key[0] != run.job.job_id}

    def _drain(self) -> None:
        live = [worker for worker in self._live() if worker.popper is not None]
        if live:
            self._spend("drain")
            worker = self._rng.choice(live)
            self._world.note(worker.name, "DRAINS")
            worker.spawn("drain", worker.drain())
            if self._rng.random() < 0.5:
                start_worker(self._world, 2)

    def _stock(self) -> None:
        self._spend("stock")
        dies = self._rng.random() < 0.25
        self._world.spawn("stock", run_stock(self._world, dies_with_the_id=dies))

    # ---- clients and dashboards

    def _duplicate(self) -> None:
        self._spend("duplicate")
        self._world.spawn("dashboard", clients.duplicate(self._world, self._rng.choice(self._jobs)))

    def _cancel(self) -> None:
        self._spend("cancel")
        self._world.spawn("canceller", clients.cancel(self._world, self._any_job()))

    def _resubmit(self) -> None:
        self._spend("resubmit")
        self._world.spawn("client again", clients.submit(self._world, self._rng.choice(self._jobs)))

    # ---- servers

    def _full(self) -> None:
        self._spend("full")
        self._world.refuse_append = 1

    def _clock_goes_back(self) -> None:
        """NTP, or a failover to a machine that is behind."""
        self._spend("clock goes back")
        self._world.now_ms -= self._rng.choice((50, 1_000, 4_000))
        self._world.note("servers", "CLOCK GOES BACK")

    def _outage(self) -> None:
        """Half a minute without servers. Everybody who waits for one learns that the connection broke."""
        self._spend("outage")
        self._world.now_ms += 30_000
        self._world.note("servers", "AWAY FOR 30 s")
        self._break_connections(("tape", "queue"))

    def _roll_back_the_tape(self) -> None:
        self._roll_back("roll back the tape", ("tape",))

    def _roll_back_both(self) -> None:
        self._roll_back("roll back both", ("tape", "queue"))

    def _roll_back(self, name: str, servers: tuple[Where, ...]) -> None:
        """A failover to a server that lacks what came last."""
        world = self._world
        if self._snapshot is None:
            self._snapshot = world.now_ms, {where: world.wire.dump(where) for where in servers}
            world.note("servers", "THE REPLICA STAYS BEHIND")
            return
        taken_at_ms, dumps = self._snapshot
        if world.now_ms - taken_at_ms > _SNAPSHOT_HOLDS_MS:
            self._snapshot = None
        elif self._rng.random() < 0.6:
            self._snapshot = None
            self._spend(name)
            world.happened["roll-back"] += 1
            for where, dump in dumps.items():
                world.roll_back(where, dump)
            world.note("servers", f"ROLLED BACK: {', '.join(servers)}")
            self._break_connections(servers)

    def _break_connections(self, servers: tuple[Where, ...]) -> None:
        world = self._world
        for process in list(world.processes):
            if process.done:
                continue
            process.broken.update(servers)
            frozen = process.worker is not None and process.worker.frozen
            if isinstance(process.waits_for, Ask) and process.waits_for.server in servers and not frozen:
                process.broken.discard(process.waits_for.server)
                process.go_on(world.now_ms, error=Lost())


def run(
    wire: Wire,
    seed: int,
    *,
    faults: Collection[str] | None = None,
    often: int = 1,
) -> Outcome:
    """One run: a few jobs, a few workers, a few faults. `often` multiplies how often each may happen."""
    rng = random.Random(seed)
    names = sorted(faults) if faults is not None else sorted(rng.sample(sorted(FAULTS), rng.randint(1, 5)))
    world = World(wire, rng)
    jobs = [_job(rng, number, names) for number in range(rng.choice((1, 1, 2, 3)))]
    if "deadline" in names:
        world.happened["deadline"] += 1
    if "roll back the tape" in names or "roll back both" in names:
        world.chunks_kept_bytes = rng.choice((60, 64 * 1024))
    troubles = Faults(world, names, jobs, often)
    troubles.plan_upstream()
    try:
        for job in jobs:
            world.spawn("client", clients.submit(world, job, after_ms=rng.choice((0, 0, 500, 3_000))))
            world.spawn(f"reader {job.id}", clients.read(world, job.id))
        for _ in range(rng.choice((1, 2, 3, 3))):
            start_worker(world, rng.choice((1, 2)))
        _trouble(world, troubles, steps=rng.randint(40, 400))
        come_to_rest(world)
        check(world)
    except Violation as violation:
        return Outcome(str(violation), world, names)
    return Outcome(None, world, names)


def _job(rng: random.Random, number: int, faults: Collection[str]) -> ChatJob:
    timeout_s = rng.choice((5.0, 15.0)) if "deadline" in faults else 86_400.0
    return chat_job(job_id=f"job_{number:02x}{'0' * 30}", timeout_s=timeout_s, priority=rng.choice(("default", "high")))


def _trouble(world: World, troubles: Faults, steps: int) -> None:
    for _ in range(steps):
        process = world.pick()
        if process is None:
            return
        world.step(process, troubles.fate())
        troubles.time_passes()
        troubles.strike()
        world.land()


def come_to_rest(world: World) -> None:
    """No more faults: what is under way arrives, what is frozen thaws, one fresh worker joins."""
    for worker in world.workers:
        worker.frozen = False
    world.note("world", "NO MORE FAULTS")
    start_worker(world, 4)
    for count in range(_STEPS_TO_REST):
        process = world.pick()
        if process is None:
            break
        world.step(process)
        world.land()
        if count % 20 == 0 and not world.late and not _under_way(world) and at_rest(world):
            return
    raise Violation(f"no rest: {_unfinished(world)}")


def _under_way(world: World) -> bool:
    """Whether a client is not done yet, or a reader though its tape has ended."""
    for process in world.processes:
        if process.done or process.worker is not None:
            continue
        reads, _, job_id = process.name.partition(" ")
        if reads != "reader" or has_ended(world, job_id):
            return True
    return False


def _unfinished(world: World) -> dict[str, object]:
    keys = world.keys
    return {
        "owners": world.look("queue", "HGETALL", keys.owners),
        "open": world.look("queue", "ZRANGE", keys.open, 0, -1),
        "queues": [world.look("queue", "LRANGE", key, 0, -1) for key in (*keys.queues, *keys.all_suspects)],
        "delayed": [world.look("queue", "ZRANGE", key, 0, -1) for key in keys.all_delayed],
        "read": sorted(world.read),
    }
