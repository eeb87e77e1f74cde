"""What a run shows of itself."""

from __future__ import annotations

import errno
import io

import pytest

from tokentape_producer.batch import Counts
from tokentape_producer.progress import Display, PlainLines, Rate, clock_time, describe, display


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_is_that_of_the_last_minute() -> None:
    rate = Rate()

    for second in range(200):
        rate.add(second * (1 if second < 100 else 10), float(second))

    assert rate.per_s() == pytest.approx(10)
    assert rate.left_s(50) == pytest.approx(5)


def test_rate_of_a_resumed_run_takes_no_credit_for_what_stood_there() -> None:
    rate = Rate()

    rate.add(1_000_000, 0.0)
    unknown = rate.per_s()
    rate.add(1_000_020, 10.0)

    assert unknown is None
    assert rate.per_s() == pytest.approx(2)


def test_state_tells_counts_rate_and_time_left() -> None:
    rate = Rate()
    rate.add(0, 0.0)
    rate.add(1000, 10.0)

    text = describe(Counts(total=2000, completed=997, failed=2, expired=1), rate)

    assert text == "1,000 of 2,000 answered, 2 failed, 1 expired, 100/s, 0:10 left"


def test_nothing_is_left_and_nothing_is_divided_at_the_end_and_before_the_start() -> None:
    rate = Rate()

    assert describe(Counts(total=2), rate) == "0 of 2 answered"
    rate.add(0, 0.0)
    rate.add(0, 5.0)
    assert describe(Counts(total=2), rate) == "0 of 2 answered, 0.0/s"


def test_long_waits_are_told_in_hours() -> None:
    assert [clock_time(7), clock_time(754), clock_time(12_345)] == ["0:07", "12:34", "3:25:45"]


def test_plain_lines_come_now_and_then_and_notes_once_a_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = PlainLines(stream, clock)

    for _ in range(70):
        clock.now += 1
        shown.counted(Counts(total=10, completed=1))
        shown.noted("no worker is running")

    lines = stream.getvalue().splitlines()
    assert sum(line.startswith("1 of 10 answered") for line in lines) == 14
    assert lines.count("no worker is running") == 2


def test_log_that_takes_nothing_ends_no_run() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, f"no room for {text!r}")

    clock = Clock()
    shown = PlainLines(Full(), clock)
    clock.now += 10

    shown.counted(Counts(total=10, completed=1))
    shown.noted("no worker is running")


def test_display_fits_where_it_is_shown() -> None:
    stream = io.StringIO()

    assert isinstance(display(wanted=True, stream=stream), PlainLines)
    assert type(display(wanted=False, stream=stream)) is Display
    assert type(display(wanted=True, lines=False, stream=stream)) is Display
