"""RQ's own classes read what our scripts write: its tools and dashboards show what goes on, at every step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import (
    BaseRegistry,
    CanceledJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)
from rq.results import Result
from rq.serializers import JSONSerializer

from tests.contract.bench import QueueBench, WorkerBench, wait_until
from tokentape.job import ENTRYPOINT, EndStatus, ErrorInfo, Priority, new_job_id
from tokentape.queue import rq_job_key
from tokentape_worker import ownership as own
from tokentape_worker.ownership import Delivery, Ownership, payload_is_ours

pytestmark = pytest.mark.server_contract

REGISTRIES: dict[str, type[BaseRegistry]] = {
    "started": StartedJobRegistry,
    "finished": FinishedJobRegistry,
    "failed": FailedJobRegistry,
    "canceled": CanceledJobRegistry,
    "scheduled": ScheduledJobRegistry,
}


@dataclass
class RqView:
    """One queue as RQ sees it."""

    queue_side: QueueBench
    job_id: str
    priority: Priority = "default"

    @property
    def queue(self) -> Queue:
        name = self.queue_side.keys.queue_name(self.priority)
        return Queue(name, connection=self.queue_side.bench.client, serializer=JSONSerializer)

    @property
    def job(self) -> Job:
        return Job.fetch(self.job_id, connection=self.queue_side.bench.client, serializer=JSONSerializer)

    def registries(self) -> list[str]:
        """The registries that hold the job."""
        return [name for name, kind in REGISTRIES.items() if self.job_id in kind(queue=self.queue).get_job_ids()]

    def forget(self, ended: tuple[EndStatus, Priority]) -> None:
        forget = own.forget(self.queue_side.keys, self.job_id, ended, keep_s=3600, astray=True)
        assert self.queue_side.bench.ask(forget) == 1

    def shows(self) -> tuple[JobStatus, int, list[str], int]:
        """Status, jobs in the queue, registries, executions."""
        job = self.job
        return job.get_status(), self.queue.count, self.registries(), len(job.get_executions())


@pytest.fixture
def rq(queue_side: QueueBench) -> RqView:
    """One job that waits."""
    job_id = new_job_id()
    queue_side.enqueue(job_id)
    return RqView(queue_side, job_id)


@pytest.fixture
def worker(queue_side: QueueBench) -> WorkerBench:
    return queue_side.worker("w1")


@pytest.fixture
def started(rq: RqView, worker: WorkerBench) -> Delivery:
    """That job, started by w1."""
    delivery = worker.pop_one()
    worker.start(delivery)
    return delivery


def test_an_enqueued_job_is_queued(rq: RqView) -> None:
    assert rq.shows() == (JobStatus.QUEUED, 1, [], 0)
    assert rq.queue.get_job_ids() == [rq.job_id]
    assert rq.queue.name in {queue.name for queue in Queue.all(connection=rq.queue_side.bench.client)}


def test_the_record_calls_the_entry_point_with_the_job_id(rq: RqView) -> None:
    job = rq.job

    assert job.func_name == ENTRYPOINT
    assert list(job.args) == [rq.job_id]
    assert job.kwargs == {}
    assert job.instance is None


def test_the_record_reads_as_rq_would_have_written_it(rq: RqView) -> None:
    job = rq.job

    assert job.origin == rq.queue.name
    assert job.description == f"chat job {rq.job_id}"
    assert job.created_at is not None
    assert job.enqueued_at is not None
    assert job.started_at is None
    assert job.ended_at is None
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (660, 3600, 3600)
    assert job.retries_left is None
    assert job.ttl is None


def test_a_job_that_is_enqueued_again_keeps_its_record(rq: RqView, started: Delivery) -> None:
    rq.queue_side.enqueue(rq.job_id)

    assert rq.shows() == (JobStatus.STARTED, 0, ["started"], 1)


def test_a_started_job_runs_here(rq: RqView, started: Delivery) -> None:
    assert rq.shows() == (JobStatus.STARTED, 0, ["started"], 1)
    job = rq.job
    assert job.worker_name == "w1"
    assert job.started_at is not None
    (execution,) = job.get_executions()
    assert (execution.id, execution.worker_name) == (str(started.number), "w1")
    assert execution.composite_key == f"{rq.job_id}:{started.number}"


def test_start_hands_over_the_payload(rq: RqView, worker: WorkerBench) -> None:
    standing, payload = worker.start(worker.pop_one())

    assert standing == 1
    assert payload_is_ours(payload, rq.job_id, ENTRYPOINT)


def test_start_by_anybody_else_changes_nothing(rq: RqView, worker: WorkerBench, queue_side: QueueBench) -> None:
    delivery = worker.pop_one()

    assert queue_side.worker("w2").start(delivery) == [0]
    assert worker.start(delivery._replace(number=delivery.number - 1)) == [0]
    assert rq.shows() == (JobStatus.QUEUED, 0, [], 0)


def test_starting_twice_is_one_execution(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    worker.start(started)

    assert rq.shows() == (JobStatus.STARTED, 0, ["started"], 1)


@pytest.mark.parametrize(
    ("status", "rq_status", "registry"),
    [
        ("completed", JobStatus.FINISHED, "finished"),
        ("failed", JobStatus.FAILED, "failed"),
        ("expired", JobStatus.FAILED, "failed"),
        ("cancelled", JobStatus.CANCELED, "canceled"),
    ],
)
def test_an_acknowledged_job_has_ended_as_its_tape_has(
    rq: RqView, worker: WorkerBench, started: Delivery, status: EndStatus, rq_status: JobStatus, registry: str
) -> None:
    worker.ack(started, status)

    assert rq.shows() == (rq_status, 0, [registry], 0)
    assert rq.job.ended_at is not None


def test_the_result_of_a_completed_job_says_so_and_holds_no_answer(
    rq: RqView, worker: WorkerBench, started: Delivery
) -> None:
    worker.ack(started, "completed")

    result = rq.job.latest_result()
    assert result is not None
    assert result.type is Result.Type.SUCCESSFUL
    assert result.return_value is None
    assert (result.worker_name, result.execution_id) == ("w1", str(started.number))


def test_the_result_of_a_failed_job_names_the_error_and_not_its_message(
    rq: RqView, worker: WorkerBench, started: Delivery
) -> None:
    worker.ack(started, "failed", ErrorInfo(type="upstream_error", message="a prompt, echoed"))

    result = rq.job.latest_result()
    assert result is not None
    assert result.type is Result.Type.FAILED
    assert result.exc_string is not None
    assert "upstream_error" in result.exc_string
    assert "echoed" not in result.exc_string
    assert rq.job_id in result.exc_string


def test_an_ended_record_expires_with_the_retention(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    client = rq.queue_side.bench.client
    assert client.ttl(rq_job_key(rq.job_id)) == -1

    worker.ack(started)

    assert 3590 < client.ttl(rq_job_key(rq.job_id)) <= 3600
    assert 3590 < client.ttl(Result.get_key(rq.job_id)) <= 3600
    expires_at = FinishedJobRegistry(queue=rq.queue).get_expiration_time(rq.job).timestamp()
    assert 3590 < expires_at - rq.queue_side.bench.now_ms() / 1000 <= 3600


def test_ack_counts_for_a_worker_that_rq_knows(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    client = rq.queue_side.bench.client
    name = f"{rq.queue_side.bench.namespace}-worker"
    registered = WorkerBench(rq.queue_side.bench, Ownership(rq.queue_side.keys, name))
    registered.join()
    client.hset(f"rq:worker:{name}", "successful_job_count", 4)
    worker.putback(started)

    registered.ack(registered.pop_one(), "completed")

    assert client.hget(f"rq:worker:{name}", "successful_job_count") == b"5"


def test_success_takes_a_job_out_of_the_failed_registry(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    FailedJobRegistry(queue=rq.queue).add(rq.job, ttl=3600)  # RQ's sweep had given it up

    worker.ack(started, "completed")

    assert rq.registries() == ["finished"]


def test_a_job_that_is_put_back_is_queued(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    worker.putback(started)

    assert rq.shows() == (JobStatus.QUEUED, 1, [], 0)
    assert rq.job.worker_name in (None, "")


def test_a_delayed_job_is_scheduled(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    worker.delay(started, 60)

    assert rq.shows() == (JobStatus.SCHEDULED, 0, ["scheduled"], 0)
    at = ScheduledJobRegistry(queue=rq.queue).get_scheduled_time(rq.job_id).timestamp()
    assert 55 < at - rq.queue_side.bench.now_ms() / 1000 <= 61


def test_a_promoted_job_is_queued(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    worker.delay(started, 0)
    wait_until(lambda: rq.queue_side.promote(rq.job_id) == 1)

    assert rq.shows() == (JobStatus.QUEUED, 1, [], 0)


@pytest.mark.parametrize("mode", ["reap", "leave"])
def test_a_released_job_is_queued(rq: RqView, worker: WorkerBench, started: Delivery, mode: str) -> None:
    if mode == "reap":
        worker.lapse()

    worker.release(mode)

    assert rq.shows() == (JobStatus.QUEUED, 1, [], 0)
    assert rq.queue_side.bench.client.exists(f"rq:worker:{worker.name}:executions") == 0


def test_a_reopened_job_is_queued_and_in_no_registry(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    worker.ack(started, "completed")

    rq.queue_side.reopen(rq.job_id)

    assert rq.shows() == (JobStatus.QUEUED, 1, [], 0)
    assert rq.queue_side.bench.client.ttl(rq_job_key(rq.job_id)) == -1


def test_a_reopened_job_that_ends_otherwise_stands_in_one_registry(
    rq: RqView, worker: WorkerBench, started: Delivery
) -> None:
    worker.ack(started, "completed")
    rq.queue_side.reopen(rq.job_id)

    worker.ack(worker.pop_one(), "cancelled")

    assert rq.shows() == (JobStatus.CANCELED, 0, ["canceled"], 0)


def test_an_ended_job_that_was_delivered_again_stands_in_one_registry(
    rq: RqView, worker: WorkerBench, started: Delivery
) -> None:
    """As where RQ had canceled it while it ran: our tape says that it completed."""
    CanceledJobRegistry(queue=rq.queue).add(rq.job, ttl=3600)

    worker.ack(started, "completed")

    assert rq.registries() == ["finished"]


@pytest.mark.parametrize("delayed", [False, True])
def test_a_job_that_ended_without_a_run_is_settled_when_it_is_forgotten(
    rq: RqView, worker: WorkerBench, delayed: bool
) -> None:
    """Expired while it waited, or cancelled after it went astray: nobody acknowledges it."""
    delivery = worker.pop_one()
    if delayed:
        worker.delay(delivery)
    else:
        worker.putback(delivery)

    rq.forget(("cancelled", "default"))

    assert rq.job.get_status() is JobStatus.CANCELED
    assert rq.registries() == ["canceled"]
    assert 3590 < rq.queue_side.bench.client.ttl(rq_job_key(rq.job_id)) <= 3600


def test_another_end_than_the_acknowledged_one_is_settled_when_it_is_forgotten(
    rq: RqView, worker: WorkerBench, started: Delivery
) -> None:
    worker.ack(started, "completed")

    rq.forget(("expired", "default"))  # a failover lost the end, and the deadline passed

    assert rq.shows() == (JobStatus.FAILED, 0, ["failed"], 0)


def test_forgetting_leaves_a_running_job_to_its_owner(rq: RqView, started: Delivery) -> None:
    rq.forget(("cancelled", "default"))

    assert rq.shows() == (JobStatus.STARTED, 0, ["started"], 1)


def test_forgetting_an_acknowledged_job_leaves_its_record(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    worker.ack(started, "completed")
    before = rq.queue_side.bench.client.hgetall(rq_job_key(rq.job_id))

    rq.forget(("completed", "default"))

    assert rq.queue_side.bench.client.hgetall(rq_job_key(rq.job_id)) == before
    assert rq.registries() == ["finished"]


def test_the_next_execution_follows_the_one_before(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    worker.die()
    other = rq.queue_side.worker("w2")
    again = other.pop_one()

    other.start(again)

    assert rq.shows() == (JobStatus.STARTED, 0, ["started"], 1)
    assert rq.job.get_executions()[0].id == str(again.number)
    assert rq.job.worker_name == "w2"


def test_the_counts_of_rq_info_are_true(queue_side: QueueBench, worker: WorkerBench) -> None:
    for _ in range(6):
        queue_side.enqueue(new_job_id())
    running, finished, failed, delayed = worker.pop(4)
    for delivery in (running, finished, failed, delayed):
        worker.start(delivery)
    worker.ack(finished, "completed")
    worker.ack(failed, "failed")
    worker.delay(delayed)

    queue = RqView(queue_side, running.job_id).queue

    assert queue.count == 2
    assert queue.started_job_registry.count == 1
    assert queue.finished_job_registry.count == 1
    assert queue.failed_job_registry.count == 1
    assert queue.scheduled_job_registry.count == 1
    assert queue.canceled_job_registry.count == 0


@pytest.mark.parametrize("step", ["start", "ack", "putback", "delay", "promote", "reap", "reopen"])
def test_a_deleted_record_is_not_made_anew_from_a_few_fields(
    rq: RqView, worker: WorkerBench, started: Delivery, step: str
) -> None:
    if step == "promote":
        worker.delay(started, 0)
    if step == "reopen":
        worker.ack(started)
    rq.queue_side.bench.client.delete(rq_job_key(rq.job_id))

    if step == "start":
        assert worker.start(started) == [1]
    elif step == "ack":
        assert worker.ack(started) == 1
    elif step == "putback":
        assert worker.putback(started) == 1
    elif step == "delay":
        assert worker.delay(started) == 1
    elif step == "promote":
        wait_until(lambda: rq.queue_side.promote(rq.job_id) == 1)
    elif step == "reap":
        assert worker.die() == ["more", "done"]
    else:
        assert rq.queue_side.reopen(rq.job_id) == 1

    with pytest.raises(NoSuchJobError):
        _ = rq.job


def test_a_deleted_record_leaves_nothing_in_rqs_books(rq: RqView, worker: WorkerBench, started: Delivery) -> None:
    rq.queue_side.bench.client.delete(rq_job_key(rq.job_id))

    worker.ack(started)

    assert rq.registries() == []
    assert rq.queue_side.bench.client.keys(f"rq:exec*{rq.job_id}*") == []
