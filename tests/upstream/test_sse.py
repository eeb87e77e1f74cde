"""The decoder against the rules of the HTML standard, and against what upstreams add to them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentape_worker.sse import Decoder, Event, EventTooLarge


def decoded(data: bytes) -> list[Event]:
    decoder = Decoder()
    return decoder.feed(data) + decoder.flush()


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_each_line_end_ends_a_line(end: bytes) -> None:
    events = decoded(b"data: a" + end + b"data: b" + end + end + b"data: c" + end + end)

    assert [event.data for event in events] == [b"a\nb", b"c"]


def test_line_ends_may_be_mixed() -> None:
    events = decoded(b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\r")

    assert [event.data for event in events] == [b"a\nb\nc", b"d"]


def test_crlf_that_two_reads_cut_apart_is_one_end() -> None:
    decoder = Decoder()

    first, second, third = decoder.feed(b"data: a\r"), decoder.feed(b"\ndata: b\r\n\r"), decoder.feed(b"\n")

    assert (first, second, third) == ([], [Event(b"a\nb")], [])


def test_event_is_given_with_the_cr_that_ends_it() -> None:
    assert Decoder().feed(b"data: a\r\r") == [Event(b"a")]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_other_separators_are_text(separator: str) -> None:
    events = decoded(f"data: a{separator}b\n\n".encode())

    assert [event.data.decode() for event in events] == [f"a{separator}b"]


def test_one_leading_bom_is_dropped() -> None:
    assert decoded(b"\xef\xbb\xbfdata: a\n\n") == [Event(b"a")]


def test_second_bom_is_part_of_the_field_name() -> None:
    events = decoded(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n")

    assert [event.stray for event in events] == [True]


def test_bytes_that_only_begin_a_bom_are_kept() -> None:
    assert decoded(b"\xef\xbb") == [Event(b"\xef\xbb", stray=True)]


def test_exactly_one_space_after_the_colon_is_dropped() -> None:
    events = decoded(b"data:a\n\ndata: a\n\ndata:  a\n\ndata:\ta\n\n")

    assert [event.data for event in events] == [b"a", b"a", b" a", b"\ta"]


def test_data_without_colon_is_an_empty_value() -> None:
    events = decoded(b"data\n\ndata\ndata\n\ndata:\n\n")

    assert [event.data for event in events] == [b"", b"\n", b""]


def test_comments_are_dropped() -> None:
    assert decoded(b": keep-alive\n\n:\n\ndata: a\n:b\ndata: c\n\n") == [Event(b"a\nc")]


def test_event_name_holds_for_one_event() -> None:
    events = decoded(b"event: error\ndata: a\n\ndata: b\n\nevent: lost\n\ndata: c\n\n")

    assert [event.name for event in events] == ["error", "", ""]


def test_last_event_name_of_an_event_wins() -> None:
    assert decoded(b"event: a\nevent: b\ndata: x\n\nevent: a\nevent:\ndata: x\n\n") == [
        Event(b"x", "b"),
        Event(b"x", ""),
    ]


def test_id_persists_until_the_next_one() -> None:
    events = decoded(b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n")

    assert [event.id for event in events] == ["1", "1", ""]


def test_id_with_a_nul_is_ignored() -> None:
    events = decoded(b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n")

    assert [event.id for event in events] == ["1", "1"]


def test_retry_is_taken_only_of_digits() -> None:
    decoder = Decoder()

    decoder.feed(b"retry: 300\nretry: 5x\nretry: -1\nretry:\n")

    assert decoder.retry_ms == 300


def test_field_names_are_matched_exactly() -> None:
    events = decoded(b"Data: a\n data: b\ndatas: c\n\n")

    assert events == [Event(b"Data: a\n data: b\ndatas: c", stray=True)]


def test_pending_event_is_given_at_the_end() -> None:
    assert decoded(b"event: x\ndata: a") == [Event(b"a", "x")]


def test_event_without_data_is_none() -> None:
    assert decoded(b"event: x\n\nid: 1\n\n\n\n") == []


def test_lines_that_are_no_field_keep_their_place() -> None:
    events = decoded(b'data: a\n\n{"error": 1}\n\ndata: b\n<html>\n</html>\ndata: c\n\n')

    assert events == [
        Event(b"a"),
        Event(b'{"error": 1}', stray=True),
        Event(b"<html>\n</html>", stray=True),
        Event(b"b\nc"),
    ]


def test_invalid_utf8_passes_through() -> None:
    assert decoded(b"data: \xff\xfe\n\n") == [Event(b"\xff\xfe")]


def test_line_beyond_the_bound_is_refused() -> None:
    decoder = Decoder(max_event_bytes=100)

    for _ in range(100):
        decoder.feed(b"x")

    with pytest.raises(EventTooLarge):
        decoder.feed(b"x")


def test_event_of_many_lines_beyond_the_bound_is_refused() -> None:
    decoder = Decoder(max_event_bytes=100)

    with pytest.raises(EventTooLarge):
        decoder.feed(b"data: 1234567890\n" * 10)


def test_events_before_one_that_is_too_large_are_not_lost() -> None:
    decoder = Decoder(max_event_bytes=100)

    with pytest.raises(EventTooLarge) as caught:
        decoder.feed(b"data: a\n\ndata: " + b"x" * 200)

    assert caught.value.events == [Event(b"a")]


def test_bound_is_for_each_event_alone() -> None:
    assert len(Decoder(max_event_bytes=100).feed(b"data: 1234567890\n\n" * 1000)) == 1000


LINES = st.sampled_from(
    b"data: a|data:|data|data:  \xf0\x9f\x98\x80|id: 1|id: \0|event: e|retry: 1|: c|||{x|a: b|\xef\xbb\xbf|\xff".split(
        b"|"
    )
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b""])), max_size=12).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


@given(data=STREAMS | st.binary(max_size=60), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_any_cut_of_the_bytes_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = Decoder()

    events = [event for begin, end in pairwise(places) for event in decoder.feed(data[begin:end])] + decoder.flush()

    assert events == decoded(data)
    single = Decoder()
    assert [event for byte in data for event in single.feed(bytes([byte]))] + single.flush() == events
