"""The tape's rules, one by one, on every server. See tokentape/tape.py for the rules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ResponseError

from tests.contract.bench import Bench, TapeBench, chat_job, texts
from tokentape.job import new_job_id
from tokentape.tape import Position, Tape, check_follows, decode_entry, rows_of

pytestmark = pytest.mark.server_contract

CHUNK = '{"choices":[]}'


@pytest.fixture
def submitted(tape_of_job: TapeBench) -> TapeBench:
    """A tape with nothing but 0-1."""
    tape_of_job.submit()
    return tape_of_job


@pytest.fixture
def claimed(submitted: TapeBench) -> TapeBench:
    """A tape whose first attempt has begun, with token-1."""
    submitted.claim()
    return submitted


@pytest.fixture
def overtaken(claimed: TapeBench) -> TapeBench:
    """A tape on which a second delivery, with token-2, has overtaken the first in mid-stream."""
    claimed.append(1, 1, CHUNK)
    claimed.claim(2, worker="w2", token="token-2", reason="worker_lost")
    return claimed


def data_of(row: tuple[str, dict[str, str]]) -> dict[str, object]:
    data: dict[str, object] = json.loads(row[1]["data"])
    return data


# ---- submit


def test_the_first_submit_is_new(tape_of_job: TapeBench) -> None:
    before = tape_of_job.bench.now_ms()

    verdict, deadline_at_ms = tape_of_job.submit()

    assert verdict == "new"
    assert before + 600_000 <= int(deadline_at_ms) <= tape_of_job.bench.now_ms() + 600_000


def test_the_queued_entry_has_exactly_the_fields_of_the_contract(server: Bench) -> None:
    job = chat_job(upstream="u", priority="high", tenant="acme", metadata={"page": "7"}, timeout_s=60)
    bench = TapeBench(server, job)

    bench.submit()

    ((entry_id, fields),) = bench.rows()
    assert entry_id == "0-1"
    assert list(fields) == ["kind", "data"]
    assert fields["kind"] == "queued"
    data = json.loads(fields["data"])
    submitted_at_ms = data.pop("submitted_at_ms")
    assert data.pop("deadline_at_ms") == submitted_at_ms + 60_000
    assert data == {
        "format": 1,
        "model": "m",
        "upstream": "u",
        "priority": "high",
        "tenant": "acme",
        "metadata": {"page": "7"},
        "request_sha256": hashlib.sha256(job.body()).hexdigest(),
    }


def test_submit_stores_the_request_as_it_was_given(submitted: TapeBench) -> None:
    stored = submitted.bench.client.get(submitted.tape.request_key)

    assert stored == submitted.job.body()


def test_submit_sets_the_expiry_of_tape_and_request_to_timeout_and_margin(tape_of_job: TapeBench) -> None:
    tape_of_job.submit(margin_s=60)

    tape_ms, result_ms, request_ms = tape_of_job.ttls_ms()
    assert 650_000 < tape_ms <= 660_000
    assert 650_000 < request_ms <= 660_000
    assert result_ms == -2


def test_the_same_job_again_is_the_same(submitted: TapeBench) -> None:
    first = submitted.rows()

    again = submitted.submit()

    assert again == ["same", str(data_of(first[0])["deadline_at_ms"])]
    assert submitted.rows() == first


def test_the_same_job_again_leaves_the_expiry_alone(submitted: TapeBench) -> None:
    submitted.submit(margin_s=6000)

    assert max(submitted.ttls_ms()) <= 660_000


def test_a_submit_after_the_end_says_ended(claimed: TapeBench) -> None:
    claimed.end(1, 1)

    assert claimed.submit()[0] == "ended"


def test_another_body_under_the_same_id_is_a_conflict(submitted: TapeBench) -> None:
    before = submitted.rows()

    verdict = submitted.submit(chat_job("Bye", job_id=submitted.job.id))

    assert verdict == ["conflict", "0"]
    assert submitted.rows() == before
    assert submitted.bench.client.get(submitted.tape.request_key) == submitted.job.body()


def test_another_body_is_a_conflict_after_the_end_too(claimed: TapeBench) -> None:
    claimed.end(1, 1)

    assert claimed.submit(chat_job("Bye", job_id=claimed.job.id))[0] == "conflict"


# ---- claim


def test_claim_opens_the_first_attempt(submitted: TapeBench) -> None:
    before = submitted.bench.now_ms()

    verdict, attempt, spent, token, started_at_ms = submitted.claim()

    assert (verdict, attempt, spent, token) == ("run", 1, 0, "token-1")
    assert before <= int(started_at_ms) <= submitted.bench.now_ms()
    assert submitted.ids() == ["0-1", "1-0"]


def test_the_attempt_entry_has_exactly_the_fields_of_the_contract(submitted: TapeBench) -> None:
    *_, started_at_ms = submitted.claim(1_700_000_000_001, 2, worker="w1", token="abc", reason="submitted")

    entry_id, fields = submitted.rows()[-1]
    assert entry_id == "1-0"
    assert list(fields) == ["kind", "data"]
    assert fields["kind"] == "attempt"
    assert json.loads(fields["data"]) == {
        "worker": "w1",
        "upstream": "u",
        "token": "abc",
        "started_at_ms": int(started_at_ms),
        "reason": "submitted",
        "delivery": "1700000000001",
        "try": 2,
        "spent": 0,
    }


def test_claim_of_no_tape_is_gone_and_makes_none(tape_of_job: TapeBench) -> None:
    assert tape_of_job.claim() == ["gone"]
    assert tape_of_job.ids() == []


def test_claim_after_the_end_says_with_which_status(claimed: TapeBench) -> None:
    claimed.end(1, 1, status="completed")

    assert claimed.claim(2) == ["ended", "completed"]
    assert claimed.ids() == ["0-1", "1-0", "1-1"]


def test_the_same_claim_again_gets_the_same_attempt(claimed: TapeBench) -> None:
    started_at_ms = data_of(claimed.rows()[-1])["started_at_ms"]

    assert claimed.claim() == ["run", 1, 0, "token-1", str(started_at_ms)]
    assert claimed.ids() == ["0-1", "1-0"]


@pytest.mark.parametrize("chunks", [0, 1])
def test_the_same_delivery_with_another_token_is_refused(claimed: TapeBench, chunks: int) -> None:
    """Another run of the delivery: its answer would be mixed into the one that stands."""
    claimed.append(1, 1, *[CHUNK] * chunks)

    assert claimed.claim(token="token-2") == ["older", "1"]
    assert claimed.ids()[-1] == f"1-{chunks}"


def test_an_older_delivery_is_refused(overtaken: TapeBench) -> None:
    before = overtaken.ids()

    assert overtaken.claim(1, 5) == ["older", "2"]
    assert overtaken.ids() == before


def test_an_older_try_is_refused(claimed: TapeBench) -> None:
    claimed.claim(1, 1)

    assert claimed.claim(1, 0) == ["older", "1"]


def test_the_next_try_opens_the_next_attempt(claimed: TapeBench) -> None:
    claimed.append(1, 1, CHUNK)

    reply = claimed.claim(1, 1, token="token-2", reason="upstream_error")

    assert reply[:4] == ["run", 2, 1, "token-2"]
    assert claimed.ids() == ["0-1", "1-0", "1-1", "2-0"]


def test_deliveries_are_compared_as_numbers(submitted: TapeBench) -> None:
    submitted.claim(9_999_999_999_999)

    assert submitted.claim(10_000_000_000_000, token="token-2")[:2] == ["run", 2]


def test_claim_after_the_deadline_ends_the_job_as_expired(server: Bench) -> None:
    bench = TapeBench(server, chat_job(timeout_s=0.001))
    _, deadline_at_ms = bench.submit()
    server.wait_past(int(deadline_at_ms))

    reply = bench.claim()

    assert reply == ["ended", "expired"]
    assert bench.ids() == ["0-1", "1-0"]
    end = data_of(bench.rows()[-1])
    assert end["status"] == "expired"
    assert end["attempts"] == 0


def test_a_lost_worker_spends_an_attempt(claimed: TapeBench) -> None:
    assert claimed.claim(2, reason="worker_lost")[:3] == ["run", 2, 1]
    assert claimed.claim(3, reason="worker_lost")[:3] == ["run", 3, 2]


@pytest.mark.parametrize("reason", ["drained", "wait"])
def test_what_was_given_back_on_purpose_costs_nothing(claimed: TapeBench, reason: str) -> None:
    for delivery in range(2, 8):
        attempt, spent = claimed.claim(delivery, reason=reason)[1:3]

        assert (attempt, spent) == (delivery, 0)


def test_what_was_spent_is_kept_through_a_drain(claimed: TapeBench) -> None:
    claimed.claim(2, reason="worker_lost")

    assert claimed.claim(3, reason="drained")[:3] == ["run", 3, 1]


def test_claim_with_every_attempt_spent_ends_the_job_as_worker_lost(claimed: TapeBench) -> None:
    claimed.claim(2, reason="worker_lost", budget=2)

    reply = claimed.claim(3, reason="worker_lost", budget=2)

    assert reply == ["ended", "failed"]
    assert claimed.ids() == ["0-1", "1-0", "2-0", "3-0"]
    end = data_of(claimed.rows()[-1])
    assert end["status"] == "failed"
    assert end["attempts"] == 2
    error = end["error"]
    assert isinstance(error, dict)
    assert error["type"] == "worker_lost"


def test_an_end_by_claim_has_every_field_and_sets_the_expiry(claimed: TapeBench) -> None:
    claimed.retention_s = 5.0

    claimed.claim(2, reason="worker_lost", budget=1)

    end = data_of(claimed.rows()[-1])
    assert set(end) == {"status", "error", "usage", "timings", "attempts", "ended_at_ms"}
    tape_ms, _, request_ms = claimed.ttls_ms()
    assert 0 < tape_ms <= 5000
    assert 0 < request_ms <= 5000


def test_the_attempt_after_a_claim_that_ended_takes_no_chunk(claimed: TapeBench) -> None:
    claimed.claim(2, reason="worker_lost", budget=1)

    assert claimed.append(1, 1, CHUNK) == ["ended"]


# ---- append


def test_append_adds_chunks_in_order(claimed: TapeBench) -> None:
    assert claimed.append(1, 1, "a", "b") == ["ok"]
    assert claimed.append(1, 3, "c") == ["ok"]

    assert claimed.rows()[2:] == [
        ("1-1", {"kind": "chunk", "data": "a"}),
        ("1-2", {"kind": "chunk", "data": "b"}),
        ("1-3", {"kind": "chunk", "data": "c"}),
    ]


def test_append_of_nothing_is_ok(claimed: TapeBench) -> None:
    assert claimed.append(1, 1) == ["ok"]
    assert claimed.ids() == ["0-1", "1-0"]


def test_append_after_a_lost_reply_adds_nothing_twice(claimed: TapeBench) -> None:
    claimed.append(1, 1, "a", "b")
    before = claimed.rows()

    assert claimed.append(1, 1, "a", "b") == ["ok"]
    assert claimed.rows() == before


def test_append_adds_what_had_not_landed(claimed: TapeBench) -> None:
    claimed.append(1, 1, "a", "b")

    assert claimed.append(1, 2, "b", "c", "d") == ["ok"]
    assert claimed.ids() == ["0-1", "1-0", "1-1", "1-2", "1-3", "1-4"]
    assert [row[1]["data"] for row in claimed.rows()[2:]] == ["a", "b", "c", "d"]


def test_an_old_append_that_arrives_late_adds_nothing(claimed: TapeBench) -> None:
    claimed.append(1, 1, "a", "b", "c")

    assert claimed.append(1, 1, "a") == ["ok"]
    assert claimed.ids()[-1] == "1-3"


def test_append_past_a_gap_is_refused_and_names_the_last_position(claimed: TapeBench) -> None:
    claimed.append(1, 1, "a", "b")

    assert claimed.append(1, 4, "d") == ["gap", 2]
    assert claimed.ids()[-1] == "1-2"


def test_append_where_the_attempt_is_missing_is_a_gap_of_the_whole_attempt(claimed: TapeBench) -> None:
    assert claimed.append(2, 1, "a") == ["gap", -1]


def test_append_by_an_overtaken_attempt_is_refused(overtaken: TapeBench) -> None:
    before = overtaken.rows()

    assert overtaken.append(1, 2, CHUNK) == ["overtaken"]
    assert overtaken.rows() == before


def test_append_after_the_end_is_refused(claimed: TapeBench) -> None:
    claimed.end(1, 1)

    assert claimed.append(1, 1, CHUNK) == ["ended"]
    assert claimed.ids()[-1] == "1-1"


def test_append_to_a_deleted_tape_is_gone_and_never_makes_one(claimed: TapeBench) -> None:
    claimed.bench.client.delete(claimed.tape.key)

    assert claimed.append(1, 1, CHUNK) == ["gone"]
    assert claimed.bench.client.exists(claimed.tape.key) == 0


def test_append_with_another_token_is_refused(claimed: TapeBench) -> None:
    """After a failover an attempt's number may have been given to somebody else."""
    assert claimed.append(1, 1, CHUNK, token="token-9") == ["overtaken"]
    assert claimed.ids() == ["0-1", "1-0"]


def test_append_before_any_attempt_is_refused(submitted: TapeBench) -> None:
    assert submitted.append(0, 2, CHUNK) == ["overtaken"]
    assert submitted.append(1, 1, CHUNK) == ["gap", -1]
    assert submitted.ids() == ["0-1"]


def test_a_fenced_write_by_plain_xadd_is_refused_by_the_server_itself(overtaken: TapeBench) -> None:
    with pytest.raises(ResponseError, match="equal or smaller"):
        overtaken.bench.client.execute_command("XADD", overtaken.tape.key, "1-2", "kind", "chunk", "data", CHUNK)


def test_append_keeps_the_expiry(claimed: TapeBench) -> None:
    before, _, _ = claimed.ttls_ms()

    claimed.append(1, 1, CHUNK)

    assert 0 < claimed.ttls_ms()[0] <= before


# ---- end


def test_end_is_the_last_entry(claimed: TapeBench) -> None:
    claimed.append(1, 1, CHUNK)

    assert claimed.end(1, 2) == ["ok"]
    entry_id, fields = claimed.rows()[-1]
    assert entry_id == "1-2"
    assert list(fields) == ["kind", "data"]
    assert fields["kind"] == "end"


def test_the_end_has_exactly_the_fields_of_the_contract(claimed: TapeBench) -> None:
    before = claimed.bench.now_ms()

    claimed.end(1, 1)

    data = data_of(claimed.rows()[-1])
    ended_at_ms = data.pop("ended_at_ms")
    assert isinstance(ended_at_ms, int)
    assert before <= ended_at_ms <= claimed.bench.now_ms()
    assert data == {"status": "completed", "error": None, "usage": None, "timings": None, "attempts": 1}


def test_end_stores_the_result_and_sets_every_expiry_in_the_same_step(claimed: TapeBench) -> None:
    claimed.retention_s = 5.0

    claimed.end(1, 1, result=b'{"id":"answer"}')

    assert claimed.bench.client.get(claimed.tape.result_key) == b'{"id":"answer"}'
    assert all(0 < ttl <= 5000 for ttl in claimed.ttls_ms())


def test_an_end_without_a_result_stores_none(claimed: TapeBench) -> None:
    claimed.end(1, 1, status="failed", result=b"")

    assert claimed.bench.client.exists(claimed.tape.result_key) == 0


def test_the_same_end_again_says_already(claimed: TapeBench) -> None:
    claimed.end(1, 1)
    before = claimed.rows()

    assert claimed.end(1, 1) == ["already"]
    assert claimed.rows() == before


def test_end_after_another_end_is_refused(claimed: TapeBench) -> None:
    claimed.settle()

    assert claimed.end(1, 1) == ["ended"]
    assert claimed.bench.client.exists(claimed.tape.result_key) == 0


def test_the_same_end_with_another_token_is_refused(claimed: TapeBench) -> None:
    claimed.end(1, 1)

    assert claimed.end(1, 1, token="token-9") == ["ended"]


@pytest.mark.parametrize("seq", [1, 3, 4])
def test_end_anywhere_but_after_the_last_chunk_is_a_gap(claimed: TapeBench, seq: int) -> None:
    claimed.append(1, 1, CHUNK)

    assert claimed.end(1, seq) == ["gap", 1]
    assert claimed.ids()[-1] == "1-1"
    assert claimed.bench.client.exists(claimed.tape.result_key) == 0


def test_end_where_the_attempt_is_missing_is_a_gap_of_the_whole_attempt(claimed: TapeBench) -> None:
    assert claimed.end(2, 1) == ["gap", -1]


def test_end_by_an_overtaken_attempt_is_refused(overtaken: TapeBench) -> None:
    assert overtaken.end(1, 2) == ["overtaken"]
    assert overtaken.ids()[-1] == "2-0"
    assert overtaken.bench.client.exists(overtaken.tape.result_key) == 0


def test_end_with_another_token_is_refused(claimed: TapeBench) -> None:
    assert claimed.end(1, 1, token="token-9") == ["overtaken"]


def test_end_of_a_deleted_tape_is_gone_and_stores_nothing(claimed: TapeBench) -> None:
    claimed.bench.client.delete(claimed.tape.key)

    assert claimed.end(1, 1) == ["gone"]
    assert claimed.bench.client.exists(claimed.tape.key, claimed.tape.result_key) == 0


# ---- settle


def test_settle_ends_a_queued_job_at_the_next_attempts_zero(submitted: TapeBench) -> None:
    assert submitted.settle("cancelled") == ["ok", "default"]
    assert submitted.ids() == ["0-1", "1-0"]
    end = data_of(submitted.rows()[-1])
    assert set(end) == {"status", "error", "usage", "timings", "attempts", "ended_at_ms"}
    assert (end["status"], end["attempts"]) == ("cancelled", 0)


def test_settle_keeps_what_had_arrived(claimed: TapeBench) -> None:
    claimed.append(1, 1, "a", "b")

    claimed.settle("cancelled")

    assert claimed.ids() == ["0-1", "1-0", "1-1", "1-2", "2-0"]
    assert claimed.rows()[-1][1]["kind"] == "end"
    assert data_of(claimed.rows()[-1])["attempts"] == 1


def test_settle_fences_a_running_attempt_at_once(claimed: TapeBench) -> None:
    claimed.settle("cancelled")

    assert claimed.append(1, 1, CHUNK) == ["ended"]
    assert claimed.end(1, 1) == ["ended"]
    assert claimed.claim(2) == ["ended", "cancelled"]


def test_settle_of_an_ended_job_says_with_which_status(claimed: TapeBench) -> None:
    claimed.end(1, 1, status="completed")
    before = claimed.rows()

    assert claimed.settle("cancelled") == ["ended", "completed", "default"]
    assert claimed.rows() == before


def test_settle_of_no_tape_is_gone_and_makes_none(tape_of_job: TapeBench) -> None:
    assert tape_of_job.settle() == ["gone"]
    assert tape_of_job.ids() == []


def test_settle_sets_the_expiry(submitted: TapeBench) -> None:
    submitted.retention_s = 5.0

    submitted.settle()

    tape_ms, _, request_ms = submitted.ttls_ms()
    assert 0 < tape_ms <= 5000
    assert 0 < request_ms <= 5000


def test_settle_where_overdue_leaves_a_job_before_its_deadline(server: Bench) -> None:
    bench = TapeBench(server, chat_job(priority="low"))
    _, deadline_at_ms = bench.submit()

    assert bench.settle("expired", if_overdue=True) == ["early", deadline_at_ms, "low"]
    assert bench.ids() == ["0-1"]


def test_settle_where_overdue_ends_a_job_after_its_deadline(server: Bench) -> None:
    bench = TapeBench(server, chat_job(timeout_s=0.001))
    _, deadline_at_ms = bench.submit()
    server.wait_past(int(deadline_at_ms))

    assert bench.settle("expired", if_overdue=True) == ["ok", "default"]
    assert data_of(bench.rows()[-1])["status"] == "expired"


@pytest.mark.parametrize("format_", [2, 0, 1.5, "1", None, {"major": 2}])
def test_settle_leaves_a_tape_of_another_format_alone_and_says_which(server: Bench, format_: object) -> None:
    bench = TapeBench(server, chat_job(timeout_s=0.001))
    server.client.xadd(bench.tape.key, {"kind": "queued", "data": json.dumps({"format": format_})}, id="0-1")

    for if_overdue in (False, True):
        verdict, found = bench.settle("expired", if_overdue=if_overdue)
        assert (verdict, json.loads(found)) == ("format", format_)

    assert bench.ids() == ["0-1"]
    assert server.client.ttl(bench.tape.key) == -1


# ---- a full server


def test_a_full_server_refuses_chunks_and_takes_the_end(
    full_server: tuple[Bench, Callable[[], None]],
) -> None:
    bench, fill = full_server
    job = TapeBench(bench, chat_job())
    job.submit()
    job.claim()
    fill()

    with pytest.raises(OutOfMemoryError):
        job.append(1, 1, CHUNK)

    assert job.ids() == ["0-1", "1-0"]
    assert job.end(1, 1, status="failed", result=b"") == ["ok"]
    assert job.ids() == ["0-1", "1-0", "1-1"]


def test_a_full_server_refuses_a_batch_as_a_whole(full_server: tuple[Bench, Callable[[], None]]) -> None:
    bench, fill = full_server
    job = TapeBench(bench, chat_job())
    job.submit()
    job.claim()
    fill()

    with pytest.raises(OutOfMemoryError):
        job.append(1, 1, *[CHUNK] * 20)

    bench.client.config_set("maxmemory", 0)
    assert job.append(1, 1, *[CHUNK] * 20) == ["ok"]
    assert job.ids()[-1] == "1-20"


def test_a_full_server_takes_a_cancel(full_server: tuple[Bench, Callable[[], None]]) -> None:
    bench, fill = full_server
    job = TapeBench(bench, chat_job())
    job.submit()
    fill()

    assert job.settle("cancelled")[0] == "ok"


def test_a_full_server_refuses_new_jobs(full_server: tuple[Bench, Callable[[], None]]) -> None:
    bench, fill = full_server
    fill()
    job = TapeBench(bench, chat_job())

    with pytest.raises(OutOfMemoryError):
        job.submit()

    assert job.ids() == []


# ---- numbers, bytes, names


def test_positions_stay_exact_far_out(claimed: TapeBench) -> None:
    far = 2**31 - 2
    claimed.bench.client.xadd(claimed.tape.key, {"kind": "chunk", "data": CHUNK}, id=f"1-{far}")

    assert claimed.append(1, far + 1, "a", "b", "c") == ["ok"]
    assert claimed.append(1, far + 3, "c", "d") == ["ok"]
    assert claimed.append(1, far + 9, "x") == ["gap", far + 4]
    assert claimed.end(1, far + 5) == ["ok"]
    assert claimed.ids()[-5:] == [f"1-{far + n}" for n in range(1, 6)]


def test_attempts_stay_exact_far_out(claimed: TapeBench) -> None:
    many = 2**20
    data = claimed.rows()[-1][1]["data"]
    claimed.bench.client.xadd(claimed.tape.key, {"kind": "attempt", "data": data}, id=f"{many}-0")

    assert claimed.append(many, 1, "a") == ["ok"]
    assert claimed.claim(2, reason="drained")[:2] == ["run", many + 1]
    assert claimed.settle()[0] == "ok"
    assert claimed.ids()[-3:] == [f"{many}-1", f"{many + 1}-0", f"{many + 2}-0"]


def test_a_delivery_beyond_32_bits_stays_exact(submitted: TapeBench) -> None:
    number = 1_795_460_210_197

    submitted.claim(number)

    assert submitted.claim(number - 1) == ["older", str(number)]
    assert submitted.claim(number)[:2] == ["run", 1]


def test_chunks_are_kept_byte_for_byte(claimed: TapeBench) -> None:
    chunks = [bytes(range(256)), b"", b"\r\n*3\r\n$-1\r\n", "Grüße, 世界 🌍".encode()]

    claimed.append(1, 1, *chunks)

    rows = rows_of(claimed.bench.client.xread({claimed.tape.key: "1-0"}))
    assert [fields[b"data"] for _, fields in rows] == chunks


def test_a_result_is_kept_byte_for_byte(claimed: TapeBench) -> None:
    result = bytes(range(256)) + "世界".encode()

    claimed.end(1, 1, result=result)

    assert claimed.bench.client.get(claimed.tape.result_key) == result


def test_text_beyond_ascii_survives_in_every_entry(server: Bench) -> None:
    bench = TapeBench(server, chat_job("Grüß Gott", tenant="Å", metadata={"straße": '"世界"\\ \u2028'}))

    bench.submit()
    bench.claim(worker="wörker")
    bench.claim(2, worker="w2", reason="worker_lost", budget=1)

    queued, attempt, end = (data_of(row) for row in bench.rows())
    assert queued["metadata"] == {"straße": '"世界"\\ \u2028'}
    assert queued["tenant"] == "Å"
    assert attempt["worker"] == "wörker"
    assert end["status"] == "failed"


def test_every_key_carries_the_namespace_and_the_bucket(server: Bench) -> None:
    job_id = new_job_id()
    bench = TapeBench(server, chat_job(job_id=job_id))
    bench.submit()
    bench.claim()
    bench.end(1, 1)

    keys = {texts(key) for key in server.client.scan_iter(f"{server.namespace}*")}

    slot = f"{server.namespace}:{{{job_id[4:6]}}}:{job_id}"
    assert keys == {f"{slot}:tape", f"{slot}:result", f"{slot}:request"}


def test_the_same_job_id_in_two_namespaces_is_two_jobs(claimed: TapeBench) -> None:
    other = TapeBench(claimed.bench, claimed.job)
    other.tape = Tape(f"{claimed.bench.namespace}-b", claimed.job.id)

    assert other.submit()[0] == "new"
    other.settle()

    assert claimed.append(1, 1, CHUNK) == ["ok"]


def test_a_script_that_the_server_forgot_is_loaded_again(claimed: TapeBench) -> None:
    claimed.bench.client.script_flush()

    assert claimed.append(1, 1, CHUNK) == ["ok"]


def test_the_scripts_run_inside_a_transaction(claimed: TapeBench) -> None:
    append = claimed.tape.append(1, "token-1", 1, [b"a"])

    replies = claimed.bench.server.run([append, ("PING",)], atomic=True)

    assert texts(replies[0]) == ["ok"]


# ---- a reader in any language


def test_plain_xread_sees_the_ids_and_kinds_of_the_contract(overtaken: TapeBench, server: Bench) -> None:
    overtaken.append(2, 1, "a", "b", token="token-2")
    overtaken.end(2, 3, token="token-2")
    connection: redis.Redis = server.client

    reply = texts(connection.execute_command("XREAD", "COUNT", 100, "STREAMS", overtaken.tape.key, "0-0"))

    rows = reply[overtaken.tape.key] if isinstance(reply, dict) else reply[0][1]
    rows = rows[0] if len(rows) == 1 else rows
    assert [(entry_id, fields["kind"]) for entry_id, fields in map(as_entry, rows)] == [
        ("0-1", "queued"),
        ("1-0", "attempt"),
        ("1-1", "chunk"),
        ("2-0", "attempt"),
        ("2-1", "chunk"),
        ("2-2", "chunk"),
        ("2-3", "end"),
    ]


def test_xread_after_a_cursor_gives_what_follows_it(claimed: TapeBench) -> None:
    claimed.append(1, 1, "a", "b", "c")

    reply = claimed.bench.client.xread({claimed.tape.key: "1-1"})

    assert [row[0] for row in rows_of(texts(reply))] == ["1-2", "1-3"]


def test_a_whole_tape_is_dense_to_a_reader(overtaken: TapeBench) -> None:
    overtaken.append(2, 1, CHUNK, token="token-2")
    overtaken.end(2, 2, token="token-2")
    position = Position(0, 0)

    for row in rows_of(overtaken.bench.client.xread({overtaken.tape.key: "0-0"})):
        entry = decode_entry(overtaken.job.id, row)
        check_follows(position, entry)
        position = entry.position

    assert position == Position(2, 2)


def as_entry(row: list[object] | tuple[object, ...]) -> tuple[str, dict[str, str]]:
    """A raw row, whichever way the client shows the fields."""
    entry_id, fields = row
    if isinstance(fields, list):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    assert isinstance(fields, dict)
    return str(entry_id), fields
