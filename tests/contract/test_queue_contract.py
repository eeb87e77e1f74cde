"""The queue side's rules, one by one, on every server: who runs what. See tokentape/queue.py and design.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis.exceptions import OutOfMemoryError

from tests.contract.bench import Bench, QueueBench, WorkerBench, texts, wait_until
from tokentape.job import PRIORITIES, Priority, new_job_id
from tokentape.queue import rq_job_key
from tokentape_worker import ownership as own
from tokentape_worker.ownership import Delivery, Ownership

pytestmark = pytest.mark.server_contract


@pytest.fixture
def worker(queue_side: QueueBench) -> WorkerBench:
    return queue_side.worker("w1")


@pytest.fixture
def other(queue_side: QueueBench) -> WorkerBench:
    return queue_side.worker("w2")


@pytest.fixture
def enqueued(queue_side: QueueBench) -> str:
    """The id of one job that waits in the default queue."""
    job_id = new_job_id()
    queue_side.enqueue(job_id)
    return job_id


@pytest.fixture
def popped(enqueued: str, worker: WorkerBench) -> Delivery:
    """That job, popped and started by w1."""
    delivery = worker.pop_one()
    worker.start(delivery)
    return delivery


def push_again(queue_side: QueueBench, job_id: str, priority: Priority = "default") -> None:
    """What RQ's sweep, a dashboard or `rq requeue` may do: the id stands in a queue once more."""
    queue_side.bench.client.rpush(queue_side.keys.queue(priority), job_id)


# ---- enqueue


def test_a_job_is_enqueued_once_while_it_is_open(queue_side: QueueBench) -> None:
    job_id = new_job_id()

    assert queue_side.enqueue(job_id) == 1
    assert queue_side.enqueue(job_id) == 0
    assert queue_side.waiting() == [job_id]


def test_a_running_job_is_not_enqueued_again(queue_side: QueueBench, popped: Delivery) -> None:
    assert queue_side.enqueue(popped.job_id) == 0
    assert queue_side.waiting() == []


def test_enqueue_takes_the_deadline_of_the_tape(queue_side: QueueBench) -> None:
    job_id = new_job_id()

    queue_side.enqueue(job_id, deadline_at_ms=1_999_999_999_999)

    assert queue_side.open_until_ms(job_id) == 1_999_999_999_999


def test_enqueue_without_a_deadline_counts_the_timeout_from_now(queue_side: QueueBench) -> None:
    job_id, before = new_job_id(), queue_side.bench.now_ms()

    queue_side.enqueue(job_id)

    until = queue_side.open_until_ms(job_id)
    assert until is not None
    assert before + 600_000 <= until <= queue_side.bench.now_ms() + 600_000


def test_enqueue_rings_the_bell(queue_side: QueueBench) -> None:
    queue_side.enqueue(new_job_id())
    first = queue_side.bench.client.xrevrange(queue_side.keys.bell, count=1)

    queue_side.enqueue(new_job_id())

    assert queue_side.bench.client.xrevrange(queue_side.keys.bell, count=1) != first
    assert queue_side.bench.client.xlen(queue_side.keys.bell) == 1


# ---- the lease


def test_a_lease_is_renewed_while_its_entry_stands(worker: WorkerBench) -> None:
    assert worker.renew() == 1


def test_a_lease_that_was_dropped_is_never_renewed(worker: WorkerBench) -> None:
    worker.die()

    assert worker.renew() == 0
    assert own.deliveries(worker.bench.ask(worker.ownership.pop(1))) is None


def test_a_lease_that_is_past_but_not_reaped_is_renewed(worker: WorkerBench) -> None:
    worker.lapse()

    assert worker.renew() == 1
    assert worker.release("reap") == ["alive"]


def test_a_lease_runs_out_by_the_servers_clock(queue_side: QueueBench) -> None:
    worker = queue_side.worker("brief", lease_s=0.02)

    wait_until(lambda: "brief" in queue_side.due().dead_workers)

    assert own.deliveries(worker.bench.ask(worker.ownership.pop(1))) is None
    assert worker.release("reap") == ["done"]


# ---- pop


def test_pop_needs_a_lease(queue_side: QueueBench, enqueued: str) -> None:
    stranger = WorkerBench(queue_side.bench, Ownership(queue_side.keys, "never-joined"))

    assert own.deliveries(queue_side.bench.ask(stranger.ownership.pop(1))) is None
    assert queue_side.waiting() == [enqueued]


def test_pop_needs_a_lease_that_is_not_past(queue_side: QueueBench, worker: WorkerBench, enqueued: str) -> None:
    worker.lapse()

    assert own.deliveries(queue_side.bench.ask(worker.ownership.pop(1))) is None
    assert queue_side.waiting() == [enqueued]


def test_pop_records_the_owner_and_keeps_the_id_in_the_workers_list(
    queue_side: QueueBench, worker: WorkerBench, enqueued: str
) -> None:
    before = queue_side.bench.now_ms()

    delivery = worker.pop_one()

    assert (delivery.job_id, delivery.reason, delivery.priority) == (enqueued, "submitted", "default")
    assert before <= delivery.number <= queue_side.bench.now_ms()
    assert queue_side.waiting() == []
    assert queue_side.owner(enqueued) == "w1"
    assert worker.held() == [enqueued]


def test_pop_takes_high_before_default_before_low(queue_side: QueueBench, worker: WorkerBench) -> None:
    ids: dict[Priority, list[str]] = {priority: [new_job_id(), new_job_id()] for priority in PRIORITIES}
    for priority in reversed(PRIORITIES):
        for job_id in ids[priority]:
            queue_side.enqueue(job_id, priority)

    deliveries = worker.pop()

    assert [job.job_id for job in deliveries] == [*ids["high"], *ids["default"], *ids["low"]]
    assert [job.priority for job in deliveries] == ["high", "high", "default", "default", "low", "low"]


def test_pop_takes_no_more_than_asked(queue_side: QueueBench, worker: WorkerBench) -> None:
    ids = [new_job_id() for _ in range(3)]
    for job_id in ids:
        queue_side.enqueue(job_id)

    assert [job.job_id for job in worker.pop(2)] == ids[:2]
    assert queue_side.waiting() == ids[2:]


def test_pop_of_nothing_is_empty(worker: WorkerBench) -> None:
    assert worker.pop() == []


def test_a_duplicate_is_dropped_while_an_owner_stands(
    queue_side: QueueBench, popped: Delivery, other: WorkerBench
) -> None:
    push_again(queue_side, popped.job_id)

    assert other.pop() == []
    assert queue_side.waiting() == []
    assert queue_side.owner(popped.job_id) == "w1"


def test_a_duplicate_of_ones_own_job_is_dropped(queue_side: QueueBench, popped: Delivery, worker: WorkerBench) -> None:
    push_again(queue_side, popped.job_id)

    assert worker.pop() == []
    assert worker.held() == [popped.job_id]


def test_a_duplicate_is_dropped_while_the_owners_lease_is_past_but_stands(
    queue_side: QueueBench, popped: Delivery, worker: WorkerBench, other: WorkerBench
) -> None:
    worker.lapse()
    push_again(queue_side, popped.job_id)

    assert other.pop() == []
    assert queue_side.owner(popped.job_id) == "w1"


def test_duplicates_do_not_count_against_what_was_asked(
    queue_side: QueueBench, popped: Delivery, other: WorkerBench
) -> None:
    push_again(queue_side, popped.job_id)
    job_id = new_job_id()
    queue_side.enqueue(job_id)

    assert [job.job_id for job in other.pop(1)] == [job_id]


def test_the_same_id_twice_in_a_queue_is_one_delivery(
    queue_side: QueueBench, worker: WorkerBench, enqueued: str
) -> None:
    push_again(queue_side, enqueued)

    assert [job.job_id for job in worker.pop()] == [enqueued]
    assert worker.held() == [enqueued]


def test_delivery_numbers_only_grow(queue_side: QueueBench, worker: WorkerBench, enqueued: str) -> None:
    far = queue_side.bench.now_ms() + 3_600_000
    queue_side.bench.client.hset(queue_side.keys.deliveries, enqueued, far)  # the server's clock was set back since

    first = worker.pop_one()
    worker.putback(first)
    second = worker.pop_one()

    assert (first.number, second.number) == (far + 1, far + 2)


def test_a_job_that_was_delivered_before_and_says_nothing_was_lost_with_its_worker(
    queue_side: QueueBench, popped: Delivery, worker: WorkerBench, other: WorkerBench
) -> None:
    worker.die()
    queue_side.bench.client.delete(queue_side.keys.reasons)

    assert other.pop_one().reason == "worker_lost"


# ---- mine


def test_mine_lists_what_a_lost_reply_had_moved(worker: WorkerBench, enqueued: str) -> None:
    worker.bench.ask(worker.ownership.pop(1))  # nobody reads the reply

    (delivery,) = worker.mine()

    assert (delivery.job_id, delivery.reason, delivery.priority) == (enqueued, "worker_lost", "default")


def test_mine_knows_the_number_that_pop_gave(worker: WorkerBench, popped: Delivery) -> None:
    assert [(job.job_id, job.number) for job in worker.mine()] == [(popped.job_id, popped.number)]


def test_mine_drops_what_somebody_else_owns(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    queue_side.bench.client.hset(queue_side.keys.owners, popped.job_id, "w9|1|1")

    assert worker.mine() == []
    assert worker.held() == []


def test_mine_of_a_worker_without_jobs_is_empty(worker: WorkerBench) -> None:
    assert worker.mine() == []


# ---- ack


def test_ack_ends_the_ownership(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    assert worker.ack(popped) == 1

    assert queue_side.owner(popped.job_id) is None
    assert worker.held() == []


def test_an_acknowledged_job_stays_open_until_its_end_has_settled(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    before = queue_side.bench.now_ms()

    worker.ack(popped, settle_s=10)

    until = queue_side.open_until_ms(popped.job_id)
    assert until is not None
    assert before + 10_000 <= until <= queue_side.bench.now_ms() + 10_000


def test_an_acknowledged_job_is_among_the_ended(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    worker.ack(popped)

    assert queue_side.bench.client.zscore(queue_side.keys.ended, popped.job_id) is not None


def test_a_second_ack_changes_nothing(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    worker.ack(popped, "completed")

    assert worker.ack(popped, "failed") == 0
    assert queue_side.bench.client.hget(rq_job_key(popped.job_id), "status") == b"finished"


@pytest.mark.parametrize("leave", ["ack", "putback", "delay"])
def test_another_worker_cannot_end_the_ownership(
    queue_side: QueueBench, other: WorkerBench, popped: Delivery, leave: str
) -> None:
    assert getattr(other, leave)(popped) == 0

    assert queue_side.owner(popped.job_id) == "w1"
    assert queue_side.waiting() == []


@pytest.mark.parametrize("leave", ["ack", "putback", "delay"])
def test_an_older_delivery_cannot_end_the_ownership(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery, leave: str
) -> None:
    worker.putback(popped)
    newer = worker.pop_one()

    assert getattr(worker, leave)(popped) == 0

    assert queue_side.owner(popped.job_id) == "w1"
    assert worker.mine() == [newer._replace(reason="worker_lost")]


@pytest.mark.parametrize("leave", ["ack", "putback", "delay"])
def test_a_worker_that_was_reaped_cannot_end_the_new_ownership(
    queue_side: QueueBench, worker: WorkerBench, other: WorkerBench, popped: Delivery, leave: str
) -> None:
    worker.die()
    other.pop_one()

    assert getattr(worker, leave)(popped) == 0
    assert queue_side.owner(popped.job_id) == "w2"


# ---- putback


def test_putback_puts_the_job_at_the_front_and_clears_its_owner(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    later = new_job_id()
    queue_side.enqueue(later)

    assert worker.putback(popped) == 1

    assert queue_side.waiting() == [popped.job_id, later]
    assert queue_side.owner(popped.job_id) is None
    assert worker.held() == []


def test_putback_tells_the_next_worker_why(worker: WorkerBench, other: WorkerBench, popped: Delivery) -> None:
    worker.putback(popped, "drained")

    assert other.pop_one().reason == "drained"


def test_a_reason_is_told_once(worker: WorkerBench, other: WorkerBench, popped: Delivery) -> None:
    worker.putback(popped, "drained")
    other.pop_one()
    other.die()

    assert worker.pop_one().reason == "worker_lost"


def test_putback_can_pass_a_delivery_that_the_tape_knows(worker: WorkerBench, popped: Delivery) -> None:
    passed = popped.number + 1_000_000

    worker.putback(popped, "worker_lost", pass_delivery=passed)

    assert worker.pop_one().number == passed + 1


@pytest.mark.parametrize("priority", PRIORITIES)
def test_putback_goes_to_the_queue_that_the_job_came_from(
    queue_side: QueueBench, worker: WorkerBench, priority: Priority
) -> None:
    job_id = new_job_id()
    queue_side.enqueue(job_id, priority)

    worker.putback(worker.pop_one())

    assert queue_side.waiting(priority) == [job_id]


# ---- delay and promote


def test_a_delayed_job_is_in_no_queue_and_has_no_owner(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    assert worker.delay(popped) == 1

    assert queue_side.waiting() == []
    assert queue_side.owner(popped.job_id) is None
    assert worker.held() == []


def test_a_delayed_job_is_not_promoted_early(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    worker.delay(popped, 60)

    assert queue_side.due().delayed == []
    assert queue_side.promote(popped.job_id) == 0
    assert queue_side.waiting() == []


def test_a_delayed_job_that_is_due_goes_to_the_front(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    later = new_job_id()
    queue_side.enqueue(later)
    worker.delay(popped, 0.001)
    wait_until(lambda: queue_side.due().delayed == [(popped.job_id, "default")])

    assert queue_side.promote(popped.job_id) == 1

    assert queue_side.waiting() == [popped.job_id, later]
    assert worker.pop_one().reason == "wait"


def test_a_delay_before_the_claim_keeps_the_reason(
    queue_side: QueueBench, worker: WorkerBench, other: WorkerBench, popped: Delivery
) -> None:
    """A job that was lost with its worker and then waits for its turn has still cost an attempt."""
    worker.die()
    again = other.pop_one()
    other.delay(again, 0, reason=again.reason)
    wait_until(lambda: queue_side.promote(popped.job_id) == 1)

    assert other.pop_one().reason == "worker_lost"


def test_a_delayed_job_is_promoted_once_whoever_asks(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    worker.delay(popped, 0)
    wait_until(lambda: queue_side.promote(popped.job_id) == 1)

    assert queue_side.promote(popped.job_id) == 0
    assert queue_side.waiting() == [popped.job_id]


# ---- release: reap


def test_reap_leaves_a_live_worker_alone(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    assert worker.release("reap") == ["alive"]

    assert queue_side.owner(popped.job_id) == "w1"


def test_reap_of_an_unknown_worker_does_nothing(queue_side: QueueBench) -> None:
    stranger = WorkerBench(queue_side.bench, Ownership(queue_side.keys, "never-joined"))

    assert stranger.release("reap") == ["none"]


def test_reap_puts_back_what_the_dead_worker_owned(
    queue_side: QueueBench, worker: WorkerBench, other: WorkerBench, popped: Delivery
) -> None:
    assert worker.die() == ["more", "done"]

    assert queue_side.owner(popped.job_id) is None
    assert queue_side.waiting() == [popped.job_id]
    again = other.pop_one()
    assert again.reason == "worker_lost"
    assert again.number > popped.number


def test_reap_drops_the_lease(queue_side: QueueBench, worker: WorkerBench) -> None:
    worker.die()

    assert queue_side.bench.client.zscore(queue_side.keys.leases, "w1") is None
    assert worker.release("reap") == ["none"]


def test_reap_leaves_what_somebody_else_owns_by_now(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    queue_side.bench.client.hset(queue_side.keys.owners, popped.job_id, f"w2|{popped.number + 1}|1")

    worker.die()

    assert queue_side.waiting() == []
    assert queue_side.owner(popped.job_id) == "w2"
    assert queue_side.bench.client.hget(queue_side.keys.lost, popped.job_id) is None


def test_a_condemned_worker_can_neither_renew_nor_pop(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    queue_side.enqueue(new_job_id())
    worker.lapse()

    worker.bench.ask(worker.ownership.release("reap"))  # the first of its calls only

    assert worker.renew() == 0
    assert own.deliveries(worker.bench.ask(worker.ownership.pop(1))) is None
    assert worker.held() == [popped.job_id]


def test_a_reap_that_its_reaper_left_halfway_is_finished_by_the_next(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    worker.lapse()
    worker.bench.ask(worker.ownership.release("reap"))

    assert queue_side.due().dead_workers == ["w1"]
    assert worker.release("reap") == ["more", "done"]
    assert queue_side.waiting() == [popped.job_id]


def test_two_reapers_put_a_job_back_once(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    worker.lapse()
    first = own.rest_of(worker.bench.ask(worker.ownership.release("reap")))
    second = own.rest_of(worker.bench.ask(worker.ownership.release("reap")))
    assert first == second
    assert first

    replies = [worker.bench.ask(worker.ownership.release("reap", rest)) for rest in (first, first)]

    assert replies == [["done"], ["none"]]
    assert queue_side.waiting() == [popped.job_id]
    assert queue_side.bench.client.hget(queue_side.keys.lost, popped.job_id) == b"1"


def test_reap_of_many_jobs_takes_rounds_and_keeps_their_order_at_the_front(
    queue_side: QueueBench, worker: WorkerBench
) -> None:
    ids = [new_job_id() for _ in range(450)]
    with queue_side.bench.client.pipeline() as pipe:
        pipe.rpush(queue_side.keys.queue("default"), *ids)
        pipe.execute()
    worker.pop(450)
    later = new_job_id()
    queue_side.enqueue(later)

    assert worker.die() == ["more", "more", "more", "done"]

    assert queue_side.waiting() == [*ids, later]
    assert queue_side.bench.client.hlen(queue_side.keys.owners) == 0


def test_reap_puts_each_job_into_the_queue_that_it_came_from(queue_side: QueueBench, worker: WorkerBench) -> None:
    ids: dict[Priority, str] = {priority: new_job_id() for priority in PRIORITIES}
    for priority, job_id in ids.items():
        queue_side.enqueue(job_id, priority)
    worker.pop()

    worker.die()

    assert {priority: queue_side.waiting(priority) for priority in PRIORITIES} == {
        priority: [job_id] for priority, job_id in ids.items()
    }


# ---- suspects


def lose(queue_side: QueueBench, times: int) -> None:
    """Let workers pop everything and die, so many times in a row."""
    for number in range(times):
        victim = queue_side.worker(f"victim{number}-{new_job_id()}")
        victim.pop(100, alone_after=100)
        victim.die()


def test_a_job_that_two_workers_died_with_is_a_suspect(queue_side: QueueBench, enqueued: str) -> None:
    lose(queue_side, 1)
    assert (queue_side.waiting(), queue_side.suspects()) == ([enqueued], [])

    lose(queue_side, 1)

    assert (queue_side.waiting(), queue_side.suspects()) == ([], [enqueued])


def test_a_worker_runs_one_suspect_at_a_time_on_its_last_attempt(queue_side: QueueBench) -> None:
    suspects = [new_job_id() for _ in range(3)]
    for job_id in suspects:
        queue_side.enqueue(job_id)
    lose(queue_side, 2)
    plain = new_job_id()
    queue_side.enqueue(plain)
    worker, other = queue_side.worker("w1"), queue_side.worker("w2")

    assert [job.job_id for job in worker.pop()] == [suspects[0], plain]
    assert worker.pop() == []
    assert [job.job_id for job in other.pop()] == [suspects[1]]


def test_a_worker_that_is_done_with_a_suspect_takes_the_next(queue_side: QueueBench) -> None:
    suspects = [new_job_id() for _ in range(2)]
    for job_id in suspects:
        queue_side.enqueue(job_id)
    lose(queue_side, 2)
    worker = queue_side.worker("w1")

    worker.ack(worker.pop_one())

    assert worker.pop_one().job_id == suspects[1]


@pytest.mark.parametrize(("times", "room"), [(2, 32), (3, 16), (4, 8), (6, 2), (7, 1), (9, 1)])
def test_with_attempts_left_suspects_run_in_groups_that_halve_with_each_loss(
    queue_side: QueueBench, times: int, room: int
) -> None:
    suspects = [new_job_id() for _ in range(room + 1)]
    for job_id in suspects:
        queue_side.enqueue(job_id)
        queue_side.bench.client.hset(queue_side.keys.lost, job_id, times - 1)
    lose(queue_side, 1)
    worker, other = queue_side.worker("w1"), queue_side.worker("w2")

    first = worker.pop(100, alone_after=100)
    second = other.pop(100, alone_after=100)

    assert [job.job_id for job in first] == suspects[:room]
    assert [job.job_id for job in second] == suspects[room:]


def test_a_suspect_on_its_last_attempt_does_not_join_others_and_is_not_overtaken(queue_side: QueueBench) -> None:
    early, last, later = (new_job_id() for _ in range(3))
    for job_id, times in ((early, 2), (last, 4), (later, 2)):
        queue_side.bench.client.rpush(queue_side.keys.suspects("default"), job_id)
        queue_side.bench.client.hset(queue_side.keys.lost, job_id, times)
    worker = queue_side.worker("w1")

    (first,) = worker.pop(alone_after=4)
    beside = worker.pop(alone_after=4)
    worker.ack(first)
    (second,) = worker.pop(alone_after=4)

    assert [first.job_id, beside, second.job_id] == [early, [], last]


@pytest.mark.parametrize("leave", ["ack", "delay"])
def test_a_suspect_that_leaves_its_worker_rings_the_bell(queue_side: QueueBench, enqueued: str, leave: str) -> None:
    lose(queue_side, 2)
    worker = queue_side.worker("w1")
    delivery = worker.pop_one()
    before = queue_side.bench.client.xrevrange(queue_side.keys.bell, count=1)

    if leave == "ack":
        worker.ack(delivery)
    else:
        worker.delay(delivery, 60)

    assert queue_side.bench.client.xrevrange(queue_side.keys.bell, count=1) != before


@pytest.mark.parametrize("back", ["putback", "delay", "leave"])
def test_a_suspect_stays_a_suspect_when_it_is_given_back(queue_side: QueueBench, enqueued: str, back: str) -> None:
    lose(queue_side, 2)
    worker = queue_side.worker("w1")
    delivery = worker.pop_one()

    if back == "putback":
        worker.putback(delivery)
    elif back == "leave":
        worker.release("leave")
    else:
        worker.delay(delivery, 0)
        wait_until(lambda: queue_side.promote(enqueued) == 1)

    assert (queue_side.waiting(), queue_side.suspects()) == ([], [enqueued])


def test_a_suspect_that_is_reopened_stays_a_suspect(queue_side: QueueBench, enqueued: str) -> None:
    lose(queue_side, 2)
    queue_side.bench.client.delete(queue_side.keys.suspects("default"))  # it went astray

    assert queue_side.reopen(enqueued, astray=True) == 1

    assert (queue_side.waiting(), queue_side.suspects()) == ([], [enqueued])


def test_a_drain_makes_no_suspects(queue_side: QueueBench, enqueued: str) -> None:
    for name in ("w1", "w2", "w3"):
        worker = queue_side.worker(name)
        worker.pop()
        worker.release("leave")

    assert (queue_side.waiting(), queue_side.suspects()) == ([enqueued], [])


# ---- release: leave


def test_leave_puts_back_all_and_drops_the_lease(queue_side: QueueBench, worker: WorkerBench) -> None:
    ids = [new_job_id() for _ in range(3)]
    for job_id in ids:
        queue_side.enqueue(job_id)
    worker.pop()

    assert worker.release("leave") == ["more", "done"]

    assert queue_side.waiting() == ids
    assert worker.held() == []
    assert worker.renew() == 0


def test_what_a_leaving_worker_gave_back_was_drained(worker: WorkerBench, other: WorkerBench, popped: Delivery) -> None:
    worker.release("leave")

    assert other.pop_one().reason == "drained"


def test_a_pop_that_arrives_after_the_leave_moves_nothing(
    queue_side: QueueBench, worker: WorkerBench, enqueued: str
) -> None:
    worker.release("leave")

    assert own.deliveries(worker.bench.ask(worker.ownership.pop(1))) is None
    assert queue_side.waiting() == [enqueued]


def test_leaving_twice_is_harmless(worker: WorkerBench) -> None:
    worker.release("leave")

    assert worker.release("leave") == ["none"]


# ---- adopt


def stranger(queue_side: QueueBench, name: str = "stock") -> WorkerBench:
    """A stock worker's entry point: it has not joined."""
    return WorkerBench(queue_side.bench, Ownership(queue_side.keys, name))


def test_adopt_takes_a_lease_and_the_ownership(queue_side: QueueBench, enqueued: str) -> None:
    queue_side.bench.client.lpop(queue_side.keys.queue("default"))
    stock = stranger(queue_side)

    number, reason = stock.adopt(enqueued)

    assert (int(number) > 0, reason) == (True, "submitted")
    assert queue_side.owner(enqueued) == "stock"
    assert stock.renew() == 1
    assert [job.number for job in stock.mine()] == [int(number)]


def test_adopt_is_refused_while_an_owner_stands(queue_side: QueueBench, popped: Delivery) -> None:
    stock = stranger(queue_side)

    assert stock.adopt(popped.job_id) == [0]

    assert queue_side.owner(popped.job_id) == "w1"
    assert stock.renew() == 0


def test_adopt_is_refused_while_the_owners_lease_is_past_but_stands(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    worker.lapse()

    assert stranger(queue_side).adopt(popped.job_id) == [0]


def test_adopted_deliveries_grow_with_the_others(queue_side: QueueBench, worker: WorkerBench, popped: Delivery) -> None:
    worker.putback(popped)

    number, reason = stranger(queue_side).adopt(popped.job_id)

    assert int(number) > popped.number
    assert reason == "drained"


def test_the_id_that_an_adopted_job_left_in_a_queue_is_a_duplicate(
    queue_side: QueueBench, worker: WorkerBench, enqueued: str
) -> None:
    stranger(queue_side).adopt(enqueued)

    assert worker.pop() == []


def test_a_job_whose_adopter_died_is_reaped_like_any_other(
    queue_side: QueueBench, worker: WorkerBench, enqueued: str
) -> None:
    queue_side.bench.client.lpop(queue_side.keys.queue("default"))
    stock = stranger(queue_side)
    stock.adopt(enqueued)

    stock.die()

    assert [job.job_id for job in worker.pop()] == [enqueued]


# ---- due, forget, reopen


def test_due_names_open_jobs_past_their_deadline(queue_side: QueueBench) -> None:
    past, future = new_job_id(), new_job_id()
    queue_side.enqueue(past, deadline_at_ms=1)
    queue_side.enqueue(future)

    assert queue_side.due().overdue == [past]


def test_due_names_workers_whose_lease_is_past(worker: WorkerBench, other: WorkerBench, queue_side: QueueBench) -> None:
    other.lapse()

    assert queue_side.due().dead_workers == ["w2"]


def test_due_names_no_more_than_asked(queue_side: QueueBench) -> None:
    for _ in range(5):
        queue_side.enqueue(new_job_id(), deadline_at_ms=1)

    reply = queue_side.bench.ask(own.due(queue_side.keys, 3))

    assert len(own.Due.decode(reply).overdue) == 3


def test_a_job_before_its_time_is_not_forgotten(queue_side: QueueBench, enqueued: str) -> None:
    assert queue_side.forget(enqueued) == 0
    assert queue_side.open_until_ms(enqueued) is not None


def test_forget_takes_all_that_is_remembered_of_a_job(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    worker.ack(popped, settle_s=0)
    wait_until(lambda: queue_side.forget(popped.job_id) == 1)

    client, keys = queue_side.bench.client, queue_side.keys
    assert queue_side.open_until_ms(popped.job_id) is None
    assert [client.hexists(key, popped.job_id) for key in (keys.deliveries, keys.reasons, keys.lost)] == [False] * 3
    assert client.zscore(keys.ended, popped.job_id) is not None


def test_forget_keeps_the_delivery_of_a_job_that_somebody_owns(queue_side: QueueBench, worker: WorkerBench) -> None:
    job_id = new_job_id()
    queue_side.enqueue(job_id, deadline_at_ms=1)
    delivery = worker.pop_one()

    assert queue_side.forget(job_id) == 1

    assert texts(queue_side.bench.client.hget(queue_side.keys.deliveries, job_id)) == str(delivery.number)
    assert worker.ack(delivery) == 1


def test_forgetting_again_changes_nothing(queue_side: QueueBench) -> None:
    job_id = new_job_id()
    queue_side.enqueue(job_id, deadline_at_ms=1)
    queue_side.forget(job_id)

    assert queue_side.forget(job_id) == 0


def test_reopen_puts_a_job_whose_end_was_lost_back_to_the_front(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    worker.ack(popped)
    later = new_job_id()
    queue_side.enqueue(later)

    assert queue_side.reopen(popped.job_id, deadline_at_ms=1_999_999_999_999) == 1

    assert queue_side.waiting() == [popped.job_id, later]
    assert queue_side.open_until_ms(popped.job_id) == 1_999_999_999_999
    assert queue_side.bench.client.zscore(queue_side.keys.ended, popped.job_id) is None
    assert worker.pop_one().reason == "drained"


def test_reopen_leaves_a_job_that_somebody_owns(queue_side: QueueBench, popped: Delivery) -> None:
    assert queue_side.reopen(popped.job_id, astray=True) == 0

    assert queue_side.waiting() == []


def test_reopen_leaves_a_job_that_is_not_open(queue_side: QueueBench) -> None:
    assert queue_side.reopen(new_job_id(), astray=True) == 0

    assert queue_side.waiting() == []


def test_reopen_keeps_the_reason_that_stands(
    queue_side: QueueBench, worker: WorkerBench, other: WorkerBench, popped: Delivery
) -> None:
    worker.die()
    queue_side.bench.client.delete(queue_side.keys.queue("default"))

    queue_side.reopen(popped.job_id, astray=True)

    assert other.pop_one().reason == "worker_lost"


def test_reopen_leaves_a_job_that_waits_and_takes_the_deadline_of_the_tape(
    queue_side: QueueBench, enqueued: str
) -> None:
    """The tapes' server has another clock: to the queue's, the job was overdue."""
    assert queue_side.reopen(enqueued, deadline_at_ms=1_999_999_999_999) == 0

    assert queue_side.waiting() == [enqueued]
    assert queue_side.open_until_ms(enqueued) == 1_999_999_999_999


def test_an_end_that_was_written_only_now_is_watched_first(queue_side: QueueBench) -> None:
    job_id = new_job_id()
    queue_side.enqueue(job_id, deadline_at_ms=1)
    before = queue_side.bench.now_ms()

    queue_side.bench.ask(own.forget(queue_side.keys, job_id, ("expired", "default"), keep_s=60, watch_s=10))

    until = queue_side.open_until_ms(job_id)
    assert until is not None
    assert before + 10_000 <= until <= queue_side.bench.now_ms() + 10_000
    assert queue_side.forget(job_id) == 0


def test_a_job_that_went_astray_is_forgotten_before_its_time(queue_side: QueueBench, enqueued: str) -> None:
    forget = own.forget(queue_side.keys, enqueued, ("cancelled", "default"), keep_s=60, astray=True)

    assert queue_side.bench.ask(forget) == 1
    assert queue_side.open_until_ms(enqueued) is None


def test_a_forgotten_job_is_not_promoted(queue_side: QueueBench, worker: WorkerBench) -> None:
    job_id = new_job_id()
    queue_side.enqueue(job_id, deadline_at_ms=1)
    worker.delay(worker.pop_one(), 0)

    queue_side.bench.ask(own.forget(queue_side.keys, job_id, ("expired", "default"), keep_s=60))

    assert queue_side.promote(job_id) == 0
    assert queue_side.waiting() == []


# ---- audit and trim


def test_audit_names_open_jobs_that_stand_nowhere(queue_side: QueueBench, enqueued: str) -> None:
    queue_side.bench.client.lpop(queue_side.keys.queue("default"))  # a stock worker that died before it adopted

    assert queue_side.audit() == [1, enqueued]


def test_audit_passes_over_what_stands_somewhere(queue_side: QueueBench, worker: WorkerBench) -> None:
    def one(priority: Priority = "default") -> Delivery:
        queue_side.enqueue(new_job_id(), priority)
        return worker.pop_one()

    lost = one()
    queue_side.bench.client.hset(queue_side.keys.lost, lost.job_id, 2)
    worker.putback(lost)  # a suspect
    suspect = queue_side.suspects()
    owned, delayed, acknowledged = worker.pop_one(), one("low"), one()
    worker.putback(owned)
    worker.delay(delayed)
    worker.ack(acknowledged)
    running = one("high")
    queue_side.enqueue(new_job_id())

    assert suspect == [lost.job_id]
    assert queue_side.owner(running.job_id) == "w1"
    assert queue_side.audit() == [5]


def test_audit_gives_up_on_long_queues(queue_side: QueueBench) -> None:
    for _ in range(4):
        queue_side.enqueue(new_job_id())

    assert queue_side.audit(most_listed=3) == [-1]


def test_audit_looks_at_a_stretch(queue_side: QueueBench) -> None:
    ids = [new_job_id() for _ in range(4)]
    for number, job_id in enumerate(ids):
        queue_side.enqueue(job_id, deadline_at_ms=1_999_999_999_000 + number)
    queue_side.bench.client.delete(queue_side.keys.queue("default"))

    assert queue_side.audit(1, 2) == [2, ids[1], ids[2]]


def test_trim_drops_the_ended_after_the_retention(
    queue_side: QueueBench, worker: WorkerBench, popped: Delivery
) -> None:
    worker.ack(popped)
    ended_at_ms = queue_side.bench.client.zscore(queue_side.keys.ended, popped.job_id)
    assert ended_at_ms is not None

    assert queue_side.trim(60) == 0
    queue_side.bench.wait_past(int(ended_at_ms) + 1)
    assert queue_side.trim(0.001) == 1


# ---- a full server


def test_a_full_server_takes_no_new_job(full_server: tuple[Bench, Callable[[], None]]) -> None:
    bench, fill = full_server
    queue_side = QueueBench(bench)
    fill()

    with pytest.raises(OutOfMemoryError):
        queue_side.enqueue(new_job_id())

    assert queue_side.waiting() == []


def test_on_a_full_server_nothing_is_popped(full_server: tuple[Bench, Callable[[], None]]) -> None:
    """What could not be claimed is better off in its queue."""
    bench, fill = full_server
    queue_side = QueueBench(bench)
    worker, job_id = queue_side.worker("w1"), new_job_id()
    queue_side.enqueue(job_id)
    fill()

    assert own.deliveries(bench.ask(worker.ownership.pop(1))) is None
    assert queue_side.waiting() == [job_id]


def test_on_a_full_server_workers_keep_their_leases_and_finish(
    full_server: tuple[Bench, Callable[[], None]],
) -> None:
    bench, fill = full_server
    queue_side = QueueBench(bench)
    worker = queue_side.worker("w1")
    for _ in range(3):
        queue_side.enqueue(new_job_id())
    done, back, late = worker.pop()
    fill()

    assert worker.renew() == 1
    assert worker.start(done)[0] == 1
    assert worker.ack(done) == 1
    assert worker.putback(back) == 1
    assert worker.delay(late) == 1


def test_on_a_full_server_the_dead_are_reaped(full_server: tuple[Bench, Callable[[], None]]) -> None:
    bench, fill = full_server
    queue_side = QueueBench(bench)
    worker, job_id = queue_side.worker("w1"), new_job_id()
    queue_side.enqueue(job_id)
    worker.pop_one()
    worker.lapse()
    fill()

    assert worker.release("reap") == ["more", "done"]
    assert queue_side.waiting() == [job_id]


# ---- namespaces


def test_two_namespaces_on_one_server_do_not_meet(server: Bench, queue_side: QueueBench, enqueued: str) -> None:
    elsewhere = QueueBench(Bench(server.kind, server.client, server.server, f"{server.namespace}-b"))
    worker = elsewhere.worker("w1")

    assert worker.pop() == []
    assert elsewhere.due() == own.Due([], [], [])
    assert queue_side.waiting() == [enqueued]
